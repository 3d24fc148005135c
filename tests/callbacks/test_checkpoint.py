"""A step is saved before its evaluation; a signal in an evaluation is obeyed at once, and the run ends up the same."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

from dipo_lightning.callbacks import Checkpoint, ExportModel, MemorizationEvaluation
from dipo_lightning.callbacks.checkpoint import newest
from dipo_lightning.callbacks.results import Best
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.run_folder import run_folder
from dipo_lightning.evaluation.schedule import Schedule
from dipo_lightning.methods.gradient_ascent import GradDiffModule
from tests.helpers.toys import save_toy

pytestmark = pytest.mark.filterwarnings(
    "ignore:You're using the WeightAveraging callback:UserWarning",
    "ignore:.*configure_model.*:UserWarning",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    save_toy(root / "model")
    for name in ("forget", "retain"):
        rows = [json.dumps({"question": f"Who is {name} {i}?", "answer": f"The {name} one {i}."}) for i in range(4)]
        (root / f"{name}.jsonl").write_text("\n".join(rows))
    return root


class Interrupted(MemorizationEvaluation):
    """An evaluation in which the run is told to stop, at one step."""

    at: int | None = None

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal was not obeyed at once")
        return super().evaluate(trainer, pl_module)


def trainer(root: Path, *callbacks: Callback, **options: Any) -> pl.Trainer:
    usual = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(default_root_dir=root, accelerator="cpu", callbacks=list(callbacks), **usual | options)


def fit(made: pl.Trainer, folder: Path, rows: UnlearningDataModule | None = None, **options: Any) -> GradDiffModule:
    pl.seed_everything(1)
    module = GradDiffModule(str(folder / "model"), optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    made.fit(module, rows or data(folder), **options)
    return module


def data(folder: Path) -> UnlearningDataModule:
    forget, retain = (str(folder / f"{name}.jsonl") for name in ("forget", "retain"))
    return UnlearningDataModule(forget=forget, retain=retain, prompt="plain", batch_size=2)


def weights(module: pl.LightningModule) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


@pytest.mark.parametrize(("at", "every_n_steps"), [(1, 1), (2, None), (4, None)])
def test_a_signal_in_an_evaluation_saves_its_step_and_the_resumed_run_is_the_same(
    folder: Path, tmp_path: Path, at: int, every_n_steps: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = Schedule(every_n_steps=every_n_steps)
    whole = fit(trainer(tmp_path / "whole", Interrupted(schedule=schedule), Checkpoint()), folder)
    stopped = trainer(tmp_path / "cut", told := Interrupted(schedule=schedule), Checkpoint())
    told.at = at
    with pytest.raises(SIGTERMException):
        fit(stopped, folder)
    saved = newest(run_folder(stopped) / "checkpoints")
    assert saved is not None
    assert f"SIGTERM: the run is saved at step {at} ({saved}) and ends." in capsys.readouterr().out
    assert torch.load(saved, weights_only=True)["global_step"] == at
    again = trainer(tmp_path / "again", Interrupted(schedule=schedule), Checkpoint())
    module = fit(again, folder, ckpt_path=str(saved), weights_only=True)
    assert all(torch.equal(*pair) for pair in zip(weights(whole), weights(module), strict=True))
    steps = [json.loads(path.read_text())["provenance"]["step"] for path in evaluations(again)]
    assert steps[0] == at, "the evaluation that was left is made first"
    assert steps[-1] == 4
    assert not (run_folder(again) / "checkpoints" / "evaluating.ckpt").exists()


def test_a_run_cut_off_twice_in_its_last_evaluation_ends_as_a_finished_one(folder: Path, tmp_path: Path) -> None:
    saved = None
    for number in range(3):
        told = Interrupted(schedule=Schedule(every_n_epochs=None))
        told.at = 4 if number < 2 else None
        made = trainer(tmp_path / str(number), told, Checkpoint(every_n_epochs=None))
        if told.at:
            with pytest.raises(SIGTERMException):
                fit(made, folder, ckpt_path=saved, weights_only=True)
        else:
            fit(made, folder, ckpt_path=saved, weights_only=True)
        saved = str(newest(run_folder(made) / "checkpoints") or saved)
    kept = run_folder(made) / "checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == ["finished", "last.ckpt", "lock", "run.json"]
    assert torch.load(kept / "last.ckpt", weights_only=True)["global_step"] == 4
    assert [path.name for path in evaluations(made)] == ["user_data_epoch=002_step=00004.json"]


def evaluations(made: pl.Trainer) -> list[Path]:
    return sorted((run_folder(made) / "evaluations").glob("*.json"))


def test_runs_without_a_logger_each_have_a_folder_that_only_the_user_can_read(folder: Path, tmp_path: Path) -> None:
    made = [trainer(tmp_path, Checkpoint(), max_epochs=1) for _ in range(2)]
    for one in made:
        fit(one, folder)
    assert [run_folder(one).name for one in made] == ["run_0", "run_1"]
    assert [oct(run_folder(one).stat().st_mode & 0o777) for one in made] == ["0o700"] * 2
    assert all((run_folder(one) / "checkpoints" / "last.ckpt").exists() for one in made)


def test_a_trial_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        fit(trainer(tmp_path, MemorizationEvaluation(), Checkpoint(), ExportModel(), fast_dev_run=True), folder)
    assert list(tmp_path.iterdir()) == []


def test_after_weight_averaging_the_numbers_are_those_of_the_exported_weights(folder: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, MemorizationEvaluation(), EMAWeightAveraging(decay=0.5), ExportModel(), Checkpoint())
    fit(made, folder)
    said = json.loads(evaluations(made)[-1].read_text())["aggregates"]["forget_probability"]
    exported = GradDiffModule(str(run_folder(made) / "model"))
    checked = trainer(tmp_path / "check", MemorizationEvaluation())
    checked.validate(exported, data(folder), verbose=False)
    assert said == pytest.approx(float(checked.callback_metrics["user_data/forget_probability"]), rel=1e-5)


def test_an_averaging_that_would_average_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="StochasticWeightAveraging .* average nothing"):
        fit(trainer(tmp_path, StochasticWeightAveraging(0.1)), folder)


def test_a_checkpoint_is_validated_under_its_own_step_and_overwrites_nothing(folder: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, MemorizationEvaluation(), Checkpoint(), max_epochs=1)
    module = fit(made, folder)
    saved = str(run_folder(made) / "checkpoints" / "last.ckpt")
    before = {path.name: path.read_bytes() for path in evaluations(made)}
    for _ in range(2):
        [results] = made.validate(module, data(folder), ckpt_path=saved, weights_only=True, verbose=False)
    names = {path.name for path in evaluations(made)} - before.keys()
    assert names == {f"user_data_epoch=001_step=00002_validate{number}.json" for number in ("", "_2")}
    assert {name: (run_folder(made) / "evaluations" / name).read_bytes() for name in before} == before
    assert results["step"] == 2
    fresh = trainer(tmp_path / "fresh", MemorizationEvaluation(), Checkpoint())
    fresh.test(GradDiffModule(str(folder / "model")), data(folder), ckpt_path=saved, weights_only=True, verbose=False)
    assert [path.name for path in evaluations(fresh)] == ["user_data_epoch=001_step=00002_test.json"]


def test_the_same_batches_are_trained_on_when_asked_to_overfit(folder: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, overfit_batches=1, max_epochs=3, enable_checkpointing=False)
    fit(made, folder)
    assert made.global_step == 3


def test_another_optimizer_class_is_named_on_resume(folder: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, Checkpoint(), max_epochs=1)
    fit(made, folder)
    saved = str(run_folder(made) / "checkpoints" / "last.ckpt")
    module = GradDiffModule(str(folder / "model"), optimizer=lambda p: torch.optim.AdamW(p, lr=0.05))
    with pytest.raises(InputError, match="written with the optimizer SGD, this run has AdamW"):
        trainer(tmp_path, Checkpoint()).fit(module, data(folder), ckpt_path=saved, weights_only=True)
    module = GradDiffModule(str(folder / "model"), optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    with pytest.raises(InputError, match=r"The optimizer of the checkpoint had lr 0\.05, now 0\.5"):
        trainer(tmp_path, Checkpoint()).fit(module, data(folder), ckpt_path=saved, weights_only=True)
    other = data(folder)
    other.seed = 7
    with pytest.raises(InputError, match=r"data\.seed was 0, now 7"):
        fit(trainer(tmp_path, Checkpoint()), folder, ckpt_path=saved, weights_only=True, rows=other)


def test_another_run_does_not_replace_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """``ckpt_path="last"`` finds Lightning's own checkpoints only, and would begin anew."""
    place = str(tmp_path / "kept")
    fit(trainer(tmp_path / "one", Checkpoint(folder=place)), folder)
    before = (tmp_path / "kept/last.ckpt").read_bytes()
    with pytest.raises(InputError, match=rf"ckpt_path: {place}/last.ckpt.*another folder"):
        fit(trainer(tmp_path / "two", Checkpoint(folder=place)), folder)
    with (
        pytest.warns(UserWarning, match="no last checkpoint"),
        pytest.raises(InputError, match="has the checkpoint of an earlier run"),
    ):
        fit(trainer(tmp_path / "two", Checkpoint(folder=place)), folder, ckpt_path="last")
    assert (tmp_path / "kept/last.ckpt").read_bytes() == before
    fit(trainer(tmp_path / "two", Checkpoint(folder=place)), folder, ckpt_path=f"{place}/last.ckpt", weights_only=True)


def test_the_best_checkpoint_is_the_last_one(folder: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, Interrupted(), Checkpoint())
    trained = weights(fit(made, folder))
    fresh = GradDiffModule(str(folder / "model"))
    made.test(fresh, data(folder), ckpt_path="best", weights_only=True, verbose=False)
    assert all(torch.equal(*pair) for pair in zip(trained, weights(fresh), strict=True))


class Scored(Callback):
    """Log a number after each epoch; send SIGTERM after one of them, and stop the run like a rule where it is best."""

    def __init__(self, scores: list[float], interrupted: int | None = None, stop: bool = False) -> None:
        self.scores, self.interrupted, self.stop = scores, interrupted, stop

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        pl_module.log("my/score", self.scores[epoch])
        trainer.should_stop = trainer.should_stop or (self.stop and self.scores[epoch] == max(self.scores))
        if epoch == self.interrupted:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [False, True], ids=["to the end", "stopped by a rule"])
@pytest.mark.parametrize("interrupted", [0, 1, 2])
def test_a_run_interrupted_at_the_end_of_an_epoch_exports_and_stops_as_an_uninterrupted_one(
    folder: Path, tmp_path: Path, interrupted: int, stop: bool
) -> None:
    scores = [0.2, 0.3, 0.1]
    scores[interrupted] = 1.0

    def made(name: str, signalled: int | None = None) -> pl.Trainer:
        export = ExportModel(best=Best("my/score"))
        return trainer(tmp_path / name, export, Scored(scores, signalled, stop), Checkpoint(), max_epochs=3)

    fit(whole := made("whole"), folder)
    cut = made("cut", interrupted)
    with pytest.raises(SIGTERMException):
        fit(cut, folder)
    saved = newest(run_folder(cut) / "checkpoints")
    fit(again := made("again"), folder, ckpt_path=str(saved), weights_only=True)
    assert again.global_step == whole.global_step
    exported = [(run_folder(one) / "model" / "model.safetensors").read_bytes() for one in (whole, again)]
    assert exported[0] == exported[1]


class Slow(Callback):
    """Lets a step last longer than the run may."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            time.sleep(3)


@pytest.mark.parametrize("step", [0, 1, 3], ids=["in an epoch", "at the end of one", "at the end"])
def test_a_run_that_time_ended_resumes_with_more_of_it(folder: Path, tmp_path: Path, step: int) -> None:
    whole = fit(trainer(tmp_path / "whole", Checkpoint()), folder)
    cut = trainer(tmp_path / "cut", Slow(step), Checkpoint(), max_time={"seconds": 2})
    fit(cut, folder)
    assert cut.global_step == step + 1
    saved = {"ckpt_path": str(run_folder(cut) / "checkpoints" / "last.ckpt"), "weights_only": True}
    again = trainer(tmp_path / "again", Checkpoint(), max_time={"seconds": 2})
    if step == 3:
        fit(again, folder, **saved)  # had reached its other limit, too
    else:
        with pytest.raises(InputError, match=r"max_time leaves no time to train: the run has trained for 0:00:0"):
            fit(again, folder, **saved)
    longer = fit(trainer(tmp_path / "longer", Checkpoint(), max_time={"hours": 1}), folder, **saved)
    assert all(map(torch.equal, weights(longer), weights(whole)))
