"""The sensitivity of a comparison's numbers to each option."""

import csv
from pathlib import Path

from tools.sensitivity import CENTRE, read_comparison, write_sensitivity

METHODS = [
    {"name": "usual", "settings": {"beta": 0.02, "lr": 1e-4}},
    {"name": "more", "settings": {"beta": 0.1}},
    {"name": "less", "settings": {"beta": 0.004}},
    {"name": "words", "settings": {"reduction": "mean"}},
    {"name": "two", "settings": {"beta": 0.1, "lr": 1e-3}},
]


def test_one_point_for_every_value_the_usual_one_among_them_and_one_row_per_seed(tmp_path: Path) -> None:
    columns = ("method", "seed", "epoch", "step", "forget_quality_log10_p", "utility_kept")
    with (tmp_path / "comparison.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([name, seed, 0, 0, -12, 1] for name in ("target",) for seed in (0, 1))
        for place, method in enumerate(METHODS):
            writer.writerows([method["name"], seed, n, 5 * n, -place - n, 0.9] for seed in (0, 1) for n in (1, 2))
    points = read_comparison({"output": str(tmp_path), "methods": METHODS})
    found = {(p.option, p.value): [row["forget_quality_log10_p"] for row in p.rows] for p in points}
    assert found == {
        (CENTRE, ""): [-2, -2],
        ("epochs", "1"): [-1, -1],
        ("epochs", "2"): [-2, -2],
        ("beta", "0.004"): [-4, -4],
        ("beta", "0.02"): [-2, -2],
        ("beta", "0.1"): [-3, -3],
        ("reduction", "mean"): [-5, -5],
    }
    assert [p.value for p in points if p.option == "beta"] == ["0.004", "0.02", "0.1"]
    text = write_sensitivity(points, tmp_path, "Around it")
    assert "| beta | 0.1 | 2 | -3.00 | 0.900 |" in text
    assert (tmp_path / "sensitivity.png").stat().st_size > 5000
