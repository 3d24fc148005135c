"""Attacks during training: every condition logged, on any number of processes, and training never notices."""

from __future__ import annotations

import json

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_lightning.benchmarks.robustness.callback import RobustnessEvaluation
from dipo_lightning.benchmarks.robustness.tables import markdown_table
from dipo_lightning.benchmarks.robustness.wordings import Wordings
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.evaluation.schedule import Schedule
from tests.benchmarks.robustness.distributed_worker import attacked, run
from tests.helpers.small_tofu import ToyData, ToyModule, read, trainer, write_tofu
from tests.helpers.toys import LENGTH, toy_model


def callback(**options):
    chosen = {"wordings": Wordings(few_shot=1), "measuring": Measuring(max_new_tokens=3), "max_forget_rows": 2}
    return RobustnessEvaluation(**(chosen | options))


def test_training_does_not_notice_and_every_condition_is_logged(tmp_path):
    data = write_tofu(tmp_path / "data")
    weights = []
    for name, callbacks in (("without", []), ("with", [callback(schedule=Schedule(every_n_steps=2))])):
        torch.manual_seed(3)
        module, logger = ToyModule(), TensorBoardLogger(tmp_path, name=name)
        run_ = trainer(tmp_path, *callbacks, logger=logger, limit_val_batches=0)
        run_.fit(module, datamodule=ToyData(data))
        weights.append(module.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    metrics = run_.callback_metrics
    for name in ("plain", "lower_case", "few_shot", "prefix_50", "int8", "nf4"):
        assert 0 <= metrics[f"robustness/unlearned_{name}_rouge"] <= 1
    assert metrics["robustness/worst_rouge"] >= metrics["robustness/unlearned_plain_rouge"]
    documents = read(tmp_path)
    assert [one["provenance"]["step"] for one in documents] == [0, 2, 4]
    for file in callbacks[0].files:
        assert score(file)["stored_aggregates_hold"] is True
    assert any("robustness" in path.name for path in tmp_path.rglob("evaluations/*.json"))


@pytest.mark.filterwarnings("ignore:.*positions:UserWarning")
def test_rows_without_a_value_are_left_out_of_every_number_and_named(tmp_path):
    long = 3 * LENGTH  # templates that leave no room for the answers of a model with learned positions
    (tmp_path / "templates.txt").write_text("so " * long + "{question}\n")
    wordings = Wordings(few_shot=0, templates=str(tmp_path / "templates.txt"))
    tested = callback(attacks=("wordings",), wordings=wordings)
    module = ToyModule()
    module.policy = toy_model("gpt2")
    trainer(tmp_path, tested).test(module, datamodule=ToyData(write_tofu(tmp_path / "data")), verbose=False)
    [document] = read(tmp_path)
    assert document["sets"]["unlearned_template_1"] == []
    [first, _] = document["skipped"]["unlearned_template_1"]
    assert "fills the model's positions" in first["reason"]
    assert document["aggregates"]["unlearned_template_1_rouge"] is None
    assert document["aggregates"]["unlearned_lower_case_rouge"] is not None
    assert "2 rows of unlearned_template_1 have no value" in markdown_table(document)
    assert score(tested.files[0])["stored_aggregates_hold"] is True


@pytest.mark.distributed
def test_two_processes_equal_one(tmp_path):
    expected = attacked()
    mp.spawn(run, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [({"attacks": ("sampling",)}, "attacks has 'sampling'"), ({"max_forget_rows": 0}, "max_forget_rows is 0"),
     ({"further": {"mine": 3}}, "further.mine is 3")],
)  # fmt: skip
def test_options_are_checked(options, message):
    with pytest.raises(InputError, match=message):
        callback(**options)


def test_rounding_sharded_weights_is_refused_before_a_model_is_loaded(tmp_path):
    data = ToyData(write_tofu(tmp_path / "data"))
    sharded = trainer(tmp_path, callback(), strategy="fsdp2")
    sharded.datamodule = data
    with pytest.raises(InputError, match=r"attacks: \[wordings, prefixes\]"):
        sharded.callbacks[0].check(sharded, ToyModule())


def test_a_data_module_without_forget_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="use one with `forget_rows`"):
        trainer(tmp_path, callback()).test(ToyModule(), datamodule=ToyData(), verbose=False)
