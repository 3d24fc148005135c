"""Build the reference pages from the docstrings: ``python docs/build.py [FOLDER]``.

A warning of the builder is an error.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path
from typing import get_type_hints

import pdoc

import dipo_lightning


def build(folder: Path) -> None:
    """Write the pages of every module into ``folder``."""
    inside = list(pkgutil.walk_packages(dipo_lightning.__path__, "dipo_lightning."))
    for package in ("dipo_lightning", *(module.name for module in inside if module.ispkg)):
        _load_public_names(package)
    for module in inside:
        if not module.name.rpartition(".")[2].startswith("_"):
            _resolve_named_tuples(module.name)
    warnings.filterwarnings("error", module=r"pdoc(\.|$)")
    pdoc.render.configure(docformat="google", math=True)
    others = [module.name for module in inside if _is_left_out(module.name)]
    pdoc.pdoc("dipo_lightning", *others, output_directory=folder)
    print(f"The reference pages are in {folder / 'index.html'}")


def _load_public_names(package: str) -> None:
    """Load what a package loads on first use: pdoc looks into its dictionary only."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        vars(module)[name] = getattr(module, name)


def _resolve_named_tuples(module: str) -> None:
    """Give the constructors of named tuples their types: Python leaves them as names from another module."""
    for found in vars(importlib.import_module(module)).values():
        if isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields"):
            found.__new__.__annotations__ = get_type_hints(found)


def _is_left_out(module: str) -> bool:
    """Whether pdoc wouldn't find a module by itself: its package says with ``__all__`` what to show, and not this."""
    package, _, name = module.rpartition(".")
    shown = getattr(importlib.import_module(package), "__all__", None)
    return shown is not None and name not in shown and not name.startswith("_")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
