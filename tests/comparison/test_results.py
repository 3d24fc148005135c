"""What a run's folder holds, as rows."""

from pathlib import Path

import pytest

from dipo_lightning.comparison.results import by_epoch, evaluation_rows, target_row
from dipo_lightning.errors import InputError
from tests.comparison.acted import evaluation, write_evaluations


def test_other_evaluations_of_the_same_steps_stay_out(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(0, 0.8, -9.0), evaluation(1, 0.7, -1.0)])
    for other in ("muse", "own"):
        write_evaluations(tmp_path, [evaluation(0, None, None), evaluation(1, None, None)], name=other)
    rows = evaluation_rows(tmp_path)
    assert [row["log10_p"] for row in rows] == [-9.0, -1.0]
    target = target_row(rows)
    assert target is not None
    assert (target["model_utility"], by_epoch(rows)[1]["model_utility"]) == (0.8, 0.7)


def test_a_run_without_tofu_s_evaluation_is_said(tmp_path: Path) -> None:
    write_evaluations(tmp_path, [evaluation(1, None, None)], name="own")
    with pytest.raises(InputError, match="no TOFUEvaluation"):
        evaluation_rows(tmp_path)
