"""The sentence above the table."""

import pytest

from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.comparison.results import Scale
from dipo_lightning.comparison.tables import Line, verdict


def line(method: str, log10_p: float | None, kept: float | None) -> Line:
    return Line(method, "", [{"forget_quality_log10_p": log10_p, "utility_kept": kept}])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([line("a", -1.0, None), line("b", None, None)], "Utility kept is unknown: no run"),
        ([line("a", -1.0, None), line("b", -1.0, 0.5)], "No method keeps 0.95"),
        ([line("a", -1.0, 0.97), line("b", -3.0, 0.99)], "model utility: a, -1.00 (2 of 2 keep it)"),
        ([line("a", None, 0.97), line("b", -3.0, 0.5)], "log10 p is unknown for those that keep"),
        ([], "No method keeps 0.95"),
        ([line("a", -1.0, 0.97), line("b", -1.0, 0.99), line("c", -2.0, 1.0)], "a and b, -1.00 (3 of 3"),
    ],
)
def test_what_is_not_known_is_no_verdict(lines: list[Line], said: str) -> None:
    assert said in verdict(lines, 0.95, Scale.of(TOFU()))
