"""Comparisons with real runs on MUSE and on user data, checked against the rows of the evaluation logs."""

import csv
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipo_lightning.cli import child
from dipo_lightning.cli.main import main
from dipo_lightning.data.prompts import prompt_style
from tests.helpers.acted import in_this_process
from tests.helpers.small_muse import said, write_muse
from tests.helpers.taught import teach
from tests.helpers.toys import save_toy, toy_tokenizer
from tests.helpers.user_run import FORGET, RETAIN

RATES = (1e-4, 5e-3)
SEEDS = (0, 1)
Numbers = dict[str, float]
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """A comparison that has run in ``folder``, and what its numbers are called.

    Attributes:
        folder: The user's folder; the comparison's is ``out`` in it.
        numbers: Computes the numbers of the table from the rows of an evaluation.
        columns: Label of each number in the table: forgetting, utility, and those beside.
        retain: Evaluation of the retain model, where the benchmark has one.
    """

    folder: Path
    numbers: Callable[[Document, Document | None], Numbers]
    columns: dict[str, str]
    retain: Document | None = None

    @property
    def forget(self) -> str:
        return next(iter(self.columns))

    @property
    def utility(self) -> str:
        return list(self.columns)[1]

    def run(self, part: str, method: str, seed: int, rate: float) -> list[Numbers]:
        """The numbers of a run from its logs, epoch by epoch, the target's first, with the utility kept."""
        [folder] = (self.folder / "out" / part / method).glob(f"lr={rate}/seed{seed}/evaluations")
        documents = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
        assert [document["provenance"]["epoch"] for document in documents] == [0, 1, 2]
        found = [self.numbers(document, self.retain) for document in documents]
        return [one | {"utility_kept": one[self.utility] / found[0][self.utility]} for one in found]

    def table(self, name: str = "comparison.csv") -> list[dict[str, str]]:
        with (self.folder / "out" / name).open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def lines(self) -> dict[str, dict[str, str]]:
        """The lines of the first table of the Markdown, by method."""
        text = (self.folder / "out" / "comparison.md").read_text(encoding="utf-8")
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
        head, end = rows[0], next((place for place, row in enumerate(rows[1:], 1) if row[0] == "method"), len(rows))
        return {row[0]: dict(zip(head, row, strict=True)) for row in rows[2:end]}

    def chosen(self) -> float:
        """The learning rate that the rule takes: of those that keep 0.95, the one that forgets most."""
        last = {rate: self.run("selection", "DiPO", 9, rate)[-1] for rate in RATES}
        keeping = {rate: one for rate, one in last.items() if one["utility_kept"] >= 0.95}
        if not keeping:
            return max(last, key=lambda rate: last[rate]["utility_kept"])
        return min(keeping, key=lambda rate: keeping[rate][self.forget])


def mean(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float]) -> float:
    return statistics.fmean(value(row) for row in rows)


def user_data_numbers(document: Document, retain: Document | None) -> Numbers:
    sets = document["sets"]
    found = {
        f"{name}_{what}": mean(sets[name], value)
        for name in ("forget", "retain")
        for what, value in (
            ("probability", lambda row: math.exp(-row["nll"])),
            ("rouge", lambda row: row["rouge_l_recall"]),
        )
    }
    return found | {"utility": statistics.harmonic_mean([found["retain_probability"], found["retain_rouge"]])}


def auc(document: Document) -> float:
    """Probability that a text of the holdout set has a lower Min-K score than one to forget."""
    forget, holdout = ([row["min_k"] for row in document["sets"][f"privleak_{name}"]] for name in ("forget", "holdout"))
    return statistics.fmean((other < one) + (other == one) / 2 for one in forget for other in holdout)


def muse_numbers(document: Document, retain: Document | None) -> Numbers:
    names = ("knowmem_forget", "knowmem_retain", "verbmem")
    found = {name: 100 * mean(document["sets"][name], lambda row: row["rouge"]) for name in names}
    if retain is not None:
        found["privleak"] = 100 * (auc(document) - auc(retain)) / auc(retain)
    return found


def write_comparison(config: dict[str, Any]) -> None:
    Path("base.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    methods: list[dict[str, Any]] = [
        {"name": "DiPO", "class_path": "dipo_lightning.DiPOModule", "grid": {"lr": list(RATES)}},
        {"name": "NPO", "class_path": "dipo_lightning.NPOModule", "settings": {"lr": RATES[1]}},
    ]
    plan = {"base": "base.yaml", "output": "out", "seeds": list(SEEDS), "methods": methods}
    plan["selection"] = {"seed": 9, "allow_same_data": True}
    Path("comparison.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")


QUIET = {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False}


def compare_user_data(folder: Path) -> Compared:
    """A user with two files of questions and answers, and a model that knows them."""
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        Path(f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    style = prompt_style("plain", toy_tokenizer())
    prompts = {row["question"]: style.prompt(row["question"]) for row in [*FORGET, *RETAIN]}
    examples = [style.example(row["question"], row["answer"])[0] for row in [*FORGET, *RETAIN]]
    pairs = zip(prompts.values(), examples, strict=True)
    teach(save_toy("model"), [(prompt, ids[len(prompt) :]) for prompt, ids in pairs], steps=150)
    evaluation = {"class_path": "MemorizationEvaluation", "init_args": {"measuring": {"max_new_tokens": 8}}}
    config = {
        "trainer": {**QUIET, "callbacks": [evaluation]},
        "model": {"pretrained": "model"},
        "data": {"forget": "forget.jsonl", "retain": "retain.jsonl", "prompt": "plain", "batch_size": 1},
    }
    write_comparison(config)
    columns = {"forget_probability": "forget: probability", "utility": "utility"}
    return Compared(folder, user_data_numbers, columns | {"forget_rouge": "forget: ROUGE-L recall"})


def compare_muse(folder: Path) -> Compared:
    """A user with a corpus in MUSE's layout, a target that knows it, and the log of a retain model."""
    data = write_muse(Path("corpus"))
    parts = ("knowmem_forget", "knowmem_retain", "verbmem")
    for name, sets in (("target", parts), ("retain", parts[1:2])):
        teach(save_toy(name), said(data, *sets), steps=60)
    options: dict[str, Any] = {"space": "answer", "verbmem_tokens": 12, "knowmem_tokens": 8}
    evaluation = {"class_path": "MUSEEvaluation", "init_args": options | {"baseline": "none"}}
    config: dict[str, Any] = {
        "trainer": {**QUIET, "callbacks": [evaluation], "default_root_dir": "retain_run"},
        "model": {"class_path": "DiPOModule", "init_args": {"pretrained": "retain"}},
        "data": {"class_path": "MUSEDataModule", "init_args": {"data": "corpus", "max_length": 64, "batch_size": 2}},
    }
    Path("test.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["test", "--config=test.yaml"]) == 0
    [log] = Path("retain_run").rglob("evaluations/*.json")
    evaluation["init_args"] = options | {"retain_log": str(log)}
    config["trainer"].pop("default_root_dir")
    config["model"]["init_args"] = {"pretrained": "target", "reduction": "mean"}
    write_comparison(config)
    columns = {"knowmem_forget": "KnowMem (forget)", "knowmem_retain": "KnowMem (retain)"}
    columns |= {"verbmem": "VerbMem", "privleak": "privacy leak"}
    return Compared(folder, muse_numbers, columns, json.loads(log.read_text(encoding="utf-8")))


@pytest.fixture(scope="module", params=[compare_muse, compare_user_data], ids=["muse", "user_data"])
def compared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compared]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("compared")
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(child, "start", in_this_process)
        made = request.param(folder)
        assert main(["compare", "comparison.yaml"]) == 0
        yield made


def runs(compared: Compared) -> dict[str, list[list[Numbers]]]:
    """The reported runs by method, a seed each."""
    rates = {"DiPO": compared.chosen(), "NPO": RATES[1]}
    return {method: [compared.run("runs", method, seed, rate) for seed in SEEDS] for method, rate in rates.items()}


def test_the_file_has_the_numbers_of_every_row(compared: Compared) -> None:
    rows = compared.table()
    names = [*compared.columns, "utility_kept"]
    for method, seeds in runs(compared).items():
        found = [row for row in rows if row["method"] == method]
        assert [(row["seed"], row["epoch"]) for row in found] == [
            (str(seed), epoch) for seed in SEEDS for epoch in "012"
        ]
        expected = [one for epochs in seeds for one in epochs]
        for row, numbers in zip(found, expected, strict=True):
            assert {name: float(row[name]) for name in names} == pytest.approx({name: numbers[name] for name in names})
    target = runs(compared)["NPO"][0][0]
    assert target[compared.utility] > 0
    for row in rows:
        if row["method"] == "target":
            assert float(row[compared.forget]) == pytest.approx(target[compared.forget])
            assert float(row["utility_kept"]) == 1


def test_the_setting_is_the_one_that_the_rule_takes(compared: Compared) -> None:
    rows = compared.table("selection.csv")
    for rate in RATES:
        last = compared.run("selection", "DiPO", 9, rate)[-1]
        found = [row for row in rows if row["settings"] == f"lr={rate}"][-1]
        assert float(found[compared.forget]) == pytest.approx(last[compared.forget])
        assert float(found["utility_kept"]) == pytest.approx(last["utility_kept"])
    assert {row["settings"] for row in compared.table() if row["method"] == "DiPO"} == {f"lr={compared.chosen()}"}
    text = (compared.folder / "out" / "comparison.md").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if line.endswith("| yes |")]
    assert line.startswith(f"| DiPO | lr={compared.chosen()} | 2 | ")


def test_the_table_has_the_means_over_seeds(compared: Compared) -> None:
    lines = compared.lines()
    labels = {**compared.columns, "utility_kept": "utility kept"}
    for method, seeds in runs(compared).items():
        assert (lines[method]["seeds"], lines[method]["epoch"]) == ("2", "2")
        for name, label in labels.items():
            values = [epochs[-1][name] for epochs in seeds]
            shown = [
                float(part) for part in lines[method][label].replace("[", "").replace("]", "").replace(",", "").split()
            ]
            wanted = [statistics.fmean(values), min(values), max(values)]
            tolerance = pytest.approx(wanted[: len(shown)], abs=5.1e-4, rel=1e-2)
            assert shown == tolerance
            assert len(shown) == (3 if min(values) < max(values) else 1)
    assert set(lines) == {"DiPO", "NPO", "target"} | ({"retain"} if compared.retain else set())


def test_the_retain_model_is_shown_where_the_benchmark_has_one(compared: Compared) -> None:
    rows = [row for row in compared.table() if row["method"] == "retain"]
    assert len(rows) == (len(SEEDS) if compared.retain else 0)
    if compared.retain is None:
        return
    own = compared.numbers(compared.retain, compared.retain)
    assert own["privleak"] == 0
    target = runs(compared)["NPO"][0][0]
    for row in rows:
        assert {name: float(row[name]) for name in compared.columns} == pytest.approx(own)
        assert float(row["utility_kept"]) == pytest.approx(own[compared.utility] / target[compared.utility])


def test_the_verdict_names_the_best_that_keeps_the_utility(compared: Compared) -> None:
    lasts = {method: [epochs[-1] for epochs in seeds] for method, seeds in runs(compared).items()}
    means = {
        method: {name: statistics.fmean(one[name] for one in rows) for name in (compared.forget, "utility_kept")}
        for method, rows in lasts.items()
    }
    keeping = [method for method, one in means.items() if one["utility_kept"] >= 0.95]
    verdict = (compared.folder / "out" / "comparison.md").read_text(encoding="utf-8").splitlines()[2]
    assert f"({len(keeping)} of 2 keep it)" in verdict if keeping else verdict.startswith("No method keeps 0.95")
    if keeping:
        least = min(means[method][compared.forget] for method in keeping)
        best = [method for method in keeping if means[method][compared.forget] == least]
        assert f": {' and '.join(best)}, " in verdict


def test_every_column_is_explained(compared: Compared) -> None:
    text = (compared.folder / "out" / "comparison.md").read_text(encoding="utf-8")
    wanted = "lower is better, to the level of a model that never knew the rows"
    assert f"- **{compared.columns[compared.forget]}** ({wanted}): " in text
    assert f"- **{compared.columns[compared.utility]}** (higher is better): " in text
    assert text.count("\n- **") == len(compared.columns)


def test_a_second_call_runs_nothing(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(arguments: list[str], log: Path, lock: object = None) -> int:
        pytest.fail(f"ran again: {arguments}")

    out = compared.folder / "out"
    before = {name: (out / name).read_bytes() for name in ("comparison.csv", "comparison.md", "selection.csv")}
    monkeypatch.setattr(child, "start", refuse)
    assert main(["compare", "comparison.yaml"]) == 0
    assert {name: (out / name).read_bytes() for name in before} == before
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
