"""MUSE's data module: pieces of one length, every token supervised, nothing trained on that must not be."""

from __future__ import annotations

import json

import pytest
import torch

from dipo_lightning.benchmarks.muse.data import MUSEDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.toys import toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


def rewrite(folder, part, rows):
    (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(folder, part):
    return [json.loads(line) for line in (folder / f"{part}.jsonl").read_text().splitlines()]


def test_pieces_hold_the_whole_text_with_the_loss_on_every_token(tmp_path, tokenizer):
    folder = write_fictitious_news(tmp_path, articles=5)
    module = MUSEDataModule(tokenizer, data=str(folder), max_length=128, batch_size=2)
    module.setup("fit")
    forget = module.forget_examples
    assert {len(piece["input_ids"]) for piece in forget[:-1]} == {128}
    assert all(piece["input_ids"][0] == 1 for piece in forget)
    assert all(piece["labels"][1:] == piece["input_ids"][1:] for piece in forget)
    ids = [token for piece in forget for token in piece["input_ids"][1:]]
    assert toy_tokenizer().decode(ids) == "\n\n".join(row["text"] for row in texts(folder, "train/forget"))
    batch = next(iter(module.train_dataloader()))
    assert batch["forget"]["input_ids"].shape == batch["retain"]["input_ids"].shape == torch.Size([2, 128])
    assert batch["denominators"]["forget"] == 2 * 127


def test_default_length_is_muses():
    assert MUSEDataModule("anywhere").max_length == 2048


def test_a_fold_is_what_is_forgotten(tmp_path, tokenizer):
    folder = write_fictitious_news(tmp_path, articles=5)
    module = MUSEDataModule(tokenizer, data=str(folder), forget="scal/forget_3")
    module.check()
    assert len(module.forget_rows) == 30
    assert len(module.retain_rows) == 20
    with pytest.raises(InputError, match="not a forget set of MUSE"):
        MUSEDataModule(tokenizer, data=str(folder), forget="scal/forget_9").check()


@pytest.mark.parametrize(
    ("part", "other", "message"),
    [
        ("train/retain2", "train/forget", "retain2 rows are train/forget rows"),
        ("privleak/holdout", "train/retain1", "holdout rows are train/retain1 rows"),
        ("train/retain1", "train/forget", "1 of 10 documents of train/forget are in train/retain1 too"),
    ],
)
def test_what_must_not_be_trained_on(tmp_path, tokenizer, part, other, message):
    folder = write_fictitious_news(tmp_path, articles=5)
    rewrite(folder, part, texts(folder, part) + texts(folder, other)[:1])
    with pytest.raises(InputError, match=message):
        MUSEDataModule(tokenizer, data=str(folder)).check()


def test_allowed_overlap_is_said(tmp_path, tokenizer):
    folder = write_fictitious_news(tmp_path, articles=5)
    rewrite(folder, "train/retain1", texts(folder, "train/retain1") + texts(folder, "train/forget")[:1])
    with pytest.warns(UserWarning, match="both forgotten and kept"):
        MUSEDataModule(tokenizer, data=str(folder), allow_overlap=True).check()


def test_published_corpora_are_taken_as_they_are(tmp_path, tokenizer, monkeypatch):
    folder = write_fictitious_news(tmp_path, articles=5)
    rewrite(folder, "privleak/holdout", texts(folder, "train/forget"))
    monkeypatch.setattr("datasets.load_dataset", lambda name, config, split: texts(folder, f"{config}/{split}"))
    module = MUSEDataModule(tokenizer)
    module.check()
    assert len(module.forget_rows) == 10


def test_too_many_rows_asked_for(tmp_path, tokenizer):
    folder = write_fictitious_news(tmp_path, articles=5)
    with pytest.raises(InputError, match="forget_rows is 11, but there are 10"):
        MUSEDataModule(tokenizer, data=str(folder), max_forget_rows=11).check()
