"""DiPO on pieces of a running text: the margin is logged for a token, which is what compares across lengths."""

from __future__ import annotations

import re
import warnings

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning import DiPOModule
from dipo_lightning.benchmarks.muse.data import MUSEDataModule
from dipo_lightning.methods.dipo.module import warn_of_saturation
from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.toys import save_toy


class Margins(pl.Callback):
    """Remembers of each step the margin of a piece and of a token, and the supervised tokens of a piece."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        labels = batch["forget"]["labels"][:, 1:]
        logged = [float(trainer.callback_metrics[f"train/{name}"]) for name in ("margin", "margin_per_token")]
        self.seen.append((*logged, float((labels != -100).sum() / len(labels))))


@pytest.mark.parametrize("form", ["hidden", "logits"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_margin_of_a_token_is_logged_beside_that_of_a_piece(tmp_path, reduction, form):
    write_fictitious_news(tmp_path / "news", articles=5)
    save_toy(tmp_path / "toy")
    pl.seed_everything(0, verbose=False)
    module = DiPOModule(
        str(tmp_path / "toy"),
        reduction=reduction,
        beta=0.01 if reduction == "sum" else 1.0,
        form=form,
        activation_checkpointing=True,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        reference_cache=str(tmp_path / "cache"),
    )
    margins = Margins()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, inference_mode=False, callbacks=[margins],
    )  # fmt: skip
    news = str(tmp_path / "news")
    trainer.fit(module, datamodule=MUSEDataModule(str(tmp_path / "toy"), data=news, max_length=96, batch_size=2))
    assert len(margins.seen) == 3
    assert margins.seen[0][:2] == pytest.approx((0, 0), abs=1e-6)
    for piece, token, positions in margins.seen[1:]:
        assert token > 0
        assert token == pytest.approx(piece / positions if reduction == "sum" else piece)


@pytest.mark.parametrize(("tokens", "beta", "said"), [(2047, 0.02, True), (2047, 0.001, False), (255, 0.02, False)])
def test_a_sum_that_saturates_is_said(tokens, beta, said):
    """At the length that is named the push is half of the first: 2 sigmoid(-beta u)."""
    examples = [{"labels": [-100, *range(tokens)]}] * 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_saturation(beta, examples)
    assert [f"{tokens} tokens or more" in str(warning.message) for warning in caught] == [True] * said
    if said:
        nats = float(re.search(r"moved by (\S+) nats", str(caught[0].message))[1])
        assert 2 * torch.sigmoid(torch.tensor(-beta * tokens * nats)).item() == pytest.approx(0.5, abs=0.01)


def test_a_run_on_long_pieces_says_it(tmp_path):
    write_fictitious_news(tmp_path / "news", articles=5)
    save_toy(tmp_path / "toy")
    module = DiPOModule(str(tmp_path / "toy"), beta=1.0, reference_cache=str(tmp_path / "cache"))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False,
    )  # fmt: skip
    data = MUSEDataModule(str(tmp_path / "toy"), data=str(tmp_path / "news"), max_length=96, batch_size=2)
    with pytest.warns(UserWarning, match=r"95 tokens or more.*Set model\.reduction: mean"):
        trainer.fit(module, datamodule=data)
