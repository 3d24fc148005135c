"""MUSE's rows: the published prompts and cuts, ROUGE and Min-K against independent computations."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer

from dipo_lightning.benchmarks.muse.data import load_muse
from dipo_lightning.benchmarks.muse.measuring import (
    MUSEOptions,
    answer_part,
    beginning,
    evaluate_muse,
    plan_muse,
    spaced,
)
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation import questions
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.toys import toy_model, toy_tokenizer

OPTIONS = MUSEOptions(verbmem_tokens=12, knowmem_tokens=6)
MEASURING = Measuring(generation_rows=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_muse(write_fictitious_news(tmp_path_factory.mktemp("news"), articles=5)).first(3)


@pytest.fixture(scope="module")
def model():
    return toy_model("llama", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def evaluated(data, model):
    return evaluate_muse(
        model, plan_muse(data, toy_tokenizer(), OPTIONS, MEASURING), OPTIONS, MEASURING, toy_tokenizer()
    )


def alone(model, text, tokens):
    ids = torch.tensor([toy_tokenizer()(text)["input_ids"]])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    return toy_tokenizer().decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_prompts_are_the_published_ones(data):
    plan, tokenizer = plan_muse(data, toy_tokenizer(), OPTIONS, MEASURING), toy_tokenizer()
    for side in ("forget", "retain"):
        shown = "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in data.in_context[side])
        text = f"{shown}Question: {data.knowmem[side][1]['question']}\nAnswer: "
        assert plan.prompts[f"knowmem_{side}"][1] == tokenizer(text)["input_ids"]
        assert shown.count("Question:") == 10
    assert plan.prompts["verbmem"][0] == tokenizer(data.verbmem[0]["prompt"])["input_ids"]
    apart = plan_muse(data, toy_tokenizer(), dataclasses.replace(OPTIONS, space="answer"), MEASURING)
    assert tokenizer.decode(apart.prompts["knowmem_forget"][0]).endswith("\nAnswer:")


def test_the_true_continuation_is_cut_with_bos_among_its_tokens():
    text = "The author of the book was born in the city of Taipei"
    for add_bos in (True, False):
        tokenizer = toy_tokenizer(add_bos=add_bos)
        published = tokenizer.decode(tokenizer(text)["input_ids"][:9], skip_special_tokens=True)
        assert beginning(text, tokenizer, 9) == published


@pytest.mark.parametrize(
    ("said", "kept"),
    [("a fox\n\nQuestion: x", "a fox"), ("a fox\nQuestion", "a fox"), ("a Question: b", "a "), ("a\nb", "a\nb")],
)
def test_an_answer_ends_where_the_next_question_begins(said, kept):
    assert answer_part(said) == kept


def test_generations_and_rouge(data, model, evaluated):
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    for row, source in zip(evaluated.sets["verbmem"], data.verbmem, strict=True):
        assert row["generation"] == alone(model, source["prompt"], 12)
        assert row["answer"] == toy_tokenizer().decode(toy_tokenizer()(source["gt"])["input_ids"][1:12])
        assert row["rouge"] == pytest.approx(
            scorer.score(row["answer"], row["generation"])["rougeL"].fmeasure, abs=1e-6
        )
    shown = "".join(f"Question: {r['question']}\nAnswer: {r['answer']}\n\n" for r in data.in_context["forget"])
    for row in evaluated.sets["knowmem_forget"]:
        assert row["generation"] == answer_part(alone(model, f"{shown}Question: {row['question']}\nAnswer: ", 6))


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("memorization", [True, False])
def test_a_prompt_is_read_once_or_decoded_behind_its_scored_answer(
    data, model, evaluated, monkeypatch, memorization, together
):
    begun = []
    original = questions.generate
    monkeypatch.setattr(
        questions, "generate", lambda *args, known, **rest: begun.append(known) or original(*args, known=known, **rest)
    )
    if not together:
        monkeypatch.setattr(questions, "score_and_answer", lambda *args, **options: ({}, {}))
    options = dataclasses.replace(OPTIONS, memorization=memorization)
    plan = plan_muse(data, toy_tokenizer(), options, MEASURING)
    found = evaluate_muse(model, plan, options, MEASURING, toy_tokenizer())
    assert [len(known) for known in begun] == ([0, 0, 0] if together else [3, 3, 3])
    assert all(start for known in begun for start in known)
    for name in plan.prompts:
        pairs = zip(found.sets[name], evaluated.sets[name], strict=True)
        assert all(row["generation"] == other["generation"] for row, other in pairs)


def test_stems_are_compared_by_open_unlearning_only(data, model, monkeypatch):
    monkeypatch.setattr(
        "dipo_lightning.evaluation.questions.generate", lambda policy, prompts, **_: [[1]] * len(prompts)
    )
    tokenizer = toy_tokenizer()
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: "he was opening bridges")
    rouge = {}
    for variant in ("muse", "open_unlearning"):
        options = dataclasses.replace(OPTIONS, variant=variant)
        plan = plan_muse(data, toy_tokenizer(), options, MEASURING)
        plan.targets["verbmem"] = ["he opens a bridge"] * 3
        rouge[variant] = evaluate_muse(model, plan, options, MEASURING, tokenizer).sets["verbmem"][0]["rouge"]
    assert rouge["muse"] == pytest.approx(0.25, abs=1e-6)
    assert rouge["open_unlearning"] == pytest.approx(0.75, abs=1e-6)


def token_logprobs(model, ids, start=1):
    """Float64 log-probabilities of the vocabulary at each position from ``start`` on, and the tokens there."""
    with torch.no_grad():
        logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return logp[start - 1 : -1].numpy(), np.array(ids[start:])


def scores_alone(model, ids, start=1, whole=False):
    """Everything that is read from one text, in numpy; ``whole`` leaves out the last token where theirs does."""
    logp, tokens = token_logprobs(model, ids, start)
    found = {"nll": -np.mean([row[token] for row, token in zip(logp, tokens, strict=True)])}
    logp, tokens = (logp[:-1], tokens[:-1]) if whole else (logp, tokens)
    chosen = np.array([row[token] for row, token in zip(logp, tokens, strict=True)])
    for share in (5, 10, 20, 30, 40, 50, 60):
        found[f"min_{share}"] = -np.mean(np.sort(chosen)[: max(1, int(share / 100 * len(chosen)))])
    mean = (np.exp(logp) * logp).sum(-1)
    z = (chosen - mean) / np.sqrt((np.exp(logp) * logp**2).sum(-1) - mean**2)
    found |= {"min_k": found["min_40"], "min_k_plus_plus": -np.mean(np.sort(z)[: int(0.4 * len(z))])}
    right = logp.argmax(-1) == tokens
    k = next(k for k in range(len(right) + 1) if right[k:].all())
    return found | {"exact_memorization": right.mean(), "extraction_strength": 1 - k / len(right)}


def test_scores_of_a_text_alone(data, model, evaluated):
    for name in ("forget", "retain", "holdout"):
        for row, source in zip(evaluated.sets[f"privleak_{name}"], data.privleak[name], strict=True):
            ids = toy_tokenizer()(source["text"])["input_ids"]
            expected = scores_alone(model, ids)
            assert row["tokens"] == len(ids) - 1
            assert row["zlib"] == pytest.approx(expected["nll"] / len(zlib.compress(source["text"].encode())), rel=1e-4)
            assert "lower" not in row
            assert ("min_k_plus_plus" in row) == (name != "retain")
            for field in {*row} & {*expected}:
                assert row[field] == pytest.approx(expected[field], rel=1e-4), field
            assert {"min_5", "min_60", "min_k", "nll"} <= {*row}


def test_loss_in_lower_case(data, model):
    options = dataclasses.replace(OPTIONS, lowercase=True)
    plan = plan_muse(data, toy_tokenizer(), options, dataclasses.replace(MEASURING, generate=False))
    found = evaluate_muse(model, plan, options, dataclasses.replace(MEASURING, generate=False), toy_tokenizer())
    source = data.privleak["retain"][1]["text"]
    losses = [scores_alone(model, toy_tokenizer()(text)["input_ids"])["nll"] for text in (source, source.lower())]
    assert losses[0] != losses[1]
    assert found.sets["privleak_retain"][1]["lower"] == pytest.approx(losses[0] / losses[1], rel=1e-4)


def test_memory_of_the_continuation_that_verbmem_compares_with(data, model, evaluated):
    tokenizer = toy_tokenizer()
    for row, source in zip(evaluated.sets["verbmem"], data.verbmem, strict=True):
        prompt = tokenizer(source["prompt"])["input_ids"]
        ids = prompt + tokenizer(f" {row['answer']}", add_special_tokens=False)["input_ids"]
        expected = scores_alone(model, ids, len(prompt))
        for field in ("exact_memorization", "extraction_strength"):
            assert row[field] == pytest.approx(expected[field], abs=1e-6), field
    assert spaced("He said", "so") == " so"
    assert spaced("He said ", "so") == "so" == spaced("He said", "\nso").strip()
    without = dataclasses.replace(OPTIONS, memorization=False)
    plan = plan_muse(data, tokenizer, without, MEASURING)
    rows = evaluate_muse(model, plan, without, MEASURING, tokenizer).sets["verbmem"]
    memory = ("exact_memorization", "extraction_strength")
    for row, other in zip(evaluated.sets["verbmem"], rows, strict=True):
        assert {name: value for name, value in row.items() if name not in memory} == other


def test_open_unlearnings_variant_is_whole(data, model, monkeypatch):
    options = dataclasses.replace(OPTIONS, variant="open_unlearning")
    plan = plan_muse(data, toy_tokenizer(), options, MEASURING)
    assert plan.targets["verbmem"] == [row["gt"] for row in data.verbmem]
    monkeypatch.setattr("dipo_lightning.benchmarks.muse.measuring.OPEN_UNLEARNING_TOKENS", 20)
    tokenizer = toy_tokenizer()
    plan = plan_muse(data, tokenizer, options, MEASURING)
    sets = evaluate_muse(model, plan, options, MEASURING, tokenizer).sets
    ids = tokenizer(data.privleak["forget"][0]["text"])["input_ids"][:21]  # BOS and 20 tokens
    expected, row = scores_alone(model, ids, whole=True), sets["privleak_forget"][0]
    for field in ("nll", "min_k", "min_10", "min_k_plus_plus"):
        assert row[field] == pytest.approx(expected[field], rel=1e-4), field
    text = tokenizer.decode(ids[1:], skip_special_tokens=True)
    assert row["zlib"] == pytest.approx(expected["nll"] / len(zlib.compress(text.encode())), rel=1e-4)
    prompt = tokenizer(data.verbmem[0]["prompt"])["input_ids"]
    following = tokenizer(f" {data.verbmem[0]['gt']}", add_special_tokens=False)["input_ids"][:20]
    expected = scores_alone(model, prompt + following, len(prompt), whole=True)
    for field in ("exact_memorization", "extraction_strength"):
        assert sets["verbmem"][0][field] == pytest.approx(expected[field], abs=1e-6), field


def test_a_text_too_short_for_min_k(data, model):
    short = dataclasses.replace(data, privleak=data.privleak | {"forget": [*data.privleak["forget"], text(3, "a b")]})
    plan = plan_muse(short, toy_tokenizer(), OPTIONS, dataclasses.replace(MEASURING, min_k_fraction=0.2))
    assert [row["index"] for row in plan.skipped["privleak_forget"]] == [3]
    assert "Too short for Min-K: 'a b' has" in plan.skipped["privleak_forget"][0]["reason"]
    found = evaluate_muse(model, plan, OPTIONS, MEASURING, toy_tokenizer())
    assert [row["index"] for row in found.sets["privleak_forget"]] == [0, 1, 2]
    with pytest.raises(InputError, match="Row 3 of privleak_forget has no value: Too short for Min-K"):
        plan_muse(
            short, toy_tokenizer(), OPTIONS, dataclasses.replace(MEASURING, min_k_fraction=0.2, on_missing="raise")
        )
    alone = dataclasses.replace(data, privleak=data.privleak | {"holdout": [text(0, "a")]})
    with pytest.raises(InputError, match="No text of privleak/holdout can be scored"):
        plan_muse(alone, toy_tokenizer(), OPTIONS, MEASURING)


def test_a_context_too_short(data):
    with pytest.raises(InputError, match="tokens .generated ones included., but the model's context is 512"):
        evaluate_muse(
            toy_model("llama"),
            plan_muse(data, toy_tokenizer(), OPTIONS, MEASURING),
            OPTIONS,
            MEASURING,
            toy_tokenizer(),
        )


def test_a_model_that_gives_no_numbers(data):
    broken = toy_model("llama", max_position_embeddings=2048)
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    found = evaluate_muse(
        broken, plan_muse(data, toy_tokenizer(), OPTIONS, MEASURING), OPTIONS, MEASURING, toy_tokenizer()
    )
    for name in ("privleak_forget", "verbmem", "knowmem_forget", "knowmem_retain"):
        assert found.sets[name] == []
        assert "not finite" in found.skipped[name][0]["reason"]


def text(index, content):
    return {"index": index, "where": f"row {index}", "text": content}
