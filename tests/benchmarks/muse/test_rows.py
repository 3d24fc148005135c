"""MUSE's rows: the published prompts and cuts, ROUGE and Min-K against independent computations."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from rouge_score import rouge_scorer

from dipo_lightning.benchmarks.muse.data import load_muse
from dipo_lightning.benchmarks.muse.rows import MUSEOptions, answer_part, beginning, evaluate_muse, plan_muse
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.toys import toy_model, toy_tokenizer

OPTIONS = MUSEOptions(verbmem_tokens=12, knowmem_tokens=6)
MEASURING = Measuring(generation_rows=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_muse(write_fictitious_news(tmp_path_factory.mktemp("news"), articles=5), first=3)


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


def test_stems_are_compared_by_open_unlearning_only(data, model, monkeypatch):
    monkeypatch.setattr(
        "dipo_lightning.benchmarks.muse.rows.generate", lambda policy, prompts, **_: [[1]] * len(prompts)
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


def test_min_k_of_a_text_alone(data, model, evaluated):
    for name in ("forget", "retain", "holdout"):
        for row, source in zip(evaluated.sets[f"privleak_{name}"], data.privleak[name], strict=True):
            ids = torch.tensor([toy_tokenizer()(source["text"])["input_ids"]])
            with torch.no_grad():
                logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
            values = np.sort(logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).numpy())
            assert row["tokens"] == len(values)
            assert row["min_k"] == pytest.approx(-np.mean(values[: int(0.4 * len(values))]), rel=1e-4)


def test_open_unlearnings_variant_is_whole(data, model, monkeypatch):
    options = dataclasses.replace(OPTIONS, variant="open_unlearning")
    plan = plan_muse(data, toy_tokenizer(), options, MEASURING)
    assert plan.targets["verbmem"] == [row["gt"] for row in data.verbmem]
    monkeypatch.setattr("dipo_lightning.benchmarks.muse.rows.OPEN_UNLEARNING_TOKENS", 20)
    plan = plan_muse(data, toy_tokenizer(), options, MEASURING)
    row = evaluate_muse(model, plan, options, MEASURING, toy_tokenizer()).sets["privleak_forget"][0]
    ids = torch.tensor([toy_tokenizer()(data.privleak["forget"][0]["text"])["input_ids"][:20]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
    values = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)[:-1].sort().values
    assert row["min_k"] == pytest.approx(-values[: int(0.4 * len(values))].mean().item(), rel=1e-4)


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
    with pytest.raises(InputError, match="tokens .with what is generated., but the model was made for 512"):
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
    assert found.sets["privleak_forget"] == []
    assert "not finite" in found.skipped["privleak_forget"][0]["reason"]


def text(index, content):
    return {"index": index, "where": f"row {index}", "text": content}
