"""The configuration beside each result: that of the command line, asked for once, and each caller's own."""

from __future__ import annotations

from types import SimpleNamespace

import yaml
from lightning.pytorch.cli import SaveConfigCallback

from dipo_lightning.evaluation.provenance import configuration, run_settings


class Parser:
    """A parser that counts how often the options are written out."""

    dumped = 0

    def dump(self, options, skip_none):
        assert not skip_none
        self.dumped += 1
        return yaml.safe_dump(options)


def test_the_options_of_a_command_are_asked_for_once_and_each_caller_has_its_own() -> None:
    parser = Parser()
    options = {"run": "here", "ckpt_path": "here/checkpoints/last.ckpt", "weights": {"a": 1.5}}
    trainer = SimpleNamespace(callbacks=[SaveConfigCallback(parser, options)])

    first = configuration(trainer, None)
    assert first == {"run": "here", "ckpt_path": None, "weights": {"a": 1.5}}  # the run's own checkpoint is no option
    first["weights"]["a"] = 2.0
    assert configuration(trainer, None)["weights"] == {"a": 1.5}
    assert parser.dumped == 1

    other = SaveConfigCallback(parser, {"ckpt_path": "elsewhere.ckpt"})
    assert configuration(SimpleNamespace(callbacks=[other]), None) == {"ckpt_path": "elsewhere.ckpt"}
    assert options["ckpt_path"] == "here/checkpoints/last.ckpt"


def test_a_data_module_without_a_batch_size_has_none():
    trainer = SimpleNamespace(
        optimizers=[], world_size=2, accumulate_grad_batches=3, max_epochs=1, max_steps=-1, datamodule=None
    )
    for size, known in ((None, {}), (4, {"batch_size": 4, "global_batch_size": 24})):
        trainer.datamodule = SimpleNamespace(batch_size=size)
        found = run_settings(trainer, None)
        assert {name: value for name, value in found.items() if "batch_size" in name} == known
