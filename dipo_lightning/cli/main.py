"""The command line: LightningCLI (``fit``, ``validate``, ``test``) and further commands.

A further command is a function whose signature gives its options and whose docstring gives its help.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dipo_lightning.cli import PARENT, VERBOSE
from dipo_lightning.errors import DiPOError, InputError, root_cause
from dipo_lightning.safety.paths import expanded

if TYPE_CHECKING:
    import inspect
    from pathlib import Path

COMMANDS = {
    "forget": "dipo_lightning.cli.forget:forget",
    "quickstart": "dipo_lightning.quickstart:quickstart",
    "muse-small": "dipo_lightning.quickstart.muse_small:muse_small",
    "scalability": "dipo_lightning.comparison.sequences:scalability",
    "sustainability": "dipo_lightning.comparison.sequences:sustainability",
    "compare": "dipo_lightning.comparison:compare",
    "score": "dipo_lightning.cli.score:print_score",
    "report": "dipo_lightning.report.page:report",
    "export": "dipo_lightning.cli.export:export",
    "chat": "dipo_lightning.cli.chat:chat",
    "plan": "dipo_lightning.cli.plan:plan",
    "attack": "dipo_lightning.cli.attack:attack",
    "lm-eval": "dipo_lightning.cli.lm_eval:lm_eval",
    "clean": "dipo_lightning.cli.clean:clean",
}
"""Further commands by name, as ``module:function``."""

PRIVATE_COMMANDS = ("forget", "scalability", "sustainability", "compare", "report", "attack", "clean")
"""Commands whose files contain forget data, so that only the user may read them (umask 077)."""

RESUMABLE = ("forget", "scalability", "sustainability", "attack")
"""Commands that keep finished parts and resume from them."""

LAST_ARGUMENT = {"forget": (2, "retain")}
"""Commands with an optional positional argument: its place, and the option that it stands for."""

SUMMARIES = {
    "fit": "Unlearn (or fine-tune) a model, evaluating while it trains.",
    "validate": "Run the evaluation callbacks on a model.",
    "test": "Run the evaluation callbacks on a model and write its log.",
    "forget": "Make a model forget the rows of a file, and give a verdict.",
    "quickstart": "Make data and a model that knows it, unlearn a part, and show the result.",
    "muse-small": "Make a small corpus in MUSE's schema, a target and a retain model.",
    "scalability": "Unlearn forget sets of growing size, each from the target.",
    "sustainability": "Unlearn one request after another, each from the last model.",
    "compare": "Compare methods on one base: a table, a CSV and a picture.",
    "plan": "Compute the memory of a run on each GPU, without loading weights.",
    "score": "Compute every aggregate of an evaluation log, without a model.",
    "report": "Write a run's results as one HTML page.",
    "export": "Write a checkpoint as a Hugging Face folder with a model card.",
    "attack": "Try to recover forgotten knowledge: rewordings, quantisation, sampling, relearning.",
    "lm-eval": "Evaluate a model on tasks of the lm-evaluation-harness: MMLU, WMDP and others.",
    "chat": "Chat with the original and the unlearned model side by side.",
    "clean": "Remove copies of the forget data from a run.",
}
"""Summary of every command, which `--help` shows without importing anything."""

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a full or read-only disk, which seldom name a file."""

ALONE = ("-h", "--help", "--print_config")
"""Options of the parser that have no value."""
SWITCH_VALUES = ("true", "false", "yes", "no")

TRAINER_COMMANDS = ("fit", "validate", "test")
DEFAULT_CLASSES = {"model": "DiPOModule", "data": "UnlearningDataModule"}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2, after a message of one sentence, for errors that the user can fix."""
    args = list(sys.argv[1:] if args is None else args)
    if parent := os.environ.pop(PARENT, None):
        end_with(int(parent))
    if (here := os.getcwd()) not in sys.path:  # classes of the user's own project
        sys.path.insert(0, here)
    if "--verbose" in args:
        os.environ[VERBOSE] = "1"  # child processes, too
        args.remove("--verbose")
    try:
        if args and args[0] in COMMANDS:
            run_command(args[0], args[1:])
            sys.stdout.flush()
        elif args and args[0] in TRAINER_COMMANDS:
            run_trainer(args)
        else:
            return show_commands(args)
    except DiPOError as error:
        return refused(str(error))
    except BrokenPipeError:  # the reader of the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if isinstance(cause := root_cause(error), DiPOError):  # the loggers' last words failed after ours
            return refused(str(cause))
        if error.filename is None and error.errno not in DISK_ERRORS:  # not about a file of the user's
            raise
        where = f": {error.filename}" if error.filename else ""
        return refused(f"{error.strerror}{where}")
    except SystemExit as stop:
        if "SIGTERMException" in (kind.__name__ for kind in type(stop).__mro__):  # Lightning's, with code 0
            return 128 + signal.SIGTERM
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning turns into code 1
            return 128 + signal.SIGINT
        raise
    except KeyboardInterrupt:
        resumes = next(iter(args), "") in RESUMABLE
        kept = " Finished parts are kept; the same command resumes." if resumes else ""
        print(f"\nInterrupted.{kept}", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def refused(reason: str) -> int:
    """Print why a command was refused, and return its exit code."""
    from dipo_lightning.safety.display import printable

    print(f"error: {printable(reason)}", file=sys.stderr)
    return 2


def end_with(parent: int) -> None:
    """Let the kernel send this process SIGTERM when its parent ends, for whatever reason."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was gone before
        raise SystemExit(128 + signal.SIGTERM)


def run_command(name: str, args: list[str]) -> None:
    """Parse ``args`` by the signature of the function of command ``name``, and call it."""
    from jsonargparse import ArgumentParser, auto_cli, set_parsing_settings

    from dipo_lightning.cli.late_imports import import_late
    from dipo_lightning.cli.messages import Sentences, warning_sentence

    set_parsing_settings(instantiate_subclass_spec_in_any=False)  # a class in `further` or `metrics` is ours to make
    parser = type("Parser", (Sentences, ArgumentParser), {})
    module, function = COMMANDS[name].split(":")
    called = getattr(import_late(module), function)
    umask = os.umask(0o077)
    os.umask(umask | 0o077 if name in PRIVATE_COMMANDS else umask)
    shown = warnings.formatwarning
    if os.environ.get(VERBOSE) != "1":
        warnings.formatwarning = warning_sentence
    try:
        auto_cli(called, args=spelled_out(name, called, args), prog=f"dipo-lightning {name}", parser_class=parser)
    finally:
        os.umask(umask)
        warnings.formatwarning = shown


def spelled_out(name: str, function: Callable[..., Any], args: Sequence[str]) -> list[str]:
    """Return the arguments of a command as the parser takes them.

    An optional last positional argument gets its option's name, a switch such as ``--yes`` its value (``--yes=true``),
    and a list such as ``wordings,prefixes`` its brackets; ``~`` in ``--output`` and the short names of shipped
    configurations are expanded.
    """
    import inspect

    from dipo_lightning.cli.configs import with_shipped_configs

    args = with_shipped_configs(args)
    parameters = inspect.signature(function).parameters
    switches = {f"--{name}" for name, one in parameters.items() if one.annotation in (bool, "bool")}
    following = [*args[1:], ""]
    args = [
        f"{argument}=true" if argument in switches and after.lower() not in SWITCH_VALUES else argument
        for argument, after in zip(args, following, strict=False)
    ]
    if name in LAST_ARGUMENT:
        number, option = LAST_ARGUMENT[name]
        for place in positional(args)[number : number + 1]:
            args = [*args[:place], f"--{option}", *args[place:]]
    lists = list_options(parameters.values())
    for place, (before, argument) in enumerate(zip(["", *args], args, strict=False)):
        option, sign, value = argument.partition("=")
        if before in lists:
            args[place] = bracketed(argument)
        elif sign and option in lists:
            args[place] = f"{option}={bracketed(value)}"
        elif before == "--output":
            args[place] = str(expanded(argument, "output"))
        elif argument.startswith("--output="):
            args[place] = f"--output={expanded(argument.removeprefix('--output='), 'output')}"
    return args


def list_options(parameters: Iterable[inspect.Parameter]) -> set[str]:
    """Return the options that take a list, those of options that are data classes among them."""
    import dataclasses

    types = {f"--{one.name}": str(one.annotation) for one in parameters}
    for one in parameters:
        if dataclasses.is_dataclass(one.default):
            types |= {f"--{one.name}.{field.name}": str(field.type) for field in dataclasses.fields(one.default)}
    return {option for option, kind in types.items() if kind.startswith(("tuple[", "list["))}


def bracketed(items: str) -> str:
    """Return a list as YAML has it: ``a,b`` becomes ``[a,b]``."""
    return items if items.startswith("[") else f"[{items}]"


def positional(args: Sequence[str]) -> list[int]:
    """Return the places of the arguments that are neither options nor their values; a switch has its value already."""
    found, place = [], 0
    while place < len(args):
        if not args[place].startswith("-"):
            found.append(place)
        elif "=" not in args[place] and args[place] not in ALONE:
            place += 1
        place += 1
    return found


def run_trainer(args: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` through LightningCLI, with default classes where none is named."""
    from dipo_lightning.cli.configs import with_shipped_configs

    args = with_shipped_configs(args)
    before = {part: class_before(part, args) for part in DEFAULT_CLASSES}
    classes = [f"--{part}={name}" for part, name in before.items() if name]
    from dipo_lightning.cli.late_imports import import_late

    import_late("dipo_lightning.cli.trainer").run([args[0], *classes, *args[1:]])


def class_before(part: str, args: Sequence[str]) -> str | None:
    """Return the class of ``part`` (``model`` or ``data``) that the parser must know before ``args``, if any.

    It is the class that they name after the first option of the part, which the parser would not know, or the default
    class if neither the options nor a config among them name one. Else the parser must not get the default class: the
    defaults of its options would remain although a config names another class (NPO with DiPO's beta).
    """
    from pathlib import Path

    has_options = False
    for place, argument in enumerate(args):
        option, _, value = argument.partition("=")
        value, named = value or "".join(args[place + 1 : place + 2]), None
        if option in (f"--{part}", f"--{part}.class_path"):
            named = value
        elif option in ("--config", "-c") and (path := Path(value)).is_file():
            named = _class_in(part, path)
        if named:
            return named if has_options else None
        has_options = has_options or option.startswith(f"--{part}.")
    return f"dipo_lightning.{DEFAULT_CLASSES[part]}"


def _class_in(part: str, path: Path) -> str | None:
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        problem, mark = getattr(error, "problem", None) or error, getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"The config {path} is not YAML{where}: {problem}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"The config {path} is not UTF-8 text ({error.reason}).") from error
    value = config.get(part) if isinstance(config, dict) else None
    name = value.get("class_path") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def show_commands(args: list[str]) -> int:
    """Print the list of commands; an unknown command is an error that suggests the nearest one."""
    if args and args[0] == "--version":
        from dipo_lightning import __version__

        print(__version__)
        return 0
    lines = [f"  {name:<16}{summary}" for name, summary in SUMMARIES.items()]
    usage = "usage: dipo-lightning COMMAND [options]   (COMMAND --help explains the options)\n\n" + "\n".join(lines)
    if args and not args[0].startswith("-"):
        import difflib

        near = difflib.get_close_matches(args[0], list(SUMMARIES), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"error: there is no command {args[0]!r}.{hint}\n{usage}", file=sys.stderr)
        return 2
    print(usage)
    return 0
