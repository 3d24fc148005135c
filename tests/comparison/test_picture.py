"""The picture: a panel for every method, the target and the retain model, and the range of the seeds."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dipo_lightning.errors import InputError
from dipo_lightning.report.charts import Axes, Point, comparison_picture


def point(utility: float, quality: float, reported: bool = False) -> Point:
    return Point(utility, quality, (utility - 0.02, utility + 0.01), (quality - 1, quality + 0.5), reported)


NAMES = Axes("model utility", "forget quality, log10 p", lowest=-20.0)
TARGET, RETAIN_MODEL = point(0.8, -9.0), point(0.79, 0.0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: Any, **options: Any) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_method_has_a_panel_and_every_mark_a_name(tmp_path: Path, drawn: list[Figure]) -> None:
    ways = {"DiPO": [point(0.79, -3), point(0.78, -1, True)], "NPO": [point(0.77, -4), point(0.76, -2, True)]}
    path = comparison_picture(ways, tmp_path / "new" / "picture.png", NAMES, TARGET, RETAIN_MODEL)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in drawn[0].axes] == ["DiPO: -1.00 at 0.780", "NPO: -2.00 at 0.760"]
    marks = ["each epoch", "as reported, with the range over seeds", "target", "retain model"]
    assert sorted(labels(drawn[0])) == sorted([*marks, "0.95 of the target's utility"])
    own = [line for line in drawn[0].axes[0].lines if line.get_label() == "each epoch"]
    assert own[0].get_xydata().tolist() == [[0.8, -9], [0.79, -3], [0.78, -1]]  # from the target, epoch by epoch


def test_methods_that_lose_everything_leave_room_for_the_others(tmp_path: Path, drawn: list[Figure]) -> None:
    ways = {"DiPO": [point(0.78, -1, True)], "GradAscent": [point(0.05, -40, True)]}
    comparison_picture(ways, tmp_path / "picture.png", NAMES, TARGET, RETAIN_MODEL)
    for axes in drawn[0].axes:
        assert axes.get_xlim()[0] > 0.5 * 0.8
        assert axes.get_ylim()[0] > -25
    assert drawn[0].axes[1].get_title() == "GradAscent: -40.00 at 0.050", "what lies beyond the edge is said"
    reported = [[line.get_marker() for line in axes.lines if line.get_markersize() == 8] for axes in drawn[0].axes]
    assert reported == [["o"], ["<"]], "an arrow where the point lies further out"
    assert "as reported, further out: see the title" in labels(drawn[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_legend_fits_above_few_methods(tmp_path: Path, drawn: list[Figure], count: int) -> None:
    ways = {f"method {number}": [point(0.78, -1), point(0.1 * number, -2, True)] for number in range(count)}
    comparison_picture(ways, tmp_path / "picture.png", NAMES, TARGET, RETAIN_MODEL)
    [legend] = drawn[0].legends
    box, whole = legend.get_window_extent(), drawn[0].bbox
    assert box.x0 >= 0
    assert box.x1 <= whole.x1
    assert all(axes.get_window_extent().height > 0.4 * whole.height for axes in drawn[0].axes)


def test_the_range_over_seeds_lies_inside_the_picture(tmp_path: Path, drawn: list[Figure]) -> None:
    reported = Point(0.7, -1.0, (0.6, 0.8), (-2.0, 0.0), reported=True)
    comparison_picture({"mine": [reported]}, tmp_path / "picture.png", NAMES, TARGET)
    assert drawn[0].axes[0].get_xlim()[0] < 0.6


def test_eleven_methods_fill_three_rows(tmp_path: Path, drawn: list[Figure]) -> None:
    ways = {f"method {number}": [point(0.78, -number, True)] for number in range(11)}
    comparison_picture(ways, tmp_path / "picture.png", NAMES, TARGET, RETAIN_MODEL)
    assert len(drawn[0].axes) == 11
    assert drawn[0].get_size_inches()[0] == pytest.approx(12)


def test_a_run_without_a_target_or_a_retrained_model_is_drawn(tmp_path: Path) -> None:
    assert comparison_picture({"mine": [point(0.7, -2, True)]}, tmp_path / "picture.png", NAMES).is_file()


def test_a_method_without_a_point_is_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    comparison_picture({"NPO": [], "mine": [point(0.78, -2, True)]}, tmp_path / "picture.png", NAMES, TARGET)
    assert [axes.get_title() for axes in drawn[0].axes] == ["mine: -2.00 at 0.780"]


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        comparison_picture({"mine": []}, tmp_path / "picture.png", NAMES)


@pytest.mark.parametrize("name", [r"$\frac{$", "$$", r"a\$b", "$x$ and 5 $", "<b>&amp;"])
def test_a_method_of_any_name_is_drawn(tmp_path: Path, name: str) -> None:
    ways = {name: [point(0.78, -1, True)], "other": [point(0.7, -2, True)]}
    assert comparison_picture(ways, tmp_path / "picture.png", NAMES, TARGET).is_file()
