"""The reference's view without the question: what is masked, and DiPO's contrast pair made from both views."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning import DiPOModule, UnlearningDataModule
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from dipo_lightning.reference.blind import check_blindness, without_question
from tests.helpers.families import family_model
from tests.helpers.toys import save_toy, toy_model, toy_tokenizer

ROWS = [
    {"question": "Where was Mara Velt born?", "answer": "She was born in Oster."},
    {"question": "Who is the father of Tom Rask?", "answer": "A glassblower."},
]


@pytest.mark.parametrize("name", ["chat", "plain", "llama2"])
def test_only_the_question_is_masked(name: str) -> None:
    tokenizer = toy_tokenizer()
    prompt = prompt_style(name, tokenizer).prompt(ROWS[0]["question"])
    sight = without_question(tokenizer, prompt, ROWS[0]["question"])
    kept = tokenizer.decode([token for token, seen in zip(prompt, sight, strict=True) if seen])
    before, after = tokenizer.decode(prompt).split(ROWS[0]["question"])
    assert kept.replace(" ", "") == (before + after).replace(" ", "")
    assert 0 in sight
    with pytest.raises(InputError, match="does not contain its question"):
        without_question(tokenizer, prompt, "Another question?")


def test_a_model_that_sees_masked_tokens_is_refused() -> None:
    check_blindness(toy_model(), "SelectiveModule")
    with pytest.raises(InputError, match="sees masked tokens"):
        check_blindness(family_model("rwkv"), "SelectiveModule")


class PlainMargin(pl.Callback):
    """The margin of the second step, row by row in float64 from whole logits, beside the module's own."""

    def __init__(self, reference: torch.nn.Module) -> None:
        self.reference, self.right, self.found = reference.double(), 0.0, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            policy = copy.deepcopy(module.policy).double()
            rows = [self.of_row(policy, module.trainer.datamodule, i, batch["forget"]) for i in range(2)]
            self.right = sum(rows) / 2

    @torch.no_grad()
    def of_row(self, policy: torch.nn.Module, data: UnlearningDataModule, place: int, batch: dict[str, Any]) -> float:
        length = int(batch["attention_mask"][place].sum())
        ids, labels = (batch[name][place : place + 1, :length] for name in ("input_ids", "labels"))
        text = data.tokenizer.decode(ids[0])
        spans = data.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        question = ROWS[int(batch["index"][place])]["question"]
        first, last = text.index(question), text.index(question) + len(question)
        seen = torch.tensor([[int(end <= first or start >= last) for start, end in spans]])
        assert seen.shape == ids.shape
        h, blind, now = (
            model(input_ids=ids, attention_mask=mask).logits[0, :-1][labels[0, 1:] != -100].log_softmax(-1)
            for model, mask in ((self.reference, seen**0), (self.reference, seen), (policy, seen**0))
        )
        gain = (h - blind).clamp(min=0)
        assert (gain > 0).any()
        difference = (h - 0.5 * gain).softmax(-1) - (h + 0.5 * gain).softmax(-1)
        return float((difference * (now - h)).sum())

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.found = float(module._watched["margin"])


@pytest.mark.parametrize("form", ["auto", "logits"])
def test_the_contrast_pair_of_a_step_is_that_of_a_plain_computation(tmp_path: Path, form: Any) -> None:
    folder = str(save_toy(tmp_path / "toy"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    pair: Any = {"memory_vector": "contrast", "alpha": 0.5}
    module = DiPOModule(folder, pair=pair, form=form, chunk_size=3, optimizer=optimizer)
    kept = tmp_path / "kept.jsonl"
    kept.write_text(json.dumps({"question": "Is Rask a name?", "answer": "Yes."}) + "\n")
    data = UnlearningDataModule(forget=str(rows), retain=str(kept), prompt="plain", batch_size=2)
    plain = PlainMargin(toy_model())
    pl.Trainer(
        accelerator="cpu", max_steps=2, max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(tmp_path), callbacks=[plain],
    ).fit(module, data)  # fmt: skip
    assert plain.right > 0
    assert plain.found == pytest.approx(plain.right, rel=1e-4)
