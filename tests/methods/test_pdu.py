"""PDU's flattening loss against a loop, and its multiplier against the update written out."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dipo_lightning import PDUModule, UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.pdu import dual_ascent, logit_margin
from tests.helpers.batches import SELECTED, assert_only_selected_have_gradient, batch_logits, mean, per_answer
from tests.helpers.methods import answer_logits
from tests.methods.test_forms import PARTS, loss_and_gradients, made
from tests.methods.test_unlearning import files, fit, weights  # noqa: F401


def test_logit_margin() -> None:
    logits = batch_logits(0).requires_grad_()
    loss = logit_margin(logits[SELECTED]).mean()

    def value(row: int, t: int, token: int) -> float:
        values = logits[row, t].tolist()
        return (max(values) - sum(values) / len(values)) ** 2

    assert loss.item() == pytest.approx(mean(per_answer(value)), abs=1e-12)
    loss.backward()
    h = logits.detach()[SELECTED]
    top = torch.nn.functional.one_hot(h.argmax(-1), h.shape[-1]).double()
    gap = h.amax(-1, keepdim=True) - h.mean(-1, keepdim=True)
    closed = 2 * gap * (top - 1 / h.shape[-1]) / len(h)
    torch.testing.assert_close(logits.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(logits.grad)


def test_flat_logits_are_the_minimum_and_a_constant_changes_nothing() -> None:
    assert logit_margin(torch.full((2, 7), 3.0)).tolist() == [0.0, 0.0]
    logits = batch_logits(0)[SELECTED]
    torch.testing.assert_close(logit_margin(logits + 40.0), logit_margin(logits))
    assert logit_margin(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("retain", "expected"), [(0.5, 3.0), (0.1, 1.0), (0.0, 0.5), (-9.0, 0.0)])
def test_dual_ascent(retain: float, expected: float) -> None:
    assert dual_ascent(2.0, retain, limit=0.3, step=5.0) == pytest.approx(expected)


def test_the_step_from_a_model() -> None:
    module = made(PDUModule, "llama", "hidden")
    loss, _ = loss_and_gradients(module)
    logits, _, _ = answer_logits(module.policy, PARTS["forget"])  # type: ignore[arg-type]
    forget = (logits.max(-1).values - logits.mean(-1)).pow(2).mean()
    logits, labels, _ = answer_logits(module.policy, PARTS["retain"])  # type: ignore[arg-type]
    retain = -logits.log_softmax(-1).gather(-1, labels[:, None]).mean()
    torch.testing.assert_close(loss, (forget + 100 * (retain - 0.3)).detach(), rtol=1e-10, atol=0)


class Duals(pl.Callback):
    """Remembers the logged retain loss and multiplier of each optimiser step, and the multiplier after it."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        logged = trainer.callback_metrics
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.seen.append((float(logged["train/retain"]), float(logged["train/dual"]), pl_module.dual))


OPTIONS: dict[str, Any] = {"epsilon": 6.7, "dual_step": 3.0, "lambda_": 0.5}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_multiplier_follows_the_retain_loss_after_the_warm_up(files: Path, accumulate: int) -> None:  # noqa: F811
    duals = Duals()
    trainer = {"callbacks": [duals], "accumulate_grad_batches": accumulate}
    steps = 6 // accumulate
    fit(files, PDUModule, steps=steps, trainer=trainer, dual_warmup_epochs=1, **OPTIONS)
    assert len(duals.seen) == steps
    dual, first = 0.5, 2 // accumulate  # an epoch has two batches
    for step, (retain, used, after) in enumerate(duals.seen):
        assert used == pytest.approx(dual)
        dual = dual if step < first else max(0.0, dual + 3.0 * (retain - 6.7))
        assert after == pytest.approx(dual)
    assert dual != 0.5


def test_a_multiplier_at_zero_grows_again(files: Path) -> None:  # noqa: F811
    module, trainer = fit(files, PDUModule, lambda_=0.0, epsilon=100.0, dual_warmup_epochs=0)
    assert module.dual == 0.0
    assert float(trainer.callback_metrics["train/retain"]) > 0
    with pytest.warns(UserWarning, match="above model.epsilon"):
        module, _ = fit(files, PDUModule, lambda_=0.0, epsilon=0.1, dual_warmup_epochs=0)
    assert module.dual > 0


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_resumed_run_has_its_multiplier(files: Path, tmp_path: Path) -> None:  # noqa: F811
    options = OPTIONS | {"dual_warmup_epochs": 0, "steps": 4}
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, _ = fit(files, PDUModule, trainer={"callbacks": [every], "enable_checkpointing": True}, **options)
    again = ModelCheckpoint(tmp_path, filename="again-{step}", every_n_train_steps=1, save_top_k=-1)
    settings = {"callbacks": [again], "enable_checkpointing": True}
    resumed, _ = fit(files, PDUModule, ckpt_path=str(tmp_path / "step=2.ckpt"), trainer=settings, **options)
    assert resumed.dual == whole.dual != 0.5
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))


@pytest.mark.filterwarnings("ignore:No retain rows")
def test_what_cannot_be_right_is_refused(files: Path) -> None:  # noqa: F811
    with pytest.raises(InputError, match=r"model\.retain_loss is none"):
        PDUModule("toy", retain_loss="none")
    with pytest.raises(InputError, match=r"model\.epsilon is -1"):
        PDUModule("toy", epsilon=-1)
    data = UnlearningDataModule(str(files / "llama"), str(files / "forget.jsonl"), prompt="plain")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1)
    with pytest.raises(InputError, match=r"no retain rows; give data\.retain"):
        trainer.fit(PDUModule("not loaded"), data)
