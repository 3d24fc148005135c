"""Rows to ids: truncation that is counted, rows that are refused, and running text in pieces."""

from __future__ import annotations

import pytest

from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.data.tokenization import Remembering, pieces, tokenize_rows
from dipo_lightning.errors import InputError
from tests.helpers import small_tokenizers as small

CHAT = small.byte_level(["<|im_start|>", "<|im_end|>"], "<|im_end|>", template=small.CHATML)
WITH_BOS = small.byte_level(["<bos>", "<eos>"], "<eos>", "<bos>", True)
ROWS = [
    {"index": 4, "question": "Who?", "answer": "Nobody."},
    {"index": 7, "question": "Who wrote it?", "answer": "The author in Lima."},
]
TURNS = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]


def test_rows_become_examples_with_their_own_index():
    style = prompt_style("plain", CHAT)
    tokenized = tokenize_rows(ROWS, style)
    assert len(tokenized) == 2
    assert [example["index"] for example in tokenized] == [4, 7]
    assert (tokenized[0]["input_ids"], tokenized[0]["labels"]) == style.example("Who?", "Nobody.")
    assert (tokenized.truncated, tokenized.dropped) == (0, [])
    assert tokenized.report("forget") == "2 forget rows"


def test_copies_of_rows_are_examples_of_their_own_and_tokenised_once(monkeypatch):
    style = prompt_style("chat", CHAT)
    turns = [{"messages": TURNS}, {"messages": [{**TURNS[0], "content": "Why?"}, TURNS[1]]}]
    mixed = [{**ROWS[0], "messages": TURNS}, ROWS[0], {**ROWS[0], "messages": turns[1]["messages"]}]
    rows = [*ROWS, *turns, *mixed, {**ROWS[0], "answer": "Somebody."}]
    alone = [tokenize_rows([row], style)[0] for row in rows]
    asked = []
    original = style.example
    monkeypatch.setattr(style, "example", lambda *texts: asked.append(texts) or original(*texts))
    tokenized = tokenize_rows([{**row, "index": copy} for copy in range(3) for row in rows], style)
    assert sorted(asked) == [("Who wrote it?", "The author in Lima."), ("Who?", "Nobody."), ("Who?", "Somebody.")]
    assert [example["index"] for example in tokenized] == [copy for copy in range(3) for _ in rows]
    assert [example["input_ids"] for example in tokenized] == [example["input_ids"] for example in alone] * 3
    assert [example["labels"] for example in tokenized] == [example["labels"] for example in alone] * 3
    tokenized[0]["input_ids"].clear()
    assert tokenized[len(rows)]["input_ids"], "examples share no list"


def test_a_row_without_a_text_is_left_out_beside_copies_of_others():
    style = prompt_style("plain", CHAT)
    tokenized = tokenize_rows([ROWS[0], {"question": ["Who?"], "answer": "Nobody."}, ROWS[0]], style, on_missing="skip")
    assert len(tokenized) == 2
    assert "not a text" in tokenized.dropped[0]["reason"]


def test_the_memory_for_copies_stays_small(monkeypatch):
    monkeypatch.setattr("dipo_lightning.data.tokenization.KEPT", 2)
    style = prompt_style("plain", CHAT)
    encode_row = Remembering(style)
    for number in range(20):
        answer = f"Number {number % 5}."
        assert encode_row({"question": "Who?", "answer": answer}) == style.example("Who?", answer)
        assert len(encode_row._known) <= 2


def test_truncation_is_counted():
    style = prompt_style("plain", CHAT)
    whole = tokenize_rows(ROWS, style)
    length = len(whole[0]["input_ids"])
    assert length < len(whole[1]["input_ids"])
    cut = tokenize_rows(ROWS[:1] + ROWS[1:], style, max_length=length + 3)
    assert cut[0] == whole[0]
    assert cut[1]["input_ids"] == whole[1]["input_ids"][: length + 3]
    assert len(cut[1]["labels"]) == length + 3
    assert cut.truncated == 1
    assert cut.report("forget") == "2 forget rows: 1 cut at the end"
    assert tokenize_rows(ROWS, style, max_length=len(whole[1]["input_ids"])).truncated == 0


def test_a_row_cut_down_to_its_prompt():
    style = prompt_style("plain", CHAT)
    length = len(style.prompt("Who wrote it?"))
    with pytest.raises(InputError, match=f"row 7: its prompt alone has {length} tokens.*max_length.*on_missing: skip"):
        tokenize_rows(ROWS, style, max_length=length)
    left = tokenize_rows(ROWS, style, max_length=length, on_missing="skip")
    assert [example["index"] for example in left] == [4]
    assert [row["index"] for row in left.dropped] == [7]
    assert left.truncated == int(len(style.example("Who?", "Nobody.")[0]) > length)
    assert "1 left out (row 7: its prompt alone" in left.report()
    assert len(tokenize_rows(ROWS, style, max_length=4, on_missing="skip")) == 0


def test_every_kind_of_row():
    chat = prompt_style("chat", CHAT)
    plain = prompt_style("plain", CHAT)
    text = prompt_style("text", CHAT)
    assert tokenize_rows([{"messages": TURNS}], chat)[0]["input_ids"] == chat.example("Who?", "Nobody.")[0]
    assert tokenize_rows([{"messages": TURNS}], plain)[0]["input_ids"] == plain.example("Who?", "Nobody.")[0]
    example = tokenize_rows([{"text": "The author"}], text)[0]
    assert CHAT.decode(example["input_ids"]) == "The author<|im_end|>"
    assert example["labels"][1:] == example["input_ids"][1:]


BAD = [
    ([{"text": "a"}], "plain", {}, "take the style text"),
    ([{"messages": [*TURNS, *TURNS]}], "plain", {}, "take the style chat"),
    ([{"index": 3, "question": "Who?", "answer": " "}], "plain", {}, "row 3: The answer is empty"),
    (
        [{"where": "f.jsonl, line 9", "question": "", "answer": "a"}],
        "chat",
        {},
        "f.jsonl, line 9: The question is empty",
    ),
    (ROWS, "plain", {"max_length": 1}, "max_length is 1"),
    (ROWS, "plain", {"on_missing": "drop"}, "must be raise or skip"),
]


@pytest.mark.parametrize(("rows", "style", "options", "message"), BAD)
def test_rows_that_cannot_be(rows, style, options, message):
    with pytest.raises(InputError, match=message):
        tokenize_rows(rows, prompt_style(style, CHAT), **options)


@pytest.mark.parametrize("words", [CHAT, WITH_BOS])
@pytest.mark.parametrize("length", [2, 5, 8, 1000])
def test_pieces_hold_the_whole_text_once(words, length):
    texts = ["The author wrote it.", "Nobody knows.", "Who?"]
    start = [words.bos_token_id] if words is WITH_BOS else []
    examples = pieces(texts, words, length)
    ids = words("\n\n".join(texts), add_special_tokens=False)["input_ids"]
    kept = [token for example in examples for token in example["input_ids"][len(start) :]]
    assert kept in (ids, ids[:-1] if not start and len(ids) % length == 1 else ids)
    assert all(example["input_ids"][: len(start)] == start for example in examples)
    assert {len(example["input_ids"]) for example in examples[:-1]} <= {length}
    assert [example["index"] for example in examples] == list(range(len(examples)))
    for example in examples:
        assert example["labels"] == [-100] + example["input_ids"][1:]


@pytest.mark.parametrize(
    ("texts", "length", "message"),
    [([], 8, "no document"), (["a", " "], 8, "Document 1 is empty"), (["a"], 1, "length is 1"), ([3], 8, "int")],
)
def test_documents_that_cannot_be(texts, length, message):
    with pytest.raises(InputError, match=message):
        pieces(texts, CHAT, length)


def test_the_real_benchmark_in_every_style(shared_data):
    from dipo_lightning.benchmarks.tofu.data import load_tofu

    data = load_tofu(shared_data / "tofu", "forget01")
    for name in ("plain", "llama2", "chat", "text"):
        tokenized = tokenize_rows(data.train_forget, prompt_style(name, CHAT), 2048)
        assert [example["index"] for example in tokenized] == list(range(40))
        for row, example in zip(data.train_forget, tokenized, strict=True):
            supervised = [label for label in example["labels"] if label != -100]
            assert CHAT.decode(supervised) == row["answer"] + "<|im_end|>"
