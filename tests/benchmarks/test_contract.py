"""A benchmark and a metric from outside the package: through fit, score, report and compare."""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torchmetrics import Metric

from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.cli import child
from dipo_lightning.cli.main import main
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import (
    add_measured,
    aggregates,
    flat_numbers,
    metric_collection,
    metric_meanings,
    metric_specs,
    user_metrics,
)
from dipo_lightning.evaluation.benchmark import find_benchmark, installed_benchmarks
from dipo_lightning.evaluation.callback import Evaluation, print_lines
from dipo_lightning.metrics import ParaphraseROUGE, RowMean
from dipo_lightning.metrics.base import Rows, meanings
from tests.helpers import user_project
from tests.helpers.synthetic import DATA
from tests.helpers.toys import save_toy
from tests.helpers.user_project import CAPITALS, Capitals, Invented, Words

CLASS = "tests.helpers.user_project.CapitalsEvaluation"
WORDS, LETTERS = "tests.helpers.user_project.Words", "tests.helpers.user_project.Letters"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a toy model, its rows, and a base that evaluates on capitals."""
    monkeypatch.chdir(tmp_path)
    save_toy("model")
    for name, capitals in CAPITALS.items():
        rows = [{"question": f"Capital of {country}?", "answer": capital} for country, capital in capitals.items()]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config: dict[str, Any] = {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": CLASS, "init_args": {"metrics": {"letters": LETTERS}}}],
        },
        "model": {"class_path": "dipo_lightning.GradDiffModule", "init_args": {"pretrained": "model"}},
        "data": {
            "class_path": "dipo_lightning.UnlearningDataModule",
            "init_args": {"forget": "asked.jsonl", "retain": "kept.jsonl", "prompt": "plain", "batch_size": 1},
        },
    }
    Path("base.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_made_up_benchmark_and_metric_go_all_the_way(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = [{"name": "GradDiff"}, {"name": "NPO", "class_path": "dipo_lightning.NPOModule"}]
    plan = {"base": "base.yaml", "output": "out", "seeds": [0], "methods": methods}
    Path("comparison.yaml").write_text(yaml.safe_dump(plan))
    monkeypatch.setattr(child, "start", lambda arguments, log, lock: log.write_text("here") and main(arguments))
    assert main(["compare", "comparison.yaml"]) == 0
    said = capsys.readouterr().out
    assert "Capitals, epoch 1, step 2:" in said
    assert "asked: capitals known" in said
    assert "letters of the answers" in said
    with open("out/comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[5:8] == ["asked_known", "kept_known", "utility_kept"]
    assert {row["letters"] for row in rows} == {"4.0"}
    text = Path("out/comparison.md").read_text()
    assert "| asked: capitals known | kept: capitals known | utility kept | letters of the answers |" in text
    run = next(Path("out/runs/NPO").rglob("evaluations")).parent
    last = max(run.glob("evaluations/*.json"))
    assert last.name.startswith("capitals_epoch=001")
    found = score(last)
    assert found["stored_aggregates_hold"] is True
    assert found["letters"] == 4.0
    assert found["asked_known"] == json.loads(last.read_text())["aggregates"]["asked_known"]
    assert main(["report", str(run)]) == 0
    page = (run / "results.html").read_text()
    for words in (
        "Capitals",
        "capitals known on capitals to forget",
        "Share of the capital",
        "letters of the answers",
        "Known",
    ):
        assert words in page, words


def test_a_broken_row_of_a_made_up_benchmark_is_named(tmp_path: Path) -> None:
    log = {"format": Capitals.format, "benchmark": f"{user_project.__name__}.Capitals", "settings": {}, "sets": {}}
    path = tmp_path / "log.json"
    for row, message in (({"index": 0}, "has no known"), ({"index": 0, "known": "yes"}, "known should be a number")):
        path.write_text(json.dumps(log | {"sets": {"asked": [row]}}))
        with pytest.raises(InputError, match=message):
            score(path)
    path.write_text(json.dumps(log | {"benchmark": "nowhere.Capitals"}))
    with pytest.raises(InputError, match=r"unknown format 'my-project/capitals/1'.*nowhere\.Capitals, cannot"):
        score(path)
    path.write_text(json.dumps(log | {"benchmark": "pathlib.Path"}))
    with pytest.raises(InputError, match="unknown format"):
        score(path)


def test_the_package_s_own_benchmarks_are_folders() -> None:
    assert {"muse", "tofu", "user_data"} <= {one.name for one in installed_benchmarks()}
    assert len({one.format for one in installed_benchmarks()}) == len(installed_benchmarks())
    found = find_benchmark("locuslab/tofu")
    assert found is not None
    assert found.name == "tofu"
    assert find_benchmark("of somebody else") is None


def log_with(tmp_path: Path, chosen: dict[str, Any], stored: float) -> Path:
    log = json.loads((DATA / "target_native.json").read_text())
    log["settings"]["metrics"] = chosen
    log["aggregates"]["words"] = stored
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    return path


def test_score_computes_the_metrics_that_a_log_names(tmp_path: Path) -> None:
    found = score(log_with(tmp_path, {"words": WORDS}, 7.0))
    assert (found["words"], found["stored_aggregates_hold"]) == (7.0, True)
    found = score(log_with(tmp_path, {"words": WORDS}, 8.0))
    assert found["stored_aggregates_differ"] == {"words": {"stored": 8.0, "recomputed": 7.0}}


@pytest.mark.parametrize(
    ("benchmark", "unchecked"),
    [("tests.helpers.user_project.WordyTOFU", False), ("nowhere.WordyTOFU", True), (f"{__name__}.Path", True)],
)
def test_the_benchmark_of_a_log_is_of_the_class_that_it_names(tmp_path: Path, benchmark: str, unchecked: bool) -> None:
    path = log_with(tmp_path, {}, 7.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"benchmark": benchmark}))
    found = score(path, DATA / "retain_native.json")  # of the benchmark itself, whose rows are the same
    assert found["stored_aggregates_hold"] is not unchecked
    assert ("words" in found) is not unchecked


@pytest.mark.parametrize("content", ["raise RuntimeError('no display')", "def"])
def test_score_leaves_out_a_metric_whose_module_fails(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_project.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    found = score(log_with(tmp_path, {"words": "failing_project.Words"}, 7.0))
    assert "failing_project.Words cannot be imported" in found["words_absent"]
    failing = {"class_path": WORDS, "init_args": {"sets": 3}}
    assert "cannot be built" in score(log_with(tmp_path, {"words": failing}, 7.0))["words_absent"]


@pytest.mark.parametrize(("field", "taken"), [("nll", True), ("paraphrased_rouge", True), ("mine", False)])
def test_a_metric_cannot_replace_a_measured_field(field: str, taken: bool) -> None:
    class Replacing(RowMean):
        def measured(self, row: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, float | None]:
            return {field: 0.0}

    sets: dict[str, Any] = {"forget": [{"index": 0, "nll": 2.0, "generation": "Ann."}]}
    metrics = [ParaphraseROUGE("forget"), ParaphraseROUGE("forget"), Replacing("forget"), Replacing("forget")]
    with pytest.raises(InputError, match=rf"Replacing\.measured\(\) returns .*'{field}'") if taken else nullcontext():
        add_measured(metrics, sets, {"forget": [{"index": 0, "paraphrased_answer": "Ann."}]})
    assert sets["forget"][0] == {"index": 0, "nll": 2.0, "generation": "Ann.", "paraphrased_rouge": 1.0} | (
        {} if taken else {"mine": 0.0}
    )


def test_metrics_of_one_class_share_a_field_only_with_the_same_values() -> None:
    class Scaled(RowMean):
        def __init__(self, scale: float) -> None:
            super().__init__("forget")
            self.scale = scale

        def measured(self, row: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, float | None]:
            return {"scaled": self.scale * source["index"]}

    def measure(*scales: float) -> list[float]:
        sets: dict[str, Any] = {"forget": [{"index": 0}, {"index": 1}]}
        add_measured([Scaled(scale) for scale in scales], sets, {"forget": [{"index": 0}, {"index": 1}]})
        return [row["scaled"] for row in sets["forget"]]

    assert measure(2.0, 2.0) == [0.0, 2.0]
    assert all(map(math.isnan, measure(math.nan, math.nan)))
    with pytest.raises(InputError, match=r"Scaled\.measured\(\) returns the field 'scaled', which .* already"):
        measure(1.0, 2.0)


@pytest.mark.parametrize("number", [0.5, math.nan])
def test_a_dictionary_cannot_replace_a_number_of_another_metric(number: float) -> None:
    class Single(Metric):
        def update(self, rows: Rows) -> None:
            pass

        def compute(self) -> Any:
            return torch.tensor(number)

    class Group(Single):
        def compute(self) -> Any:
            return {"bleu": torch.tensor(0.25), "probability": torch.tensor(1e-9)}

    found = aggregates(metric_collection({"forget_probability": Single(), "mine": Group()}), {})
    assert set(flat_numbers(found)) >= {"mine_bleu", "mine_probability"}
    with pytest.raises(InputError, match=r"metrics\.forget: another metric publishes forget_probability;"):
        aggregates(metric_collection({"forget_probability": Single(), "forget": Group()}), {})


def test_score_takes_a_metric_that_is_given_and_leaves_out_what_it_cannot_import(tmp_path: Path) -> None:
    path = log_with(tmp_path, {"words": "nowhere.Words"}, 7.0)
    found = score(path)
    assert "words" not in found
    assert "nowhere.Words cannot be imported" in found["words_absent"]
    assert found["stored_aggregates_unchecked"] == ["words"]
    assert found["stored_aggregates_hold"] is True
    spec = {"class_path": WORDS, "init_args": {"sets": ["forget"]}}
    assert score(path, metrics={"words": spec})["words"] == 7.0
    assert main(["score", str(path), "--metrics", json.dumps({"words": WORDS})]) == 0


def test_score_does_not_guess_the_arguments_of_a_metric_that_was_an_object(tmp_path: Path) -> None:
    chosen = metric_specs({"words": Words(("retain",)), "invented": Invented()})
    assert chosen["invented"] == "tests.helpers.user_project.Invented", "it takes none"
    found = score(log_with(tmp_path, chosen, 5.0))
    assert "words" not in found
    assert "tests.helpers.user_project.Words" in found["words_absent"]
    assert (found["stored_aggregates_unchecked"], found["stored_aggregates_hold"]) == (["words"], True)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"words": "nowhere.Words"}, "nowhere.Words cannot be imported"),
        ({"words": "pathlib.Path"}, "pathlib.Path is not a torchmetrics.Metric"),
        ({"words": "torchmetrics.text.BLEUScore"}, r"metrics.words: the update of .*BLEUScore takes preds, target"),
        ({"words": {"class_path": WORDS, "init_args": {"setts": 1}}}, "cannot be built from its init_args"),
        ({"words": 3}, "metrics.words is 3; give a class, .*; in Python, an object of such a class"),
        ({"words": int}, "metrics.words is .*'int'"),
        ({"model_utility": WORDS}, "the name is taken"),
        ({"forget_quality_p": WORDS}, "another metric publishes forget_quality_p"),
        ({"my words": Words()}, "not an identifier"),
        (
            {"words": {"class_path": WORDS, "init_args": {"sets": ["reatin"]}}},
            "there is no set reatin; there are forget",
        ),
    ],
)
def test_a_metric_that_cannot_be_is_refused(chosen: dict[str, Any], message: str) -> None:
    evaluation = TOFUEvaluation(metrics=chosen)
    evaluation.__class__ = type("Ready", (TOFUEvaluation,), {"settings": {}})  # as after `check`
    with pytest.raises(InputError, match=message):
        evaluation.prepare_metrics()


def test_a_metric_may_be_its_class() -> None:
    assert isinstance(user_metrics({"words": Words}, {}, TOFU.sets)["words"], Words)
    assert metric_specs({"words": Words}) == {"words": WORDS}
    with pytest.raises(InputError, match=r"TOFUEvaluation\.metrics is \[.*give metrics by name"):
        TOFUEvaluation(metrics=[Words()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda row: row["nope"], r"metrics\.mine: .*Mine fails on the evaluated rows with KeyError: 'nope'"),
        (lambda row: "a", r"metrics\.mine: .*ValueError.*It must give a number"),
    ],
)
def test_a_metric_that_fails_on_rows_is_named(value: Any, message: str) -> None:
    mine = type("Mine", (Words,), {"value": lambda self, row: value(row)})()
    with pytest.raises(InputError, match=message):
        aggregates(metric_collection({"mine": mine}), {"forget": [{"index": 0}]})


@pytest.mark.parametrize("name", ["tofu", "muse", "user_data"])
def test_an_evaluation_prints_one_line_also_in_a_narrow_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    [benchmark] = [one for one in installed_benchmarks() if one.name == name]
    evaluation = Evaluation()
    evaluation.benchmark, evaluation.meanings = benchmark, metric_meanings(benchmark.metrics({}))
    numbers = dict.fromkeys(benchmark.brief, 0.1234) | {"forget_quality_p": 1.23e-18}
    document = {"aggregates": numbers, "provenance": {"epoch": 16, "step": 640}}
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    whole = evaluation.line(document)
    assert whole.startswith("epoch  16, step   640: ")
    assert all(f"{evaluation.meanings[key].label.replace(':', '')} 0.123" in whole for key in list(benchmark.brief)[1:])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for width, shown in ((62, 4), (60, 3), (30, 1)):
        monkeypatch.setenv("COLUMNS", str(width))
        short = evaluation.line(document)
        assert len(short) <= width
        assert short.startswith("epoch 16: ")
        labels = list(benchmark.brief.values())
        assert [label for label in labels if f" {label} " in short][:shown] == labels[:shown]


def test_an_evaluation_draws_its_bar_beside_a_plain_one_alone(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = {}
    for bar in (TQDMProgressBar(), RichProgressBar(), None):
        trainer: Any = SimpleNamespace(is_global_zero=True, progress_bar_callback=bar)
        with TOFUEvaluation().progress(trainer, 3, "questions answered") as count:
            count(3)
        drawn[type(bar)] = "questions answered" in capsys.readouterr().err
    assert drawn == {TQDMProgressBar: True, RichProgressBar: False, type(None): False}


SECTIONS = {"tofu": "TOFU", "muse": "MUSE", "user_data": "Your own data"}


@pytest.mark.parametrize("name", SECTIONS)
def test_the_documentation_has_every_number_with_its_unit_and_direction(name: str) -> None:
    [benchmark] = [one for one in installed_benchmarks() if one.name == name]
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md").read_text()
    section = page.partition(f"## {SECTIONS[benchmark.name]}\n")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "| `" in line]
    attacks = "loss|zlib|min_k|min_k_plus_plus|gradnorm|reference"
    scores = "nll|lower|zlib|min_(5|10|20|30|40|50|60)"
    words = {
        "SET": f"({'|'.join(one.name for one in benchmark.sets)})",
        "ATTACK": f"({attacks})",
        "SCORE": f"({scores})",
    }
    lines = {re.sub("SET|ATTACK|SCORE", lambda found: words[found[0]], row[0].strip("`")): row for row in cells}
    for title, metric in benchmark.metrics({}).items():
        for number, meaning in meanings(title, metric).items():
            [row] = [row for pattern, row in lines.items() if re.fullmatch(pattern, number)]
            assert row[2] == meaning.unit, number
            better = {True: "higher", False: "lower", None: ""}[meaning.higher_is_better]
            if meaning.near is not None:
                better = f"near {meaning.near:g}"
            elif "the set" in row[3]:
                better = "as the set" if (better == "lower") == meaning.floor else "against the set"
            assert row[3] == better, number


def test_a_table_is_printed_beside_richs_bar_in_a_notebook(monkeypatch):
    """ipykernel flushes stdout, which Rich has replaced by its proxy, before it shows what Rich prints."""
    console = pytest.importorskip("rich.console").Console(file=io.StringIO())
    proxy = pytest.importorskip("rich.file_proxy").FileProxy(console, io.StringIO())
    shown = console.print
    monkeypatch.setattr(console, "print", lambda *text: (proxy.flush(), shown(*text)))
    trainer: Any = SimpleNamespace(print=lambda *text, **how: print(*text, **how, file=proxy))
    print_lines(trainer, "\nforgotten\nkept")
    assert console.file.getvalue().split() == ["forgotten", "kept"]
    with pytest.raises(RecursionError):
        trainer.print("\nforgotten\nkept")
