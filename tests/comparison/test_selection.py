"""The rule that chooses settings, on made-up measurements."""

import pytest

from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.comparison.plan import Method, Selection
from dipo_lightning.comparison.report import Findings
from dipo_lightning.comparison.results import Candidate, Row, Scale, choose, rule
from dipo_lightning.errors import RunError

SCALE = Scale.of(TOFU())


def rows(*measured: tuple[float | None, float | None]) -> list[Row]:
    """The target, and (log10 p, utility kept) of each epoch after it."""
    pairs = [(-9.0, 1.0), *measured]
    return [
        {"epoch": n, "step": 5 * n, "forget_quality_log10_p": q, "utility_kept": u} for n, (q, u) in enumerate(pairs)
    ]


def candidates(*runs: list[Row]) -> list[Candidate]:
    return [Candidate("m", {"beta": number}, f"beta={number}", run) for number, run in enumerate(runs)]


def chosen(*runs: list[Row], **options: object) -> tuple[int, int | None]:
    choice = choose(candidates(*runs), Selection(seed=9, **options), SCALE)  # type: ignore[arg-type]
    return choice.settings["beta"], choice.epoch


def test_the_highest_quality_among_those_that_keep_the_utility() -> None:
    assert chosen(rows((-3, 0.99)), rows((-1, 0.96)), rows((-0.1, 0.90))) == (1, None)


def test_the_last_epoch_counts_unless_any_may() -> None:
    one, other = rows((-0.5, 0.97), (-4, 0.97)), rows((-0.2, 0.5), (-2, 0.96))
    assert chosen(one, other) == (1, None)
    assert chosen(one, other, epoch="any") == (0, 1)


@pytest.mark.parametrize("best", [1, 2])
def test_an_evaluation_inside_an_epoch_is_chosen_and_reported_apart_from_the_epoch_s_end(best: int) -> None:
    run = rows((-3, 0.99), (-3, 0.99), (-0.1, 0.5))
    run[2] |= {"epoch": 1, "step": 7}
    run[best]["forget_quality_log10_p"] = -1
    choice = choose(candidates(run), Selection(seed=9, epoch="any"), SCALE)
    findings = Findings(SCALE, moments={("m", ""): choice.moment})
    assert findings.reported(run, ("m", "")) is run[best]
    reported = [{**row, "step": 2 * row["step"]} for row in run]  # of a seed with longer epochs
    assert findings.reported(reported, ("m", "")) is reported[best]


def test_where_none_keeps_the_utility_the_highest_utility() -> None:
    assert chosen(rows((-1, 0.7)), rows((-6, 0.8))) == (1, None)
    assert chosen(rows((-1, 0.7)), rows((-6, 0.8)), keep_utility=0.6) == (0, None)


def test_ties_go_to_the_utility_then_to_the_first() -> None:
    assert chosen(rows((-1, 0.96)), rows((-1, 0.98)), rows((-1, 0.98))) == (1, None)
    assert chosen(rows((-1, 0.96)), rows((-1.0000001, 0.98))) == (1, None)
    assert chosen(rows((-1, 0.96)), rows((-1.01, 0.98))) == (0, None)


def test_a_difference_inside_both_intervals_is_a_tie_which_the_utility_decides() -> None:
    runs = [rows((-0.5, 0.96)), rows((-1.0, 0.99)), rows((-3.0, 1.0))]
    for run, ends in zip(runs, ([-3.5, -0.1], [-2.0, -0.4], [-6.0, -2.0]), strict=True):
        run[-1]["intervals"] = {"forget_quality_log10_p": ends}
    assert chosen(*runs) == (1, None)  # the last lies in the first's interval, but not the first in the last's
    runs[1][-1]["intervals"] = {"forget_quality_log10_p": [-2.0, -0.6]}
    assert chosen(*runs) == (0, None)


def test_the_target_s_own_row_is_never_chosen() -> None:
    assert chosen(rows((-10, 0.99)), epoch="any") == (0, 1)


def test_nothing_to_choose_by_is_said() -> None:
    with pytest.raises(RunError, match="both a forget quality, log10 p and a model utility.*retain_log"):
        chosen(rows((None, 0.9)), rows((-1, None)))
    with pytest.raises(RunError, match="every run of its grid failed"):
        choose([], Selection(seed=9), SCALE)


def test_a_grid_is_every_combination_over_the_settings() -> None:
    method = Method("m", None, {"k": 5, "beta": 1}, {"beta": [2, 3], "lr": [0.1, 0.2]})
    assert method.candidates() == [{"k": 5, "beta": b, "lr": lr} for b in (2, 3) for lr in (0.1, 0.2)]
    assert Method("m", None, {"k": 5}).candidates() == [{"k": 5}]


def test_the_rule_is_said_with_its_numbers() -> None:
    assert "seed 9" in rule(Selection(seed=9), SCALE)
    assert "0.9 of the target" in rule(Selection(seed=9, keep_utility=0.9), SCALE)
    assert "which are not reported" in rule(Selection(seed=9), SCALE)
    assert "not reported" not in rule(Selection(seed=9), SCALE, same_data=True)
