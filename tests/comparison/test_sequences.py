"""Scalability and sustainability: what a step is given, that none is repeated, that an interrupted one goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from dipo_lightning.cli import child
from dipo_lightning.comparison import sequences as scaling
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.toys import save_toy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.13 by an old name
    "ignore:LightningCLI's args parameter:UserWarning",
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning",
)


@pytest.fixture
def config(tmp_path):
    write_fictitious_news(tmp_path / "news", articles=5)
    save_toy(tmp_path / "toy", max_position_embeddings=2048)
    evaluation = {
        "baseline": 0.5,
        "max_rows": 2,
        "verbmem_tokens": 4,
        "knowmem_tokens": 4,
        "schedule": {"every_n_epochs": None},
    }
    content = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "limit_train_batches": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "dipo_lightning.callbacks.MUSEEvaluation", "init_args": evaluation}],
        },
        "model": {
            "class_path": "dipo_lightning.GradDiffModule",
            "init_args": {
                "pretrained": str(tmp_path / "toy"),
                "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
            },
        },
        "data": {
            "class_path": "dipo_lightning.MUSEDataModule",
            "init_args": {"data": str(tmp_path / "news"), "max_length": 64, "batch_size": 1},
        },
    }
    path = tmp_path / "fit.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def edited(path: Path, change) -> str:
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))
    return str(path)


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "out" / "results.csv").read_text().splitlines()))


class Recorder:
    """Stands for the fit: writes the evaluations, and remembers how it was called."""

    def __init__(self, fails_at: int | None = None):
        self.calls: list[list[str]] = []
        self.fails_at = fails_at

    def __call__(self, args: list[str], log: Path | None, lock: object, handles: object = ()) -> int:
        self.calls.append(args)
        folder = Path(args[2]).parent
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        for epoch, score in ((0, 90.0), (1, 50.0 - len(self.calls))):
            log = folder / "evaluations" / f"muse_epoch={epoch:03d}_step={epoch:05d}.json"
            log.parent.mkdir(parents=True, exist_ok=True)
            names = ("verbmem", "knowmem_forget", "knowmem_retain", "privleak")
            provenance = {"epoch": epoch, "step": epoch}
            log.write_text(json.dumps({"aggregates": dict.fromkeys(names, score), "provenance": provenance}))
        return 0


def test_scalability_starts_from_the_target_each_time(tmp_path, config, monkeypatch):
    fits = Recorder()
    monkeypatch.setattr(child, "start", fits)
    scaling.scalability(str(config), str(tmp_path / "out"))
    made = [yaml.safe_load(Path(args[2]).read_text()) for args in fits.calls]
    assert [one["data"]["init_args"]["forget"] for one in made] == [f"scal/forget_{k}" for k in (1, 2, 3, 4)]
    assert {one["model"]["init_args"]["pretrained"] for one in made} == {str(tmp_path / "toy")}
    rows = table(tmp_path)
    assert [row["documents"] for row in rows] == ["0", "10", "20", "30", "40"]
    assert [float(row["knowmem_retain"]) for row in rows] == [90, 49, 48, 47, 46]
    assert "| 20 | scal/forget_2 | 48.00 |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_sustainability_starts_from_the_last_model(tmp_path, config, monkeypatch):
    fits = Recorder()
    monkeypatch.setattr(child, "start", fits)
    scaling.sustainability(str(config), str(tmp_path / "out"))
    made = [yaml.safe_load(Path(args[2]).read_text()) for args in fits.calls]
    starts = [one["model"]["init_args"]["pretrained"] for one in made]
    assert starts == [str(tmp_path / "toy"), *(str(tmp_path / "out" / f"step_{k}" / "model") for k in (1, 2, 3))]
    exports = [one["trainer"]["callbacks"][-1]["init_args"]["folder"] for one in made]
    assert exports[:-1] == starts[1:]
    assert [row["step"] for row in table(tmp_path)] == list("01234")


def test_a_finished_step_is_never_repeated_and_an_interrupted_one_goes_on(tmp_path, config, monkeypatch):
    fits = Recorder(fails_at=3)
    monkeypatch.setattr(child, "start", fits)
    with pytest.raises(KeyboardInterrupt):
        scaling.scalability(str(config), str(tmp_path / "out"))
    scaling.scalability(str(config), str(tmp_path / "out"))
    folders = [Path(args[2]).parent.name for args in fits.calls]
    assert folders == ["step_1", "step_2", "step_3", "step_3", "step_4"]
    assert fits.calls[2] == fits.calls[3]
    assert fits.calls[3][3:] == ["--run", str(tmp_path / "out" / "step_3")]
    scaling.scalability(str(config), str(tmp_path / "out"))
    assert len(fits.calls) == 5


def names(content) -> list[str]:
    return [callback["class_path"].rpartition(".")[2] for callback in content["trainer"]["callbacks"]]


@pytest.mark.parametrize("kind", ["scalability", "sustainability"])
def test_what_is_measured_of_the_first_set_ends_the_first_step_only(tmp_path, config, monkeypatch, kind):
    """MUSE's questions are about the first set; its scripts give the other steps the epochs that the first one took."""
    retained = {"monitor": "muse/knowmem_retain", "threshold": 10.0}  # not of the first set: a rule of every step
    first = {"monitor": "muse/knowmem_forget", "threshold": 30.0}
    rules = [{"class_path": "dipo_lightning.callbacks.StopAtThreshold", "init_args": first},
             {"class_path": "dipo_lightning.callbacks.StopAtThreshold", "init_args": retained}]  # fmt: skip

    def with_rules(content):
        content["trainer"]["max_epochs"] = 7
        content["trainer"]["callbacks"] += rules

    run, sequence = edited(config, with_rules), getattr(scaling, kind)
    monkeypatch.setattr(child, "start", Recorder(fails_at=3))
    with pytest.raises(KeyboardInterrupt):
        sequence(run, str(tmp_path / "out"))
    sequence(run, str(tmp_path / "out"))  # finds its own configs again
    made = [yaml.safe_load((tmp_path / "out" / f"step_{k}" / "run.yaml").read_text()) for k in (1, 2, 3, 4)]
    assert [one["trainer"]["max_epochs"] for one in made] == [7, 1, 1, 1]
    assert [names(one).count("StopAtThreshold") for one in made] == [2, 1, 1, 1]
    left = [c["init_args"] for c in made[1]["trainer"]["callbacks"] if c["class_path"] == rules[0]["class_path"]]
    assert left == [retained]


def test_without_a_rule_every_step_trains_as_long_as_the_config_says(tmp_path, config, monkeypatch):
    fits = Recorder()
    monkeypatch.setattr(child, "start", fits)
    scaling.sustainability(edited(config, lambda c: c["trainer"].update(max_epochs=7)), str(tmp_path / "out"))
    assert {yaml.safe_load(Path(args[2]).read_text())["trainer"]["max_epochs"] for args in fits.calls} == {7}


def test_results_of_another_config_are_not_mixed(tmp_path, config, monkeypatch):
    monkeypatch.setattr(child, "start", Recorder())
    scaling.scalability(str(config), str(tmp_path / "out"), parts=["scal/forget_1"])
    edited(config, lambda content: content["model"]["init_args"].update(gamma=2.0))
    with pytest.raises(InputError, match="step_1 was begun with another config"):
        scaling.scalability(str(config), str(tmp_path / "out"), parts=["scal/forget_1"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["data"].update(class_path="dipo_lightning.TOFUDataModule"), "not MUSEDataModule"),
        (lambda c: c["trainer"].update(callbacks=None), "has no MUSEEvaluation"),
        (lambda c: c.pop("model"), "no `model` or no `data`"),
    ],
)
def test_a_config_that_cannot_be_run(tmp_path, config, change, message):
    with pytest.raises(InputError, match=message):
        scaling.scalability(edited(config, change), str(tmp_path / "out"))


def test_what_is_not_given(tmp_path, config):
    with pytest.raises(InputError, match="run is not given"):
        scaling.scalability()
    with pytest.raises(InputError, match="cannot be read"):
        scaling.scalability(str(tmp_path / "nothing.yaml"))
    with pytest.raises(InputError, match="empty list"):
        scaling.sustainability(str(config), parts=[])


@pytest.mark.slow
def test_a_real_sequence_hands_its_model_on(tmp_path, config):
    out = tmp_path / "out"
    scaling.sustainability(str(config), str(out), parts=["sust/forget_1", "sust/forget_2"])
    steps = [json.loads((out / f"step_{k}" / "results.json").read_text()) for k in (1, 2)]
    assert steps[0]["before"] is not None
    assert steps[1]["before"] is None
    assert (out / "step_2" / "model" / "model.safetensors").is_file()
    # Stopped after its training, before its results: the last checkpoint is all that is needed.
    after = steps[1]["after"]
    (out / "step_2" / "results.json").unlink()
    scaling.sustainability(str(config), str(out), parts=["sust/forget_1", "sust/forget_2"])
    assert json.loads((out / "step_2" / "results.json").read_text())["after"] == after


def test_the_last_of_many_evaluations_is_that_of_the_last_step(tmp_path, monkeypatch):
    step = scaling.Step(1, "scal/forget_1", tmp_path)
    (tmp_path / "evaluations").mkdir()
    for number in (0, 99999, 100000):
        document = {"provenance": {"epoch": 0, "step": number}, "aggregates": {"verbmem": number}}
        (tmp_path / f"evaluations/muse_epoch=000_step={number:05d}.json").write_text(json.dumps(document))
    monkeypatch.setattr(child, "fit", lambda *_: None)
    monkeypatch.setattr(scaling, "documents", lambda *_: 1)
    scaling.run_step(step, {}, None)
    found = json.loads(step.results.read_text())
    assert (found["before"]["verbmem"], found["after"]["verbmem"]) == (0, 100000)
