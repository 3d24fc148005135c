"""Rows of a comparison, read from a run's folder."""

from pathlib import Path

import pytest

from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.benchmarks.user_data.metrics import UserData
from dipo_lightning.cli.score import score
from dipo_lightning.comparison.report import Line, epoch_text, explanations, markdown_table
from dipo_lightning.comparison.results import (
    Scale,
    add_columns_beside,
    add_utility_kept,
    by_moment,
    evaluation_rows,
    read_evaluations,
    retain_row,
    target_row,
)
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import flat_numbers
from tests.helpers.acted import evaluation, write_evaluations


def test_other_evaluations_of_the_same_steps_stay_out(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(0, 0.8, -9.0), evaluation(1, 0.7, -1.0)])
    for other in ("muse", "user_data"):
        write_evaluations(tmp_path, [evaluation(0, None, None), evaluation(1, None, None)], name=other)
    with pytest.raises(InputError, match="several evaluations; give `evaluation`: one of muse, tofu, user_data"):
        read_evaluations(tmp_path)
    rows = evaluation_rows(read_evaluations(tmp_path, "tofu")[1])
    assert [row["forget_quality_log10_p"] for row in rows] == [-9.0, -1.0]
    target = target_row(rows)
    assert target is not None
    assert (target["model_utility"], by_moment(rows)[1, 0]["model_utility"]) == (0.8, 0.7)


def test_a_user_metric_is_shown_with_its_meaning() -> None:
    document = evaluation(1, 0.7, -1.0) | {"settings": {"metrics": {"words": "tests.helpers.user_project.Words"}}}
    document["aggregates"]["words"] = 7.0
    scale, lines = Scale.of(TOFU()), [Line("a", "", evaluation_rows([document]))]
    known = dict(scale.meanings)
    scale.learn(document)
    assert scale.meanings == known | {"words": scale.meanings["words"]}
    assert "| forget: words said |" in markdown_table(lines, scale).splitlines()[0]
    said = "- **forget: words said**: Number of words in the model's own answers."
    assert said in explanations(lines, scale).splitlines()


def test_scores_of_attacks_are_columns_and_no_comparison_of_their_own(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(0, 0.8, -9.0), evaluation(1, 0.7, -1.0)])
    attacked = evaluation(1, None, None) | {"format": "dipo-lightning/robustness/1"}
    scores = {"worst_rouge": 0.4, "relearn_forget_r_rouge": 0.9, "nf4_q_rouge": 0.8}
    attacked["aggregates"] = scores | {"unlearned_samples_leak_at_5": 0.3, "unlearned_plain_rouge": 0.2}
    write_evaluations(tmp_path, [attacked], name="robustness")
    benchmark, documents = read_evaluations(tmp_path)
    assert benchmark.name == "tofu"
    rows = evaluation_rows(documents)
    add_columns_beside(rows, tmp_path)
    found = {name: value for name, value in rows[1].items() if name.startswith("robustness_")}
    assert found == {f"robustness_{name}": value for name, value in scores.items()} | {
        "robustness_unlearned_samples_leak_at_5": 0.3
    }
    assert not any(name.startswith("robustness_") for name in rows[0])
    assert set(found) <= set(Scale.of(benchmark).columns(rows))


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ([(0, 0), (1, 5), (2, 10)], ["0", "1", "2"]),
        ([(0, 0), (2, 10), (4, 20)], ["0", "2", "4"]),
        ([(0, 0), (1, 5), (1, 7), (2, 10)], ["0", "1 (step 5)", "1 (step 7)", "2 (step 10)"]),
        ([(0, 0), (0, 4), (1, 5)], ["0", "0 (step 4)", "1 (step 5)"]),
        ([(1, 8), (3, 16)], ["1 (step 8)", "3 (step 16)"]),
    ],
)
def test_every_evaluation_is_kept_and_those_inside_an_epoch_are_told_by_their_step(
    measured: list[tuple[int, int]], said: list[str]
) -> None:
    documents = [evaluation(epoch, 0.8, -9.0) for epoch, _ in measured]
    for document, (_, step) in zip(documents, measured, strict=True):
        document["provenance"]["step"] = step
    rows = evaluation_rows(documents)
    assert [epoch_text(row) for row in rows] == said
    assert [row["step"] for row in by_moment(rows).values()] == [step for _, step in measured if step]


@pytest.mark.parametrize("ending", ["test", "test_2", "validate", "validate_3"])
def test_what_test_and_validate_measured_is_no_evaluation_of_the_run(tmp_path: Path, ending: str) -> None:
    write_evaluations(tmp_path, [evaluation(0, 0.3, -1.0)])
    [other] = tmp_path.rglob("*.json")
    other.rename(other.with_name(f"{other.stem}_{ending}.json"))
    assert target_row(evaluation_rows(read_evaluations(tmp_path)[1])) is not None, "a model that was only tested"
    write_evaluations(tmp_path, [evaluation(1, 0.7, -1.0)])
    assert target_row(evaluation_rows(read_evaluations(tmp_path)[1])) is None
    write_evaluations(tmp_path, [evaluation(0, 0.8, -9.0)])
    assert [row["model_utility"] for row in evaluation_rows(read_evaluations(tmp_path)[1])] == [0.8, 0.7]


def test_scores_that_test_measured_are_no_columns_but_those_of_attack_are(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(0, 0.8, -9.0), evaluation(1, 0.7, -1.0)])
    rows = evaluation_rows(read_evaluations(tmp_path)[1])
    attacked = evaluation(1, None, None) | {"format": "dipo-lightning/robustness/1"}
    for worst, ending in ((0.4, "attack"), (0.9, "test")):
        write_evaluations(tmp_path, [attacked | {"aggregates": {"worst_rouge": worst}}], name="robustness")
        file = next(tmp_path.rglob("robustness_epoch=001_step=00005.json"))
        file.rename(file.with_name(f"{file.stem}_{ending}.json"))
    add_columns_beside(rows, tmp_path)
    assert rows[1]["robustness_worst_rouge"] == 0.4


def test_a_run_without_the_evaluation_is_said(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(1, None, None)], name="user_data")
    with pytest.raises(InputError, match="has no tofu evaluation"):
        read_evaluations(tmp_path, "tofu")


@pytest.mark.parametrize("content", ["{", "[]", '{"aggregates": {}, "provenance": {}}'])
def test_what_is_no_evaluation_is_said(tmp_path: Path, content: str) -> None:
    write_evaluations(tmp_path, [evaluation(1, 0.7, -1.0)])
    next(tmp_path.rglob("tofu_epoch=*.json")).write_text(content)
    with pytest.raises(InputError, match="not an evaluation"):
        read_evaluations(tmp_path)


def test_the_utility_kept_has_the_interval_of_the_utility() -> None:
    target = {"model_utility": 0.8, "intervals": {"model_utility": [0.6, 1.0]}}
    rows = [{"model_utility": 0.4, "intervals": {"model_utility": [0.2, 0.6]}}, {"model_utility": 0.2}, target]
    before = [dict(row) for row in rows]
    add_utility_kept(rows, target, Scale.of(TOFU()))
    assert [row["utility_kept"] for row in rows] == [0.5, 0.25, 1.0]
    assert rows[0]["intervals"]["utility_kept"] == pytest.approx([0.25, 0.75])
    assert "intervals" not in rows[1]
    assert before[0]["intervals"] == {"model_utility": [0.2, 0.6]}, "a copy of the row shares its intervals"


def test_another_package_s_retain_log_gives_the_numbers_of_its_rows_and_none_of_its_own_names() -> None:
    log = Path(__file__).parents[1] / "evaluation" / "logs" / "data" / "retain_ou.json"
    options = {"retain_log": str(log), "truth_ratio": "open_unlearning"}
    callback = {"class_path": "dipo_lightning.callbacks.TOFUEvaluation", "init_args": options}
    base = {"trainer": {"callbacks": [callback]}, "data": {}, "model": {"init_args": {"pretrained": "somewhere"}}}
    row = retain_row(base, 0, None, Scale.of(TOFU()))
    assert row is not None
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    scored = flat_numbers(score(log, log, "open_unlearning"))
    assert numbers == {name: pytest.approx(scored[name]) for name in numbers}
    assert {"forget_probability", "model_utility", "forget_quality_p"} <= set(numbers)
    assert numbers["forget_quality_p"] == 1.0


def test_the_retain_model_is_that_of_the_callback_of_the_benchmark(tmp_path: Path) -> None:
    write_evaluations(tmp_path / "retain", [evaluation(1, 0.7, 0.0)])
    write_evaluations(tmp_path / "retain", [evaluation(1, None, None) | {"format": UserData.format}], name="user_data")
    parts = ("dipo_lightning.StopAtThreshold", "MUSEEvaluation", "dipo_lightning.TOFUEvaluation")
    logs = (tmp_path / "other", tmp_path / "other", tmp_path / "retain")
    callbacks = [
        {"class_path": part, "init_args": {"retain_log": str(log)}} for part, log in zip(parts, logs, strict=True)
    ]
    base = {"trainer": {"callbacks": callbacks}, "data": {}, "model": {}}
    row = retain_row(base, 0, None, Scale.of(TOFU()))
    assert row is not None
    assert row["model_utility"] == 0.7
    assert retain_row(base | {"trainer": {"callbacks": callbacks[:2]}}, 0, None, Scale.of(TOFU())) is None
