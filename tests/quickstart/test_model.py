"""The tiny model's tokenizer: whole words of its texts, and every other text."""

from __future__ import annotations

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
