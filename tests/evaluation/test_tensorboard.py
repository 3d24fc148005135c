"""Records for TensorBoard: read back from the event file, and safe whatever a model says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data

from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.benchmarks.tofu.metrics import TOFU, largest_distance, truth_ratio_figure
from dipo_lightning.benchmarks.user_data.metrics import UserData
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.rows import EvaluatedRows, Row
from dipo_lightning.evaluation.tensorboard import (
    RunLogger,
    answers_table,
    chart_values,
    escape,
    event_files,
    in_markdown,
)
from tests.helpers.nested import nested
from tests.helpers.small_tofu import ToyData, ToyModule, read, trainer, write_tofu

pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.13 by an old name
)


def test_an_event_file_holds_it_all(tmp_path: Path) -> None:
    data = write_tofu(tmp_path / "data")
    options = nested(max_new_tokens=4, max_rows=3)
    trainer(tmp_path / "r", TOFUEvaluation(**options)).test(ToyModule(7), datamodule=ToyData(data), verbose=False)
    reference = next((tmp_path / "r").rglob("tofu_*.json"))
    callback = TOFUEvaluation(retain_log=str(reference), **options)
    loggers = [TensorBoardLogger(tmp_path / "tb", default_hp_metric=False), CSVLogger(tmp_path / "csv")]
    run = trainer(tmp_path, callback, logger=loggers, max_epochs=1, limit_val_batches=0)
    run.fit(ToyModule(), datamodule=ToyData(data))
    events = EventAccumulator(str(loggers[0].log_dir), size_guidance={"tensors": 0}).Reload()
    steps = {event.step: event.value for event in events.Scalars("tofu/retain_probability")}
    files = read(tmp_path / "tb")
    assert list(steps) == [0, 2]
    assert steps[2] == pytest.approx(files[-1]["aggregates"]["retain_probability"])
    assert [e.value for e in events.Scalars("tofu/forget_quality_p")] == [
        pytest.approx(document["aggregates"]["forget_quality"]["p"]) for document in files
    ]
    assert "tofu/forget_quality" in events.Tags()["images"]
    assert "tofu/forget_log_truth_ratio" in events.Tags()["distributions"]
    plugins = {tag for name in ("text", "hparams") for tag in events.PluginTagToContent(name)}
    assert {"tofu/forget_answers/text_summary", "_hparams_/experiment"} <= plugins
    text = events.Tensors("tofu/forget_answers/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.startswith("| question | true answer | first | now |")
    assert "tofu/model_utility" in next((tmp_path / "csv").rglob("metrics.csv")).read_text()


class Always(Evaluation):
    """An evaluation that measures the same row always."""

    benchmark = UserData()

    def measure(self, trainer: Any, pl_module: Any) -> EvaluatedRows:
        row: Row = {"index": 0, "nll": 0.5, "rouge_l_recall": 0.5}
        return EvaluatedRows({"forget": [row], "retain": [row]})


def test_hparams_has_the_metrics_of_all_evaluations(tmp_path: Path) -> None:
    evaluations = TOFUEvaluation(**nested(max_new_tokens=4, max_rows=3)), Always()
    logger = RunLogger(tmp_path, name="tb", version="")
    run = trainer(tmp_path, *evaluations, logger=logger, max_epochs=1, limit_val_batches=0)
    run.fit(ToyModule(), datamodule=ToyData(write_tofu(tmp_path / "data")))
    events = EventAccumulator(str(logger.log_dir)).Reload()
    summary = parse_experiment_plugin_data(events.PluginTagToContent("hparams")["_hparams_/experiment"])
    tags = [info.name.tag for info in summary.metric_infos]
    assert {"tofu/model_utility", "user_data/forget_probability", "user_data/utility"} <= set(tags)
    for tag in ("tofu/model_utility", "user_data/utility"):
        assert [event.step for event in events.Scalars(tag)] == [0, 2]


def test_a_run_opens_on_the_charts_of_its_evaluations_each_curve_a_run_of_its_own(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, name="", version="")
    logger.log_metrics({"epoch": 1.0, "train/loss": 2.0}, 1)
    numbers = {"forget_quality_log10_p": -3.0, "forget_probability": 0.9, "retain_probability": 0.8}
    retain = {"forget_quality_log10_p": 0.0, "forget_probability": 0.4, "retain_probability": 0.7}
    charts = chart_values(TOFU(), numbers, retain)
    for step in (0, 4):
        logger.log_charts(charts, step)
    logger.finalize("success")
    events = {file.parent.name: EventAccumulator(str(file.parent)).Reload() for file in event_files(tmp_path)}
    whole = events.pop(tmp_path.name)
    assert whole.Tags()["scalars"] == ["train/loss"], "no epoch curve"
    assert set(events) == {"must be forgotten", "must be kept", "retain model", "this model", "p = 0.05"}
    tag = "charts/TOFU: probability of the true answers"
    assert [e.value for e in events["must be kept"].Scalars(tag)] == pytest.approx([0.8, 0.8])
    assert [e.value for e in events["retain model"].Scalars(tag)] == pytest.approx([0.4, 0.4])
    assert all(tag < "muse" for run in events.values() for tag in run.Tags()["scalars"])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("<script>alert(1)</script>", "&#60;script&#62;alert&#40;1&#41;&#60;/script&#62;"),
        ("a | b\nc\r\nd", "a &#124; b ⏎ c ⏎ d"),
        ("\x1b[31mred\x07", "&#92;u001b&#91;31mred&#92;u0007"),
        ("![x](http://a.b/c.png)", "&#33;&#91;x&#93;&#40;http&#58;//a.b/c.png&#41;"),
        ("\u202eabc\u200b", "&#92;u202eabc&#92;u200b"),
        ("&lt;b&gt;", "&#38;lt;b&#38;gt;"),
        ("Grüße, 台北", "Grüße, 台北"),
        ("\ud800", "&#92;ud800"),
    ],
)
def test_what_a_model_says_stays_text(said: str, shown: str) -> None:
    assert escape(said) == shown


def test_a_long_answer_is_cut() -> None:
    assert escape("x" * 1000) == "x" * 399 + "…"


def test_each_row_is_one_line_of_four_cells() -> None:
    first = [{"index": i, "question": "q|q", "answer": "a\na", "generation": "<i>"} for i in range(2)]
    now = [{"index": 1, "question": "q|q", "answer": "a\na", "generation": None}]
    lines = in_markdown(answers_table(first, now)).splitlines()
    assert len(lines) == 3  # row 0 has no present answer
    assert lines[2].count("|") == 5


def test_the_marked_distance_is_the_test_statistic() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(0)
    first, second = draw.normal(0, 1, 60), draw.normal(0.7, 1, 60)
    place, low, high = largest_distance(first, second)
    assert high - low == pytest.approx(stats.ks_2samp(first, second).statistic)
    assert abs((first <= place).mean() - (second <= place).mean()) == pytest.approx(high - low)


def test_the_figure_shows_both_models_and_d() -> None:
    figure = truth_ratio_figure([-1.0, 0.5, 2.0], [0.0, 1.0, 3.0], {"p": 0.9, "log10_p": -0.05, "d": 1 / 3, "n": 3})
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["model (n = 3)", "retain (n = 3)"]
    assert axes.texts[0].get_text() == "D = 0.333"
    assert "0.9" in axes.get_title()
