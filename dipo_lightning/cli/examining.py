"""Examinations of the models of ``forget``, each made once, and the verdict on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dipo_lightning
from dipo_lightning.safety.paths import with_home

if TYPE_CHECKING:
    from dipo_lightning.cli.forget import SplitRows
    from dipo_lightning.data.encoding import PromptStyle

EXAMINATIONS, VERDICT = "examinations", "verdict.json"
"""Folder of the examinations in the folder of the run, and file of the verdict there."""
NEIGHBOURS = 50
"""Maximum number of held-out rows that are examined."""


@dataclass(frozen=True)
class Job:
    """Inputs that all examinations of a run share: its folder, rows, prompt style and accelerator."""

    folder: Path
    rows: SplitRows
    style: PromptStyle
    accelerator: str


def longest_answer(job: Job) -> int:
    """Maximum length of an examined answer in tokens."""
    from dipo_lightning.evaluation.sampling import answer_room

    return answer_room(max(len(job.style.answer_ids(row["answer"])) for row in job.rows.forget))


def examined(job: Job, model: str, effort: dict[str, int], name: str) -> Any:
    """Examine a model; a second call with the same model, rows, values and effort reads what the first one found."""
    from dipo_lightning.benchmarks.user_data.examination import Examination, ExaminationOptions, examine
    from dipo_lightning.benchmarks.user_data.probes import TEMPLATES, neighbours, rewordings

    rows, options = job.rows, ExaminationOptions(**effort)

    def found() -> dict[str, Any]:
        near = [rows.held_out[i] for i in neighbours(rows.forget, rows.held_out, NEIGHBOURS)]
        with _loaded(model, job.accelerator) as policy:
            examination = examine(
                policy,
                job.style,
                rows.forget,
                rows.retain,
                near,
                options=options,
                progress=lambda what: print(f"{name} model: {what}", flush=True),
            )
        return asdict(examination)

    asked = [rewordings(row, TEMPLATES[: options.rewordings]) for row in rows.forget]
    of = {
        "version": dipo_lightning.__version__, "model": _files(model), "rows": asdict(rows),
        "style": job.style.fingerprint(), "asked": asked, **effort,
    }  # fmt: skip
    return Examination(**_once(job.folder / EXAMINATIONS / f"{name}.json", of, found))


def paraphrased(job: Job, model: str, count: int, seed: int) -> SplitRows:
    """The rows with the target's paraphrases of the forget questions after their own; they are generated once."""
    from dipo_lightning.benchmarks.user_data.probes import own_paraphrases, rewordings

    def found() -> list[list[str]]:
        with _loaded(model, job.accelerator) as policy:
            return own_paraphrases(policy, job.style, job.rows.forget, count, seed)

    questions = [row["question"] for row in job.rows.forget]
    of = {
        "version": dipo_lightning.__version__,
        "model": _files(model),
        "questions": questions,
        "style": job.style.fingerprint(),
        "count": count,
        "seed": seed,
    }
    paraphrases = _once(job.folder / EXAMINATIONS / "paraphrases.json", of, found)
    print(f"The target asks {sum(map(len, paraphrases))} questions in its own words.", flush=True)
    forget = [
        {**row, "paraphrased_question": [*rewordings(row, ()), *own]}
        for row, own in zip(job.rows.forget, paraphrases, strict=True)
    ]
    return replace(job.rows, forget=forget)


def _once(path: Path, of: dict[str, Any], make: Callable[[], Any]) -> Any:
    """Return the result in a file if its key is ``of``; else make the result and write both."""
    from dipo_lightning.evaluation.run_folder import write_json

    key = json.loads(json.dumps(of))
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # damaged: made anew
        written = None
    if isinstance(written, dict) and written.get("of") == key and "found" in written:
        return written["found"]
    found = make()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_json(path, {"of": key, "found": found})
    return found


def _files(model: str) -> list[Any]:
    """Name, size and time of a local model's files; a hub model is its name."""
    path = with_home(model)
    files = sorted(path.glob("*")) if path.is_dir() else [path]
    kept = [file for file in files if file.suffix in (".safetensors", ".gguf", ".json")]
    return [model, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in kept if file.exists())]


@contextmanager
def _loaded(model: str, accelerator: str) -> Iterator[Any]:
    """Load a model onto the device that the run trains on, and free that memory afterwards."""
    import torch

    from dipo_lightning.models.loading import load_policy

    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    policy = load_policy(model).to("cuda" if gpu else "cpu")  # type: ignore[arg-type]
    try:
        yield policy
    finally:
        policy.to("cpu")
        if gpu:
            torch.cuda.empty_cache()


def conclude(
    job: Job, unlearned: Path, before: Any, after: Any, floors: Any, settings: dict[str, Any], checked: bool
) -> None:
    """Judge, write and print.

    Args:
        job: Inputs of the run.
        unlearned: Folder of the unlearned model.
        before: Examination of the target.
        after: Examination of the unlearned model.
        floors: Examination of the untaught model, or None.
        settings: Everything that was given or chosen, by name; all of it is stored.
        checked: Whether the method checks the policy during training.
    """
    from dipo_lightning.benchmarks.user_data.examination import kept_scores, repeated_share, said_words, value_reports
    from dipo_lightning.benchmarks.user_data.verdict import KEEP, judge, verdict_table, verdict_text
    from dipo_lightning.evaluation.run_folder import write_json, write_text
    from dipo_lightning.report.page import PAGE, verdict_page

    folder, rows = job.folder, job.rows
    stopped, steps, ending = _end_of(folder / "run")
    verdict = judge(
        value_reports(before, after, floors),
        kept_scores(before, after),
        words=said_words(before, after, [*rows.forget, *rows.retain, *rows.held_out], job.style.tokenizer),
        repeated=repeated_share(after),
        repeated_before=repeated_share(before),
        unheard=_unheard(job, after.values, settings["max_new_tokens"]),
        bare=sum(not values for values in after.values),
        ended=_ended(stopped, steps, ending, checked),
        settings=settings | {"stopped": stopped},
    )
    document = verdict.document() | {"settings": settings}
    write_json(folder / VERDICT, document)
    facts = {
        "method": settings["method"].rpartition(".")[2],
        "rows": f"{len(rows.forget)} to forget, {len(rows.retain)} kept, {len(rows.held_out)} held out",
        "learning rate": f"{settings['lr']:g}",
        "forget rows per step": str(settings["batch_size"]),
        "passes at most": str(settings["epochs"]),
        "prompt style": job.style.name,
        "seed": str(settings["seed"]),
        "samples per question": str(settings["samples"]),
    }
    answers = [
        {"question": row["question"], "answer": row["answer"], "before": old, "after": new}
        for row, old, new in zip(rows.forget, before.greedy, after.greedy, strict=True)
    ]
    write_text(folder / PAGE, verdict_page(document, facts, answers, KEEP))
    card = unlearned / "README.md"
    if card.exists():
        kept, _, _ = card.read_text(encoding="utf-8").partition("\n## Verdict\n")
        write_text(card, f"{kept}\n## Verdict\n\n{verdict_text(verdict, private=False)}\n")
    print(f"\n{verdict_table(verdict)}\n\n{verdict_text(verdict)}\n\nThe unlearned model: {unlearned}")
    print(f"Everything measured: {folder / PAGE} and {VERDICT}")


def _end_of(run: Path) -> tuple[bool, int, str]:
    """Return whether a run was ended by a rule, its number of steps, and what ended it if its method says so."""
    from dipo_lightning.callbacks.checkpoint import newest
    from dipo_lightning.callbacks.run_record import CHECKPOINTS
    from dipo_lightning.methods.selective.checks import NOTHING_LEFT
    from dipo_lightning.models.checkpoint import read_settled

    last = newest(run / CHECKPOINTS)
    checkpoint = {} if last is None else read_settled(last)
    stopped = checkpoint.get("callbacks", {}).get("Checkpoint", {}).get("stopped")
    ending = checkpoint.get("ending", NOTHING_LEFT if "checked" in checkpoint else "")
    return bool(stopped), checkpoint.get("global_step", 0), ending


def _ended(stopped: bool, steps: int, ending: str, checked: bool) -> str:
    """Return a sentence on what ended a run: its own rule, or its number of steps."""
    if stopped:
        return f"The run ended by its own rule after {steps} steps{f': {ending}' if ending else ''}."
    best = ": every check found something left to forget, so the model of the best check was exported"
    return f"The run took all of its {steps} steps{best if checked else ''}."


def _unheard(job: Job, values: Sequence[Sequence[str]], longest: int) -> int:
    """Number of private values that lie beyond the maximum length of an examined answer."""
    rows = zip(job.rows.forget, values, strict=True)
    return sum(len(beyond(job.style, row["answer"], some, longest)) for row, some in rows)


def beyond(style: PromptStyle, answer: str, values: Sequence[str], longest: int) -> list[str]:
    """Return the values that the first tokens of an answer, ``longest`` of them, do not say."""
    from dipo_lightning.data.mentions import says

    heard = str(style.tokenizer.decode(style.answer_ids(answer)[:longest]))
    return [value for value in values if not says(heard, value)]
