"""Published logs of real models must give the published numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer

from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.evaluation.rows import add_log_ratios
from dipo_lightning.metrics.functional import rouge_l

# Model utility, the same with the arithmetic truth ratio, forget truth ratio, forget ROUGE-L recall and probability.
GOLDEN = {
    "full": (0.622677, 0.585886, 0.515985, 0.985450, 0.990939),
    "retain90": (0.613745, 0.575240, 0.674019, 0.408244, 0.147563),
    "retain95": (0.600577, 0.561296, 0.674147, 0.398000, 0.154716),
    "retain99": (0.620744, 0.581165, 0.684941, 0.397237, 0.179521),
}


@pytest.fixture(scope="module")
def log_path(shared_data: Path) -> Callable[[str], Path]:
    folder = shared_data / "tofu_eval_logs"
    if not folder.is_dir():
        pytest.skip("the published TOFU logs (shared/data/tofu_eval_logs) are absent")
    return lambda model: folder / f"llama2-7b_{model}.json"


@pytest.mark.parametrize("model", GOLDEN)
def test_golden_aggregates(model, log_path):
    geometric = score(log_path(model))
    arithmetic = score(log_path(model), truth_ratio="arithmetic")
    names = ("model_utility", "forget_truth_ratio", "forget_rouge", "forget_probability")
    found = [geometric[name] for name in names]
    found.insert(1, arithmetic["model_utility"])
    # The golden numbers are printed with six decimals.
    assert found == pytest.approx(GOLDEN[model], rel=1e-6, abs=5.1e-7)


def test_golden_forget_quality(log_path):
    quality = score(log_path("full"), log_path("retain90"))["forget_quality"]
    assert quality["n"] == 300
    assert quality["d"] == pytest.approx(119 / 300, rel=1e-12)
    assert quality["p"] == pytest.approx(1.834066e-21, rel=1e-6)
    assert quality["log10_p"] == pytest.approx(-20.737, abs=5e-4)
    arithmetic = score(log_path("full"), log_path("retain90"), "arithmetic")["forget_quality"]
    assert arithmetic["p"] == pytest.approx(6.03e-23, rel=1e-3)


def test_other_split_is_refused(log_path):
    with pytest.raises(InputError, match="300 rows in the log and 200 in the reference"):
        score(log_path("full"), log_path("retain95"))


def test_logged_truth_ratio_is_the_rows_own(log_path):
    content = json.loads(log_path("full").read_text())["eval_log_forget.json"]
    sets = read_log(log_path("full")).sets
    add_log_ratios(sets, "geometric")
    rows = sets["forget"]
    found = [math.exp(row["log_ratio"]) for row in rows]
    assert found == pytest.approx([content["truth_ratio"][str(row["index"])] for row in rows], rel=1e-5)


def accented(text):
    return any(letter.isalpha() and not letter.isascii() for letter in text)


@pytest.mark.parametrize("name", ["forget", "retain", "real_authors", "world_facts"])
@pytest.mark.parametrize(
    "model", ["retain90", *(pytest.param(model, marks=pytest.mark.slow) for model in ("full", "retain95", "retain99"))]
)
def test_rouge_of_logged_texts_equals_google(model, name, log_path):
    # Google's tokens end at a letter with an accent; ours are words of any script, so such rows may differ.
    rows = [row for row in read_log(log_path(model)).sets[name] if not accented(row["answer"] + row["generation"])]
    assert len(rows) > 30
    google = RougeScorer(["rougeL"], use_stemmer=True)
    ours = rouge_l([row["generation"] for row in rows], [row["answer"] for row in rows], stemmer=True)
    theirs = [google.score(row["answer"], row["generation"])["rougeL"] for row in rows]
    assert ours.recall.tolist() == pytest.approx([value.recall for value in theirs], abs=1e-6)
    assert ours.f1.tolist() == pytest.approx([value.fmeasure for value in theirs], abs=1e-6)
    assert ours.recall.tolist() == pytest.approx([row["rouge_l_recall"] for row in rows], abs=1e-6)
