"""Prompt styles against exact token sequences, on tokenizers of every family's shape."""

from __future__ import annotations

import datetime
import functools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import IGNORED
from tests.helpers import small_tokenizers as small

HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@functools.cache
def tokenizer(family):
    """One of the families, built once."""
    byte = small.byte_level
    return {
        "llama3": lambda: byte(HEADERS, "<|end_of_text|>", "<|begin_of_text|>", True, small.LLAMA3),
        "chatml": lambda: byte(["<|im_start|>", "<|im_end|>"], "<|im_end|>", template=small.CHATML),
        "smollm2": lambda: byte(["<|im_start|>", "<|im_end|>"], "<|im_end|>", "<|im_start|>", template=small.SMOLLM2),
        "qwen3": lambda: byte(["<|im_start|>", "<|im_end|>"], "<|im_end|>", template=small.QWEN3),
        "gemma": lambda: byte(
            ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", "<bos>", True, small.GEMMA
        ),
        "phi": lambda: byte(
            ["<|user|>", "<|end|>", "<|assistant|>", "<|endoftext|>"], "<|endoftext|>", template=small.PHI
        ),
        "qwen3-thinking": lambda: byte(["<|im_start|>", "<|im_end|>"], "<|im_end|>", template=small.QWEN3_THINKING),
        "r1": lambda: byte(
            ["<bos>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>"],
            "<|end_of_sentence|>",
            "<bos>",
            template=small.DEEPSEEK_R1,
        ),
        "llama2": lambda: small.sentencepiece([], small.LLAMA2),
        "words": lambda: small.word_level("Question : Answer Who wrote The author </s>"),
        "endless": lambda: byte([], None, template=small.CHATML),
    }[family]()


def pieces(text_of, ids):
    return text_of.convert_ids_to_tokens(ids)


def split(family, style, question="Who wrote it?", answer="The author.", **options):
    """(prompt, supervised) as texts; checks what every style promises."""
    words = tokenizer(family)
    chosen = prompt_style(style, words, **options)
    prompt = chosen.prompt(question)
    ids, labels = chosen.example(question, answer)
    assert ids[: len(prompt)] == prompt
    assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
    assert chosen.join(prompt, answer) == (ids, labels)
    marks = words.get_added_vocab()
    written = re.findall("|".join(map(re.escape, marks)), words.decode(ids)) if marks else []
    assert [marks[mark] for mark in written] == [number for number in ids if number in marks.values()]  # no loose bytes
    return words.decode(prompt), words.decode(ids[len(prompt) :])


@pytest.mark.parametrize(
    ("family", "style", "prompt", "supervised"),
    [
        ("chatml", "plain", "Question: Who wrote it?\nAnswer: ", "The author.<|im_end|>"),
        ("llama3", "plain", "<|begin_of_text|>Question: Who wrote it?\nAnswer: ", "The author.<|end_of_text|>"),
        ("llama3", "llama2", "<|begin_of_text|>[INST] Who wrote it? [/INST]", "The author.<|end_of_text|>"),
        (
            "llama3",
            "chat",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho wrote it?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "The author.<|eot_id|>",
        ),
        (
            "chatml",
            "chat",
            "<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n",
            "The author.<|im_end|>",
        ),
        (
            "smollm2",
            "chat",
            "<|im_start|>system\nBe helpful.<|im_end|>\n"
            "<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n",
            "The author.<|im_end|>",
        ),
        (
            "qwen3",
            "chat",
            "<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "The author.<|im_end|>",
        ),
        (
            "gemma",
            "chat",
            "<bos><start_of_turn>user\nWho wrote it?<end_of_turn>\n<start_of_turn>model\n",
            "The author.<end_of_turn>",
        ),
        (
            "qwen3-thinking",
            "chat",
            "<|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "The author.<|im_end|>",
        ),
        ("r1", "chat", "<bos><|User|>Who wrote it?<|Assistant|>", "The author.<|end_of_sentence|>"),
        ("phi", "chat", "<|user|>\nWho wrote it?<|end|>\n<|assistant|>\n", "The author.<|end|>"),
    ],
)
def test_sequence(family, style, prompt, supervised):
    assert split(family, style) == (prompt, supervised)


def test_the_exact_pieces_of_a_byte_level_bpe():
    words = tokenizer("llama3")
    ids, labels = prompt_style("plain", words).example("Who wrote it?", "The author.")
    assert pieces(words, ids)[-7:] == [":", "Ġ", "Th", "e", "Ġauthor", ".", "<|end_of_text|>"]
    assert [label != IGNORED for label in labels[-7:]] == [False, False, True, True, True, True, True]
    apart = prompt_style("plain", words, space="answer").example("Who wrote it?", "The author.")[0]
    assert words.decode(apart) == words.decode(ids)
    assert apart[-7:] != ids[-7:]


def test_sentencepiece_writes_no_space_that_is_not_there():
    words = tokenizer("llama2")
    ids, _ = prompt_style("llama2", words).example("Who?", "The author.")
    assert ids[:-1] == words("[INST] Who? [/INST]The author.")["input_ids"]
    assert pieces(words, ids)[-10:-8] == ["The", "▁"]
    assert pieces(words, words.encode("The author.", add_special_tokens=False))[0] == "▁The"


def test_llama2_own_template_has_its_space_in_the_answer():
    words = tokenizer("llama2")
    style = prompt_style("chat", words)
    ids, labels = style.example("Who?", "The author.")
    assert pieces(words, style.prompt("Who?"))[-1] == "]"
    assert pieces(words, [label for label in labels if label != IGNORED])[:2] == ["▁The", "▁"]
    assert ids.count(words.eos_token_id) == 1
    assert ids.count(words.bos_token_id) == 1


@pytest.mark.parametrize("style", ["plain", "llama2", "chat", "text"])
@pytest.mark.parametrize("family", ["llama3", "gemma", "llama2"])
def test_bos_stands_once(family, style):
    words = tokenizer(family)
    ids, _ = prompt_style(style, words).example("Who?", "The author.")
    assert ids[0] == words.bos_token_id
    assert ids.count(words.bos_token_id) == 1


def test_bos_is_not_doubled_for_a_text_that_has_one():
    words = tokenizer("gemma")
    assert prompt_style("text", words).example("", "<bos>The author")[0].count(words.bos_token_id) == 1


def test_text_supervises_all_but_what_nothing_predicts():
    words = tokenizer("gemma")
    ids, labels = prompt_style("text", words).example("", "The author.")
    assert words.decode(ids) == "<bos>The author.<eos>"
    assert labels == [IGNORED] + ids[1:]
    words = tokenizer("chatml")
    ids, labels = prompt_style("text", words, end=False).example("", "The author.")
    assert words.decode(ids) == "The author."
    assert labels == [IGNORED] + ids[1:]
    ids, labels = prompt_style("text", words).example("Who wrote it?", " The author.")
    assert words.decode([label for label in labels if label != IGNORED]) == " The author.<|im_end|>"


def test_stop_ids_hold_the_end_of_turn_first():
    words = tokenizer("llama3")
    assert pieces(words, prompt_style("chat", words).stop_ids) == ["<|eot_id|>", "<|end_of_text|>"]
    assert pieces(words, prompt_style("plain", words).stop_ids) == ["<|end_of_text|>"]
    assert pieces(tokenizer("chatml"), prompt_style("chat", tokenizer("chatml")).stop_ids) == ["<|im_end|>"]


def test_the_date_is_fixed(monkeypatch):
    template = "{{ strftime_now('%d %B %Y, %A, %H') }}" + small.CHATML

    class Tomorrow(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 5, 6, 7)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Tomorrow)
    shown = tokenizer("chatml").apply_chat_template(
        [{"role": "user", "content": "x"}], chat_template=template, tokenize=False
    )
    today, _, _ = shown.partition("<|")
    prompt, _ = split("chatml", "chat", chat_template=template)
    assert prompt.startswith("26 July 2024, Friday, 00<|im_start|>user")
    assert today == "06 May 2031, Tuesday, 07"
    prompt, _ = split("llama3", "chat", date="01 Mar 1999")
    assert "Today Date: 01 Mar 1999" in prompt


def test_system_prompt_and_template_options():
    prompt, _ = split("llama3", "chat", system_prompt="Nobody knows.")
    assert "26 Jul 2024\n\nNobody knows.<|eot_id|>" in prompt
    prompt, supervised = split("qwen3", "chat", template_options={"enable_thinking": True})
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    assert supervised == "The author.<|im_end|>"


def test_a_template_from_a_file(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text(small.CHATML)
    assert split("chatml", "chat", chat_template=str(file)) == split("chatml", "chat")
    assert split("chatml", "chat", chat_template=file) == split("chatml", "chat")


def test_a_trimming_template_trims_the_answer_too():
    assert split("gemma", "chat", answer="  The author. \n")[1] == "The author.<end_of_turn>"
    assert split("chatml", "chat", answer=" The author.")[1] == " The author.<|im_end|>"


def test_conversations_supervise_the_last_turn():
    style = prompt_style("chat", tokenizer("chatml"))
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Nobody."},
        {"role": "user", "content": "Who wrote it?"},
    ]
    ids, labels = style.conversation([*turns, {"role": "assistant", "content": "The author."}])
    prompt = style.conversation_prompt(turns)
    assert ids[: len(prompt)] == prompt
    supervised = [label for label in labels if label != IGNORED]
    assert tokenizer("chatml").decode(supervised) == "The author.<|im_end|>"
    with pytest.raises(InputError, match="must end with a turn of the assistant"):
        style.conversation(turns)


def test_fingerprint_follows_options_template_and_tokenizer():
    seen = {
        prompt_style("chat", tokenizer("llama3")).fingerprint(),
        prompt_style("chat", tokenizer("llama3"), date="27 Jul 2024").fingerprint(),
        prompt_style("chat", tokenizer("llama3"), chat_template=small.CHATML).fingerprint(),
        prompt_style("chat", tokenizer("chatml")).fingerprint(),
        prompt_style("plain", tokenizer("chatml")).fingerprint(),
        prompt_style("plain", tokenizer("chatml"), space="answer").fingerprint(),
    }
    assert len(seen) == 6
    again = prompt_style("plain", small.byte_level(["<|im_start|>", "<|im_end|>"], "<|im_end|>")).fingerprint()
    assert again in seen


BAD_STYLES = [
    ("chatml", "plian", {}, "did you mean 'plain'"),
    ("chatml", "chat", {"systm_prompt": "x"}, "did you mean 'system_prompt'"),
    ("chatml", "llama2", {"space": "answer"}, "it has none"),
    ("chatml", "plain", {"space": "both"}, "must be prompt or answer"),
    ("words", "chat", {}, "no chat template"),
    ("endless", "plain", {}, "no end-of-sequence token"),
    ("endless", "text", {}, "no end-of-sequence token"),
    ("endless", "chat", {}, "Nothing ends a turn"),
    ("gemma", "chat", {"system_prompt": "Nobody."}, "System role not supported"),
    ("chatml", "chat", {"system_prompt": ""}, "system prompt is empty"),
    ("chatml", "chat", {"date": "2024-07-26"}, "26 Jul 2024"),
    ("chatml", "chat", {"date": "31 Feb 2024"}, "does not exist"),
    ("chatml", "chat", {"chat_template": "/no/such/file.jinja"}, "neither a template nor a file"),
    ("chatml", "chat", {"chat_template": "{% for %}"}, "chat template"),
    ("chatml", "chat", {"chat_template": "{{ 1 / 0 }}"}, "chat template refuses .*: division by zero"),
    ("chatml", "chat", {"template_options": ["x"]}, r"template_options is \['x'\]; give variables"),
    ("chatml", "chat", {"template_options": "x"}, "template_options is 'x'; give variables"),
    ("chatml", "chat", {"chat_template": "{{ 'fixed' }}"}, "not the beginning of a turn"),
]


@pytest.mark.parametrize(("family", "style", "options", "message"), BAD_STYLES)
def test_a_style_that_cannot_be(family, style, options, message):
    with pytest.raises(InputError, match=message):
        prompt_style(style, tokenizer(family), **options)


BAD_EXAMPLES = [
    ("chatml", "plain", "", "The author.", "question is empty"),
    ("chatml", "plain", "Who?", "", "answer is empty"),
    ("chatml", "chat", "Who?", " \n", "answer is empty"),
    ("chatml", "chat", " ", "The author.", "question is empty"),
    ("chatml", "text", "", "", "text is empty"),
    ("chatml", "plain", "Who?", None, "NoneType"),
    ("chatml", "llama2", "Who?", ["The author."], "list"),
    ("chatml", "plain", "Who?", "\ud800", "surrogate"),
    ("chatml", "chat", "Who?", "The author.<|im_end|>", "end-of-turn"),
    ("words", "plain", "Who", "?!", "has no tokens"),
]


@pytest.mark.parametrize(("family", "style", "question", "answer", "message"), BAD_EXAMPLES)
def test_an_example_that_cannot_be(family, style, question, answer, message):
    with pytest.raises(InputError, match=message):
        prompt_style(style, tokenizer(family)).example(question, answer)


@settings(max_examples=150, deadline=None)
@given(question=st.text(max_size=30), answer=st.text(max_size=30))
def test_any_text_round_trips_or_is_refused(question, answer):
    words = tokenizer("llama3")
    style = prompt_style("plain", words)
    try:
        ids, labels = style.example(question, answer)
    except InputError:
        assert not question.strip() or not answer.strip()
        return
    prompt = style.prompt(question)
    assert ids[: len(prompt)] == prompt
    assert words.decode(prompt) == f"<|begin_of_text|>Question: {question}\nAnswer: "
    supervised = [label for label in labels if label != IGNORED]
    assert words.decode(supervised) == answer + "<|end_of_text|>"


def test_reasoning_is_off_unless_asked_for():
    template = "{{ '/think ' if enable_thinking is not defined or enable_thinking else '/no_think ' }}" + small.CHATML
    assert split("chatml", "chat", chat_template=template)[0].startswith("/no_think <|im_start|>")
    options = {"enable_thinking": True}
    assert split("chatml", "chat", chat_template=template, template_options=options)[0].startswith(
        "/think <|im_start|>"
    )


def test_an_added_run_of_line_breaks_ends_no_turn():
    words = small.byte_level(["<|im_start|>", "<|im_end|>"], "<|im_end|>")
    words.add_tokens(["\n\n"])
    template = small.CHATML.replace("message.content + '", "message.content + '\n\n")
    assert template != small.CHATML
    ids, labels = prompt_style("chat", words, chat_template=template).example("Who?", "Nobody.")
    assert words.decode([label for label in labels if label != IGNORED]) == "Nobody.<|im_end|>"
    assert words.decode(ids).count("\n\n") == 1  # behind the question: what follows the answer is the end of its turn
