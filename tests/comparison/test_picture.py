"""The picture: every method, the landmarks, the range of the seeds, and a closer look where it is crowded."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from dipo_lightning.errors import InputError
from dipo_lightning.report.comparison_picture import COLOURS, MARKERS, Axes, Point, comparison_picture


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


def test_every_method_and_landmark_is_named_once(tmp_path: Path, drawn: list[Figure]) -> None:
    ways = {"DiPO": [point(0.79, -3), point(0.78, -1, True)], "NPO": [point(0.77, -4), point(0.76, -2, True)]}
    path = comparison_picture(ways, tmp_path / "new" / "picture.png", NAMES, TARGET, RETAIN_MODEL)
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = drawn[0].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == sorted(["DiPO", "NPO", "target", "retain", "0.95 of its utility"])
    assert axes.lines[0].get_xydata().tolist() == [[0.8, -9], [0.79, -3], [0.78, -1]]  # from the target, epoch by epoch


def test_methods_that_lose_utility_bring_a_closer_look_at_the_rest(tmp_path: Path, drawn: list[Figure]) -> None:
    ways = {"DiPO": [point(0.78, -1, True)], "GradAscent": [point(0.05, -40, True)]}
    comparison_picture(ways, tmp_path / "picture.png", NAMES, TARGET, RETAIN_MODEL)
    whole, near = drawn[0].axes
    assert whole.get_xlim()[0] < 0.05
    assert near.get_xlim()[0] == pytest.approx(0.9 * 0.8)
    labels = [text.get_text() for text in near.get_legend().get_texts()]
    assert "GradAscent (at -40)" in labels
    assert whole.get_ylim()[0] > -25  # one method that is far down leaves room for the others


def test_twelve_methods_are_told_apart() -> None:
    assert len(set(COLOURS)) == len(COLOURS) >= 11
    assert len(set(MARKERS)) == len(MARKERS) >= 11


def test_a_run_without_a_target_or_a_retrained_model_is_drawn(tmp_path: Path) -> None:
    assert comparison_picture({"mine": [point(0.7, -2, True)]}, tmp_path / "picture.png", NAMES).is_file()


def test_a_method_without_a_point_is_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    comparison_picture({"NPO": [], "mine": [point(0.78, -2, True)]}, tmp_path / "picture.png", NAMES, TARGET)
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert sorted(labels) == sorted(["mine", "target", "0.95 of its utility"])


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        comparison_picture({"mine": []}, tmp_path / "picture.png", NAMES)
