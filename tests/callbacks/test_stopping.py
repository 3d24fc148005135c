"""The stop rule: the first epoch that reaches the threshold is the last, and is the one that is saved."""

from __future__ import annotations

import json
import shutil

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dipo_lightning.callbacks.stopping import StopAtThreshold, StopOnCollapse
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.schedule import Schedule

MONITOR = "muse/knowmem_forget"
pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.13 by an old name
)


class Scripted(Evaluation):
    """An evaluation that says what it is told to."""

    name = "muse"

    def __init__(self, values, dtype=torch.float64, every=1):
        super().__init__(Schedule(every_n_epochs=every, at_start=False, at_end=False))
        self.values, self.dtype = list(values), dtype

    def on_train_epoch_end(self, trainer, pl_module):
        if (trainer.current_epoch + 1) % (self.schedule.every_n_epochs or 100) == 0:
            value = self.values[trainer.current_epoch]
            trainer.callback_metrics["muse/knowmem_forget"] = torch.tensor(value, dtype=self.dtype)

    def on_train_end(self, trainer, pl_module):
        pass


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(2, 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, *callbacks, epochs=5, checkpointing=False, checkpoint=None):
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=epochs, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=checkpointing,
    )  # fmt: skip
    trainer.fit(Line(), ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("threshold", "epochs"), [(33.3, 3), (33.2, 4), (60.0, 1)])
def test_it_stops_at_the_first_epoch_at_or_below(tmp_path, threshold, epochs, dtype):
    trainer = run(tmp_path, Scripted([50, 40, 33.3, 20, 30], dtype), StopAtThreshold(MONITOR, threshold=threshold))
    assert trainer.current_epoch == epochs


def test_it_can_wait_for_a_rise_and_never_loses_patience(tmp_path):
    trainer = run(tmp_path, Scripted([3, 2, 1, 0.5, 5]), StopAtThreshold(MONITOR, threshold=5, mode="max"))
    assert trainer.current_epoch == 5


def test_the_checkpoint_of_that_epoch_is_the_last(tmp_path):
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    run(tmp_path, Scripted([50, 40, 30, 20]), StopAtThreshold(MONITOR, threshold=40), saving, checkpointing=True)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch=0.ckpt", "epoch=1.ckpt"]


def test_a_run_resumed_behind_its_last_epoch_trains_no_further(tmp_path):
    def again(checkpoint=None):
        saving = ModelCheckpoint(tmp_path / "checkpoints", filename="{epoch}", save_top_k=-1)
        parts = Scripted([50, 40, 30, 20]), StopAtThreshold(MONITOR, threshold=40), saving
        return run(tmp_path, *parts, checkpointing=True, checkpoint=checkpoint)

    again()
    (tmp_path / "checkpoints").rename(tmp_path / "kept")
    for epoch in (0, 1):  # of an epoch before the one that reached it, and of that one
        trainer = again(tmp_path / "kept" / f"epoch={epoch}.ckpt")
        assert (trainer.current_epoch, trainer.global_step) == (2, 4)
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)


def test_the_threshold_may_be_the_retrained_models(tmp_path):
    log = {"format": "dipo-lightning/muse/1", "settings": {}, "sets": {}, "aggregates": {"knowmem_forget": 40.0}}
    path = tmp_path / "retain.json"
    path.write_text(json.dumps(log))
    assert run(tmp_path, Scripted([50, 40, 30]), StopAtThreshold(MONITOR, retain_log=str(path))).current_epoch == 2
    with pytest.raises(InputError, match="no aggregate 'verbmem' to stop at; it has knowmem_forget"):
        StopAtThreshold("muse/verbmem", retain_log=str(path))
    with pytest.raises(InputError, match=r"retain\.json is no log of the evaluation .* 'tofu/knowmem_forget'"):
        StopAtThreshold("tofu/knowmem_forget", retain_log=str(path))


def test_the_threshold_is_that_of_the_evaluation_and_may_be_of_a_group(tmp_path):
    (tmp_path / "evaluations").mkdir()
    for name, aggregates in (("muse", {"auc": {"min_k": 0.4}}), ("tofu", {"auc": {"min_k": 0.9}})):
        log = {"format": f"dipo-lightning/{name}/1", "settings": {}, "sets": {}, "aggregates": aggregates}
        (tmp_path / "evaluations" / f"{name}_epoch=001_step=00002.json").write_text(json.dumps(log))
    assert StopAtThreshold("muse/auc_min_k", retain_log=str(tmp_path)).threshold == 0.4
    assert StopAtThreshold("tofu/auc_min_k", retain_log=str(tmp_path)).threshold == 0.9


def test_the_threshold_of_an_evaluation_with_its_own_name_and_of_a_number_with_a_slash(tmp_path):
    for name in ("muse", "lm_eval"):
        log = {"format": f"dipo-lightning/{name}/1", "settings": {}, "sets": {}, "aggregates": {"a/b_acc": 0.3}}
        (tmp_path / f"{name}.json").write_text(json.dumps(log))
    assert StopAtThreshold("lm_eval/a/b_acc", retain_log=str(tmp_path / "lm_eval.json")).threshold == 0.3
    assert StopAtThreshold("my_muse/a/b_acc", retain_log=str(tmp_path / "muse.json")).threshold == 0.3
    with pytest.raises(InputError, match="no aggregate 'verbmem' to stop at"):
        StopAtThreshold("my_muse/verbmem", retain_log=str(tmp_path / "muse.json"))


def test_never_reaching_it_is_said(tmp_path):
    with pytest.warns(UserWarning, match="muse/knowmem_forget did not reach 1 .now 40"):
        run(tmp_path, Scripted([50, 40]), StopAtThreshold(MONITOR, threshold=1), epochs=2)


def test_an_order_in_which_it_would_be_late(tmp_path):
    with pytest.raises(InputError, match="stands before Scripted in trainer.callbacks"):
        run(tmp_path, StopAtThreshold(MONITOR, threshold=1), Scripted([1]))


@pytest.mark.parametrize(("every", "name"), [(1, "knowmen"), (2, "knowmen"), (None, "knowmem_forget")])
def test_a_metric_that_nobody_logs(tmp_path, every, name):
    for rule in (StopAtThreshold(f"muse/{name}", threshold=1), StopOnCollapse(f"muse/{name}", minimum=1)):
        with pytest.raises(InputError, match=f"monitor is 'muse/{name}', which nothing has logged"):
            run(tmp_path, Scripted([50, 40], every=every), rule, epochs=2)


def test_an_evaluation_may_come_after_several_epochs(tmp_path):
    trainer = run(tmp_path, Scripted([50, 40, 30, 20], every=2), StopAtThreshold(MONITOR, threshold=40))
    assert trainer.current_epoch == 2
    with pytest.raises(RunError, match="muse/knowmem_forget is 20"):
        run(tmp_path, Scripted([50, 40, 30, 20], every=2), StopOnCollapse(MONITOR, minimum=30))


@pytest.mark.parametrize(
    "options",
    [{}, {"threshold": 1, "retain_log": "x"}, {"threshold": float("nan")}, {"threshold": 1, "mode": "mean"}],
)
def test_options_that_cannot_be(options):
    with pytest.raises(InputError, match="StopAtThreshold"):
        StopAtThreshold(MONITOR, **options)
