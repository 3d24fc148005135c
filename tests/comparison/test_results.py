"""What a run's folder holds, as rows."""

from pathlib import Path

import pytest

from dipo_lightning.comparison.results import by_epoch, evaluation_rows, read_evaluations, target_row
from dipo_lightning.errors import InputError
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
    assert (target["model_utility"], by_epoch(rows)[1]["model_utility"]) == (0.8, 0.7)


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
