"""``dipo-lightning compare``: methods, settings and seeds side by side, on one base."""

from __future__ import annotations

from pathlib import Path

from dipo_lightning.comparison.plan import read_comparison
from dipo_lightning.comparison.report import write_report
from dipo_lightning.comparison.work import Work
from dipo_lightning.errors import RunError

__all__ = ["compare"]


def compare(comparison: str, dry_run: bool = False) -> None:
    """Run methods side by side, and write a table, comparison.csv and a picture.

    Runs that are finished are not run again, and an interrupted one resumes from its last checkpoint. A run that fails
    is reported, and the others continue.

    Args:
        comparison: YAML file of the comparison, such as compare/quickstart.
        dry_run: List the runs without starting any.
    """
    plan = read_comparison(comparison)
    work = Work(plan)
    if dry_run:
        print("\n".join(work.planned()))
        return
    try:
        findings = work.do()
    except KeyboardInterrupt as interrupt:
        raise RunError("Interrupted. The same command resumes from here.") from interrupt
    finally:
        work.lock.release()
    text = write_report(plan, findings)
    names = ("comparison.md", "comparison.csv", "comparison.png")
    written = [name for name in names if (Path(plan.output) / name).is_file()]
    print(f"\n{text}\nEverything is in {plan.output}: {', '.join(written)} and the runs.")
    if findings.failures:
        failed = ", ".join(failure.title for failure in findings.failures)
        raise RunError(f"{failed} failed; {plan.output}/comparison.md says why and has the others.")
