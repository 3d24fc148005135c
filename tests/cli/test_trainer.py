"""``fit`` and ``validate`` as a user calls them: folders, loggers, resumes, refusals, secrets among options."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dipo_lightning.callbacks.run_record import FolderLock
from dipo_lightning.cli.main import main
from tests.helpers.toys import save_toy
from tests.reliability.toy_run import differences, outcome, write_config, write_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs, other rows and another model."""
    root = tmp_path_factory.mktemp("fit")
    write_inputs(root, rows=4)
    save_toy(root / "other", seed=9)
    shutil.copy(root / "forget.jsonl", root / "more.jsonl")
    with (root / "more.jsonl").open("a") as file:
        file.write('\n{"question": "Who else?", "answer": "Nobody."}')
    return root


@pytest.fixture
def config(folder: Path, here: Path) -> dict[str, Any]:
    """A run of one epoch with one evaluation, without a folder of its own."""
    made = yaml.safe_load(write_config(folder, here / "run", epochs=1).read_text())
    evaluation, checkpoint = made["trainer"]["callbacks"]
    evaluation["init_args"] = {"measuring": {"generate": False}, "schedule": {"at_start": False}}
    checkpoint["init_args"] = {}
    made["trainer"] |= {"accumulate_grad_batches": 1}
    del made["run"]
    return made


def command(name: str, config: dict[str, Any], *options: str) -> int:
    """Run a command in this process; returns its exit code."""
    Path("command.yaml").write_text(yaml.safe_dump(config))
    try:
        return main([name, "--config", "command.yaml", *options])
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)


def refused(capsys: pytest.CaptureFixture[str], name: str, config: dict[str, Any], *options: str) -> str:
    """Run a command that must be refused; returns its sentence."""
    capsys.readouterr()
    assert command(name, config, *options) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said[said.index("error: ") :]


def scalars(folder: Path, tag: str) -> list[int]:
    """The steps at which TensorBoard has a value of ``tag``."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return [event.step for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


@pytest.mark.parametrize("name", ["~/x", "$SCRATCH/x"])
def test_home_and_variables_in_a_run_s_folder_are_filled_in(
    config: dict[str, Any], here: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(here / "place"))
    monkeypatch.setenv("SCRATCH", str(here / "place"))
    assert command("fit", config, f"--run={name}") == 0
    assert (here / "place" / "x" / "checkpoints" / "finished").exists()
    assert command("fit", config, f"--run={name}") == 0
    assert "This run is finished" in capsys.readouterr().out
    assert not [path for path in here.iterdir() if path.name[0] in "~$"]
    monkeypatch.delenv("SCRATCH")
    assert "names a variable that is not set" in refused(capsys, "fit", config, "--run=$SCRATCH/x")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_a_run_beside_a_model_checkpoint_resumes_and_keeps_its_events(config: dict[str, Any], here: Path) -> None:
    config["trainer"]["callbacks"][1] = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
    config["trainer"] |= {"log_every_n_steps": 1}
    config["model"]["init_args"]["schedule"] = "constant"
    for run, epochs in (("whole", 2), ("grown", 1), ("grown", 2)):
        assert command("fit", config, f"--run={run}", f"--trainer.max_epochs={epochs}") == 0
    assert scalars(here / "grown", "train/loss") == [0, 1, 2, 3]
    saved = [torch.load(here / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "grown")]
    assert all(torch.equal(value, saved[1]["state_dict"][name]) for name, value in saved[0]["state_dict"].items())
    assert list((here / "grown" / "model_checkpoints").glob("*.ckpt"))


def test_a_named_run_keeps_the_loggers_of_its_config(config: dict[str, Any], here: Path) -> None:
    loggers = [{"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": {"save_dir": "elsewhere"}}
               for kind in ("CSVLogger", "TensorBoardLogger")]  # fmt: skip
    config["trainer"]["logger"] = loggers
    assert command("fit", config, "--run=both") == 0
    assert list((here / "both").rglob("metrics.csv"))
    assert scalars(here / "both", "train/loss")
    assert command("fit", config | {"trainer": config["trainer"] | {"logger": False}}, "--run=none") == 0
    assert not list((here / "none").rglob("*tfevents*"))
    assert not (here / "elsewhere").exists()


def test_a_finished_run_is_another_s_to_nobody(
    config: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("fit", config, "--run=run") == 0
    for option, said in {
        "--model.beta=0.2": "model.beta was",
        "--data.seed=3": "data.seed was 0, now 3",
        f"--data.forget={folder}/more.jsonl": "the forget rows (4 then, 5 now) have other texts",
        f"--model.pretrained={folder}/other": "model.pretrained was",
        "--trainer.accumulate_grad_batches=2": "accumulate_grad_batches was 1, now 2",
    }.items():
        message = refused(capsys, "fit", config, "--run=run", option)
        assert said in message
        assert "Give another folder to train anew, or the old options to resume this run." in message
    assert command("fit", config, "--run=run", "--trainer.max_epochs=2") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_a_run_that_time_ended_goes_on_when_it_is_given_more(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config["trainer"] |= {"max_epochs": 2}
    config["trainer"]["callbacks"].append(
        {"class_path": "tests.callbacks.test_checkpoint.Slow", "init_args": {"step": 0}}
    )
    assert command("fit", config, "--run=run", "--trainer.max_time=00:00:00:02") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
    assert command("fit", config, "--run=run", "--trainer.max_time=00:00:00:02") == 0
    assert "This run is finished" in capsys.readouterr().out
    assert "max_time leaves no time" in refused(capsys, "fit", config, "--run=run", "--trainer.max_time=00:00:00:01")
    assert command("fit", config, "--run=run", "--trainer.max_time=00:01:00:00") == 0
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_an_interrupted_run_is_another_s_to_nobody(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", config, "--run=run") == 0
    Path("run/checkpoints/finished").unlink()
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert "model.beta was" in refused(capsys, "fit", config, "--run=run", "--model.beta=0.2")
    after = {path: path.read_bytes() for path in before if path.exists()}
    assert after == before, "a run that is refused leaves the folder as it was"


def test_a_run_that_was_refused_may_be_mended_in_its_folder(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = copy.deepcopy(config)
    wrong["model"]["init_args"]["lora"] = {"base": "nf4", "rank": 2}
    assert "needs an NVIDIA GPU" in refused(capsys, "fit", wrong, "--run=mended")
    assert command("fit", config, "--run=mended") == 0
    record = json.loads(Path("mended/checkpoints/run.json").read_text())
    assert record["config"]["model"]["init_args"].get("lora") is None


def test_a_run_that_ends_behind_its_export_is_finished_by_the_same_command(
    config: dict[str, Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["trainer"]["callbacks"] += [{"class_path": "ExportModel"}, {"class_path": "ResultsPage"}]
    assert command("fit", config, "--run=whole") == 0

    def broken(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dipo_lightning.callbacks.results.write_page", broken)
        assert command("fit", config, "--run=run") != 0
    assert (here / "run" / "model" / "model.safetensors").exists()
    assert not (here / "run" / "checkpoints" / "finished").exists()
    assert command("fit", config, "--run=run") == 0
    assert (here / "run" / "checkpoints" / "finished").exists()
    assert (here / "run" / "results.html").exists()
    found = differences(*(outcome(here / run) for run in ("whole", "run")))
    assert [name for name in found if name != "evaluations"] == [], "the cache's folder differs in the provenance"


def test_a_second_process_does_not_train_into_a_run(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    lock = FolderLock()
    lock.hold(Path("run/checkpoints"))
    try:
        assert "is in use by process" in refused(capsys, "fit", config, "--run=run")
    finally:
        lock.release()
    assert command("fit", config, "--run=run") == 0


LIGHTNINGS = {
    "barebones": ({"barebones": True}, "barebones switches off logs"),
    "a bar that is switched off": ({"callbacks": [{"class_path": "RichProgressBar"}]}, "enable_progress_bar"),
    "rates without a logger": ({"callbacks": [{"class_path": "LearningRateMonitor"}], "logger": False}, "logger"),
    "two ways to accumulate": ({"callbacks": [{"class_path": "GradientAccumulationScheduler",
                                               "init_args": {"scheduling": {0: 2}}}],
                                "accumulate_grad_batches": 2}, "accumulate_grad_batches"),
    "more than all batches": ({"limit_train_batches": 2.5}, "limit_train_batches"),
    **{f"no step by {name}": ({name: number}, f"trainer.{name} is 0, so that nothing would be trained")
       for name, number in (("max_epochs", 0), ("max_steps", 0), ("limit_train_batches", 0.0))},
    "a rule about what nothing logs": ({"callbacks": [{"class_path": "EarlyStopping", "init_args": {
        "monitor": "utility", "check_on_train_epoch_end": True}}]}, "utility"),
    "what a constructor refuses": ({"callbacks": [{"class_path": "EarlyStopping", "init_args": {
        "monitor": "utility", "mode": "sideways"}}]}, "`mode` can be min, max"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIGHTNINGS)
def test_what_lightning_refuses_is_a_sentence(
    config: dict[str, Any], case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options, said = LIGHTNINGS[case]
    assert said.lower() in refused(capsys, "fit", config | {"trainer": config["trainer"] | options}).lower()


MISSING = {
    "wandb": ("WandbLogger", "WandbLogger needs wandb: pip install 'wandb>=9999'"),
    "trackio": ("dipo_lightning.TrackioLogger", "pip install 'dipo-lightning[trackio]'"),
    "mine": ("my_project.Own", "Own needs a library that is not installed: No module named 'not_there'"),
}


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "alone"])
@pytest.mark.parametrize("case", MISSING)
def test_a_library_that_is_missing_is_named(
    config: dict[str, Any],
    case: str,
    listed: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import lightning.pytorch.loggers.wandb
    from lightning_utilities.core.imports import RequirementCache

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else find(name))
    monkeypatch.setattr(lightning.pytorch.loggers.wandb, "_WANDB_AVAILABLE", RequirementCache("wandb>=9999"))
    own = "from lightning.pytorch.loggers import CSVLogger\n\n\nclass Own(CSVLogger):\n    def __init__(self):\n"
    (here / "my_project.py").write_text(f"{own}        import not_there\n")
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    name, said = MISSING[case]
    logger, other = {"class_path": name}, {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}
    config["trainer"]["logger"] = [other, logger] if listed else logger
    assert said in refused(capsys, "fit", config)


def test_what_the_optimizer_refuses_is_a_sentence(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = -1.0
    assert "model.optimizer cannot be built from its options: Invalid learning rate" in refused(capsys, "fit", config)
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = float("inf")
    assert "model.optimizer.lr is inf; it must be finite." in refused(capsys, "fit", config)


def test_a_run_that_was_moved_goes_on(config: dict[str, Any], here: Path) -> None:
    config["trainer"]["callbacks"].append({"class_path": "ExportModel"})
    assert command("fit", config, "--run=run") == 0
    (here / "run" / "checkpoints" / "finished").unlink()
    (here / "run").rename(here / "moved")
    assert command("fit", config, "--run=moved") == 0
    assert (here / "moved" / "checkpoints" / "finished").exists()
    assert not (here / "run").exists()


@pytest.mark.parametrize("name", ["validate", "test"])
def test_a_command_that_would_measure_nothing_is_refused(
    config: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    batches = f"limit_{'val' if name == 'validate' else 'test'}_batches"
    assert f"trainer.{batches} is 0" in refused(capsys, name, config, f"--trainer.{batches}=0")
    del config["trainer"]["callbacks"][0]
    assert f"{name} would measure nothing" in refused(capsys, name, config)
    assert "Results are in" not in capsys.readouterr().out


def test_a_checkpoint_is_validated_beside_its_run(config: dict[str, Any], here: Path) -> None:
    place = {"save_dir": ".", "name": "", "version": "run"}
    config["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": place}
    assert command("fit", config) == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.suffix in (".json", ".yaml")}
    saved = here / "run" / "checkpoints" / "last.ckpt"
    assert command("validate", config, f"--ckpt_path={saved}") == 0
    assert {path: path.read_bytes() for path in before} == before
    new = [path for path in (here / "run" / "evaluations").iterdir() if path not in before]
    assert [path.name for path in new] == ["user_data_epoch=001_step=00002_validate.json"]
    where = json.loads(new[0].read_text())["provenance"]
    assert (where["epoch"], where["step"]) == (1, 2)
    assert set(scalars(here / "run", "user_data/forget_probability")) == {2}


def test_secrets_are_in_nothing_that_a_run_writes(config: dict[str, Any], here: Path) -> None:
    secrets = {
        "api_key": "kQ9vX2mZ7pLw",
        "url": "https://ann:hunter2hunter2@host.example/hook?access_token=zz91kk22pp",
        "aws_access_key_id": "AKIA0123456789ABCDEF",
        "headers": {"Authorization": "Bearer qwertyuiop123456"},
    }
    config["trainer"]["callbacks"] += [
        {"class_path": "tests.helpers.secretive.Notifier", "init_args": secrets},
        {"class_path": "ExportModel"},
        {"class_path": "ResultsPage"},
    ]
    config["data"]["init_args"] |= {
        "prompt": "chat",
        "prompt_options": {"system_prompt": "Your password=tk87654321abc."},
    }
    config["model"] = {"class_path": "tests.helpers.secretive.HubModule", "init_args": {
        "pretrained": config["model"]["init_args"]["pretrained"], "hub_token": "hub-ABCdef-0987"}}  # fmt: skip
    assert command("fit", config, "--run=run") == 0
    hidden = ("kQ9vX2mZ7pLw", "hunter2", "zz91kk22pp", "AKIA0123456789ABCDEF", "qwertyuiop123456", "tk87654321abc",
              "hub-ABCdef-0987")  # fmt: skip
    files = [path for path in (here / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "run.json", "last.ckpt", "results.html", "README.md"} <= {path.name for path in files}
    found = [(path.name, secret) for path in files for secret in hidden if secret.encode() in path.read_bytes()]
    assert found == []


def evaluated(folder: Path, kind: str) -> dict[str, Any]:
    """Return the only evaluation that ``fit`` ("") or another command wrote last into a folder."""
    [path] = (
        (folder / "evaluations").glob(f"*{kind}.json")
        if kind
        else [path for path in sorted((folder / "evaluations").glob("*.json")) if not path.stem.endswith("_test")][-1:]
    )
    return json.loads(path.read_text())


def test_last_is_the_checkpoint_of_the_run(config: dict[str, Any], here: Path) -> None:
    assert command("fit", config, "--run", "run") == 0
    trained = evaluated(here / "run", "")
    assert main(["test", "--config", "run/config.yaml", "--ckpt_path", "last"]) == 0
    measured = evaluated(here / "run", "_test")
    assert measured["provenance"]["step"] == trained["provenance"]["step"] > 0
    assert measured["aggregates"] == trained["aggregates"]


@pytest.mark.parametrize(("given", "run"), [("last", None), ("best", None), ("best", "new")])
@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_checkpoint_that_is_not_there_by_name_is_refused(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], name: str, given: str, run: str | None
) -> None:
    where = ["--run", run] if run else []
    said = refused(capsys, name, config, "--ckpt_path", given, *where)
    assert said.startswith(f"error: ckpt_path is {given}" if given == "last" else "error: ckpt_path is 'best'")
    assert "give" in said


def test_another_model_is_measured_into_a_folder_of_its_own(config: dict[str, Any], folder: Path, here: Path) -> None:
    assert command("fit", config, "--run", "run") == 0
    before = {path: path.read_bytes() for path in sorted((here / "run").rglob("*")) if path.is_file()}
    other = ["--model.pretrained", str(folder / "other"), "--run", "another"]
    assert main(["test", "--config", "run/config.yaml", *other]) == 0
    assert {path: path.read_bytes() for path in sorted((here / "run").rglob("*")) if path.is_file()} == before
    found = evaluated(here / "another", "_test")
    assert found["provenance"]["pretrained"] == str(folder / "other")
    assert found["aggregates"] != evaluated(here / "run", "")["aggregates"]


def test_the_config_of_a_resumed_run_measures_another_model(config: dict[str, Any], folder: Path) -> None:
    """`config.yaml` does not name the checkpoint that the run found in its own folder."""
    assert command("fit", config, "--run=run") == 0
    assert command("fit", config, "--run=run", f"--trainer.max_epochs={config['trainer']['max_epochs'] + 1}") == 0
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert kept["ckpt_path"] is None
    another = ["--model.pretrained", str(folder / "other")]
    assert main(["test", "--config=run/config.yaml", *another, "--run=measured"]) == 0


@pytest.mark.parametrize("name", ["fit", "validate"])
def test_a_model_s_folder_is_no_run(
    config: dict[str, Any], name: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(config["model"]["init_args"]["pretrained"], here / "model")
    before = sorted((here / "model").rglob("*"))
    for run in ("model", "model/run"):
        said = refused(capsys, name, config, f"--run={run}")
        assert f"run is {run}, but {here / 'model'} is the folder of a model" in said
    assert sorted((here / "model").rglob("*")) == before


def test_a_config_that_is_no_yaml_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text("trainer: {}\nmodel: [a, b\n")
    assert main(["fit", "--config=broken.yaml"]) == 2
    assert "The config broken.yaml is not YAML in line 3, column 1: expected" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_run_accepts_is_named(
    config: dict[str, Any], seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"seed_everything is {seed}; give a number" in refused(capsys, "fit", config | {"seed_everything": seed})


def test_the_nearest_option_of_a_config_is_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("wrong.yaml").write_text("trainer: {max_epoch: 2}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config=wrong.yaml"])
    assert "'trainer.max_epoch'. Did you mean 'max_epochs'?" in capsys.readouterr().err
