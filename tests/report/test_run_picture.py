"""The picture of a run, from its evaluation files alone."""

from pathlib import Path
from typing import Any

import pytest

from dipo_lightning.errors import InputError
from dipo_lightning.report.runs import headline_picture


def document(step: int, log10_p: float | None, utility: float | None) -> dict[str, Any]:
    quality = None if log10_p is None else {"p": 10**log10_p, "log10_p": log10_p, "d": 0.1, "n": 40}
    return {
        "format": "dipo-lightning/tofu/1",
        "settings": {"split": "forget10"},
        "provenance": {"step": step},
        "aggregates": {"forget_quality": quality, "model_utility": utility},
    }


@pytest.mark.parametrize("absent", ["", "quality", "utility"])
def test_it_is_a_png(tmp_path: Path, absent: str) -> None:
    run = [
        document(step, None if absent == "quality" else -20 + step, None if absent == "utility" else 0.6)
        for step in (10, 0, 5)
    ]
    path = headline_picture(run, tmp_path / "new" / "run.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 5000


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(InputError, match="nothing to draw"):
        headline_picture([document(0, None, None)], "unused.png")
