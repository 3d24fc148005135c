"""DiPO on pieces of a running text: the margin is logged for a token, which is what compares across lengths."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning import DiPOModule
from dipo_lightning.data.fictitious_news import write_fictitious_news
from dipo_lightning.data.muse_module import MUSEDataModule
from tests.toys import save_toy


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
