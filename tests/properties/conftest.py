"""As many cases are drawn as a test asks for."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.properties.drawing import DRAWN

PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Tell the fixture whether the test passed."""
    report = yield
    if call.when == "call":
        item.stash[PASSED] = report.passed
    return report


@pytest.fixture(autouse=True)
def all_cases_ran(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold a test to its number of cases, and note how many there were."""
    yield
    test = request.function
    ran = DRAWN[f"{test.__module__}.{test.__qualname__}"]
    if ran and request.node.stash.get(PASSED, False):
        asked = test._hypothesis_internal_use_settings.max_examples
        assert ran >= asked, f"{ran} cases of {asked}"
        request.node.user_properties.append(("cases", ran))
