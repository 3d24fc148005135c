"""Fixtures of the whole suite."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's client is imported: without a network it waits and asks again


LONGEST = ("test_notebooks.py", "test_muse_small.py", "test_options.py", "test_kill.py", "test_repeatable.py")
"""Files that take minutes. They begin first: begun last, one of them would leave the other process idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many drawn cases really ran (tests/properties), on however many processes."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind]
    noted = [
        dict(getattr(report, "user_properties", ())) for report in reports if getattr(report, "when", "") == "teardown"
    ]
    ran = sum(properties.get("cases", 0) for properties in noted)
    if ran:
        terminalreporter.write_line(f"{ran} drawn cases")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, in which the command line is run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("logging.raiseExceptions", False)  # Lightning's handler holds the stream of an earlier test
    return tmp_path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the published benchmark data that may stand beside the repository; skips where it doesn't."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no published benchmark data at {folder}")
    return folder
