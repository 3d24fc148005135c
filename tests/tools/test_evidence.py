"""Stages of the evidence that need no run: the data of both splits, and the runs around the default."""

import json
from pathlib import Path

from tools.evidence import NOW, Evidence, prepare_data, varied
from tools.evidence_jobs import Setup, Workers

FILES = ("retain_perturbed", "real_authors_perturbed", "world_facts_perturbed", "forget10_perturbed")


def write_lines(folder: Path, name: str, count: int) -> None:
    lines = [json.dumps({"question": f"{name} {n}", "answer": "yes"}) for n in range(count)]
    (folder / f"{name}.json").write_text("\n".join(lines) + "\n")


def tofu(folder: Path) -> Path:
    """20 rows of every file; the questions of retain90 are those of retain_perturbed."""
    folder.mkdir()
    for name in (*FILES, "forget10"):
        write_lines(folder, name, 20)
    retain = (folder / "retain_perturbed.json").read_text()
    (folder / "retain90.json").write_text(retain + json.dumps({"question": "other", "answer": "no"}) + "\n")
    return folder


def questions(path: Path) -> list[str]:
    return [json.loads(line)["question"] for line in path.read_text().splitlines()]


def test_the_last_forget_rows_are_reported_and_no_row_is_in_both_splits(tmp_path: Path) -> None:
    prepare_data(tofu(tmp_path / "tofu"), tmp_path, rows=12, forget=4)
    search, report = (tmp_path / "data" / split for split in ("search", "report"))
    assert questions(report / "forget05.json") == [f"forget10 {n}" for n in (16, 17, 18, 19)]
    assert questions(report / "forget05_perturbed.json") == [f"forget10_perturbed {n}" for n in (16, 17, 18, 19)]
    assert questions(search / "forget05.json") == [f"forget10 {n}" for n in range(12)]
    assert questions(report / "retain95.json") == [f"retain_perturbed {n}" for n in range(12)]


def test_runs_around_the_default_change_one_option_each(tmp_path: Path) -> None:
    prepare_data(tofu(tmp_path / "tofu"), tmp_path, rows=12, forget=4)
    setup = Setup("no model", tmp_path)
    methods = {"DiPO": ("DiPOModule", {}, [{"lr": 1e-4}])}
    evidence = Evidence(setup, Workers(setup, 1, 0), tmp_path, methods, seeds=(0,), epochs=8, searches=False)
    assert [job.name for job in evidence.models] == ["report/retain", "report/target"]
    found = list(evidence.around("DiPO", 0))
    centre = found[0][2]
    assert (centre.settings, centre.epochs, centre.every) == ({"lr": 1e-4}, 8, None)
    values: dict[str, list[str]] = {}
    for option, value, job in found[1:]:
        values.setdefault(option, []).append(value)
        changed = {name for name in job.settings if job.settings[name] != centre.settings.get(name)}
        assert changed in (set(), {option})
        if not changed and option != "epochs":
            assert job == centre
    [longer] = [job for option, _, job in found if option == "epochs"]
    assert (longer.settings, longer.epochs, longer.every) == ({"lr": 1e-4}, 16, 4)
    assert values == {
        "epochs": [""],
        "pair.alpha": ["0.1", "0.2", "0.4", "0.8"],
        "lr": ["4e-05", "0.0001", "0.00025"],
        "beta": ["0.004", "0.02", "0.1", "0.5"],
        "lambda_": ["0", "12", "40", "120"],
        "pair.rho": ["0.03", "0.1", "0.3", "1"],
        "pair.selection": ["relative", "top_k", "top_p"],
        "pair.memory_vector": ["centered", "raw", "contrast"],
        "reduction": ["sum", "mean"],
        "retain_loss": ["kl", "nll"],
        "data.max_retain_rows": ["3", "6", "12"],
    }


def test_around_another_choice_no_run_is_counted_for_the_default(tmp_path: Path) -> None:
    prepare_data(tofu(tmp_path / "tofu"), tmp_path, rows=12, forget=4)
    setup = Setup("no model", tmp_path)
    fixed = {"pair.selection": "top_k", "retain_loss": "nll", "lambda_": 1.0}
    methods = {"DiPO top_k": ("DiPOModule", fixed, [{"lr": 1e-4, "pair.alpha": 1.0}])}
    evidence = Evidence(setup, Workers(setup, 1, 0), tmp_path, methods, seeds=(0,), epochs=3, searches=False)
    found = list(evidence.around("DiPO top_k", 0))
    centre = found[0][2]
    same = {(option, value) for option, value, job in found[1:] if job == centre}
    assert same == {
        ("lr", "0.0001"),
        ("lambda_", "1"),
        ("pair.alpha", "1"),
        ("beta", "0.02"),
        ("pair.k", "10"),
        ("reduction", "sum"),
        ("pair.selection", "top_k"),
        ("pair.memory_vector", "centered"),
        ("retain_loss", "nll"),
        ("data.max_retain_rows", "12"),
    }
    assert "pair.rho" not in {option for option, _, _ in found}
    assert [job.settings.get("pair.k") for option, _, job in found if option == "pair.k"] == [3, None, 30, 100]
    words = {value: job.settings for option, value, job in found if option == "pair.selection"}
    assert [words[name]["pair.selection"] for name in ("relative", "top_k", "top_p")] == ["relative", "top_k", "top_p"]


def test_options_of_the_selection_are_not_varied_where_nothing_is_selected() -> None:
    now = NOW | {"lr": 1e-4}
    selecting, contrast = set(varied(now)), set(varied(now | {"pair.memory_vector": "contrast"}))
    assert selecting - contrast == {"pair.rho", "pair.selection"}
    assert "pair.k" not in selecting
    assert {"pair.k", "pair.rho"} & set(varied(now | {"pair.selection": "top_p"})) == set()
