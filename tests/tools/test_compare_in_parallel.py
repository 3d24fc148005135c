"""The parts of a comparison that are run beside one another."""

from pathlib import Path

import yaml

from tools import compare_in_parallel


def test_every_part_has_files_of_its_own_and_its_settings_in_their_order(tmp_path: Path, monkeypatch) -> None:
    read = []

    def run(*arguments: str, log: Path) -> None:
        read.append((yaml.safe_load(Path(arguments[1]).read_text())["methods"][0], arguments[1], log))

    monkeypatch.setattr(compare_in_parallel, "run", run)
    plan = {"output": str(tmp_path / "out"), "seeds": [0]}
    methods = [
        {"name": f"alpha {alpha}", "settings": {"pair.selection": "top_k", "pair.alpha": alpha}} for alpha in (0.1, 0.4)
    ]
    for method in methods:
        compare_in_parallel.compare_one(plan, method)
    assert [method for method, _, _ in read] == methods
    assert [list(method["settings"]) for method, _, _ in read] == [list(method["settings"]) for method in methods]
    assert len({path for _, path, _ in read}) == len({log for _, _, log in read}) == 2
