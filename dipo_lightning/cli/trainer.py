"""LightningCLI of this package: ``fit``, ``validate`` and ``test`` for any module and data module by class name."""

import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# Lightning 2.6 calls jsonargparse by old names; its users can do nothing about that
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
# The store that Lightning's MLFlowLogger has by default, which MLflow 3 refuses unless it is told otherwise
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")

import lightning.pytorch as pl
import yaml
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint as AnyCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

import dipo_lightning
from dipo_lightning.callbacks import Checkpoint  # and short class names of all of them in YAML
from dipo_lightning.callbacks.checkpoint import newest
from dipo_lightning.callbacks.run_record import CHECKPOINTS, describe_run, read_record, refuse_changes
from dipo_lightning.cli.configs import check_made
from dipo_lightning.cli.console import LOG_FILE, is_verbose, quiet, trainer_options
from dipo_lightning.cli.messages import Sentences
from dipo_lightning.cli.run_folder import (
    asks_for_more,
    is_finished,
    is_first_process,
    loggers_in,
    prepare_run,
    read_fingerprints,
)
from dipo_lightning.errors import DiPOError, InputError, check_seed, root_cause
from dipo_lightning.evaluation.callback import refuse_twins
from dipo_lightning.evaluation.provenance import command_options
from dipo_lightning.evaluation.run_folder import (
    PRIVATE,
    SHARED,
    is_trial,
    run_folder,
    set_run_folder,
    share_run_folder,
    write_text,
)
from dipo_lightning.evaluation.schedule import Scheduled
from dipo_lightning.evaluation.tensorboard import RunLogger
from dipo_lightning.evaluation.trackers import tracker_errors, trackers_of
from dipo_lightning.methods.language_model import LanguageModelModule
from dipo_lightning.models.checkpoint import read_settled
from dipo_lightning.models.distributed import check_accelerator, check_strategy
from dipo_lightning.models.loading import find_source
from dipo_lightning.safety.paths import expanded, refuse_model_folder
from dipo_lightning.safety.redaction import without_home, without_secrets

COMMANDS = ("fit", "validate", "test")

RUN_HELP = (
    "Folder of this run for its logs, evaluations and checkpoints. The same fit again resumes from the last "
    "checkpoint, with the same result; a finished run is not repeated. validate and test write their evaluation there."
)


PRIVATE_HELP = (
    "Make the files of the command readable by you alone (umask 077), since evaluations, pages and checkpoints contain "
    "forget data. With false your own umask applies."
)

EPOCHS = 5
"""Default number of epochs, as in TOFU."""


class Parser(Sentences, LightningArgumentParser):
    """Parser whose errors are one sentence, with a suggestion for unknown options."""


class SaveConfig(SaveConfigCallback):
    """Config of the run, written as ``config.yaml`` and as text to the trackers once the run is accepted.

    A refused run leaves the folder and its config unchanged.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write nothing yet."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the config of a fit, a validation or a test; collective."""
        folder = run_folder(trainer)  # collective
        if self.already_saved or is_trial(trainer) or not trainer.is_global_zero:
            return
        self.already_saved = True
        LOG_FILE.open_in(folder)
        options = without_secrets(command_options(self))
        fitting, path = trainer.state.fn == TrainerFn.FITTING, folder / "config.yaml"
        if trainer.state.fn is not None and not fitting and path.exists():  # of the run that is measured
            path = folder / f"config_{trainer.state.fn.value}.yaml"
        write_text(path, in_yaml(options))
        for tracker in trackers_of(trainer):
            tracker.text("config", in_yaml(without_home(options)), trainer.global_step)

    on_validation_start = on_test_start = on_fit_start


def in_yaml(options: Any) -> str:
    """Return options as YAML, in their order."""
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


class DiPOCLI(LightningCLI):
    """LightningCLI for any module and data module by class name; options take precedence over a checkpoint's."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--run`` and ``--private``."""
        parser.add_argument("--run", type=str | None, default=None, help=RUN_HELP)
        parser.add_argument("--private", type=bool, default=True, help=PRIVATE_HELP)

    def before_instantiate_classes(self) -> None:
        """Check the options before any object is built, and set up the run folder."""
        config = self.config[self.subcommand]
        if config.private:
            os.umask(0o077)
        if config.trainer.barebones:
            raise InputError("trainer.barebones switches off logs, checkpoints and evaluations; leave it out.")
        check_strategy(config.trainer.strategy)
        check_accelerator(config.trainer.accelerator)
        model, data = (part.get("init_args", {}) for part in (config.model, config.data))
        options = [one.get("init_args", {}) for one in self._callbacks()]
        check_made([model.get("pretrained"), data.get("data"), *(one.get("retain_log") for one in options)])
        if isinstance(pretrained := model.get("pretrained"), str):
            find_source(pretrained)
        limits = (config.trainer.max_epochs, config.trainer.max_time)
        if self.subcommand == "fit":
            self._refuse_no_step()
        if self.subcommand == "fit" and limits == (None, None) and config.trainer.max_steps == -1:
            config.trainer.max_epochs = EPOCHS  # Lightning's own default is 1000
            if is_first_process():
                print(f"trainer.max_epochs is not given: training for {EPOCHS}.")
        self.run: Path | None = None
        if config.run and not config.trainer.fast_dev_run:
            self.run = expanded(config.run, "run")
            config.run = str(self.run)
        config.weights_only = True  # no pickle is ever run
        if self.subcommand != "fit":
            config.verbose = is_verbose()  # Lightning's own table of numbers
        resumed = self._enter_run(self.run) if self.run else False
        if not resumed and config.get("ckpt_path") is not None:
            config.ckpt_path = self._checkpoint(config.ckpt_path)

    def _checkpoint(self, given: str) -> str:
        """Return the path of the checkpoint that the option ``ckpt_path`` names."""
        if given in ("", "best"):
            raise InputError(f"ckpt_path is {given!r}, but this command has trained nothing; give a checkpoint.")
        if given == "hpc":
            return given
        path = self._last_checkpoint() if given == "last" else expanded(given, "ckpt_path")
        if path is None:
            return given
        if not path.exists() and (old := path.with_name(f"{path.name}.old")).exists():
            path = old  # cut off between two renames
        if not path.exists():
            raise InputError(f"ckpt_path is {path}, which does not exist; give a checkpoint.")
        read_settled(path)
        return str(path)

    def _last_checkpoint(self) -> Path | None:
        """Return the last checkpoint of the run; None for a fit that finds its own, or has none yet."""
        found = newest(self.run / CHECKPOINTS) if self.run else None
        searched = self.run or any(one.class_path.endswith(".ModelCheckpoint") for one in self._callbacks())
        if found is None and not (self.subcommand == "fit" and searched):
            where = f"{self.run} has none" if self.run else "the run's folder is not given (--run)"
            raise InputError(f"ckpt_path is last, but {where}; give the path of a checkpoint.")
        return found

    def _callbacks(self) -> list[Any]:
        """Return the callbacks of the config as a list, even if it names only one."""
        found = self.config[self.subcommand].trainer.callbacks or []
        return found if isinstance(found, list) else [found]

    def _refuse_to_measure_nothing(self) -> None:
        """Refuse a validation or test without an evaluation callback and without a step of the module."""
        config = self.config[self.subcommand]
        limit = f"limit_{'val' if self.subcommand == 'validate' else 'test'}_batches"
        if config.trainer[limit] in (0, 0.0):
            raise InputError(f"trainer.{limit} is 0, so that nothing would be measured; leave it out.")
        step = "validation_step" if self.subcommand == "validate" else "test_step"
        own = getattr(type(self.model), step, None) is not getattr(LanguageModelModule, step)
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not own and not any(isinstance(callback, Scheduled) for callback in callbacks):
            raise InputError(
                f"{self.subcommand} would measure nothing: trainer.callbacks has no evaluation. Add your benchmark's, "
                "or --trainer.callbacks+=MemorizationEvaluation for your own rows."
            )

    def _refuse_no_step(self) -> None:
        """Refuse a fit that would take no step, and export the untouched model as an unlearned one."""
        trainer = self.config[self.subcommand].trainer
        for name in ("max_epochs", "max_steps", "limit_train_batches"):
            if trainer[name] == 0:
                raise InputError(f"trainer.{name} is 0, so that nothing would be trained; leave it out.")

    def _enter_run(self, folder: Path) -> bool:
        """Set all output paths of the run to ``folder``; returns whether it resumes from a checkpoint."""
        config = self.config[self.subcommand]
        config.trainer.default_root_dir = str(folder)
        config.trainer.logger = loggers_in(folder, config.trainer.logger)
        refuse_model_folder(folder, "run")
        if self.subcommand != "fit":
            return False
        if config.trainer.enable_checkpointing is False:
            raise InputError(
                "trainer.enable_checkpointing is false, but --run needs checkpoints; leave one of them out."
            )
        first = is_first_process()
        found = prepare_run(folder, PRIVATE if config.private else SHARED) if first else newest(folder / CHECKPOINTS)
        if found:
            config.ckpt_path = str(found)
        for callback in self._callbacks():
            if callback.class_path.endswith(".ModelCheckpoint") and callback.init_args.get("dirpath") is None:
                callback.init_args.dirpath = str(folder / "model_checkpoints")  # not beside the run's own
            if callback.class_path == "dipo_lightning.callbacks.checkpoint.Checkpoint" and callback.init_args.folder:
                raise InputError("Checkpoint.folder is given, but --run says where checkpoints lie; leave it out.")
        return found is not None

    def _leave_if_finished(self, folder: Path) -> None:
        """Exit if the run in ``folder`` is finished and has the same options and data."""
        if not is_finished(folder):
            if self.config_init[self.subcommand].ckpt_path and is_first_process():
                print(f"Resuming from {self.config_init[self.subcommand].ckpt_path}")
            return
        config = without_secrets(yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.subcommand])
        now = describe_run(config, read_fingerprints(self.datamodule, getattr(self.model, "pretrained", None)))
        refuse_changes(read_record(folder / CHECKPOINTS) or {}, now, folder)
        if asks_for_more(folder, config):
            return
        if is_first_process():
            print(f"This run is finished; nothing is repeated. Results are in {folder}")
        raise SystemExit(0)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the Trainer, with this package's checkpoint callback and progress bar if the config names none."""
        callbacks = self._get(self.config_init, "trainer").callbacks
        enabled = self._get(self.config_init, "trainer").enable_checkpointing is not False
        listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
        refuse_twins(listed)  # Lightning would refuse those of one class, without saying what to do
        kind = Checkpoint if self.run else AnyCheckpoint  # a named run is resumed by this package's checkpoint
        if enabled and not any(isinstance(callback, kind) for callback in listed):
            self.trainer_defaults["callbacks"] = [Checkpoint()]
        shown, bars = trainer_options(self._get(self.config_init, "trainer"), listed)
        self.trainer_defaults["callbacks"] = [*self.trainer_defaults.get("callbacks", []), *bars]
        if self._get(self.config_init, "trainer").logger in (None, True):
            folder = self._get(self.config_init, "trainer").default_root_dir
            kwargs["logger"] = RunLogger(folder, version=SLURMEnvironment.job_id())
        trainer = super().instantiate_trainer(**shown, **kwargs)
        if self.run:
            set_run_folder(trainer, self.run)
        if not self.config_init[self.subcommand].private:
            share_run_folder(trainer)
        return trainer

    def instantiate_classes(self) -> None:
        """Build trainer, model and data; errors of a constructor are shown without jsonargparse's report."""
        self._failure: Exception | None = None
        self.parser.add_instantiator(self._construct, object)  # those of model and data, added before, go first
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps what a constructor raises, under its own long report
            cause = root_cause(error)
            raise (cause if isinstance(cause, DiPOError) else self._failure or error) from error
        if self.subcommand != "fit":
            self._refuse_to_measure_nothing()
        elif self.run:
            self._leave_if_finished(self.run)

    def _construct(self, kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Build an object, and keep its error: jsonargparse drops it where a list of objects may also be a single one.

        Raises:
            InputError: A library that the class needs is not installed.
        """
        try:
            return kind(*args, **options)
        except ModuleNotFoundError as error:
            self._failure = InputError(missing_library(kind.__name__, error))
            raise self._failure from error
        except Exception as error:
            self._failure = error
            raise

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments without Lightning's warning about ``args`` and ``sys.argv``."""
        self.config = parser.parse_args(args)
        seed = self.config[self.config.subcommand].seed_everything
        if isinstance(seed, int):
            check_seed("seed_everything", seed)

    def _parse_ckpt_path(self) -> None:
        """Do nothing; in Lightning the checkpoint's hyper-parameters override the command line."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods that are commands, with the arguments that each hides."""
        return {name: skip for name, skip in LightningCLI.subcommands().items() if name in COMMANDS}

    def after_fit(self) -> None:
        """Print the folder of the results."""
        folder = run_folder(self.trainer)  # every process takes part in finding it out
        if self.trainer.is_global_zero and not is_trial(self.trainer):
            print(f"Results are in {folder}")

    after_validate = after_test = after_fit


def run(args: list[str]) -> DiPOCLI:
    """Run ``fit``, ``validate`` or ``test``, the first of ``args``, with the options that follow.

    Raises:
        DiPOError: There is an error that the user can fix.
        SystemExit: With code 2 for a wrong option, with 0 after ``--help`` and ``--print_config``.
    """
    for name in dipo_lightning.__all__:  # the parser knows a class by its bare name once it is loaded
        getattr(dipo_lightning, name)
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        # Help has no noise to keep back, and needs no transformers.
        with nullcontext() if {"--help", "-h"} & set(args) else quiet():
            return _run(args)
    except (MisconfigurationException, RuntimeError, ValueError, ModuleNotFoundError) as error:
        if not raised_by_lightning(error):
            raise
        raise InputError(" ".join(str(error).split())) from error
    except tracker_errors() as error:
        raise InputError(
            f"A logger of trainer.logger failed: {' '.join(str(error).split())} Log in to its server, or let it keep "
            "everything on this machine (WandbLogger: offline: true)."
        ) from error
    finally:
        os.umask(umask)


def _run(args: list[str]) -> DiPOCLI:
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


def missing_library(name: str, error: ModuleNotFoundError) -> str:
    """Return what to install for the class ``name``, whose constructor has not found a library."""
    requirement = re.search(r"Requirement '(.+?)' not met", str(error))  # the form of Lightning's messages
    if requirement is None:
        return f"{name} needs a library that is not installed: {' '.join(str(error).split())}"
    return f"{name} needs {re.split('[<>=!~ ]', requirement[1])[0]}: pip install '{requirement[1]}'"


def raised_by_lightning(error: BaseException) -> bool:
    """Return whether an error was raised by Lightning itself."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and str(trace.tb_frame.f_globals.get("__name__", "")).startswith("lightning.")
