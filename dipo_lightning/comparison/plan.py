"""Plan of a comparison: its YAML file, read and checked."""

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dipo_lightning.cli.configs import find_config
from dipo_lightning.errors import InputError
from dipo_lightning.safety.paths import expanded

Settings = dict[str, Any]


@dataclass
class Method:
    """A method with its settings, and a grid of settings to choose from.

    Attributes:
        name: Name in tables and pictures.
        class_path: LightningModule, of this package or the user's own; None takes that of the base.
        settings: Options that differ from the class's defaults. A plain name is an option of the model, ``lr`` the
            optimiser's learning rate, ``data.NAME`` an option of the data module, ``trainer.NAME`` one of the Trainer.
        grid: Values to choose from, by option; every combination is tried on the selection seed.
    """

    name: str
    class_path: str | None = None
    settings: Settings = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def candidates(self) -> list[Settings]:
        """Return the settings at every point of the grid; without a grid, the settings alone."""
        values = itertools.product(*self.grid.values())
        return [self.settings | dict(zip(self.grid, point, strict=True)) for point in values]


@dataclass
class Selection:
    """Rule that selects settings from a grid, by runs on a seed or a base that is not reported.

    Of the settings that keep the share ``keep_utility`` of the target's utility, the rule takes the one that forgets
    best. If others tie with it (they print alike, or each is inside the other's interval over rows), it takes the one
    of these with the highest utility. If no setting keeps the share, it takes the one with the highest utility.

    Attributes:
        seed: Seed of the selection runs, which must not be a reported one.
        base: Base of the selection runs, in which ``{seed}`` is replaced; None takes the reported base.
        keep_utility: Share of the target's utility that must be kept.
        epoch: ``last`` reports every run at its end; with ``any`` the selection also chooses the evaluation to report
            for each method, at the end of an epoch or, if there are any, inside one.
        allow_same_data: Allow a reported seed, and the reported data; where the data is the same, the report says so.
    """

    seed: int | None = None
    base: str | None = None
    keep_utility: float = 0.95
    epoch: Literal["last", "any"] = "last"
    allow_same_data: bool = False


@dataclass
class FinishedRun:
    """Finished run from elsewhere, shown without running it again.

    Attributes:
        path: Run folder, which holds ``evaluations``.
        name: Name in the table; None takes the class of its method.
        settings: Settings in a few words, for the table.
        seed: Seed for the table; None takes the one it was run with.
    """

    path: str
    name: str | None = None
    settings: str = ""
    seed: int | None = None


@dataclass
class Comparison:
    """Content of a comparison's YAML file.

    Attributes:
        base: Config that every run starts from; ``{seed}`` in this path is replaced by the run's seed.
        output: Folder for the runs, the tables and the picture.
        methods: Methods to compare.
        seeds: Reported seeds; each method is run with each of them.
        evaluation: Name of the evaluation whose numbers are compared (``tofu``, ...); None takes the base's first.
        selection: Rule that selects settings from grids.
        runs: Finished runs to show beside the methods.
        export: Keep the unlearned models.
        keep_checkpoints: Keep the checkpoints of finished runs.
    """

    base: str
    output: str
    methods: list[Method] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluation: str | None = None
    selection: Selection = field(default_factory=Selection)
    runs: list[FinishedRun] = field(default_factory=list)
    export: bool = False
    keep_checkpoints: bool = False

    def selects(self, method: Method) -> bool:
        """Return whether the selection chooses settings or the epoch of ``method``."""
        return len(method.candidates()) > 1 or self.selection.epoch == "any"


def read_comparison(path: str | Path) -> Comparison:
    """Read the YAML file of a comparison, and check it."""
    from jsonargparse import ArgumentError, ArgumentParser

    path = Path(find_config(str(path)))
    if not path.is_file():
        raise InputError(
            f"There is no comparison {path}; give a YAML file, or a shipped one such as compare/quickstart."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Comparison)
    try:
        comparison = Comparison(**vars(parser.instantiate(parser.parse_path(str(path)))))
    except ArgumentError as error:
        raise InputError(f"{path}: {error.message or error}") from error
    _check(comparison, path)
    return _with_paths(comparison)


def _with_paths(comparison: Comparison) -> Comparison:
    """Return a comparison with ``~``, ``$VARIABLES`` and the names of shipped configurations filled in."""
    selection = comparison.selection
    if selection.base is not None:
        selection = replace(selection, base=find_config(str(expanded(selection.base, "selection.base"))))
    return replace(
        comparison,
        base=find_config(str(expanded(comparison.base, "base"))),
        output=str(expanded(comparison.output, "output")),
        selection=selection,
        runs=[replace(run, path=str(expanded(run.path, "path in runs"))) for run in comparison.runs],
    )


def _check(comparison: Comparison, path: Path) -> None:
    names = [method.name for method in comparison.methods]
    if not names and not comparison.runs:
        raise InputError(f"{path} compares nothing; list `methods`, or finished `runs`.")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path} has two methods called {name!r}; give each a name of its own.")
    if len(set(comparison.seeds)) < len(comparison.seeds) or not comparison.seeds:
        raise InputError(f"{path}: seeds is {comparison.seeds}; list at least one seed, each once.")
    for method in comparison.methods:
        empty = [option for option, values in method.grid.items() if not values]
        if empty:
            raise InputError(f"{path}: the grid of {method.name} has no value for {empty[0]}.")
        if "pretrained" in {*method.settings, *method.grid}:
            raise InputError(
                f"{path}: {method.name} has a setting pretrained, but all methods start from the model of the base. "
                "Make a comparison of its own, with a base of its own, for each model."
            )
    selected = [method.name for method in comparison.methods if comparison.selects(method)]
    selection = comparison.selection
    if not 0 < selection.keep_utility <= 1:
        raise InputError(
            f"{path}: selection.keep_utility is {selection.keep_utility:g}; give a share above 0 and up to 1, such as "
            "0.95."
        )
    if selected and selection.seed is None:
        raise InputError(
            f"{path}: the settings of {', '.join(selected)} are chosen by selection runs; give selection.seed, the "
            "seed of these."
        )
    if selected and selection.seed in comparison.seeds and not selection.allow_same_data:
        raise InputError(
            f"{path}: selection.seed is {selection.seed}, which is a reported seed too. Settings that are chosen on "
            "the reported runs look better than they are: take another seed."
        )
