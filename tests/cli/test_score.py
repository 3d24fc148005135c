"""A results file's own numbers, checked against its rows in all three formats of this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dipo_lightning.cli.main import main
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from tests.helpers.aggregate import muse, tofu, user_data
from tests.helpers.synthetic import make_sets


def tofu_log() -> dict[str, Any]:
    sets = make_sets(1, True)
    return {"format": "dipo-lightning/tofu/1", "settings": {}, "sets": sets,
            "aggregates": tofu(sets, make_sets(2, True))}  # fmt: skip


def muse_log() -> dict[str, Any]:
    sets: dict[str, list[dict[str, Any]]] = {
        name: [{"index": i, "rouge": i / 7} for i in range(5)]
        for name in ("verbmem", "knowmem_forget", "knowmem_retain")
    }
    sets |= {name: [{"index": i, "min_k": i + shift} for i in range(5)]
             for shift, name in enumerate(("privleak_forget", "privleak_retain", "privleak_holdout"))}  # fmt: skip
    return {"format": "dipo-lightning/muse/1", "settings": {"variant": "muse"}, "sets": sets,
            "aggregates": muse(sets, auc_retrain=0.4)}  # fmt: skip


def user_data_log() -> dict[str, Any]:
    sets = {name: [{"index": i, "nll": i / 3, "rouge_l_recall": i / 7, "wrong_nll": []} for i in range(5)]
            for name in ("forget", "retain")}  # fmt: skip
    return {"format": "dipo-lightning/user_data/1", "settings": {"truth_ratio": "geometric"}, "sets": sets,
            "aggregates": user_data(sets)}  # fmt: skip


LOGS = {"tofu": tofu_log, "muse": muse_log, "user_data": user_data_log}


def write(folder: Path, log: dict[str, Any]) -> Path:
    path = folder / "log.json"
    path.write_text(json.dumps(log))
    return path


@pytest.mark.parametrize("kind", LOGS)
def test_every_stored_number_is_held_against_the_rows(kind: str, tmp_path: Path) -> None:
    log = LOGS[kind]()
    found = score(write(tmp_path, log))
    assert found["stored_aggregates_hold"] is True
    unchecked = found["stored_aggregates_unchecked"]
    taken = ["forget_quality", "forget_reference_auc", "privleak", "privleak_auc_retrain"]
    assert unchecked == (taken if kind == "tofu" else [])
    numbers = [name for name, value in log["aggregates"].items() if isinstance(value, float) and name not in unchecked]
    numbers = [name for name in numbers if name != "privleak_auc_retrain"]  # what PrivLeak was compared with: given
    assert len(numbers) > 4
    for name in numbers:
        changed = log | {"aggregates": log["aggregates"] | {name: log["aggregates"][name] * 1.001 + 0.001}}
        found = score(write(tmp_path, changed))
        assert (found["stored_aggregates_hold"], list(found["stored_aggregates_differ"])) == (False, [name])


def test_the_variant_of_the_truth_ratio_is_that_of_the_log(tmp_path: Path) -> None:
    sets, retain = make_sets(1, True), make_sets(2, True)
    log = {"format": "dipo-lightning/tofu/1", "settings": {"truth_ratio": "arithmetic"}, "sets": sets,
           "aggregates": tofu(sets, retain, "arithmetic")}  # fmt: skip
    other = tmp_path / "retain.json"
    other.write_text(json.dumps(log | {"sets": retain, "aggregates": {}}))
    path = write(tmp_path, log)
    found = score(path, other)
    assert found["stored_aggregates_hold"] is True
    for name in ("forget_truth_ratio", "model_utility", "forget_quality"):
        assert found[name] == pytest.approx(log["aggregates"][name])
    assert score(path, other, "geometric")["forget_truth_ratio"] != pytest.approx(found["forget_truth_ratio"])


@pytest.mark.parametrize("kind", LOGS)
def test_a_row_that_was_taken_out_or_a_number_from_nowhere_shows(kind: str, tmp_path: Path) -> None:
    log = LOGS[kind]()
    invented = log | {"aggregates": log["aggregates"] | {"forget_zlib_auc_of_another": 0.5}}
    assert list(score(write(tmp_path, invented))["stored_aggregates_differ"]) == ["forget_zlib_auc_of_another"]
    next(iter(log["sets"].values())).pop(1)
    assert score(write(tmp_path, log))["stored_aggregates_hold"] is False


def test_the_command_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, user_data_log())
    assert main(["score", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["stored_aggregates_hold"] is True


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--reference", "unrecognized arguments: --reference x. It is --retain_log now"),
        ("--retain-log", "unrecognized arguments: --retain-log x. Did you mean 'retain_log'?"),
    ],
)
def test_the_old_name_of_the_retain_log_gets_one_sentence(
    option: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["score", "log.json", option, "x"])
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == f"error: {sentence}"


def test_the_command_takes_a_retain_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retain = tmp_path / "retain.json"
    retain.write_text(json.dumps(tofu_log() | {"sets": make_sets(2, True)}))
    assert main(["score", str(write(tmp_path, tofu_log())), "--retain_log", str(retain)]) == 0
    assert json.loads(capsys.readouterr().out)["forget_quality"] is not None


def test_privleak_of_a_log_against_the_number_it_stores_or_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = muse_log()
    path = write(tmp_path, log)
    for options, auc in (([], 0.4), (["--auc_retrain=0.8"], 0.8)):
        assert main(["score", str(path), *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["privleak_auc_retrain"] == auc
        assert found["privleak"] == pytest.approx(100 * (found["privleak_auc"] - auc) / auc)
        assert found["stored_aggregates_hold"] is True, "what the file says is of the number that it was made with"
    log["aggregates"] = muse(log["sets"])
    assert score(write(tmp_path, log), auc_retrain=0.8)["stored_aggregates_hold"] is True


def test_a_log_made_with_a_number_holds_when_a_retain_log_is_given(tmp_path: Path) -> None:
    log = muse_log()
    log["settings"]["auc_retrain"] = 0.4  # as MUSEEvaluation writes it with `baseline: 0.4`
    retain = tmp_path / "retain.json"
    shifted = [{**row, "min_k": row["min_k"] + 2.5} for row in log["sets"]["privleak_forget"]]
    retain.write_text(json.dumps(log | {"sets": log["sets"] | {"privleak_forget": shifted}}))
    found = score(write(tmp_path, log), retain)
    assert found["privleak"] != pytest.approx(log["aggregates"]["privleak"])
    assert found["stored_aggregates_hold"] is True
    log["aggregates"]["privleak"] += 1
    assert list(score(write(tmp_path, log), retain)["stored_aggregates_differ"]) == ["privleak"]


def test_options_that_change_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, muse_log())
    with pytest.raises(InputError, match="Both retain_log and auc_retrain"):
        score(path, path, auc_retrain=0.5)
    with pytest.raises(InputError, match="truth_ratio is not an option of MUSE, .*; leave --truth_ratio out"):
        score(path, truth_ratio="arithmetic")
    with pytest.raises(InputError, match="no row with wrong answers"):
        score(write(tmp_path, user_data_log()), truth_ratio="arithmetic")


def test_a_retrained_auc_for_a_log_of_another_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="auc_retrain is not an option of TOFU"):
        score(write(tmp_path, tofu_log()), auc_retrain=0.5)


def test_user_data_has_no_second_model(tmp_path: Path) -> None:
    path = write(tmp_path, user_data_log())
    with pytest.raises(InputError, match="is computed from the log of a retain model"):
        score(path, path)


def test_a_log_made_without_a_retain_log_still_holds_when_one_is_given(tmp_path: Path) -> None:
    log = tofu_log() | {"aggregates": tofu(make_sets(1, True))}
    retain = tmp_path / "retain.json"
    retain.write_text(json.dumps(tofu_log() | {"sets": make_sets(2, True)}))
    found = score(write(tmp_path, log), retain)
    assert found["forget_quality"] is not None
    assert found["stored_aggregates_hold"] is True


def test_a_number_that_is_infinite_is_none_and_why(tmp_path: Path) -> None:
    log = user_data_log()
    for row in log["sets"]["forget"]:
        row |= {"generation_nll": 1e4, "generation_tokens": 5}
    log["aggregates"]["forget_perplexity"] = None
    found = score(write(tmp_path, log))
    assert found["forget_perplexity"] is None
    assert found["forget_perplexity_absent"] == "the number is infinite"
    assert found["stored_aggregates_hold"] is True
    assert json.dumps(found, allow_nan=False)
