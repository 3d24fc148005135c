"""Rows of questions and answers: memorisation and membership scores as open-unlearning defines them."""

from __future__ import annotations

import math

import pytest
import torch

from dipo_lightning.data.encoding import TextStyle
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.evaluation import questions
from dipo_lightning.evaluation.questions import evaluate_rows
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.evaluation.scoring import TokenScores
from tests.helpers.toys import LENGTH, toy_model, toy_tokenizer

ROWS = [
    {"index": 3, "question": "Who wrote it?", "answer": "A fox wrote the book in the town"},
    {"index": 5, "question": "Where?", "answer": "In the city of Taipei"},
]


def published(model, ids, labels, fraction):
    """The four scores of one row alone, from all its logits in float64, without its last token."""
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    places = [place for place, label in enumerate(labels) if label != -100][:-1]
    logp, wanted = logp[[place - 1 for place in places]], torch.tensor([labels[place] for place in places])
    right = (logp.argmax(-1) == wanted).tolist()
    k = next(k for k in range(len(right) + 1) if all(right[k:]))
    mean = (logp.exp() * logp).sum(-1)
    deviation = (logp.exp() * logp.square()).sum(-1).sub(mean.square()).sqrt()
    chosen = logp.gather(-1, wanted[:, None]).squeeze(-1)
    count = max(1, int(fraction * len(right)))
    return {
        "exact_memorization": sum(right) / len(right),
        "extraction_strength": 1 - k / len(right),
        "min_k": -chosen.sort().values[:count].mean().item(),
        "min_k_plus_plus": -((chosen - mean) / deviation).sort().values[:count].mean().item(),
    }


@pytest.mark.parametrize("style", ["plain", "text"])
def test_scores_leave_out_the_token_that_ends_the_answer(style):
    model, style = toy_model(), prompt_style(style, toy_tokenizer())
    found = evaluate_rows(model, style, {"forget": ROWS}, Measuring(generate=False)).sets["forget"]
    for source, row in zip(ROWS, found, strict=True):
        example = style.example(source["question"], source["answer"])
        assert row["tokens"] == sum(label != -100 for label in example[1])
        for name, value in published(model, *example, 0.4).items():
            assert row[name] == pytest.approx(value, rel=1e-4), name


def test_a_text_without_an_end_is_scored_whole():
    model, style = toy_model(), TextStyle(toy_tokenizer(), end=False)
    row = evaluate_rows(model, style, {"forget": ROWS[:1]}, Measuring(generate=False)).sets["forget"][0]
    ids, labels = style.example(ROWS[0]["question"], ROWS[0]["answer"])
    for name, value in published(model, [*ids, 0], [*labels, 0], 0.4).items():
        assert row[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.filterwarnings("ignore:.*positions:UserWarning")
def test_an_answer_that_the_positions_cut_is_scored_up_to_there():
    style = prompt_style("plain", toy_tokenizer())
    ids, labels = style.example(ROWS[0]["question"], ROWS[0]["answer"])
    limit = len(ids) - 3
    model = toy_model("gpt2", n_positions=limit)
    row = evaluate_rows(model, style, {"forget": ROWS[:1]}, Measuring(generate=False)).sets["forget"][0]
    assert row["tokens"] == sum(label != -100 for label in labels) - 3
    for name, value in published(model, ids[:limit], [*labels[:limit], 0], 0.4).items():
        assert row[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.filterwarnings("ignore:.*positions:UserWarning")
@pytest.mark.parametrize("generate", [True, False])
def test_a_question_that_fills_the_positions_is_skipped_and_why(generate):
    style, long = prompt_style("plain", toy_tokenizer()), {"index": 7, "question": "who " * LENGTH, "answer": "A fox"}
    options = Measuring(generate=generate, max_new_tokens=3)
    found = evaluate_rows(toy_model("gpt2"), style, {"forget": [*ROWS, long]}, options)
    assert [row["index"] for row in found.sets["forget"]] == [3, 5]
    [skipped] = found.skipped["forget"]
    assert (skipped["index"], "fills the model's positions" in skipped["reason"]) == (7, True)


def test_fields_that_are_null_are_as_absent():
    style, options = prompt_style("plain", toy_tokenizer()), Measuring(generate=False)
    rows = [{**row, "perturbed_answer": None, "paraphrased_answer": None} for row in ROWS]
    model = toy_model()
    found = [evaluate_rows(model, style, {"forget": some}, options) for some in (rows, ROWS)]
    assert found[0] == found[1]


def test_an_answer_that_is_recited_and_never_ended_is_memorised(monkeypatch):
    def recite(policy, examples, **_):
        tokens = [sum(label != -100 for label in labels) for _, labels in examples]
        return [
            TokenScores(
                torch.tensor([0.0] * (n - 1) + [-50.0]),
                torch.tensor([True] * (n - 1) + [False]),
                torch.zeros(n, dtype=torch.long),
                torch.zeros(n),
            )
            for n in tokens
        ]

    monkeypatch.setattr(questions, "score", recite)
    style = prompt_style("plain", toy_tokenizer())
    row = evaluate_rows(toy_model(), style, {"forget": ROWS[:1]}, Measuring(generate=False)).sets["forget"][0]
    assert (row["extraction_strength"], row["exact_memorization"], row["min_k"]) == (1, 1, 0)
    assert row["loss"] == pytest.approx(50 / row["tokens"])
    assert math.isfinite(row["zlib"])
