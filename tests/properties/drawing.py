"""Draws: texts of every kind, values of every shape; and an honest count of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

DRAWN: Counter[str] = Counter()
"""Cases that really ran, by test; tests/properties/conftest.py looks at it, tests/conftest.py prints the sum."""

ODD = st.sampled_from(
    [
        *("", " ", "\x00", "\x1b[31mred", "\u202eabc", "שלום", "مرحبا", "👩‍👩‍👧‍👦", "\u200b", "<s></s>", "{{ x }}"),
        *("\ufeff", "\r\n", "\ud800", "\x9b2J", "{% for %}", "a" * 3000, "é" * 1500, "\u0301" * 50),
    ]
)
WRITABLE = st.one_of(ODD.filter(lambda text: "\ud800" not in text), st.text(max_size=30))
"""Texts that a file in UTF-8 can hold."""

TEXT = st.one_of(ODD, st.text(max_size=30), st.text(st.characters(), max_size=10))
"""Also with lone surrogates, which JSON can write as an escape."""

SCALAR = st.one_of(TEXT, st.none(), st.booleans(), st.integers(), st.floats())
NAMES = [
    *("question", "answer", "prompt", "completion", "text", "messages", "perturbed_answer", "paraphrased_answer"),
    *("role", "content"),
]
KEY = st.one_of(st.sampled_from(NAMES), st.text(max_size=5))
VALUE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEY, inner, max_size=3)), max_leaves=6
)


def cases(count: int, shrink: bool = True) -> Callable[[Any], Any]:
    """Draw ``count`` cases, the same in every run, and count those that run.

    Args:
        count: How many.
        shrink: Whether to look for a smaller case that fails too; takes hundreds of runs.
    """
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example]
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=count,
        phases=phases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
        report_multiple_bugs=shrink,
    )

    def decorate(test: Any) -> Any:
        inner, name = test.hypothesis.inner_test, f"{test.__module__}.{test.__qualname__}"

        def counted(*args: Any, **kwargs: Any) -> Any:
            DRAWN[name] += 1
            return inner(*args, **kwargs)

        test.hypothesis.inner_test = counted
        return chosen(test)

    return decorate
