"""The audit never calls clean what it didn't look at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools.audit import verdict

CLEAN = {"name": "a", "version": "1", "vulns": []}
HOLE = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


@pytest.mark.parametrize(
    ("packages", "said", "code"),
    [
        ([CLEAN], "1 of 1 packages were audited, 0 known", 0),
        ([CLEAN, HOLE], "b 2: PYSEC-1, mended in 3", 1),
        ([SKIPPED, SKIPPED], "No audit: 0 of 2", 0),
        ([CLEAN, SKIPPED], "Not audited: c", 0),
    ],
)
def test_what_was_audited_is_said(packages: list[Any], said: str, code: int) -> None:
    found = verdict(json.dumps({"dependencies": packages, "fixes": []}), "")
    assert said in found[0]
    assert found[1] == code


def test_without_a_network_there_is_no_audit() -> None:
    said, code = verdict("", "ConnectionError: no route")
    assert said.startswith("No audit")
    assert "no route" in said
    assert code == 0
