"""Runs of ``fit`` with input that cannot be right, and the check of its answer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from dipo_lightning.cli.main import main

TRAINER = {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False,
           "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip
"""One step that writes and shows nothing."""


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit(folder: Path, config: dict[str, Any], *options: str) -> int:
    """Run ``fit`` in this process on ``config``, written into ``folder``, and return its exit code."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        return main(["fit", "--config", str(path), *options])
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)  # as a shell sees it


def assert_a_sentence(code: int, errors: str, said: str) -> None:
    """Exit code 2 and one message that is short, contains ``said`` and is no traceback."""
    assert code == 2, errors
    message = errors[errors.index("error: ") :]
    assert said in message
    assert "Traceback" not in errors
    assert len(message) < 700, message
