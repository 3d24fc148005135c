"""The harness's aggregations from each document's numbers, against their formulas; and a log of them, scored again."""

import json
import math

import pytest

from dipo_lightning.benchmarks.lm_eval.harness import Options, load_tasks, rows_of
from dipo_lightning.benchmarks.lm_eval.metrics import HarnessNumber, LMEval
from dipo_lightning.cli.lm_eval import log_label
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError


def number(sets, **options):
    metric = HarnessNumber(*sets, field="value", **options)
    metric.update({name: [{"index": i, "value": value} for i, value in enumerate(rows)] for name, rows in sets.items()})
    return metric, metric.compute().item()


def test_each_aggregation_is_its_formula():
    assert number({"a": [1.0, 0.0, 1.0]})[1] == pytest.approx(2 / 3)
    tasks = {"a": [1.0, 0.0, 1.0], "b": [0.0]}
    assert number(tasks)[1] == pytest.approx(2 / 4)
    assert number(tasks, aggregation="mean of tasks")[1] == pytest.approx((2 / 3 + 0) / 2)
    assert number({"a": [-1.0, -3.0]}, aggregation="perplexity")[1] == pytest.approx(math.exp(2))
    weighted = {"a": [[-6.0, 2], [-4.0, 3]]}
    assert number(weighted, aggregation="weighted_perplexity")[1] == pytest.approx(math.exp(10 / 5))
    assert number(weighted, aggregation="bits_per_byte")[1] == pytest.approx(10 / 5 / math.log(2))


def test_an_aggregation_that_is_no_mean_has_a_reason():
    metric, value = number({"a": [["said", "true"]]}, aggregation="bleu")
    assert math.isnan(value)
    assert "bleu" in metric.reason


def test_documents_become_rows_with_the_numbers_of_every_filter():
    sample = {"doc_id": 1, "target": 7, "arguments": [("1 + 6 =", {"until": ["\n"]})], "metrics": ["exact_match"]}
    samples = [
        sample | {"filter": "strict-match", "filtered_resps": ["7"], "exact_match": 1.0},
        sample | {"filter": "flexible", "filtered_resps": ["07"], "exact_match": 0.0},
    ]
    assert rows_of(samples) == [
        {"index": 1, "prompt": "1 + 6 =", "answer": "7", "generation": "7", "exact_match_strict-match": 1.0,
         "exact_match_flexible": 0.0}
    ]  # fmt: skip


def test_a_log_is_scored_again(tmp_path):
    numbers = {"toy_acc": {"tasks": ["toy"], "field": "acc", "higher_is_better": True, "label": "toy: acc"}}
    log = {
        "format": LMEval.format,
        "benchmark": "dipo_lightning.benchmarks.lm_eval.metrics.LMEval",
        "settings": {"versions": {"toy": "1"}, "numbers": numbers},
        "sets": {"toy": [{"index": 0, "acc": 1.0}, {"index": 1, "acc": 0.0}]},
        "aggregates": {"toy_acc": 0.5},
    }
    (tmp_path / "log.json").write_text(json.dumps(log))
    found = score(tmp_path / "log.json")
    assert found["toy_acc"] == 0.5
    assert found["stored_aggregates_hold"] is True


def test_without_the_harness_a_sentence_says_what_to_install(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else find(name))
    with pytest.raises(InputError, match=r"pip install 'dipo-lightning\[lm-eval\]'"):
        load_tasks(["mmlu"], Options())


def test_logs_of_other_tasks_or_settings_have_other_names():
    usual = {"num_fewshot": None, "limit": None, "chat_template": False, "dtype": "float32"}
    assert log_label(["mmlu", "wmdp_bio"], **usual) == "mmlu-wmdp_bio"
    many = [f"mmlu_subject_{number}" for number in range(9)]
    labels = {log_label(names, **usual) for names in (many, [*many, "wmdp_bio"])}
    labels |= {log_label(["mmlu"], **usual | {name: value}) for name, value in (("limit", 5), ("dtype", "float16"))}
    assert len(labels) == 4
    assert max(map(len, labels)) < 80
