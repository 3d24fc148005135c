"""Evaluated rows: which are left out."""

from __future__ import annotations

from dipo_lightning.evaluation.rows import EvaluatedRows


def test_a_field_named_reason_leaves_no_row_out() -> None:
    evaluated = EvaluatedRows()
    named = {"index": 0, "reason": "refused", "nll": 1.0}
    evaluated.add("forget", [named, {"index": 1, "reason": "Too long."}], "skip")
    assert evaluated.sets == {"forget": [named]}
    assert evaluated.skipped == {"forget": [{"index": 1, "reason": "Too long."}]}
