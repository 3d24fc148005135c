"""The sentence above the table, the table, and the file with every number."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torchmetrics import Metric

from dipo_lightning.benchmarks.muse import MUSE
from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.benchmarks.user_data import UserData
from dipo_lightning.comparison.plan import Comparison, Selection
from dipo_lightning.comparison.report import (
    Findings,
    Line,
    Spread,
    explanations,
    markdown_table,
    ranked,
    trajectories,
    verdict,
    write_csv,
    write_report,
)
from dipo_lightning.comparison.results import Candidate, Row, Scale, add_utility_kept, choose, rule, target_row
from dipo_lightning.errors import RunError
from dipo_lightning.evaluation.aggregates import number_text
from dipo_lightning.evaluation.benchmark import Benchmark, Headline
from dipo_lightning.evaluation.logs import EvaluationLog
from dipo_lightning.metrics import RowMean, RowSet


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


def test_a_mean_over_a_part_of_the_seeds_says_so_and_does_not_win() -> None:
    scale = Scale.of(TOFU())
    seeds = [*line("a", -1.0, 0.99).rows, *line("a", None, None).rows]
    partial, whole = Line("a", "", [row | {"epoch": 1} for row in seeds]), line("b", -2.0, 0.99)
    assert "| a | - | 2 | 1 | -1.00 (1 of 2 seeds) | - | 0.990 (1 of 2 seeds) |" in markdown_table([partial], scale)
    assert ranked([partial, whole], 0.95, scale) == [whole, partial]
    missing = "Not judged, as a number is missing on some seeds: a."
    said = verdict([partial, whole], 0.95, scale)
    assert said.endswith(f": b, -2.00 (1 of 1 keep it). {missing}")
    assert verdict([partial], 0.95, scale) == missing


def test_lines_of_one_method_are_told_apart_by_their_settings() -> None:
    scale = Scale.of(TOFU())
    many, few = (replace(line("A", -1.0, 0.99), settings=settings) for settings in ("x", "y"))
    assert ": A (x) and A (y), -1.00 (2 of 3" in verdict([many, few, line("B", -2.0, 0.5)], 0.95, scale)
    lost = replace(line("A", -2.0, 0.5), settings="y")
    said = verdict([replace(many, rows=line("A", -1.0, 0.9).rows), lost, line("B", -2.0, 0.6)], 0.95, scale)
    assert said.endswith("; A (x) keeps most, 0.900.")
    ends = with_interval("A", {-1.0: (-2.5, -0.5)}), replace(with_interval("A", {-2.0: (-2.2, -0.9)}), settings="y")
    assert "A tie with A (y)" in verdict(ends, 0.95, scale)


def test_every_line_has_a_panel_of_its_own_in_the_picture() -> None:
    runs = {key: [known(0.9, 0.5)] for key in (("NPO (kl)", ""), ("NPO", ""), ("NPO", "kl"))}
    assert list(trajectories(Findings(Scale.of(TOFU()), runs))) == ["NPO (kl)", "NPO", "NPO (kl)*"]


def with_interval(method: str, seeds: dict[float, tuple[float, float]]) -> Line:
    """A method whose every seed measured the first number with this interval."""
    name = "forget_quality_log10_p"
    rows = [
        {name: value, "intervals": {name: [*ends]}, "utility_kept": 1.0, "epoch": 1} for value, ends in seeds.items()
    ]
    return Line(method, "", rows)


def test_a_difference_inside_the_intervals_is_a_tie() -> None:
    best = with_interval("a", {-1.0: (-2.5, -0.5)})
    inside, reaching = with_interval("b", {-2.0: (-2.2, -1.9)}), with_interval("c", {-3.0: (-4.0, -0.9)})
    outside, overlapping = with_interval("d", {-5.0: (-6.0, -4.0)}), with_interval("e", {-2.6: (-3.0, -2.0)})
    said = verdict([outside, reaching, inside, overlapping, best], 0.95, Scale.of(TOFU()))
    assert "log10 p among those that keep at least 0.95 of the target's model utility: a, -1.00 (5 of 5" in said
    assert said.endswith("A tie with b and c: the difference lies inside the interval of one of the two.")
    assert "tie" not in verdict([best, outside], 0.95, Scale.of(TOFU()))
    assert "tie" not in verdict([line("a", -1.0, 1.0), line("b", -1.1, 1.0)], 0.95, Scale.of(TOFU()))


def of_seeds(method: str, *values: float) -> Line:
    """A method measured with several seeds and without intervals."""
    return Line(method, "", [row for value in values for row in of_user(method, value, 0.8, 1.0).rows])


def test_numbers_that_print_alike_are_a_tie() -> None:
    scale, target = Scale.of(UserData()), of_user("target", 0.998, 0.8, 1.0, 0)
    lines = [of_user(name, 0.998 - less, 0.8, 1.0) for name, less in (("a", 2e-9), ("b", 1e-9), ("c", -1e-4))]
    said = verdict(lines, 0.95, scale, target)
    assert said.endswith(": a and b and c, 0.998 (3 of 3 keep it). That is no better than the target's 0.998.")
    assert "no better" not in verdict([of_user("a", 0.997, 0.8, 1.0)], 0.95, scale, target)


def test_without_intervals_ranges_over_seeds_that_overlap_are_a_tie() -> None:
    scale, best = Scale.of(UserData()), of_seeds("a", 0.1, 0.3)
    lines = [best, of_seeds("b", 0.28, 0.5), of_seeds("c", 0.4, 0.5), of_seeds("d", 0.25)]
    said = verdict(lines, 0.95, scale)
    assert said.endswith(": a, 0.200 (4 of 4 keep it). A tie with d and b: their ranges over seeds overlap.")


def test_with_one_seed_and_no_intervals_a_win_is_in_doubt() -> None:
    scale, lines = Scale.of(UserData()), [of_seeds("a", 0.1), of_seeds("b", 0.9)]
    doubt = " With one seed and no intervals, nothing tells how much of a difference is chance."
    assert verdict(lines, 0.95, scale).endswith(f": a, 0.100 (2 of 2 keep it).{doubt}")
    assert not verdict([lines[0]], 0.95, scale).endswith(doubt)
    assert not verdict([of_seeds("a", 0.1, 0.2), lines[1]], 0.95, scale).endswith(doubt)


def test_intervals_in_the_table_and_in_the_file(tmp_path: Path) -> None:
    seeds = with_interval("a", {-1.0: (-2.5, -0.5), -2.0: (-4.0, -1.5)})
    assert seeds.spread("forget_quality_log10_p") == Spread(-1.5, -4.0, -0.5)
    table = markdown_table([seeds], Scale.of(TOFU()))
    assert "| -1.50 [-4.00, -0.50] |" in table
    assert "intervals" not in table
    with write_csv(seeds.rows, tmp_path / "all.csv", Scale.of(TOFU())).open() as file:
        first = next(csv.DictReader(file))
    assert (first["forget_quality_log10_p_low"], first["forget_quality_log10_p_high"]) == ("-2.5", "-0.5")
    assert "intervals" not in first


def of_user(method: str, probability: float, utility: float, kept: float | None, step: int = 6) -> Line:
    row = {"forget_probability": probability, "utility": utility, "utility_kept": kept, "epoch": step // 3}
    return Line(method, "", [row | {"step": step}])


def test_small_numbers_are_told_apart() -> None:
    assert [number_text(value, 3) for value in (0.00054, -1e-7, 0.0, 0.0100, 0.5, 12.3456, -100.0)] == [
        *("0.00054", "-1e-07", "0.000", "0.010", "0.500", "12.35", "-100.00"),
    ]
    lines = [of_user("a", 0.00054, 0.8, 0.99), of_user("b", 0.00022, 0.8, 0.99)]
    assert "| a | - | 1 | 2 | 0.00054 | 0.800 | 0.990 | - |" in markdown_table(lines, Scale.of(UserData()))
    assert ": b, 0.00022 (2 of 2 keep it)" in verdict(lines, 0.95, Scale.of(UserData()))


def test_a_best_method_that_forgot_nothing_is_said() -> None:
    scale, target = Scale.of(UserData()), of_user("target", 0.04, 0.8, 1.0, 0)
    said = verdict([of_user("a", 0.05, 0.8, 1.0)], 0.95, scale, target)
    assert said.endswith("a, 0.050 (1 of 1 keep it). That is no better than the target's 0.040.")
    assert "no better" not in verdict([of_user("a", 0.03, 0.8, 1.0)], 0.95, scale, target)
    assert "no better" not in verdict([of_user("a", 0.05, 0.8, 1.0)], 0.95, scale)


def test_the_nearest_is_named_where_no_method_keeps_the_share() -> None:
    said = verdict([line("a", -1.0, 0.5), line("b", -2.0, 0.928)], 0.95, Scale.of(TOFU()))
    assert said == "No method keeps 0.95 of the target's model utility; b keeps most, 0.928."
    said = verdict([line("a", -1.0, 0.928), line("b", -2.0, 0.928 + 1e-9)], 0.95, Scale.of(TOFU()))
    assert said.endswith("; a and b keep most, 0.928.")


def test_a_target_without_utility_is_said() -> None:
    scale = Scale.of(UserData())
    target, line = of_user("target", 0.04, 0.0, None, 0), of_user("a", 0.05, 0.0, None)
    reason = "the target's utility is 0, of which no share can be kept."
    assert f"Utility kept is unknown: {reason}" in verdict([line], 0.95, scale, target)
    with pytest.raises(RunError, match=reason):
        choose([Candidate("a", {}, "", [*target.rows, *line.rows])], Selection(seed=9), scale)


def test_a_sentence_names_numbers_as_one_says_them() -> None:
    scale = Scale.of(UserData())
    assert scale.phrase("forget_probability") == "probability of the forget rows"
    assert "best in probability of the forget rows at the last epoch" in rule(Selection(seed=9), scale)
    assert Scale.of(MUSE()).phrase("knowmem_retain") == "KnowMem (retain)"


class Known(RowMean):
    """A number of a benchmark that measures nothing to keep."""

    field, label, remembers = "known", "known", 1


class Caps(Benchmark):
    """A benchmark of a user's own, without a utility."""

    name, title, format = "caps", "Caps", "mine/caps/1"
    headline = Headline("asked_known", "")

    def metrics(self, settings: Mapping[str, Any], retain: EvaluationLog | None = None) -> dict[str, Metric]:
        return {"asked_known": Known(RowSet("asked", "Asked", "asked rows", True))}


def known(*values: float | None) -> list[Row]:
    rows: list[Row] = [
        {"method": "m", "settings": "", "seed": 0, "epoch": n, "step": n, "asked_known": value}
        for n, value in enumerate(values)
    ]
    add_utility_kept(rows, target_row(rows), Scale.of(Caps()))
    return rows


def test_a_benchmark_without_a_utility_is_compared_by_its_forgetting_alone(tmp_path: Path) -> None:
    scale = Scale.of(Caps())
    tried = [
        Candidate("m", {"beta": n}, f"beta={n}", known(*values))
        for n, values in enumerate([(0.9, 0.5), (0.9, 0.2), (0.9, None)])
    ]
    selection = Selection(seed=9)
    choice = choose(tried, selection, scale)
    assert choice.settings == {"beta": 1}
    runs = {("m", "beta=1"): [tried[1].rows], ("n", ""): [known(0.9, 0.3)]}
    plan = Comparison("base.yaml", str(tmp_path), selection=selection)
    text = write_report(plan, Findings(scale, runs, candidates=tried, choices={"m": choice}))
    assert (
        "Best in known of the asked rows: m, 0.200. With one seed and no intervals, nothing tells how much of a "
        "difference is chance.\n\n| method | settings | seeds | epoch | asked: known |\n" in text
    )
    assert text.index("| m |") < text.index("| n |") < text.index("| target |")
    assert "those of the candidate that is best in known of the asked rows at the last epoch." in text
    assert "| m | beta=1 | 1 | 0.200 | yes |" in text
    assert "tility" not in text
    with (tmp_path / "comparison.csv").open() as file:
        assert next(csv.reader(file)) == ["method", "settings", "seed", "epoch", "step", "asked_known"]
    with pytest.raises(RunError, match="no candidate has a known of the asked rows to choose by"):
        choose(tried[2:], selection, scale)


def test_every_number_of_the_table_is_explained() -> None:
    text = explanations([Line("a", "", [{"mine": 1.0}])], Scale.of(MUSE()))
    assert [line.split("**")[1] for line in text.splitlines()] == [
        *("KnowMem (forget)", "KnowMem (retain)", "VerbMem", "privacy leak"),
    ]
    assert "- **privacy leak** (best near 0): Whether" in text
    [forgetting, *_] = explanations([line("a", -1.0, 1.0)], Scale.of(TOFU())).splitlines()
    assert "statistical test" in forgetting, "p itself has no column"
