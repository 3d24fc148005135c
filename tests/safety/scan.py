"""Every call in a source file by the full name of what is called, however it was imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any


def calls(tree: ast.AST) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield line, dotted name and constant keywords (None for others) of every call."""
    names = dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            whole = names.get(first, first) + ("." + rest if rest else "")
            keywords = {
                word.arg: word.value.value if isinstance(word.value, ast.Constant) else None
                for word in node.keywords
                if word.arg
            }
            yield node.lineno, whole, keywords


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.partition(".")[0]
                yield alias.asname or name, name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"
