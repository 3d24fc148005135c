"""Large sets: rows are tokenised when a batch needs them, and a batch is the same as if all had been at once."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from dipo_lightning.data import alternatives, tokenization
from dipo_lightning.data import unlearning as module_file
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.models.inspection import check_rows
from tests.helpers.small_tokenizers import byte_level
from tests.helpers.toys import save_toy, toy_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("large")
    save_toy(root / "model")
    for name in ("forget", "retain"):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"A {name} {'very ' * (i % 4)}."} for i in range(30)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def data(folder: Path, **options: Any) -> UnlearningDataModule:
    files = (str(folder / name) for name in ("model", "forget.jsonl", "retain.jsonl"))
    made = UnlearningDataModule(*files, **({"prompt": "plain", "batch_size": 4, "seed": 3} | options))
    made.setup("fit")
    return made


def test_a_large_set_gives_the_batches_of_a_small_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = data(folder, alternatives="idk")
    monkeypatch.setattr(module_file, "LARGE", 20)
    monkeypatch.setattr(module_file, "LONGEST", 5)
    monkeypatch.setattr(tokenization, "KEPT", 3)
    lazy = data(folder, alternatives="idk")
    assert isinstance(lazy.forget_examples, tokenization.LazyRows)
    assert list(lazy.forget_examples) == list(expected.forget_examples)
    assert lazy.forget_examples[3:5] == expected.forget_examples[3:5]
    assert lazy.longest == expected.longest
    loaders = [made.train_dataloader() for made in (expected, lazy)]
    for epoch in range(2):
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        for batch, other in zip(*loaders, strict=True):
            assert batch["denominators"] == other["denominators"]
            for part in ("forget", "retain", "alternative"):
                assert torch.equal(batch[part]["input_ids"], other[part]["input_ids"])
    copied = pickle.loads(pickle.dumps(lazy.forget_examples))  # as a spawned worker gets them
    assert copied[7] == expected.forget_examples[7]


def test_only_what_is_needed_is_tokenised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_file, "LARGE", 20)
    monkeypatch.setattr(module_file, "LONGEST", 2)
    asked: list[int] = []
    original = tokenization.tokenized_row

    def counted(row: Any, index: int, *options: Any) -> Any:
        asked.append(index)
        return original(row, index, *options)

    made = data(folder)
    monkeypatch.setattr(tokenization, "tokenized_row", counted)
    next(iter(made.train_dataloader()))
    assert len(asked) == 8, "four rows to forget and four to keep, each once"


def test_the_longest_rows_of_a_large_set_are_looked_at_before_the_first_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_file, "LARGE", 20)
    monkeypatch.setattr(module_file, "LONGEST", 5)
    with pytest.raises(InputError, match=r"its prompt alone has \d+ tokens"):
        data(folder, max_length=12)
    with pytest.warns(UserWarning, match=r"of the 5 longest of 30 \w+ rows are longer than data.max_length=30"):
        data(folder, max_length=30)


def test_a_row_of_a_large_set_is_compared_with_the_model_when_it_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_file, "LARGE", 20)
    monkeypatch.setattr(module_file, "LONGEST", 5)
    made = data(folder)
    seen: list[int] = []
    made.forget_examples.check_each(lambda example: seen.append(example["index"]))  # type: ignore[attr-defined]
    assert len(seen) == 5, "before the first step only the longest"
    made.tokenizer.add_tokens(["[ODD]"])
    odd = dict(made.forget_rows[2]) | {"answer": "A [ODD] one."}
    monkeypatch.setattr(made.forget_examples, "rows", [*made.forget_rows[:2], odd, *made.forget_rows[3:]])
    check_rows(made, toy_model())
    assert made.forget_examples[1]["index"] == 1
    with pytest.raises(InputError, match=r"forget row 2 holds '\[ODD\]', id 320, but the model has only 320"):
        made.forget_examples[2]
    long = data(folder, max_length=512)
    with pytest.raises(InputError, match=r"row \d+ has \d+ tokens, but the model has positions for 30 only"):
        check_rows(long, toy_model("gpt2", n_positions=30))


def test_rows_of_a_large_set_are_left_out_without_tokenising_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {3: " very" * 20, 11: " very" * 20}
    rows = [{"question": f"Who is {i}{long.get(i, '')}?", "answer": f"{i}.", "alternatives": ["No"]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"forget": str(tmp_path / "rows.jsonl"), "retain": str(folder / "retain.jsonl"), "max_length": 60}
    files = {"tokenizer": str(folder / "model"), "prompt": "plain", "batch_size": 4, "alternatives": "rows"}

    def made() -> UnlearningDataModule:
        module = UnlearningDataModule(**files, **options, on_missing="skip")
        module.setup("fit")
        return module

    expected = made()
    monkeypatch.setattr(module_file, "LARGE", 20)
    for module in (module_file, alternatives):
        monkeypatch.setattr(module, "LONGEST", 1)
    monkeypatch.setattr(alternatives, "LARGE", 20)
    asked: list[int] = []
    original = tokenization.PromptStyle.join
    monkeypatch.setattr(tokenization.PromptStyle, "join", lambda *args: asked.append(1) or original(*args))
    lazy = made()
    before = len(asked)
    assert before < 12, "the longest, those that may have no room, and the alternatives of a few"
    assert [row["index"] for row in lazy.trained_rows] == [i for i in range(30) if i not in (3, 11)]
    assert list(lazy.forget_examples) == list(expected.forget_examples)
    for batch, other in zip(lazy.train_dataloader(), expected.train_dataloader(), strict=True):
        assert torch.equal(batch["alternative"]["input_ids"], other["alternative"]["input_ids"])


def test_alternatives_of_a_large_set_are_looked_at_by_their_longest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = data(folder, alternatives=["No.", "I do not know that at all.", "Never."])
    drawn = made._pairs.alternative
    assert isinstance(drawn, alternatives.Alternatives)
    assert len(drawn.to_longest()) == 3
    monkeypatch.setattr(alternatives, "LARGE", 2)
    monkeypatch.setattr(alternatives, "LONGEST", 1)
    [longest] = drawn.to_longest()
    assert "I do not know" in made.tokenizer.decode(longest["input_ids"])
    seen: list[int] = []
    drawn.check_each(lambda example: seen.append(len(example["input_ids"])))
    drawn(0, 4)
    assert len(seen) == 2, "the longest at once, every other one when it is drawn"


def test_long_text_in_parts_holds_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_level(["</s>"], "</s>")
    texts = [f"Document {i} about a teacher." for i in range(9)]
    whole = tokenization.pieces(texts, tokenizer, 16)
    monkeypatch.setattr(tokenization, "TEXT_AT_ONCE", 100)
    monkeypatch.setattr(tokenization, "TEXT_PART", 60)
    parts = tokenization.pieces(texts, tokenizer, 16)
    for made in (whole, parts):
        ids = [token for piece in made for token in piece["input_ids"]]
        assert tokenizer.decode(ids) == "\n\n".join(texts)
