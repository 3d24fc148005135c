"""LightningCLI of this project: ``fit``, ``validate`` and ``test`` of any module and data module by class name."""

import os
from pathlib import Path
from typing import Any

# Lightning 2.6 calls jsonargparse by old names; its users can do nothing about that
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint as AnyCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import dipo_lightning
from dipo_lightning.callbacks import Checkpoint  # and short class names of all of them in YAML
from dipo_lightning.cli.messages import Sentences
from dipo_lightning.cli.run_folder import is_finished, is_first_process, last_checkpoint, prepare_run
from dipo_lightning.errors import InputError, root_cause
from dipo_lightning.evaluation.callback import refuse_twins
from dipo_lightning.evaluation.tensorboard import write_layout
from dipo_lightning.models.checkpoint import read_settled
from dipo_lightning.models.sharding import check_strategy
from dipo_lightning.safety.redaction import without_home

COMMANDS = ("fit", "validate", "test")

RUN_HELP = (
    "Folder that stands for this one run (fit): its logs, evaluations and checkpoints go there. The same command again "
    "goes on from the last checkpoint, to the same result; after the end it says so and does nothing."
)


class Parser(Sentences, LightningArgumentParser):
    """Says in a sentence what is wrong, with the nearest right option where one is not known."""


class SaveConfig(SaveConfigCallback):
    """Writes the config once the checkpoint is found to fit; also as text into TensorBoard, with its charts' layout."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write nothing yet: a run that is refused leaves the folder, and the config in it, as it was."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a fit; collective."""
        super().setup(trainer, pl_module, "fit")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a validation; collective."""
        super().setup(trainer, pl_module, "validate")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a test; collective."""
        super().setup(trainer, pl_module, "test")

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write them once a run, on the first process."""
        experiment: Any = getattr(trainer.logger, "experiment", None)
        if hasattr(experiment, "add_text"):
            text = without_home(self.parser.dump(self.config, skip_none=False))
            experiment.add_text("config", "\n".join("    " + line for line in text.splitlines()))
        if stage == "fit":
            write_layout(experiment)


class DiPOCLI(LightningCLI):
    """Any module and data module by class name; a checkpoint never overrides an option."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run``."""
        parser.add_argument("--run", type=str | None, default=None, help=RUN_HELP)

    def before_instantiate_classes(self) -> None:
        """Refuse what can be refused before anything is built, and enter the run's folder."""
        config = self.config[self.subcommand]
        check_strategy(config.trainer.strategy)
        goes_on = bool(config.run) and self.subcommand == "fit" and self._enter_run(Path(config.run))
        config.weights_only = True  # no pickle is ever run
        path = config.get("ckpt_path")
        if path in ("", "best") and self.subcommand == "fit":
            raise InputError(f"ckpt_path is {path!r}, but nothing was trained yet; give a checkpoint or last.")
        if path and not goes_on and path not in ("best", "last", "hpc"):
            if not Path(path).exists():
                raise InputError(f"ckpt_path is {path}, which is not there; give a checkpoint, last or best.")
            read_settled(Path(path))

    def _enter_run(self, folder: Path) -> bool:
        """Let everything of the run be in ``folder``; returns whether it goes on from its last checkpoint."""
        config = self.config[self.subcommand]
        first = is_first_process()
        if is_finished(folder):
            if first:
                print(f"This run is finished; nothing is repeated. Results are in {folder}")
            raise SystemExit(0)
        found = prepare_run(folder) if first else last_checkpoint(folder)
        if found:
            if first:
                print(f"Going on from {found}")
            config.ckpt_path = str(found)
        config.trainer.default_root_dir = str(folder)
        if config.trainer.logger is not False:
            place = Namespace(save_dir=str(folder), name="", version="", default_hp_metric=False)
            config.trainer.logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=place)
        return found is not None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Keep checkpoints with this package's callback where the config names none."""
        callbacks = self._get(self.config_init, "trainer").callbacks
        enabled = self._get(self.config_init, "trainer").enable_checkpointing is not False
        listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        refuse_twins(listed)  # Lightning would refuse those of one class, without saying what to do
        if enabled and not any(isinstance(callback, AnyCheckpoint) for callback in listed):
            self.trainer_defaults["callbacks"] = [Checkpoint()]
        return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; what a constructor says is said alone."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps what a constructor raises, under its own long report
            raise root_cause(error) from error

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse without Lightning's warning about ``args`` beside ``sys.argv``."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's hyper-parameters override the command line."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods that are commands, and what each hides of its arguments."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in COMMANDS}

    def after_fit(self) -> None:
        """Say where the results are."""
        self._say_where()

    def after_validate(self) -> None:
        """Say where the results are."""
        self._say_where()

    def after_test(self) -> None:
        """Say where the results are."""
        self._say_where()

    def _say_where(self) -> None:
        folder = self.trainer.log_dir  # every process takes part in finding it out
        if self.trainer.is_global_zero and folder:
            print(f"Results are in {folder}")


def run(args: list[str]) -> DiPOCLI:
    """Parse ``args``, whose first is ``fit``, ``validate`` or ``test``, build trainer, model and data, and run it.

    Raises:
        DiPOError: If something is wrong that the user can mend.
        SystemExit: With code 2 if an option is wrong, with 0 after ``--help`` and ``--print_config``.
    """
    for name in dipo_lightning.__all__:  # the parser knows a class by its bare name once it is loaded
        getattr(dipo_lightning, name)
    return DiPOCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        save_config_callback=SaveConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={"inference_mode": False, "log_every_n_steps": 1, "default_root_dir": "runs"},
        seed_everything_default=0,
        parser_kwargs={"prog": "dipo-lightning"},
        parser_class=Parser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        args=args,
    )
