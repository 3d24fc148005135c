"""Attacks one by one: what they ask, what they round, sample and relearn, and that they leave no trace."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
from scipy.stats import norm

from dipo_lightning.benchmarks.robustness import data as questions
from dipo_lightning.benchmarks.robustness import quantization, relearning, sampling
from dipo_lightning.benchmarks.robustness.attack import Condition, Plain, Subject, plainly
from dipo_lightning.benchmarks.robustness.prefixes import Prefixes
from dipo_lightning.benchmarks.robustness.quantization import NF4_LEVELS, Quantization, fake_nf4, int8, nf4, rounded
from dipo_lightning.benchmarks.robustness.relearning import Relearning, batches, train
from dipo_lightning.benchmarks.robustness.sampling import Sampling
from dipo_lightning.benchmarks.robustness.wordings import Wordings, read_templates, with_typing_errors
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from dipo_lightning.models.lora import LoRA, add_lora
from tests.helpers.small_muse import write_muse
from tests.helpers.toys import toy_model, toy_tokenizer

FORGET = [
    {"index": 2, "question": "Who wrote the book?", "answer": "A fox of the city", "paraphrased_question": "By whom?"},
    {"index": 5, "question": "Where was it born?", "answer": "In Taipei", "paraphrased_question": "Which town?"},
    {"index": 9, "question": "What is the profession?", "answer": "A teacher", "paraphrased_question": "Which work?"},
]
RETAIN = [{"index": i, "question": f"Who is {i}?", "answer": f"The author {i}"} for i in range(4)]


def subject(style="plain", **options):
    chosen = {"forget": FORGET, "retain": RETAIN, "max_new_tokens": 5, "generation_rows": 2}
    return Subject(prompt_style(style, toy_tokenizer()), **(chosen | options))


def text(asked):
    return toy_tokenizer().decode(asked.prompt, skip_special_tokens=True)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, before):
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Measuring.


def test_a_row_equals_the_model_alone():
    model, about = toy_model(), subject()
    rows = Plain().measure(model, about, Condition("plain", ""))["plain"]
    for row, source in zip(rows, FORGET, strict=True):
        ids, labels = about.style.example(source["question"], source["answer"])
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        assert row["nll"] == pytest.approx(loss, rel=1e-5)
        assert (row["index"], row["answer"]) == (source["index"], source["answer"])


def test_of_muse_s_questions_the_f1_is_that_of_the_answer_before_the_next_question(tmp_path, monkeypatch):
    about = questions.muse_subject(prompt_style("text", toy_tokenizer()), str(write_muse(tmp_path)))
    said = "Oslo\n\nQuestion: Peru?\nAnswer: Lima"
    monkeypatch.setattr(about.style.tokenizer, "decode", lambda ids, **_: said)
    [row, *_] = Plain().measure(toy_model(), about, Condition("plain", ""))["plain"]
    assert (row["answer"], row["rouge"], row["rouge_l_recall"]) == ("Oslo", 1, 1)
    said = "\n\nOslo"  # MUSE's answer is empty
    [row, *_] = Plain().measure(toy_model(), about, Condition("plain", ""))["plain"]
    assert (row["rouge"], row["rouge_l_recall"]) == (0, 1)


# Other words.


def test_every_wording_is_asked():
    attack, about = Wordings(few_shot=2), subject()
    asked = {one.name: attack.asked(about, one.name) for one in attack.conditions(about)}
    assert list(asked) == ["paraphrased", "lower_case", "typing_errors", "answer_prefix", "role_play", "few_shot"]
    assert text(asked["paraphrased"][0]) == "Question: By whom?\nAnswer: "
    assert text(asked["lower_case"][0]) == "Question: who wrote the book?\nAnswer: "
    assert text(asked["answer_prefix"][1]) == "Question: Where was it born?\nAnswer: Sure, here is the answer:"
    assert 'A visitor asks you "Where was it born?"' in text(asked["role_play"][1])
    shown = attack.examples(about)
    lines = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shown)
    assert text(asked["few_shot"][0]) == f"{lines}Question: Who wrote the book?\nAnswer: "
    assert len(shown) == 2
    for name, several in asked.items():
        assert [one.answer for one in several] == [row["answer"] for row in FORGET], name
        assert all(one.target[-1] == toy_tokenizer().eos_token_id for one in several), name


def test_wordings_follow_the_data_and_the_prompt_style():
    bare = [{key: value for key, value in row.items() if key != "paraphrased_question"} for row in FORGET]
    names = [one.name for one in Wordings().conditions(subject(forget=bare, retain=[]))]
    assert names == ["lower_case", "typing_errors", "answer_prefix", "role_play"]
    about = subject("chat")
    assert text(Wordings(few_shot=1).asked(about, "few_shot")[0]).count("Question: ") == 2


def test_of_several_paraphrases_the_first_is_asked(tmp_path):
    rows = [{**row, "paraphrased_question": [row["paraphrased_question"], "Well?"]} for row in FORGET]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    about = questions.read_subject(subject().style, None, None, str(tmp_path / "rows.jsonl"), None)
    assert [one.question for one in Wordings().asked(about, "paraphrased")] == [
        "By whom?",
        "Which town?",
        "Which work?",
    ]
    for none in ([None] * 3, [row["question"].upper() for row in FORGET]):
        rows = [{**row, "paraphrased_question": own} for row, own in zip(FORGET, none, strict=True)]
        assert "paraphrased" not in {one.name for one in Wordings().conditions(subject(forget=rows))}


CONVERSATIONS = [
    [("system", "Be brief."), ("user", "Who wrote the book?"), ("assistant", "A fox of the city")],
    [("user", "Hello"), ("assistant", "Hi"), ("user", "Who wrote the book?"), ("assistant", "A fox of the city")],
]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_only_the_last_question_of_a_conversation_is_reworded(turns):
    row = {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}
    style = prompt_style("chat", toy_tokenizer(), chat_template="chatml")
    about = questions.user_subject(style, [row], [row])
    [asked] = plainly(about)
    assert asked.example == style.conversation(row["messages"]), "what was trained on"
    assert [line.partition(": ")[::2] for line in asked.question.split("\n")] == turns[:-1]

    def prompt(name, opening=""):
        text = style.tokenizer.decode(Wordings(few_shot=1).asked(about, name)[0].prompt)
        before, _, last = text.rpartition("<|im_start|>user\n")
        assert before == style.tokenizer.decode(asked.prompt).rpartition("<|im_start|>user\n")[0]
        return last.removesuffix(f"<|im_end|>\n<|im_start|>assistant\n{opening}")

    assert prompt("lower_case") == "who wrote the book?"
    assert prompt("answer_prefix", Wordings.opening) == "Who wrote the book?"
    question = "Question: Who wrote the book?\nAnswer:"
    assert prompt("few_shot") == f"{question} A fox of the city\n\n{question}"


def test_a_conversation_that_the_style_cannot_write_is_not_relearnt():
    row = {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in CONVERSATIONS[0]]}
    about = questions.user_subject(prompt_style("plain", toy_tokenizer()), [row], [])
    with pytest.raises(InputError, match="take the style chat"):
        Relearning().examples(about, "forget")


def test_typing_errors_swap_inner_letters_and_repeat():
    found = with_typing_errors("The author wrote 1956 of it", random.Random(3))
    assert found != "The author wrote 1956 of it"
    for made, word in zip(found.split(), ["The", "author", "wrote", "1956", "of", "it"], strict=True):
        assert (sorted(made), made[0], made[-1]) == (sorted(word), word[0], word[-1])
    again = [one.question for one in Wordings(seed=4).asked(subject(), "typing_errors")]
    assert again == [one.question for one in Wordings(seed=4).asked(subject(), "typing_errors")]
    assert again != [one.question for one in Wordings(seed=5).asked(subject(), "typing_errors")]


def test_templates_of_a_file(tmp_path):
    file = tmp_path / "templates.txt"
    file.write_text("Tell me: {question}\n\nIn one word, {question}\n")
    attack = Wordings(templates=str(file))
    assert [one.name for one in attack.conditions(subject())][-2:] == ["template_1", "template_2"]
    assert attack.asked(subject(), "template_2")[0].question == "In one word, Who wrote the book?"
    file.write_text("\n \n")
    with pytest.raises(InputError, match="holds no template"):
        attack.conditions(subject())
    file.write_text("Tell me: {question}\nTell me")
    with pytest.raises(InputError, match="line 2"):
        attack.conditions(subject())
    with pytest.raises(InputError, match="cannot be read"):
        read_templates(str(tmp_path / "absent.txt"))


# Prefixes.


@pytest.mark.parametrize("share", [25, 50, 75])
def test_the_beginning_of_an_answer_is_given(share):
    about, model = subject(), toy_model()
    rows = Prefixes().measure(model, about, Condition(f"prefix_{share}", ""))[f"prefix_{share}"]
    for row, whole in zip(rows, plainly(about), strict=True):
        given = max(1, (len(whole.target) - 1) * share // 100)
        assert row["tokens"] == len(whole.target) - given
        ids = whole.prompt + whole.target
        labels = [-100] * (len(whole.prompt) + given) + whole.target[given:]
        with torch.no_grad():
            loss = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        assert row["nll"] == pytest.approx(loss, rel=1e-5)
        assert row["answer"] == toy_tokenizer().decode(whole.target[given:-1]).strip()


def test_a_rest_without_words_has_no_rouge():
    about = subject(forget=[{**FORGET[0], "answer": "Taipei."}])
    [row] = Prefixes().measure(toy_model(), about, Condition("prefix_99", ""))["prefix_99"]
    assert (row["answer"], row["rouge"], row["rouge_l_recall"]) == (".", None, None)
    assert row["nll"] > 0


def test_an_answer_of_a_single_token_is_left_out_with_its_reason():
    about = subject(forget=[FORGET[0], {**FORGET[1], "answer": "7"}, FORGET[2]])
    rows = Prefixes().measure(toy_model(), about, Condition("prefix_50", ""))["prefix_50"]
    assert [row["index"] for row in rows] == [2, 5, 9]
    assert [row.get("reason", "").partition(",")[0] for row in rows] == ["", "Its answer has a single token", ""]


def test_shares_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"prefixes.shares has 0"):
        Prefixes(shares=(0,)).conditions(subject())


# Quantisation.


def test_nf4_levels_are_the_quantiles_of_the_definition():
    offset = 0.9677083
    positive, negative = (norm.ppf(np.linspace(offset, 0.5, n)[:-1]) for n in (9, 8))
    levels = np.sort(np.concatenate([positive, [0.0], -negative]))
    assert pytest.approx(levels / levels.max(), abs=1e-6) == NF4_LEVELS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nf4_takes_the_nearest_level_of_each_block(dtype):
    weight = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, :] = 0
    found, flat = nf4(weight).flatten(), weight.double().flatten().numpy()
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        choices = np.array(NF4_LEVELS)[:, None] * np.abs(block).max()
        nearest = choices[np.abs(choices - block).argmin(0), 0]
        assert torch.equal(found[start : start + 64], torch.tensor(nearest).to(dtype)) or found[
            start : start + 64
        ].double().numpy() == pytest.approx(nearest, rel=1e-2 if dtype == torch.bfloat16 else 1e-6, abs=1e-12)
    assert found.dtype == dtype


def test_int8_rounds_each_channel_to_its_own_scale():
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    found = int8(weight)
    for row, made in zip(weight.double().numpy(), found.double().numpy(), strict=True):
        scale = np.abs(row).max() / 127
        expected = np.rint(row / scale) * scale if scale else row
        assert made == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (found - weight).abs().max() <= weight.abs().max() / 127


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["int8", "nf4"])
def test_rounded_weights_come_back_bit_for_bit(family, name):
    model = toy_model(family)
    before = state(model)
    with rounded(model, name):
        changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        projection = model.get_output_embeddings().weight
        assert torch.equal(projection, before["lm_head.weight"])
    linear = "mlp.c_fc" if family == "gpt2" else "mlp.up_proj"
    assert {key for key in before if linear in key and key.endswith("weight")} <= changed
    assert not any("embed" in key or "wte" in key or "norm" in key or "ln_" in key for key in changed)
    assert same(model, before)


def test_gpt2s_channels_are_its_columns():
    model = toy_model("gpt2")
    weight = model.transformer.h[0].mlp.c_fc.weight
    expected = int8(weight.detach().T).T
    with rounded(model, "int8"):
        assert torch.equal(weight, expected)


def test_adapters_are_merged_before_rounding_and_come_apart_again():
    model = add_lora(toy_model(), LoRA(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    merged = copy.deepcopy(model).merge_and_unload()
    before = state(model)
    with rounded(model, "int8"):
        layer = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
        torch.testing.assert_close(layer, int8(merged.model.layers[0].mlp.up_proj.weight.detach()))
    assert same(model, before)
    assert not model.base_model.model.model.layers[0].mlp.up_proj.merged


def test_nf4_is_that_of_bitsandbytes_bit_for_bit():
    functional = pytest.importorskip("bitsandbytes").functional
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((96, 128), (7, 13)):
            weight = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
            weight[1] = 0
            theirs = functional.dequantize_4bit(*functional.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
            assert torch.equal(fake_nf4(weight), theirs.to(dtype))


def test_an_unknown_format_is_refused():
    with pytest.raises(InputError, match="int8, nf4, fake_nf4"):
        Quantization(formats=("int3",)).conditions(subject())


def test_quantisation_measures_the_rounded_model():
    model, about = toy_model(), subject()
    found = Quantization().measure(model, about, Condition("nf4", ""))["nf4"]
    other = toy_model()
    with torch.no_grad():
        for module in other.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(quantization.nf4(module.weight))
    assert found == Plain().measure(other, about, Condition("plain", ""))["plain"]


# Sampling.


def test_a_user_s_rows_become_questions_when_they_are_asked_for(monkeypatch):
    rows = [{"question": f"Who is {i}?", "answer": f"Nobody {i}."} for i in range(50)]
    made = []
    original = questions.question_rows
    monkeypatch.setattr(questions, "question_rows", lambda rows, *rest: made.extend(rows) or original(rows, *rest))
    about = questions.user_subject(prompt_style("plain", toy_tokenizer()), rows[:5], rows)
    assert questions.at_most(about.forget, 2) == [{"index": 0, **rows[0]}, {"index": 2, **rows[2]}]
    assert len(Wordings(few_shot=3).examples(about)) == 3
    assert len(made) == 5
    assert about.retain[-1] == {"index": 49, **rows[49]}


def test_each_question_has_its_own_seed():
    attack, model = Sampling(samples=4, k=(1, 4)), toy_model()
    before = state(model)
    rows = attack.measure(model, subject(), Condition("samples", ""))["samples"]
    alone = attack.measure(model, subject(forget=FORGET[1:2]), Condition("samples", ""))["samples"]
    assert rows[1] == alone[0]
    assert len({tuple(row["samples"]) for row in rows}) == 3
    other = Sampling(samples=4, k=(1, 4), seed=1).measure(model, subject(), Condition("samples", ""))["samples"]
    assert other[0]["samples"] != rows[0]["samples"]
    assert same(model, before)


@pytest.mark.parametrize("attack", [Plain(), Sampling(samples=2, k=(1,)), Prefixes()], ids=lambda one: one.name)
def test_a_model_that_gives_no_numbers_does_not_forget(attack):
    model = toy_model()
    with torch.no_grad():
        model.lm_head.weight[7] = torch.nan
    condition = attack.conditions(subject())[0]
    for row in attack.measure(model, subject(), condition)[condition.name]:
        assert list(row) == ["index", "reason"]
        assert "not finite" in row["reason"]


def test_leaking_samples_are_counted_by_recall_or_by_a_key(monkeypatch):
    answers = {2: [[10], [11]], 5: [[12], [13]], 9: [[14], [15]]}
    monkeypatch.setattr(sampling, "sample", lambda *_, seeds, **__: [answers[seed] for seed in seeds])
    said = {10: "a FOX of the city", 11: "a fox", 12: "In Taipei", 13: "no", 14: "no", 15: "Fox!"}
    about = subject()
    monkeypatch.setattr(about.style.tokenizer, "decode", lambda ids, **_: said[ids[0]])
    attack = Sampling(samples=2, k=(1, 2), threshold=0.8)
    rows = attack.measure(toy_model(), about, Condition("samples", ""))["samples"]
    assert [row["leaking"] for row in rows] == [1, 1, 0]
    rows = Sampling(samples=2, k=(1,), keys=("fox",)).measure(toy_model(), about, Condition("samples", ""))["samples"]
    assert [row["leaking"] for row in rows] == [2, 0, 1]
    said[14] = "It is no profession."
    keys = ("fo", "Taipei", "profession")
    rows = Sampling(samples=2, k=(1,), keys=keys).measure(toy_model(), about, Condition("samples", ""))["samples"]
    assert [row["leaking"] for row in rows] == [0, 1, 0], "no part of a word, and no word of the question"


def test_no_sample_can_say_an_answer_without_words():
    about = subject(forget=[{**FORGET[0], "answer": "?!"}])
    [row] = Sampling(samples=2, k=(1,)).measure(toy_model(), about, Condition("samples", ""))["samples"]
    assert row == {"index": 2, "reason": "Its answer has no words that a sample could say."}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"k": (21,)}, "k has 21"), ({"temperature": 0}, "temperature is 0"), ({"threshold": 2}, "threshold is 2"),
     ({"samples": 0, "k": ()}, "samples is 0")],
)  # fmt: skip
def test_sampling_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options).conditions(subject())


# Relearning.


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_relearning_trains_a_copy_and_knowledge_returns(lora):
    model, about = toy_model(), subject()
    before = state(model)
    attack = Relearning(lr=0.01, batch_size=2, epochs=4, lora=lora)
    found = attack.measure(model, about, Condition("relearn_forget", "", kind="curve"))
    assert list(found) == [f"relearn_forget_step{step}" for step in (0, 1, 2, 4, 8)]
    nll = [np.mean([row["nll"] for row in rows]) for rows in found.values()]
    assert nll[-1] < nll[0] - 0.1
    assert found["relearn_forget_step0"] == Plain().measure(model, about, Condition("plain", ""))["plain"]
    assert same(model, before)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    again = attack.measure(model, about, Condition("relearn_forget", "", kind="curve"))
    assert again == found


def test_a_step_is_adamws_on_the_mean_over_all_tokens():
    examples = Relearning().examples(subject(), "forget")
    models = [toy_model(), toy_model()]
    for _ in train(models[0], examples, [[0, 1, 2]], 0.01, 0.0, subject(batch_tokens=1)):
        pass
    optimizer = torch.optim.AdamW(models[1].parameters(), lr=0.01, weight_decay=0.0)
    losses, tokens = [], 0
    for ids, labels in examples:
        count = sum(label != -100 for label in labels)
        losses.append(models[1](torch.tensor([ids]), labels=torch.tensor([labels])).loss * count)
        tokens += count
    (sum(losses) / tokens).backward()
    optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_every_row_is_seen_once_an_epoch():
    drawn = batches(5, 2, seed=0)
    epochs = [[next(drawn) for _ in range(3)] for _ in range(2)]
    assert [sorted(row for part in epoch for row in part) for epoch in epochs] == [list(range(5))] * 2
    assert epochs[0] != epochs[1]


def test_rows_and_steps_of_a_curve():
    about = subject(unrelated=["A text about rivers."])
    assert len(Relearning(fraction=0.34).examples(about, "forget")) == 1
    assert len(Relearning().examples(about, "retain")) == 4
    ids, labels = Relearning().examples(about, "unrelated")[0]
    assert labels[1:] == ids[1:]
    books = Relearning(published="muse-books")
    assert (books.lr, books.batch_size, books.last_step(7)) == (1e-5, 4, 100)
    assert books.steps_measured(100) == [50, 75, 100]
    assert Relearning().steps_measured(13) == [1, 2, 4, 8, 13]


@pytest.mark.parametrize(("on", "end"), [("forget", []), ("unrelated", [2])])
def test_running_text_is_relearnt_to_its_end_in_pieces(on, end, monkeypatch):
    monkeypatch.setattr(relearning, "TEXT_LENGTH", 8)
    texts = ["The author was born in a city of rivers.", "Short."]
    about = subject(trained=[{"text": text} for text in texts], unrelated=texts)
    examples = Relearning().examples(about, on)
    assert all(len(ids) <= 8 and ids[0] == 1 and labels == [-100, *ids[1:]] for ids, labels in examples)
    wanted = [toy_tokenizer()(text, add_special_tokens=False)["input_ids"] + end for text in texts]
    short = -(-len(wanted[0]) // 7)
    assert [token for ids, _ in examples[:short] for token in ids[1:]] == wanted[0]
    assert [ids[1:] for ids, _ in examples[short:]] == [wanted[1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fraction": 0}, "fraction is 0"), ({"lr": 0}, "lr is 0"), ({"on": ("unrelated",)}, "no unrelated rows"),
     ({"on": ("all",)}, "forget, retain, unrelated"), ({"batch_size": 0}, "batch_size is 0")],
)  # fmt: skip
def test_relearning_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        Relearning(**options).conditions(subject())


def test_no_forget_rows_are_refused():
    with pytest.raises(InputError, match="no forget rows"):
        Plain().conditions(subject(forget=[]))
