"""Evidence for the defaults on real TOFU: settings are searched on some authors and reported on others.

    python -m tools.evidence --data TOFU_FOLDER --model MODEL --output FOLDER --workers 14 --device cuda --seconds 280
    python -m tools.evidence --output FOLDER            # the quickstart's tiny models, on a CPU

1. The split *search* has the 200 rows of forget10 that are not in forget05, the split *report* those of forget05 (or
   as many as ``--forget`` says, from the end of forget10), both with the same 401 retain rows of retain90, of which the
   search evaluates 100. A target and a retain model are fine-tuned for each. Of the quickstart's models, seed 100 is
   for the search, and seeds 0, 1 and 2 are reported.
2. On *search* every method tries the same number of settings; each of DiPO's pairs counts as a method.
3. The rule of `dipo_lightning.comparison.results` chooses settings and epoch for each method.
4. The choices run on *report* with three seeds; runs around DiPO's best choice, with one option changed at a time, have
   two.

``--default LR EPOCHS`` searches nothing: DiPO's default runs with that learning rate and number of epochs, followed by
the runs around it.

The same command resumes: finished jobs are not repeated. After ``--seconds`` no further run starts, and tables are made
of the runs so far: evidence.json (all numbers with intervals), comparison.md, .csv and .png, sensitivity.md and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.comparison.plan import Comparison, Selection
from dipo_lightning.comparison.report import Failure, Findings, write_report
from dipo_lightning.comparison.results import Candidate, Choice, Row, Scale, add_utility_kept, choose
from dipo_lightning.comparison.work import label
from dipo_lightning.errors import RunError
from dipo_lightning.evaluation.run_folder import write_json
from tools.evidence_jobs import RETAIN, SPLIT, Job, Setup, Workers, result_of
from tools.sensitivity import CENTRE, Point, group, text, write_sensitivity

Settings = dict[str, Any]
SELECTION = Selection(seed=0, epoch="any")
FACTORS = {
    "pair.alpha": (0.5, 1, 2, 4),
    "lr": (0.4, 1, 2.5),
    "beta": (0.2, 1, 5, 25),
    "lambda_": (0, 0.3, 1, 3),
    "pair.rho": (0.3, 1, 3, 10),
    "pair.k": (0.3, 1, 3, 10),
}
"""Factors by which the numbers of DiPO's choice are multiplied, one at a time."""
WORDS = {
    "pair.selection": ["relative", "top_k", "top_p"],
    "pair.memory_vector": ["centered", "raw", "contrast"],
    "reduction": ["sum", "mean"],
    "retain_loss": ["kl", "nll"],
}
"""Options that are words, with the values tried; the first is DiPO's default. Unless the choice sets ``lambda_``, it
follows ``reduction`` and ``retain_loss`` as in `DiPOModule`."""
NUMBERS = {"beta": 0.02, "lambda_": 40.0, "pair.alpha": 0.2, "pair.rho": 0.1, "pair.k": 10}
NOW: Settings = NUMBERS | {name: values[0] for name, values in WORDS.items()}
"""DiPO's default."""
SEARCHED_RETAIN = 100
"""Retain rows that are evaluated on *search*; all 401 are on *report*."""


def varied(now: Settings) -> dict[str, list[Any]]:
    """Return the values to try for each option that has an effect with the other options, the present one included."""
    selects = now["pair.memory_vector"] != "contrast"
    size = {"top_k": "pair.k", "relative": "pair.rho"}.get(now["pair.selection"])
    idle = {"pair.k", "pair.rho"} - {size} if selects else {"pair.k", "pair.rho", "pair.selection"}
    values = {
        option: [type(now[option])(round(now[option] * one, 8)) for one in scales] for option, scales in FACTORS.items()
    }
    return {option: found for option, found in {**values, **WORDS}.items() if option not in idle}


def product(*axes: Sequence[Settings]) -> list[Settings]:
    """Every combination of one entry of each axis."""
    found: list[Settings] = [{}]
    for axis in axes:
        found = [one | more for one in found for more in axis]
    return found


def values(name: str, *options: Any) -> list[Settings]:
    return [{name: option} for option in options]


Methods = dict[str, tuple[str, Settings, list[Settings]]]
"""Class, fixed settings, and the settings to choose among, by the name in tables."""


def methods(low: float, high: float, layer: int) -> Methods:
    """Return every method with four settings around two learning rates, RMU at a layer."""
    rates = values("lr", low, high)

    def pair(option: str, fixed: Settings, *options: float) -> tuple[str, Settings, list[Settings]]:
        return "DiPOModule", fixed | {"retain_loss": "nll", "lambda_": 1.0}, product(rates, values(option, *options))

    return {
        "DiPO top_k": pair("pair.alpha", {"pair.selection": "top_k"}, 0.4, 1.0),
        "DiPO relative": pair("pair.alpha", {"pair.selection": "relative"}, 0.2, 0.4),
        "DiPO contrast": pair("pair.alpha", {"pair.memory_vector": "contrast"}, 0.5, 1.0),
        "DiPO kl": (
            "DiPOModule",
            {"pair.selection": "relative", "pair.alpha": 0.2, "retain_loss": "kl"},
            product(values("lr", high, 2 * high), values("lambda_", 5.0, 40.0)),
        ),
        "DiPO entropy": pair("pair.alpha", {"pair.selection": "top_k", "pair.weighting": "entropy"}, 0.5, 1.0),
        "NPO": ("NPOModule", {}, product(rates, values("beta", 0.1, 0.5))),
        "SimNPO": ("SimNPOModule", {}, product(rates, values("beta", 2.5, 4.5))),
        "GradDiff": ("GradDiffModule", {}, values("lr", low / 4, low / 2, low, high)),
        "UNDIAL": (
            "UNDIALModule",
            {"lambda_": 1.0},
            product(values("lr", high, 2 * high), values("strength", 3.0, 10.0)),
        ),
        "RMU": ("RMUModule", {"layer": layer}, product(values("lr", low, high), values("coefficient", 2.0, 20.0))),
        "WGA": ("WGAModule", {}, values("lr", low / 2, low, high, 2 * high)),
        "SatImp": ("SatImpModule", {}, product(rates, values("beta1", 1.0, 5.0))),
    }


def is_own(method: str) -> bool:
    return method.startswith("DiPO")


def prepare_data(source: Path, work: Path, rows: int | None, forget: int = 200, taught: bool = False) -> None:
    """Write both splits as folders in TOFU's schema.

    Args:
        source: Folder of TOFU.
        work: Where ``data`` goes.
        rows: Number of rows to take from the start of each file; None for all.
        forget: Rows of *report*, from the end of forget10: 200 are those of forget05, 40 those of forget01.
        taught: Take retain rows in place of real authors and world facts, of which a toy model knows nothing.
    """
    lines = {
        path.stem: path.read_text(encoding="utf-8").splitlines() for path in source.glob("*.json") if path.is_file()
    }
    split = len(lines["forget10"]) - forget
    if not 0 < forget < len(lines["forget10"]):
        raise SystemExit(
            f"--forget is {forget}; forget10 has {len(lines['forget10'])} rows, of which the search needs some"
        )
    kept = {json.loads(line)["question"] for line in lines["retain_perturbed"]}
    retain = [line for line in lines["retain90"] if json.loads(line)["question"] in kept]
    shared = {name: lines[name] for name in ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")}
    if taught:
        shared = dict.fromkeys(shared, lines["retain_perturbed"])
    for name, part in (("search", slice(0, split)), ("report", slice(split, None))):
        folder = work / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = {SPLIT: lines["forget10"][part], f"{SPLIT}_perturbed": lines["forget10_perturbed"][part]}
        few = {"retain_perturbed": shared["retain_perturbed"][:SEARCHED_RETAIN]} if name == "search" else {}
        for file, content in {**files, RETAIN: retain, **shared, **few}.items():
            (folder / f"{file}.json").write_text("\n".join(content[:rows]) + "\n", encoding="utf-8")


class Evidence:
    """All stages of the work, and their findings.

    Args:
        setup: Settings that all jobs share.
        workers: Processes that do the jobs.
        output: Folder of the tables.
        methods: As `methods` returns them.
        seeds: Seeds of the runs that are reported.
        epochs: Epochs of a run in the search, which is evaluated at the end and after every ``every``-th epoch.
        every: See ``epochs``.
        searches: False takes each method's first setting, and all epochs, as the choice.
    """

    def __init__(
        self, setup: Setup, workers: Workers, output: Path, methods: Methods, seeds: Sequence[int] = (0, 1, 2),
        epochs: int = 5, every: int = 3, searches: bool = True,
    ) -> None:  # fmt: skip
        self.searches = searches
        self.seeds, self.epochs, self.every = list(seeds), epochs, every
        self.setup, self.workers, self.output, self.methods = setup, workers, output, methods
        self.scale = Scale.of(TOFU())
        self.findings = Findings(self.scale)
        if not searches:
            self.findings.choices = {name: Choice(grid[0], epochs) for name, (_, _, grid) in methods.items()}
        self.sensitivity: list[Point] = []

    def do(self) -> None:
        """Go through all stages for as long as the time allows, and write the tables."""
        self.workers.run(self.models)
        if any(result_of(job, self.setup) is None for job in self.models):
            raise SystemExit(f"A target or retain model is missing: {self.workers.failures or 'no time left'}")
        measured = [Job("measure", split) for split in self.splits]
        if self.searches:
            self.search(measured)
            own = self.own_choice()
        else:
            own = next(filter(is_own, self.methods), None)
        reported = {(name, seed): self.reported(name, seed) for seed in self.seeds for name in self.findings.choices}
        around = [] if own is None else [one for seed in self.seeds[:2] for one in self.around(own, seed)]
        in_turn = list(measured)
        for seed in self.seeds:
            in_turn += [job for (_, of), job in reported.items() if of == seed]
            in_turn += [job for _, _, job in around if job.seed == seed]
        self.workers.run(in_turn)
        for (name, _), job in reported.items():
            if rows := self.rows(job):
                self.findings.runs.setdefault((name, rows[-1]["settings"]), []).append(rows)
        self.sensitivity = group(found for option, value, job in around for found in self.points(option, value, job))
        self.write(own)

    def search(self, measured: list[Job]) -> None:
        """Measure the targets, try every method's settings on *search*, in turn, and choose."""
        tried = {name: [self.job(name, one, "search") for one in grid] for name, (_, _, grid) in self.methods.items()}
        longest = max(map(len, tried.values()))
        in_turn = [jobs[i] for i in range(longest) for jobs in tried.values() if i < len(jobs)]
        self.workers.run([*measured, *in_turn])
        self.choose(tried)

    def split(self, seed: int) -> str:
        """Return the split on which a seed is reported: the quickstart's seeds have their own."""
        return f"seed{seed}" if self.setup.tiny else "report"

    @property
    def splits(self) -> list[str]:
        """The names of all splits."""
        return ["search"] * self.searches + list(dict.fromkeys(map(self.split, self.seeds)))

    @property
    def models(self) -> list[Job]:
        """The jobs that make the models of all splits."""
        if self.setup.tiny:
            numbers = [100] * self.searches + self.seeds
            return [Job("quickstart", split, seed=seed) for split, seed in zip(self.splits, numbers, strict=True)]
        return [Job(kind, split) for split in self.splits for kind in ("retain", "target")]

    def job(self, name: str, settings: Settings, split: str, seed: int = 0, **more: Any) -> Job:
        """Return the run of a method's settings."""
        kind, fixed, _ = self.methods[name]
        more = {"epochs": self.epochs, "every": self.every} | more
        return Job("unlearn", split, name, kind, fixed | settings, seed, **more)

    def reported(self, name: str, seed: int, **changes: Any) -> Job:
        """Return the run of a method's choice, up to its epoch, with some settings changed."""
        choice = self.findings.choices[name]
        return self.job(name, choice.settings | changes, self.split(seed), seed, epochs=choice.epoch, every=None)

    def rows(self, job: Job) -> list[Row] | None:
        """Return the rows of a job after those of its target, with the utility kept; None if there are none yet."""
        target = result_of(Job("measure", job.split), self.setup)
        found = result_of(job, self.setup)
        if not target or not found:
            return None
        rows = [target[0] | {"seed": job.seed, "step": 0}, *found]
        add_utility_kept(rows, target[0], self.scale)
        return rows

    def choose(self, tried: dict[str, list[Job]]) -> None:
        """Choose settings and epoch of every method by the rule."""
        for name, jobs in tried.items():
            found = [(job, rows) for job in jobs if (rows := self.rows(job))]
            candidates = [Candidate(name, job.settings, label(job.settings), rows) for job, rows in found]
            self.findings.candidates += candidates
            try:
                self.findings.choices[name] = choose(candidates, SELECTION, self.scale)
            except RunError as error:
                self.workers.failures[name] = str(error)

    def own_choice(self) -> str | None:
        """Return the name of the DiPO pair that the rule prefers among all of them."""
        tried = [one for one in self.findings.candidates if is_own(one.method) and one.method in self.findings.choices]
        best = [replace(one, settings={"method": one.method}) for one in tried]
        return choose(best, SELECTION, self.scale).settings["method"] if best else None

    def around(self, name: str, seed: int) -> Iterable[tuple[str, str, Job]]:
        """Yield a seed's runs around DiPO's choice as option, value and job: the choice first, then one per change."""
        choice, fixed = self.findings.choices[name], self.methods[name][1]
        now: Settings = NOW | fixed | choice.settings
        yield CENTRE, "", self.reported(name, seed)
        longer = 2 * (choice.epoch or self.epochs)
        course = {"epochs": longer, "every": max(1, round(longer / 4))}
        yield "epochs", "", self.job(name, choice.settings, self.split(seed), seed, **course)
        places = self.setup.places(self.split(seed))
        rows = len((places.data / f"{places.retain}.json").read_text(encoding="utf-8").splitlines())
        now["data.max_retain_rows"] = rows
        for option, options in (varied(now) | {"data.max_retain_rows": [rows // 4, rows // 2, rows]}).items():
            for value in options:
                changed = {} if value == now[option] else {option: value}
                yield option, text(value), self.reported(name, seed, **changed)

    def points(self, option: str, value: str, job: Job) -> list[tuple[str, str, Row]]:
        """Return the points of one of these runs: its end, or every epoch where the number of epochs varies."""
        rows = [row for row in self.rows(job) or [] if row["step"]]
        if option == "epochs":
            return [(option, str(row["epoch"]), row) for row in rows]
        at_end = [(option, value, row) for row in rows[-1:]]
        return [*at_end, *(("epochs", str(row["epoch"]), row) for _, _, row in at_end if option == CENTRE)]

    def write(self, own: str | None) -> None:
        """Write the tables, the pictures and evidence.json."""
        self.output.mkdir(parents=True, exist_ok=True)
        retain = []
        for seed in self.seeds:
            kind: Any = "quickstart" if self.setup.tiny else "retain"
            found = result_of(Job(kind, self.split(seed)), self.setup) or []
            target = result_of(Job("measure", self.split(seed)), self.setup)
            named = {"method": "retain", "seed": seed, "epoch": None, "step": None}
            rows = [row | TOFU().retain_values | named for row in found[-1:]]
            add_utility_kept(rows, target[0] if target else None, self.scale)
            retain += rows
        self.findings.retain = retain
        self.findings.failures = [Failure(name, reason) for name, reason in self.workers.failures.items()]
        plan = Comparison(self.setup.model, str(self.output), seeds=self.seeds, selection=SELECTION)
        plain_choices = {name: vars(choice) for name, choice in self.findings.choices.items()}
        write_json(
            self.output / "evidence.json",
            {
                "seconds": self.workers.elapsed,
                "setup": {name: str(value) for name, value in vars(self.setup).items()},
                "target": {split: result_of(Job("measure", split), self.setup) for split in self.splits},
                "retain": retain,
                "search": [row for one in self.findings.candidates for row in one.rows],
                "choices": plain_choices,
                "own": own,
                "report": [row for runs in self.findings.runs.values() for rows in runs for row in rows],
                "sensitivity": [vars(point) for point in self.sensitivity],
                "failures": self.workers.failures,
                "left_out": self.workers.left_out,
            },
        )
        print(write_report(plan, self.findings))
        if self.sensitivity and own:
            head = f"Around {own}, {label(self.findings.choices[own].settings)}"
            print(write_sensitivity(self.sensitivity, self.output, head))


def smoke(setup: Setup) -> tuple[Setup, Methods]:
    """Return a toy model and few settings, with which all stages take a minute."""
    from tests.helpers.toys import save_toy

    folder = setup.work / "toy"
    if not folder.is_dir():
        save_toy(folder)
    tiny = replace(setup, model=str(folder), teaching=(1e-2, 150, 8), batch_size=4, resamples=200)
    found = methods(2e-5, 5e-5, layer=0).items()
    return tiny, {name: (kind, fixed, grid[: 2 if name == "NPO" else 1]) for name, (kind, fixed, grid) in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of TOFU's JSON-lines files")
    parser.add_argument(
        "--model", default="quickstart", help="base model, folder or GGUF file; without it the tiny ones"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--work", type=Path, help="folder of data, models and runs; OUTPUT/work without it")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--seconds", type=float, default=1e9, help="no run is begun after so many")
    parser.add_argument("--rows", type=int, help="only the first so many rows of each file")
    parser.add_argument("--forget", type=int, default=200, help="rows to forget on *report* (default: %(default)s)")
    parser.add_argument(
        "--default", nargs=2, type=float, metavar=("LR", "EPOCHS"), help="no search: DiPO's default, and around it"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the reported runs")
    parser.add_argument("--batch-size", type=int, default=16, help="forget rows per step (default: %(default)s)")
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="of the table, such as NPO or 'DiPO relative'; all"
    )
    parser.add_argument("--smoke", action="store_true", help="a toy model and four rows: walk every stage")
    given = parser.parse_args()
    measuring = {"max_new_tokens": 50}
    if given.device == "cuda":
        measuring |= {"batch_tokens": 4096, "generation_rows": 256}
    work = (given.work or given.output / "work").resolve()
    setup = Setup(given.model, work, given.device, given.precision, given.batch_size, measuring=measuring)
    work.mkdir(parents=True, exist_ok=True)
    course: dict[str, Any] = {"seeds": given.seeds}
    if given.smoke:
        setup, compared = smoke(setup)
        course |= {"seeds": [1], "epochs": 2, "every": 1}
    elif setup.tiny:
        compared = methods(2.5e-4, 5e-4, layer=0)
        course |= {"epochs": 10, "every": 5}
    else:
        compared = methods(2e-5, 5e-5, layer=7)
    if given.default:
        rate, epochs = given.default
        compared = {"DiPO": ("DiPOModule", {}, [{"lr": rate}])}
        course |= {"epochs": int(epochs), "searches": False}
    if given.methods:
        if unknown := set(given.methods) - set(compared):
            parser.error(f"--methods: {', '.join(sorted(unknown))}; there are {', '.join(compared)}")
        compared = {name: compared[name] for name in given.methods}
    facts = {name: getattr(given, name) for name in ("model", "rows", "forget", "batch_size", "smoke")}
    known = work / "setup.json"
    if known.is_file() and json.loads(known.read_text(encoding="utf-8")) != facts:
        parser.error(f"{work} has results of other settings: {known.read_text(encoding='utf-8')}; name another --work")
    write_json(known, facts)
    if not setup.tiny:
        if given.data is None:
            parser.error("--data names the folder of TOFU")
        prepare_data(given.data, work, 4 if given.smoke else given.rows, given.forget, taught=given.smoke)
    Evidence(setup, Workers(setup, given.workers, given.seconds), given.output, compared, **course).do()


if __name__ == "__main__":
    main()
