"""Evaluated rows: which are left out, and their log truth ratios."""

from __future__ import annotations

import math

from dipo_lightning.evaluation.rows import EvaluatedRows, add_log_ratios


def test_a_field_named_reason_leaves_no_row_out() -> None:
    evaluated = EvaluatedRows()
    named = {"index": 0, "reason": "refused", "nll": 1.0}
    evaluated.add("forget", [named, {"index": 1, "reason": "Too long."}], "skip")
    assert evaluated.sets == {"forget": [named]}
    assert evaluated.skipped == {"forget": [{"index": 1, "reason": "Too long."}]}


def test_a_truth_ratio_that_is_no_number_is_no_knowledge() -> None:
    rows = [{"index": index, "truth_ratio": ratio} for index, ratio in enumerate((math.nan, 0.5, 0.0))]
    add_log_ratios({"retain": rows}, "open_unlearning")
    assert [row["log_ratio"] for row in rows] == [None, math.log(0.5), -math.inf]
