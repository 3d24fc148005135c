"""The command line: LightningCLI (``fit``, ``validate``, ``test``) and the commands that are no Trainer method.

A command of the second kind is a plain function whose signature and docstring are its options and its help.
"""

import difflib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dipo_lightning.errors import DiPOError, InputError
from dipo_lightning.parser_messages import explained
from dipo_lightning.report.text import printable

COMMANDS = {
    "quickstart": "dipo_lightning.quickstart:quickstart",
    "muse-small": "dipo_lightning.muse_small:muse_small",
    "scalability": "dipo_lightning.scaling:scalability",
    "sustainability": "dipo_lightning.scaling:sustainability",
    "compare": "dipo_lightning.comparison:compare",
    "score": "dipo_lightning.metrics.scoring:print_score",
    "report": "dipo_lightning.report.page:report",
    "export": "dipo_lightning.export:export",
    "chat": "dipo_lightning.chat:chat",
    "plan": "dipo_lightning.planning:plan",
}
"""The commands that are no Trainer method, by name, as ``module:function``."""

RUN_HELP = (
    "Folder that stands for this one run (fit): its logs, evaluations and checkpoints go there. The same command again "
    "goes on from the last checkpoint, to the same result; after the end it says so and does nothing."
)

TRAINER_COMMANDS = ("fit", "validate", "test")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; an error that the user can mend is one sentence and code 2."""
    args = list(sys.argv[1:] if args is None else args)
    try:
        if args and args[0] in COMMANDS:
            run_command(args[0], args[1:])
        elif args and args[0] in TRAINER_COMMANDS:
            run_trainer(args)
        else:
            return show_commands(args)
    except DiPOError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        if type(stop).__name__ != "SIGTERMException":  # Lightning's: exit code 0, as if the run had ended
            raise
        print("Stopped by SIGTERM; the same command with --run goes on from the last checkpoint.", file=sys.stderr)
        return 128 + signal.SIGTERM
    return 0


def run_command(name: str, args: list[str]) -> None:
    """Parse ``args`` by the signature of the function behind ``name``, and call it."""
    from jsonargparse import auto_cli

    module, function = COMMANDS[name].split(":")
    auto_cli(getattr(importlib.import_module(module), function), args=args, prog=f"dipo-lightning {name}")


def run_trainer(args: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` through LightningCLI, with DiPO where no model class is named."""
    default = [] if names_a_model(args) else ["--model=dipo_lightning.DiPOModule"]
    trainer_cli()([args[0], *default, *args[1:]])


def names_a_model(args: Sequence[str]) -> bool:
    """Whether the options, or a config among them, name the model's class.

    DiPO is not the parser's own default: its options' defaults would then stay when a config names another class (NPO
    with DiPO's beta).
    """
    for place, argument in enumerate(args):
        option, _, value = argument.partition("=")
        if option in ("--model", "--model.class_path"):
            return True
        if option in ("--config", "-c"):
            path = Path(value or "".join(args[place + 1 : place + 2]))
            if path.is_file() and _has_model_class(path):
                return True
    return False


def _has_model_class(path: Path) -> bool:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # the parser says what is wrong with it
    model = config.get("model") if isinstance(config, dict) else None
    return isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)


def show_commands(args: list[str]) -> int:
    """Print what commands there are; an unknown one is an error with the nearest right one."""
    if args and args[0] == "--version":
        from dipo_lightning import __version__

        print(__version__)
        return 0
    lines = [f"  {name:<16}{_summary(name)}" for name in (*TRAINER_COMMANDS, *COMMANDS)]
    usage = "usage: dipo-lightning COMMAND [options]   (COMMAND --help explains the options)\n\n" + "\n".join(lines)
    if args and not args[0].startswith("-"):
        near = difflib.get_close_matches(args[0], [*TRAINER_COMMANDS, *COMMANDS], n=1)
        print(
            f"error: there is no command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""),
            file=sys.stderr,
        )
        print(usage, file=sys.stderr)
        return 2
    print(usage)
    return 0


def trainer_cli() -> Any:  # noqa: ANN401
    """Return the LightningCLI of this project as a callable of the arguments (imports Lightning only when needed)."""
    # Lightning 2.6 calls jsonargparse by old names; its users can do nothing about that
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    import lightning.pytorch as pl
    from jsonargparse import Namespace
    from lightning.pytorch.callbacks import Checkpoint as AnyCheckpoint
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

    from dipo_lightning.callbacks import Checkpoint  # and short class names of all of them in YAML
    from dipo_lightning.callbacks.tensorboard_layout import write_layout
    from dipo_lightning.models.checkpoint import read_settled
    from dipo_lightning.run_folder import is_finished, is_first_process, last_checkpoint, prepare_run
    from dipo_lightning.sharding import check_strategy

    class Parser(LightningArgumentParser):
        """Says in a sentence what is wrong, with the nearest right option where one is not known."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            if not self.exit_on_error:  # inside the parse of a larger one, which will say it
                super().error(message, ex)
            command = self.prog.replace(" [options]", "")
            print(
                f"error: {printable(explained(message, self))}\n{command} --help explains the options", file=sys.stderr
            )
            sys.exit(2)

    class SaveConfig(SaveConfigCallback):
        """Also writes the config as text into TensorBoard, and the layout of its charts."""

        def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            experiment: Any = getattr(trainer.logger, "experiment", None)
            if hasattr(experiment, "add_text"):
                text = self.parser.dump(self.config, skip_none=False)
                experiment.add_text("config", "\n".join("    " + line for line in text.splitlines()))
            if stage == "fit":
                write_layout(experiment)

    class DiPOCLI(LightningCLI):
        """Any module and data module by class name; one tokenizer for both; a checkpoint never overrides an option."""

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("model.init_args.pretrained", "data.init_args.tokenizer")
            parser.add_argument("--run", type=str | None, default=None, help=RUN_HELP)

        def before_instantiate_classes(self) -> None:
            config = self.config[self.subcommand]
            check_strategy(config.trainer.strategy)
            goes_on = bool(config.run) and self.subcommand == "fit" and self._enter_run(Path(config.run))
            config.weights_only = True  # no pickle is ever run
            path = config.get("ckpt_path")
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
                config.trainer.logger = Namespace(
                    class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=place
                )
            return found is not None

        def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:  # noqa: ANN401
            callbacks = self._get(self.config_init, "trainer").callbacks
            enabled = self._get(self.config_init, "trainer").enable_checkpointing is not False
            listed = callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []
            if enabled and not any(isinstance(callback, AnyCheckpoint) for callback in listed):
                self.trainer_defaults["callbacks"] = [Checkpoint()]
            return super().instantiate_trainer(**kwargs)

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except ValueError as error:  # jsonargparse wraps what a constructor raises, under its own long report
                raise root_cause(error) from error

        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            self.config = parser.parse_args(args)

        def _parse_ckpt_path(self) -> None:
            """Do nothing: Lightning would let the checkpoint's hyper-parameters override the command line."""

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {name: skip for name, skip in LightningCLI.subcommands().items() if name in TRAINER_COMMANDS}

        def after_fit(self) -> None:
            self._say_where()

        def after_validate(self) -> None:
            self._say_where()

        def after_test(self) -> None:
            self._say_where()

        def _say_where(self) -> None:
            folder = self.trainer.log_dir  # every process takes part in finding it out
            if self.trainer.is_global_zero and folder:
                print(f"Results are in {folder}")

    def run(args: list[str]) -> DiPOCLI:
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

    return run


def root_cause(error: BaseException) -> BaseException:
    """Return the error of this package that led to ``error``, or ``error`` itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DiPOError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _summary(name: str) -> str:
    summaries = {
        "fit": "Unlearn (or fine-tune) a model, evaluating while it trains.",
        "validate": "Run the evaluation callbacks on a model.",
        "test": "Run the evaluation callbacks on a model and write its log.",
        "quickstart": "Make data, a model that knows it, unlearn a part, and show that it did.",
        "muse-small": "Make a small corpus in MUSE's schema, and models that know it with and without a part.",
        "scalability": "Unlearn forget sets of growing size, each from the target.",
        "sustainability": "Unlearn one request after another, each from the last model.",
        "compare": "Run methods side by side on one base: a table, a CSV and a picture.",
        "plan": "Tell the memory that a run takes on each GPU, without loading weights.",
        "score": "Compute every aggregate of an evaluation log, without a model.",
        "report": "Write a run's results as one HTML page.",
        "export": "Write a checkpoint as a Hugging Face folder with a model card.",
        "chat": "Talk to the original and the unlearned model side by side.",
    }
    return summaries.get(name, "")


if __name__ == "__main__":
    sys.exit(main())
