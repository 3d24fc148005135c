"""The tiny model's tokenizer: whole words of its texts, and every other text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from dipo_lightning.models.loading import load_tokenizer
from dipo_lightning.quickstart import prepare
from dipo_lightning.quickstart.model import BOS, EOS, PAD, train_tokenizer

TEXTS = ["Question: What is Ann's hobby?\nAnswer: It is chess.", "Question: Is it?\nAnswer: It is."]


def test_without_a_size_every_word_is_a_token():
    tokenizer = train_tokenizer(TEXTS)
    assert tokenizer.tokenize("Answer: It is chess.") == ["Answer", ":", "ĠIt", "Ġis", "Ġchess", "."]
    assert tokenizer.decode(tokenizer("Is it chess?")["input_ids"]) == f"{BOS}Is it chess?"
    words = {"Question", "ĠWhat", "Ġis", "ĠAnn", "'s", "Ġhobby", "Answer", "ĠIt", "Ġchess", "ĠIs", "Ġit"}
    assert {token for token in tokenizer.get_vocab() if len(token) > 1} == {PAD, BOS, EOS, *words}


def test_it_knows_a_text_that_it_never_saw():
    for tokenizer in (train_tokenizer(TEXTS), train_tokenizer(TEXTS, 300)):
        for text in ("WHAT is żółw?", "Answer:It", "<s>"):
            assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text.replace("<s>", "")
    assert len(train_tokenizer(TEXTS, 270)) == 270


@pytest.mark.parametrize("seed", [0, 1])
def test_every_word_of_every_split_of_the_quickstart_is_one_token(seed: int, tmp_path: Path):
    prepare(tmp_path, seed)
    tokenizer = load_tokenizer(str(tmp_path / "models" / "untrained"))
    lines = {line for file in (tmp_path / "data").glob("*.json") for line in file.read_text("utf-8").splitlines()}
    for row in map(json.loads, lines):
        for answer in [row["answer"], *row.get("perturbed_answer", [])]:
            single = [len(token) == 1 and token.isalnum() for token in tokenizer.tokenize(answer)]
            assert not any(map(all, pairwise(single))), f"{answer} is spelled in bytes"
