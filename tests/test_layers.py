"""Imports point one way: a module may import its own room and the floors below, and nothing beside or above."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dipo_lightning"

FLOORS = (
    {"errors"},
    {"losses", "metrics", "safety"},
    {"models"},
    {"data"},
    {"reference", "evaluation"},
    {"methods", "benchmarks", "report"},
    {"callbacks"},
    {"cli"},
    {"comparison", "quickstart"},
)
"""From the ground up; packages on one floor don't know of each other. The one list of packages."""

LOOSE = {"__init__", "__main__", "errors"}
REPEATED_BY_DESIGN = {"data.py", "metrics.py", "callback.py"}
"""Files that the folder of every benchmark has."""

HEAVY = {
    "transformers",
    "datasets",
    "matplotlib",
    "peft",
    "tensorboard",
    "nltk",
    "gguf",
    "accelerate",
    "bitsandbytes",
    "lm_eval",
    "wandb",
}
"""Imported where they are used, inside functions: mathematics needs none, and errors come at once."""

MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(module):
    """The package of a dotted name below `dipo_lightning`."""
    name = module.partition(".")[0]
    if name == "__main__":
        return "cli"
    assert any(name in floor for floor in FLOORS), f"dipo_lightning.{module}: say in FLOORS where {name} belongs"
    return name


def floor_of(name):
    return next(number for number, floor in enumerate(FLOORS) if name in floor)


def imported(tree):
    """Every name a file imports, also inside functions and for type checking, as (line, dotted name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def wrong_ways(module, source):
    """Imports from beside or above in `source`, the text of `module`, one sentence each."""
    here, wrong = room(module), []
    for line, name in imported(ast.parse(source)):
        target = name.removeprefix("dipo_lightning.")
        if target == name or target == "__version__":
            continue
        there = room(target)
        if there != here and floor_of(there) >= floor_of(here):
            wrong.append(f"dipo_lightning/{module.replace('.', '/')}:{line} imports {target} ({here} -> {there})")
    return wrong


def at_import_time(tree):
    """The top-level packages that are imported when the module is: not those inside functions or for type checking."""
    waiting, found = list(tree.body), set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


def test_imports_point_one_way():
    wrong = [
        line
        for module, path in MODULES.items()
        if module != "__init__"
        for line in wrong_ways(module, path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("evaluation.callback", "def f():\n    from dipo_lightning.methods.dipo.module import DiPOModule"),
        ("losses.likelihood", "from dipo_lightning import models"),
        ("data.prompts", "import dipo_lightning.benchmarks.tofu.data"),
        ("benchmarks.tofu.metrics", "from dipo_lightning.methods import undial"),
        ("models.loading", "from dipo_lightning.cli.main import main"),
    ],
)
def test_the_walk_sees_an_import_that_points_up(module, source):
    assert len(wrong_ways(module, source)) == 1


def test_every_package_stands_in_the_list_and_three_files_beside_them():
    beside = {module for module, path in MODULES.items() if path.parent == PACKAGE}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert beside == LOOSE
    assert folders == {name for floor in FLOORS for name in floor} - LOOSE


def test_every_file_is_package_data_and_none_is_plain_text():
    pyproject = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    [patterns] = pyproject["tool"]["setuptools"]["package-data"].values()
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert not [path for path in files if not any(path.match(pattern) for pattern in patterns)]
    assert not [path for path in files if path.suffix == ".txt"], "word lists are JSON"


def test_no_file_name_is_used_more_than_twice():
    names = Counter(
        path.name
        for path in MODULES.values()
        if path.name != "__init__.py"
        and not (path.name in REPEATED_BY_DESIGN and path.parent.parent == PACKAGE / "benchmarks")
    )
    assert not {name: count for name, count in names.items() if count > 2}


def imports_of(tree):
    """The package's modules that a file imports, also inside functions, but not for type checking."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for _, name in imported(ast.Module([node], [])) if isinstance(node, (ast.Import, ast.ImportFrom)) else ():
            dotted = name.removeprefix("dipo_lightning.")
            found = dotted if dotted in MODULES else dotted.rpartition(".")[0]
            if dotted != name and found in MODULES:
                yield found
        waiting += ast.iter_child_nodes(node)


def circle(graph):
    """A circle of modules that import each other; None where there is none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return None


def test_no_modules_import_each_other():
    graph = {name: set(imports_of(ast.parse(path.read_text()))) - {name} for name, path in MODULES.items()}
    assert circle(graph) is None
    assert len(graph["cli.trainer"]) > 5
    assert circle(graph | {"errors": {"cli.main"}}) is not None


def test_heavy_libraries_are_imported_where_they_are_used():
    trees = {module: ast.parse(path.read_text()) for module, path in MODULES.items()}
    heavy = {module: found for module, tree in trees.items() if (found := at_import_time(tree) & HEAVY)}
    assert not heavy
    assert at_import_time(ast.parse("try:\n    import peft\nexcept ImportError:\n    peft = None")) == {"peft"}


def test_the_package_and_its_leaves_load_without_the_heavy_libraries():
    leaves = [module for module in MODULES if room_is_light(module)]
    names = ["dipo_lightning", *(f"dipo_lightning.{module}" for module in leaves)]
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(set(sys.modules) & {HEAVY})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert run.stdout.strip() == "set()"


def room_is_light(module):
    """Rooms that don't stand on Lightning, which brings torchmetrics and with it the face of transformers."""
    return module != "__init__" and room(module) in {"errors", "losses", "safety"}


def test_every_public_name_is_there():
    import dipo_lightning

    assert all(getattr(dipo_lightning, name) for name in dipo_lightning.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        dipo_lightning.Nothing  # noqa: B018
