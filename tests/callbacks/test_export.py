"""`ExportModel` exports the model of the end, or of the moment that a rule names."""

import json
import math

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from dipo_lightning import GradDiffModule, UnlearningDataModule
from dipo_lightning.callbacks import ExportModel
from dipo_lightning.callbacks.results import Best
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.run_folder import run_folder
from dipo_lightning.evaluation.schedule import Schedule
from tests.helpers.toys import save_toy


class Logged(pl.Callback):
    """Logs given numbers before the first step and after each, and keeps the weights of these later moments."""

    def __init__(self, **numbers):
        self.weights = []
        self.before = {name: values[0] for name, values in numbers.items() if len(values) > 5}
        self.numbers = {name: values[-5:] for name, values in numbers.items()}

    def on_train_start(self, trainer, pl_module):
        trainer.callback_metrics.update({f"my/{name}": torch.tensor(value) for name, value in self.before.items()})

    def on_train_batch_end(self, trainer, pl_module, *args):
        step = trainer.global_step - 1
        for name, values in self.numbers.items():
            if not math.isnan(values[step]):
                pl_module.log(f"my/{name}", values[step])
        self.weights.append({k: v.detach().clone() for k, v in pl_module.policy.state_dict().items()})


class Scripted(Evaluation):
    """Logs a given number as ``NAME/score`` before the first step and after every n-th."""

    def __init__(self, name, values, every=1):
        super().__init__(Schedule(every_n_epochs=None, every_n_steps=every, at_end=False))
        self.name, self.values = name, values

    @property
    def state_key(self):
        return self.name

    def run(self, trainer, pl_module, epoch):
        trainer.callback_metrics[f"{self.name}/score"] = torch.tensor(self.values[trainer.global_step])


def run(here, *callbacks, **options):
    save_toy(here / "model")
    for name, count in (("forget", 5), ("retain", 5)):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"The {name} person {i * 37}."} for i in range(count)]
        (here / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = UnlearningDataModule("model", "forget.jsonl", "retain.jsonl", prompt="plain", batch_size=1)
    module = GradDiffModule("model", optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(module, data)


def exported_step(here, best, *callbacks, **numbers):
    logged = Logged(**numbers)
    exports = ExportModel("last", inside_run=False), ExportModel("out", best=best, inside_run=False)
    run(here, *callbacks, logged, *exports)
    last, found = (load_file(here / name / "model.safetensors") for name in ("last", "out"))
    assert all(torch.equal(last[name], logged.weights[-1][name]) for name in last)
    same = [all(torch.equal(found[name], kept[name]) for name in found) for kept in logged.weights]
    return same.index(True) + 1


NAN = math.nan
SCORES = [0, 0.5, 0.9, 0.5, 0.5]


@pytest.mark.parametrize(
    ("best", "numbers", "step"),
    [
        (None, {}, 5),
        (Best("my/score"), {"score": [0.1, 0.5, 0.2, 0.5, 0.3]}, 2),
        (Best("my/score"), {"score": [0.1, 0.2, 0.3, 0.4, 0.5]}, 5),
        (Best("my/left", "min"), {"left": [4, NAN, 1, NAN, 2]}, 3),
        (Best("my/score", keep="my/utility"), {"score": SCORES, "utility": [1, 0.96, 0.5, 0.98, 0.97]}, 4),
        (Best("my/score", keep="my/utility"), {"score": SCORES, "utility": [1, 0.2, 0.2, 0.2, 0.2]}, 1),
        # the target, before the first step: its utility counts, and it is never exported
        (Best("my/score"), {"score": [9, *SCORES]}, 3),
        (Best("my/score", keep="my/utility"), {"score": [0, *SCORES], "utility": [1, 0.97, 0.96, 0.9, 0.94, 0.2]}, 2),
    ],
)
def test_the_best_moment_is_exported(here, best, numbers, step):
    assert exported_step(here, best, **numbers) == step


def test_a_number_that_is_never_logged_is_named_and_the_model_not_lost(here):
    with pytest.warns(UserWarning, match="no step logged my/typo .logged: .*loss.* final model"):
        assert exported_step(here, Best("my/score", keep="my/typo"), score=SCORES) == 5


@pytest.mark.parametrize(
    ("best", "option"),
    [(Best("first/typo"), "monitor"), (Best("first/score", keep="first/typo"), "keep")],
    ids=["monitor", "keep"],
)
def test_a_number_that_its_evaluation_does_not_log_is_refused_after_the_first(here, best, option):
    said = rf"^ExportModel.best.{option} is 'first/typo', which nothing has logged. Logged: .*first/score"
    first = Scripted("first", [0, *SCORES])
    with pytest.raises(InputError, match=said):
        exported_step(here, best, first)
    assert first.last_step == 0


def test_numbers_of_different_evaluations_count_where_both_were_measured(here):
    """The best score is at step 3, where the utility was not measured."""
    callbacks = [Scripted("first", [0, *SCORES]), Scripted("second", [1, 0, 1, 0, 0.97, 0], every=2)]
    assert exported_step(here, Best("first/score", keep="second/score"), *callbacks) == 2


def test_a_target_that_nothing_beats_is_not_exported_as_unlearned(here):
    numbers = {"score": [0, *SCORES], "utility": [1, 0.2, 0.2, 0.2, 0.2, 0.2]}
    with pytest.warns(
        UserWarning, match="no step after the start logged my/score together with 0.95 of the first my/u"
    ):
        assert exported_step(here, Best("my/score", keep="my/utility"), **numbers) == 5


@pytest.mark.parametrize("folder", [".", "evaluations", "checkpoints/model", "charts", "results.html"])
def test_a_folder_that_the_run_itself_writes_to_is_refused_at_the_start(here, folder):
    with pytest.raises(InputError, match=f"ExportModel.folder is {folder}, where the run itself writes"):
        run(here, ExportModel(folder), default_root_dir=here / "runs")


class Fills(pl.Callback):
    """Writes a file into the folder of the export while the run trains."""

    def on_train_end(self, trainer, pl_module):
        (run_folder(trainer) / "tables").mkdir()
        (run_folder(trainer) / "tables" / "mine").write_text("mine")


def test_what_the_run_put_into_the_folder_is_not_replaced_by_the_model(here):
    for _ in range(2):  # the second time in a run of its own
        with pytest.raises(RunError, match=r"tables is not empty any more.*tables\.partial has it"):
            run(here, Fills(), ExportModel("tables"), default_root_dir=here / "runs")
    for number in range(2):
        assert (here / f"runs/run_{number}/tables/mine").read_text() == "mine"
        assert (here / f"runs/run_{number}/tables.partial/model.safetensors").is_file()


def test_a_resume_remembers_the_exported_moment():
    first, second = ExportModel(best=Best("my/score")), ExportModel(best=Best("my/score"))
    trainer = type("T", (), {"callback_metrics": {"my/score": torch.tensor(0.7)}, "global_step": 1, "callbacks": []})()
    assert first._is_best(trainer)
    second.load_state_dict(first.state_dict())
    assert not second._is_best(trainer)
    trainer.callback_metrics["my/score"] = torch.tensor(0.8)
    assert second._is_best(trainer)


def test_each_fit_exports_its_own_best_moment(here):
    export = ExportModel(best=Best("my/score"))
    for scores in ([0.1, 0.9, 0.2, 0.5, 0.3], [0.1, 0.2, 0.3, 0.2, 0.1]):
        run(here, logged := Logged(score=scores), export, default_root_dir=here / "runs")
        found, best = load_file(export.path / "model.safetensors"), logged.weights[scores.index(max(scores))]
        assert all(torch.equal(found[name], best[name]) for name in found)
