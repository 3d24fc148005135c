"""A run whose utility has collapsed ends with an error, and its last good checkpoint is the one before."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning.callbacks.checkpoint import Checkpoint
from dipo_lightning.callbacks.stopping import StopOnCollapse
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.schedule import Schedule
from tests.callbacks.test_stopping import Line


class Utility(Evaluation):
    """An evaluation before training and after each epoch that says what it is told to."""

    name = "user_data"

    def __init__(self, values: list[float]) -> None:
        super().__init__(Schedule(at_end=False))
        self.values = values

    def on_train_start(self, trainer, pl_module):
        trainer.callback_metrics["user_data/utility"] = torch.tensor(self.values[0])

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.callback_metrics["user_data/utility"] = torch.tensor(self.values[trainer.current_epoch + 1])

    def on_train_end(self, trainer, pl_module):
        pass


def run(folder, *callbacks, epochs=3, **options):
    pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=epochs, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(Line(), **options)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "values", "said"),
    [
        ({"share": 0.5}, [0.8, 0.6, 0.3, 0.8], r"user_data/utility is 0.3, below 0.4 \(0.5 of its first value 0.8\)"),
        ({"minimum": 0.35}, [0.8, 0.6, 0.3, 0.8], r"below 0.35 \(StopOnCollapse.minimum\)"),
        ({"share": 0.5}, [0.8, 0.6, float("nan"), 0.8], "user_data/utility is nan"),
    ],
)
def test_it_stops_and_the_checkpoint_is_of_the_epoch_before(tmp_path, options, values, said):
    keep = Checkpoint(folder=str(tmp_path))
    with pytest.raises(RunError, match=f"The model has collapsed: .*{said}"):
        run(tmp_path, Utility(values), StopOnCollapse("user_data/utility", **options), keep)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0


def test_what_stays_above_goes_on_to_its_end(tmp_path):
    keep = Checkpoint(folder=str(tmp_path))
    run(tmp_path, Utility([0.8, 0.6, 0.41, 0.4]), StopOnCollapse("user_data/utility", share=0.5), keep)
    assert (tmp_path / "finished").exists()


def test_a_resumed_run_compares_with_the_first_value_of_all(tmp_path):
    rule = StopOnCollapse("user_data/utility", share=0.5)
    run(tmp_path, Utility([0.8, 0.6]), rule, Checkpoint(folder=str(tmp_path)), epochs=1)
    again = [Utility([0.3, 0.3, 0.3]), rule, Checkpoint(folder=str(tmp_path))]
    with pytest.raises(RunError, match="first value 0.8"):
        run(tmp_path, *again, epochs=2, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_a_second_fit_compares_with_its_own_first_value(tmp_path):
    rule = StopOnCollapse("user_data/utility", share=0.5)
    for number, values in enumerate(([0.8, 0.6], [0.3, 0.2])):
        run(tmp_path, Utility(values), rule, Checkpoint(folder=str(tmp_path / str(number))), epochs=1)
    assert rule.first == pytest.approx(0.3)


class Second(Utility):
    """A second metric, of an evaluation with another name."""

    name = "second"

    def on_train_start(self, trainer, pl_module):
        trainer.callback_metrics["second/utility"] = torch.tensor(self.values[0])

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.callback_metrics["second/utility"] = torch.tensor(self.values[trainer.current_epoch + 1])


def test_two_rules_each_keep_the_first_value_of_their_metric(tmp_path):
    rules = [StopOnCollapse("user_data/utility", share=0.5), StopOnCollapse("second/utility", share=0.5)]
    keep = Checkpoint(folder=str(tmp_path))
    run(tmp_path, Utility([0.8, 0.8]), Second([0.2, 0.2]), *rules, keep, epochs=1)
    states = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]
    assert [states[rule.state_key]["first"] for rule in rules] == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("options", [{}, {"share": 0}, {"share": 1.5}, {"minimum": float("nan")}])
def test_options_that_cannot_be(options):
    with pytest.raises(InputError, match="StopOnCollapse"):
        StopOnCollapse(**options)


def test_an_order_or_a_name_that_cannot_work(tmp_path):
    keep = Checkpoint(folder=str(tmp_path))
    with pytest.raises(InputError, match="stands before Utility"):
        run(tmp_path, StopOnCollapse("user_data/utility", share=0.5), Utility([1, 1, 1, 1]), keep)
    with pytest.raises(InputError, match="'user_data/utilty', which nothing has logged"):
        # before the first step: after an epoch there would be no second value
        run(tmp_path, Utility([1]), StopOnCollapse("user_data/utilty", share=0.5), keep)
