"""`dipo-lightning compare` from its YAML to its files, with an actor in the place of the runs."""

import csv
import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dipo_lightning import UnlearningDataModule
from dipo_lightning.callbacks.run_record import describe_run, write_record
from dipo_lightning.cli import child
from dipo_lightning.cli.main import main
from dipo_lightning.comparison.plan import read_comparison
from dipo_lightning.comparison.work import Run, rows_now
from dipo_lightning.errors import RunError
from tests.helpers.acted import actor, evaluation, write_base, write_evaluations
from tests.helpers.toys import save_toy

DIPO = {"name": "DiPO", "class_path": "dipo_lightning.DiPOModule", "grid": {"beta": [0.02, 0.05, 0.1]}}
NPO = {"name": "NPO", "class_path": "dipo_lightning.NPOModule", "settings": {"beta": 0.2}}
BROKEN = {"name": "GradAscent", "class_path": "dipo_lightning.GradAscentModule"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    made: list[list[str]] = []
    monkeypatch.setattr(child, "start", actor(made))
    return made


def write(folder: Path, methods: list[dict[str, Any]] = (DIPO, NPO), **options: Any) -> str:  # type: ignore[assignment]
    for seed in (0, 1, 9):
        write_base(folder / f"base{seed}", seed)
    plan = {
        "base": f"{folder}/base{{seed}}/unlearn.yaml",
        "output": str(folder / "out"),
        "seeds": [0, 1],
        "selection": {"seed": 9},
        "methods": list(methods),
    }
    path = folder / "comparison.yaml"
    path.write_text(yaml.safe_dump(plan | options))
    return str(path)


def table(folder: Path, name: str = "comparison.csv") -> list[dict[str, str]]:
    with (folder / "out" / name).open() as file:
        return list(csv.DictReader(file))


def test_from_the_yaml_to_the_table(tmp_path: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", write(tmp_path)]) == 0
    assert len(calls) == 3 + 2 + 2  # DiPO's grid on seed 9, then two methods on two seeds
    rows = table(tmp_path)
    assert list(rows[0])[:8] == [
        *("method", "settings", "seed", "epoch", "step"),
        *("forget_quality_log10_p", "model_utility", "utility_kept"),
    ]
    last = {(row["method"], row["seed"]): row for row in rows}
    assert set(last) == {(m, s) for m in ("target", "retain", "DiPO", "NPO") for s in "01"}
    # beta = 0.05 keeps 0.955: more forgetting than 0.1, which keeps more than it has to
    assert last["DiPO", "1"]["settings"] == "beta=0.05"
    assert float(last["DiPO", "1"]["forget_quality_log10_p"]) == pytest.approx(-2.1)
    assert float(last["DiPO", "1"]["utility_kept"]) == pytest.approx(0.955)
    assert float(last["NPO", "0"]["forget_quality_log10_p"]) == pytest.approx(-8.0)
    assert float(last["target", "0"]["model_utility"]) == pytest.approx(0.8)
    assert float(last["retain", "0"]["utility_kept"]) == pytest.approx(0.78 / 0.8)
    assert len([row for row in rows if row["method"] == "NPO"]) == 2 * 3  # every epoch of every seed
    assert [row["settings"] for row in table(tmp_path, "selection.csv")][::3] == ["beta=0.02", "beta=0.05", "beta=0.1"]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "model utility: DiPO, -2.05 (2 of 2 keep it)" in text
    assert "| DiPO | beta=0.05 | 2 | 2 | -2.05 [-2.10, -2.00] | 0.764 | 0.955 | 0.200 |" in text
    assert text.index("| DiPO |") < text.index("| NPO |") < text.index("| target |") < text.index("| retain |")
    assert "| DiPO | beta=0.05 | 2 | -2.90 | 0.955 | yes |" in text
    assert "chosen on the runs of seed 9" in text
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert text in capsys.readouterr().out


def test_what_is_finished_is_not_run_again(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path)
    main(["compare", path])
    first = (tmp_path / "out" / "comparison.csv").read_text()
    assert not list((tmp_path / "out").rglob("*.ckpt"))  # they were there to resume
    calls.clear()
    assert main(["compare", path]) == 0
    assert calls == []
    assert (tmp_path / "out" / "comparison.csv").read_text() == first
    write(tmp_path, [DIPO, NPO | {"settings": {"beta": 0.3}}])
    main(["compare", path])
    assert len(calls) == 2


def test_settings_in_another_order_are_the_same_run(tmp_path: Path, calls: list[list[str]]) -> None:
    main(["compare", write(tmp_path, [NPO | {"settings": {"lr": 1e-4, "beta": 0.3}}])])
    calls.clear()
    main(["compare", write(tmp_path, [NPO | {"settings": {"beta": 0.3, "lr": 1e-4}}])])
    assert calls == []


def test_an_interrupted_run_is_resumed_in_its_folder(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [NPO], seeds=[0])
    main(["compare", path])
    run = next((tmp_path / "out" / "runs").rglob("seed0"))
    (run / "checkpoints" / "finished").unlink()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    calls.clear()
    main(["compare", path])
    assert calls == [["fit", "--config", str(run / "run.yaml"), "--run", str(run)]]


@pytest.mark.parametrize("left", ["scores.json", "models/unlearned/model.safetensors"])
def test_what_clean_leaves_of_a_run_is_kept_aside(tmp_path: Path, calls: list[list[str]], left: str) -> None:
    path = write(tmp_path, [NPO], seeds=[0])
    main(["compare", path])
    run = next((tmp_path / "out" / "runs").rglob("seed0"))
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "evaluations")
    for file in (run / left, *([run / "models/unlearned/config.json"] if "models" in left else [])):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    calls.clear()
    main(["compare", path])
    assert len(calls) == 1
    assert (run.with_name("seed0-earlier1") / left).exists()


def test_a_run_of_another_base_is_kept_aside_and_done_anew(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [NPO], seeds=[0])
    main(["compare", path])
    write_base(tmp_path / "base0", batch_size=8)
    calls.clear()
    main(["compare", path])
    assert len(calls) == 1
    assert len(list((tmp_path / "out" / "runs").rglob("seed0-earlier1"))) == 1


def test_a_run_that_fails_is_reported_and_the_others_go_on(
    tmp_path: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, [BROKEN, NPO])
    assert main(["compare", path]) == 2
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "- GradAscent seed 0: exit code 2: The loss is nan at step 3. (" in text
    assert "| NPO | beta=0.2 | 2 |" in text
    assert "GradAscent seed 0, GradAscent seed 1" in capsys.readouterr().err
    calls.clear()
    main(["compare", path])
    assert len(calls) == 2  # only what failed is tried again


def test_rows_that_cannot_be_read_any_more_fail_a_run_and_the_others_go_on(
    tmp_path: Path, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [DIPO | {"grid": {}}, NPO], seeds=[0])
    main(["compare", path])
    for record in (tmp_path / "out" / "runs" / "NPO").rglob("checkpoints"):
        write_record(record, data={}, model="")
    assert main(["compare", path]) == 2
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "- NPO (beta=0.2) seed 0: data0" in text
    assert "| DiPO | - | 1 |" in text


def test_a_run_that_cannot_be_read_fails_and_the_others_go_on(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [DIPO | {"grid": {}}, NPO], seeds=[0])
    main(["compare", path])
    next((tmp_path / "out" / "runs" / "DiPO").rglob("tofu_epoch=001*.json")).write_text("{")
    assert main(["compare", path]) == 2
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "- DiPO seed 0: " in text
    assert "| NPO | beta=0.2 | 1 |" in text


def test_a_run_without_an_evaluation_after_a_step_fails(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [DIPO | {"grid": {}}, NPO], seeds=[0])
    main(["compare", path])
    for step in (1, 2):
        next((tmp_path / "out" / "runs" / "DiPO").rglob(f"tofu_epoch={step:03d}*.json")).unlink()
    assert main(["compare", path]) == 2
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "seed0 has no evaluation after a first step, so there is nothing to compare" in text
    assert "| DiPO |" not in text
    assert "| NPO | beta=0.2 | 1 |" in text


def test_no_picture_is_named_where_nothing_could_be_drawn(
    tmp_path: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["compare", write(tmp_path, [NPO])])
    assert "comparison.csv, comparison.png and the runs." in capsys.readouterr().out
    assert main(["compare", write(tmp_path, [BROKEN])]) == 2
    assert "comparison.md, comparison.csv and the runs." in capsys.readouterr().out
    assert not (tmp_path / "out" / "comparison.png").exists(), "that of the earlier call"
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.startswith("# Comparison\n\nNo run has a result to report.\n\n")
    assert "| DiPO |" not in text


def test_the_file_of_an_earlier_selection_does_not_stay(tmp_path: Path, calls: list[list[str]]) -> None:
    main(["compare", write(tmp_path, [DIPO])])
    assert (tmp_path / "out" / "selection.csv").exists()
    main(["compare", write(tmp_path, [NPO])])
    assert not (tmp_path / "out" / "selection.csv").exists()


def test_a_grid_that_fails_takes_only_its_method_out(tmp_path: Path, calls: list[list[str]]) -> None:
    assert main(["compare", write(tmp_path, [BROKEN | {"grid": {"gamma": [1.0, 2.0]}}, NPO])]) == 2
    assert "- GradAscent: every run of its grid failed" in (tmp_path / "out" / "comparison.md").read_text()
    assert {row["method"] for row in table(tmp_path)} == {"target", "retain", "NPO"}


def test_the_epoch_may_be_chosen_too(tmp_path: Path, calls: list[list[str]]) -> None:
    main(["compare", write(tmp_path, [NPO], selection={"seed": 9, "epoch": "any"})])
    assert len(calls) == 1 + 2
    assert "| NPO | beta=0.2 | 2 | 2 | -8.10" not in (tmp_path / "out" / "comparison.md").read_text()
    assert "| 2 | -8.90 | 1.030 | yes |" in (tmp_path / "out" / "comparison.md").read_text()


def test_finished_runs_take_part(tmp_path: Path, calls: list[list[str]]) -> None:
    documents = [evaluation(0, 0.8, -8.0, seed=4), evaluation(1, 0.4, -0.5, seed=4)]
    write_evaluations(tmp_path / "mine" / "version_0", documents)
    assert main(["compare", write(tmp_path, [], runs=[{"path": str(tmp_path / "mine")}])]) == 0
    assert calls == []
    row = table(tmp_path)[-1]
    assert (row["method"], row["seed"], row["utility_kept"]) == ("DiPO", "4", "0.5")
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "No method keeps 0.95" in text
    assert f"\n\nFinished runs from `{tmp_path / 'mine'}`. Numbers are" in text
    assert "Base" not in text
    main(["compare", write(tmp_path, [NPO], runs=[{"path": str(tmp_path / "mine")}])])
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert f"/unlearn.yaml`, seeds 0, 1; finished runs from `{tmp_path / 'mine'}`." in text


@pytest.mark.parametrize(
    ("others", "refused"),
    [
        ([{"path": "a"}, {"path": "b"}], "b"),
        ([{"path": "a"}, {"path": "a"}], "a"),
        ([{"path": "a", "name": "Mine"}, {"path": "b", "name": "Mine"}], "b"),
        ([{"path": "a", "name": "NPO", "settings": "beta=0.2"}], "a"),
        ([{"path": "a", "settings": "beta=0.05", "seed": 4}], "a"),
        ([{"path": "a"}, {"path": "b", "name": "Mine"}], None),
        ([{"path": "a"}, {"path": "b", "seed": 4}], None),
        ([{"path": "a"}, {"path": "b", "settings": "lr=1"}], None),
        ([{"path": "a", "name": "NPO", "settings": "beta=0.2", "seed": 4}], None),
    ],
)
def test_runs_of_one_seed_are_no_mean_over_seeds(
    tmp_path: Path,
    calls: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    others: list[dict[str, Any]],
    refused: str | None,
) -> None:
    for folder, quality in (("a", -9.0), ("b", -1.0)):
        write_evaluations(tmp_path / folder, [evaluation(0, 0.8, -20.0), evaluation(1, 0.8, quality)])
    path = write(tmp_path, runs=[run | {"path": str(tmp_path / run["path"])} for run in others])
    assert main(["compare", path]) == (2 if refused else 0)
    if refused:
        assert f"error: {tmp_path / refused} would be averaged with another run" in capsys.readouterr().err
        assert calls == []
    else:
        assert calls


def test_a_dry_run_says_what_is_missing(
    tmp_path: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    main(["compare", path])
    write(tmp_path, [DIPO, NPO, BROKEN])
    calls.clear()
    capsys.readouterr()
    assert main(["compare", path, "--dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert calls == []
    assert [line.split()[0] for line in lines] == [*["finished"] * 3, "then", *["finished"] * 2, *["new"] * 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": {}}, "give selection.seed"),
        ({"selection": {"seed": 1}}, "which is a reported seed too"),
        ({"base": "{folder}/base0/unlearn.yaml"}, "on the data that seed 0 is reported on"),
        ({"methods": [NPO, NPO]}, "two methods called 'NPO'"),
        ({"methods": []}, "compares nothing"),
        ({"seeds": []}, "at least one seed"),
        ({"methods": [NPO | {"grid": {"lr": []}}]}, "no value for lr"),
        ({"methods": [{"settings": {"beta": 1}}]}, "name"),
        ({"outputt": "x"}, "outputt"),
        ({"methods": [NPO, BROKEN | {"class_path": "dipo_lightning.GradAscentModul"}]}, "GradAscentModul cannot be"),
        ({"methods": [NPO, BROKEN | {"class_path": "dipo_lightning.TOFUEvaluation"}]}, "GradAscent seed 0: "),
        ({"methods": [NPO, DIPO | {"grid": {"bta": [0.1, 0.2]}}]}, "DiPO (bta=0.1) seed 0: "),
        ({"methods": [NPO, DIPO | {"grid": {"bta": [0.1, 0.2]}}]}, "Did you mean 'beta'?"),
        ({"methods": [NPO, NPO | {"name": "other", "settings": {"beta": "much"}}]}, "Got value: much"),
        ({"methods": [NPO, BROKEN | {"settings": {"lr": "fast"}}]}, "seed 0: lr must be a number, got 'fast'."),
        ({"methods": [NPO, BROKEN | {"settings": {"data.batch": 4}}]}, "'batch' is not accepted"),
        ({"methods": [NPO, BROKEN | {"settings": {"trainer.max_epoch": 4}}]}, "max_epoch"),
        ({"runs": [{"path": "{folder}/nothing"}]}, "of 0 runs"),
        ({"runs": [{"path": "~/nothing"}]}, "{home}/nothing holds"),
        ({"base": "~/base.yaml"}, "no base config {home}/base.yaml"),
        ({"base": "$NO_SUCH_VARIABLE/base.yaml"}, "base is $NO_SUCH_VARIABLE/base.yaml, which names a variable"),
        ({"methods": [NPO, BROKEN | {"settings": {"data.prompt.style": 4}}]}, "data.prompt.style to set: prompt has"),
        (
            {"methods": [NPO, BROKEN | {"settings": {"trainer.callbacks.a.b": 4}}]},
            "callbacks.a.b to set: callbacks has",
        ),
        ({"methods": [NPO, BROKEN | {"settings": {"pretrained": "b"}}]}, "GradAscent has a setting pretrained"),
        ({"methods": [NPO, BROKEN | {"grid": {"pretrained": ["b"]}}]}, "GradAscent has a setting pretrained"),
        ({"selection": {"seed": 9, "keep_utility": 95}}, "keep_utility is 95; give a share"),
        ({"selection": {"seed": 9, "keep_utility": 0}}, "keep_utility is 0; give a share"),
    ],
)
def test_what_cannot_be_right_is_said_before_anything_runs(
    tmp_path: Path, calls: list[list[str]], capsys: pytest.CaptureFixture[str], options: dict[str, Any], message: str
) -> None:
    filled = json.loads(json.dumps(options).replace("{folder}", str(tmp_path)))
    assert main(["compare", write(tmp_path, **filled)]) == 2
    assert message.replace("{home}", str(Path.home())) in capsys.readouterr().err
    assert calls == []


def test_a_shipped_base_can_be_that_of_the_selection(tmp_path: Path) -> None:
    plan = read_comparison(write(tmp_path, selection={"seed": 9, "base": "tofu/smollm2/unlearn"}))
    assert Path(str(plan.selection.base)).is_file()


def test_methods_of_any_names_have_folders_of_their_own(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [NPO | {"name": name} for name in ("a, b", "a_b", "..", "a")], seeds=[0])
    main(["compare", path])
    assert len({call[-1] for call in calls}) == 4
    assert all(Path(call[-1]).resolve().parents[2] == tmp_path / "out" / "runs" for call in calls)
    calls.clear()
    main(["compare", path])
    assert calls == []


@pytest.mark.parametrize(
    "options", [{"batch_size": 16}, {"split": "forget10", "max_length": 64}, {"max_retain_rows": 9}]
)
def test_other_options_make_no_other_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any]
) -> None:
    path = write_base(tmp_path / "other", 9, data="data0", **options)
    assert main(["compare", write(tmp_path, selection={"seed": 9, "base": str(path)})]) == 2
    assert "on the data that seed 0 is reported on" in capsys.readouterr().err


def test_another_split_is_other_data(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write_base(tmp_path / "other", 9, data="data0", split="forget05")
    assert main(["compare", write(tmp_path, selection={"seed": 9, "base": str(path)})]) == 0


def test_choosing_on_the_reported_data_can_be_allowed_and_is_then_said(tmp_path: Path, calls: list[list[str]]) -> None:
    base = f"{tmp_path}/base0/unlearn.yaml"
    assert main(["compare", write(tmp_path, base=base, selection={"seed": 9, "allow_same_data": True})]) == 0
    assert "The same data is reported on" in (tmp_path / "out" / "comparison.md").read_text()


def test_other_data_is_called_so_though_the_same_would_be_allowed(tmp_path: Path, calls: list[list[str]]) -> None:
    assert main(["compare", write(tmp_path, selection={"seed": 9, "allow_same_data": True})]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "the runs of seed 9, which are not reported" in text
    assert "The same data" not in text


def test_results_of_other_weights_or_rows_are_not_put_into_one_table(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [DIPO | {"grid": {}}, NPO], seeds=[0])
    main(["compare", path])
    for method, hashes in {"DiPO": ("a", "x"), "NPO": ("a", "y")}.items():
        for file in (tmp_path / "out" / "runs" / method).rglob("tofu_epoch=*.json"):
            document = json.loads(file.read_text())
            data = {"forget": {"rows": 4, "sha256": hashes[1]}}
            document["provenance"] |= {"model": {"pretrained": hashes[0]}, "data": data}
            file.write_text(json.dumps(document))
    assert main(["compare", path]) == 2
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "- NPO (beta=0.2) seed 0: NPO (beta=0.2) seed 0 had other forget rows than DiPO seed 0" in text
    assert "| DiPO | - | 1 |" in text
    assert "| NPO |" not in text


def test_a_run_whose_config_was_cut_off_in_writing_is_run_anew(tmp_path: Path, calls: list[list[str]]) -> None:
    path = write(tmp_path, [NPO], seeds=[0])
    main(["compare", path])
    config = next((tmp_path / "out" / "runs").rglob("run.yaml"))
    config.write_text(config.read_text()[:40] + "\n{")
    calls.clear()
    assert main(["compare", path]) == 0
    assert len(calls) == 1


def test_a_finished_run_of_other_rows_or_of_another_model_or_retain_log_is_run_anew(tmp_path: Path) -> None:
    def write_rows(answer: str) -> None:
        (tmp_path / "forget.jsonl").write_text(json.dumps({"question": "Who?", "answer": answer}))

    write_rows("I.")
    save_toy(tmp_path / "model")
    data = {
        "class_path": "dipo_lightning.UnlearningDataModule",
        "init_args": {"forget": str(tmp_path / "forget.jsonl")},
    }
    config = {"data": data, "model": {"init_args": {"pretrained": str(tmp_path / "model")}}}
    log = tmp_path / "retain.json"
    log.write_text("{}")
    callback = {"class_path": "dipo_lightning.MemorizationEvaluation", "init_args": {"retain_log": str(log)}}
    config["trainer"] = {"callbacks": [callback]}
    run = Run("NPO", "", 0, tmp_path / "run", config)
    child.write_config(run.folder / "run.yaml", config)
    rows = rows_now(json.dumps([data, str(tmp_path / "model")], sort_keys=True))
    write_record(run.folder / "checkpoints", **describe_run(config, rows))
    (run.folder / "checkpoints" / "finished").touch()
    assert run.state == "finished"
    for change in (
        lambda: log.write_text("[]"),
        lambda: write_rows("We."),
        lambda: save_toy(tmp_path / "model", seed=1),
    ):
        change()
        rows_now.cache_clear()
        assert run.state == "new"
        write_rows("I.")
        log.write_text("{}")


@dataclass
class Which:
    """An option with parts of its own."""

    name: str


class Chosen(UnlearningDataModule):
    """A user's own data module."""

    def __init__(self, folder: str, which: Which, **options: Any) -> None:
        super().__init__(forget=f"{folder}/{which.name}.jsonl", **options)


def test_the_rows_of_an_own_data_module_are_read_as_fit_reads_them(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "Who?", "answer": "I."}))
    model = str(save_toy(tmp_path / "model"))
    own = {"folder": str(tmp_path), "which": {"name": "mine"}}
    usual = {"forget": str(tmp_path / "mine.jsonl")}
    rows = [
        rows_now(json.dumps([{"class_path": path, "init_args": options}, model]))
        for path, options in ((f"{__name__}.Chosen", own), ("UnlearningDataModule", usual))
    ]
    assert rows[0] == rows[1] != {}


def test_a_config_that_is_cut_off_in_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.write_config(tmp_path / "run.yaml", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="could not be written"):
        child.write_config(tmp_path / "run.yaml", {"a": 2})
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {"a": 1}
