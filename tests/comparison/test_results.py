"""What a run's folder holds, as rows."""

from pathlib import Path

import pytest

from dipo_lightning.comparison.results import by_epoch, evaluation_rows, measures, target_row
from dipo_lightning.errors import InputError
from tests.helpers.acted import evaluation, write_evaluations


def test_other_evaluations_of_the_same_steps_stay_out(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(0, 0.8, -9.0), evaluation(1, 0.7, -1.0)])
    for other in ("muse", "user_data"):
        write_evaluations(tmp_path, [evaluation(0, None, None), evaluation(1, None, None)], name=other)
    rows = evaluation_rows(tmp_path)
    assert [row["log10_p"] for row in rows] == [-9.0, -1.0]
    target = target_row(rows)
    assert target is not None
    assert (target["model_utility"], by_epoch(rows)[1]["model_utility"]) == (0.8, 0.7)


def test_a_run_without_tofu_s_evaluation_is_said(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(1, None, None)], name="user_data")
    with pytest.raises(InputError, match="no TOFUEvaluation"):
        evaluation_rows(tmp_path)


def test_every_number_has_a_column_and_those_that_are_absent_are_empty() -> None:
    quality = {"p": 0.1, "log10_p": -1.0, "n": 40}
    found = measures({"forget_quality": quality, "truth_ratio": "geometric", "kept": True, "forget_rouge": 0.5})
    assert found == {
        **{"forget_quality_p": 0.1, "log10_p": -1.0, "forget_quality_n": 40.0},
        **{"model_utility": None, "forget_rouge": 0.5},
    }
    assert measures({"forget_quality": None}) == {"forget_quality_p": None, "log10_p": None, "model_utility": None}


@pytest.mark.parametrize("content", ["{", "[]", '{"aggregates": {}, "provenance": {}}'])
def test_what_is_no_evaluation_is_said(tmp_path: Path, content: str) -> None:
    write_evaluations(tmp_path, [evaluation(1, 0.7, -1.0)])
    next(tmp_path.rglob("tofu_epoch=*.json")).write_text(content)
    with pytest.raises(InputError, match="not an evaluation"):
        evaluation_rows(tmp_path)
