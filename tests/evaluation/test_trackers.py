"""The same pictures, answers, hyper-parameters and page for every tracker, read back from what each has stored."""

import csv
import importlib.util
import json
import sqlite3
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, WandbLogger

from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.callbacks import ResultsPage
from dipo_lightning.cli.main import main
from dipo_lightning.cli.run_folder import loggers_in
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.trackers import TrackioLogger
from tests.helpers.nested import nested
from tests.helpers.small_tofu import ToyData, ToyModule, read, trainer, write_tofu
from tests.helpers.toys import save_toy

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trackers' own packages

INSTALLED = {name for name in ("wandb", "mlflow", "trackio") if importlib.util.find_spec(name)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with every logger whose package is there; returns its folder."""
    folder = tmp_path_factory.mktemp("run")
    data = write_tofu(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        loggers = [CSVLogger(folder, "csv")]
        if "wandb" in INSTALLED:
            loggers.append(WandbLogger(project="toy", save_dir=folder, offline=True, id="abc123"))
        if "mlflow" in INSTALLED:
            loggers.append(MLFlowLogger("toy", save_dir=str(folder / "mlruns"), tracking_uri=None))
        if "trackio" in INSTALLED:
            loggers.append(TrackioLogger("toy", "first"))
        callback = TOFUEvaluation(**nested(max_new_tokens=4, max_rows=3))
        options = {"logger": loggers, "max_epochs": 1, "limit_val_batches": 0}
        trainer(folder, callback, ResultsPage(), **options).fit(ToyModule(), datamodule=ToyData(data))
        if "wandb" in INSTALLED:
            import wandb

            wandb.finish()
    return folder


def wandb_records(file: Path):
    """The records of an offline run: blocks of 32 KiB of pieces with a header of checksum, length and kind."""
    from wandb.proto import wandb_internal_pb2

    content, place, record = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (room := 32768 - place % 32768) < 7:
            place += room
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_csv_has_scalars_hyperparameters_answers_and_pictures(run: Path) -> None:
    folder = run / "csv" / "version_0"
    with (folder / "metrics.csv").open() as file:
        values = [row["tofu/retain_probability"] for row in csv.DictReader(file)]
    stored = [document["aggregates"]["retain_probability"] for document in read(run)]
    assert [float(value) for value in values if value] == pytest.approx(stored)
    assert {"method: Toy", "rate: 0.05"} <= set((folder / "hparams.yaml").read_text().splitlines())
    with (folder / "media/tofu/forget_answers_step=00002.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = read(run)[0]["sets"]["forget"]
    assert [row["question"] for row in rows] == [row["question"] for row in first]
    assert (folder / "media/tofu/forget_quality_step=00002.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif("wandb" not in INSTALLED, reason="needs wandb")
def test_an_offline_wandb_run_holds_it_all(run: Path) -> None:
    [folder] = (run / "wandb").glob("offline-run-*-abc123")
    history, config, artifacts = [], {}, []
    for record in wandb_records(next(folder.glob("*.wandb"))):
        config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
        artifacts += [record.artifact] if record.HasField("artifact") else []
        row = {}
        for item in record.history.item:
            name, *inner = item.nested_key
            if inner:
                row.setdefault(name, {})[inner[0]] = json.loads(item.value_json)
            else:
                row[name] = json.loads(item.value_json)
        history.append(row)
    found = [row["tofu/retain_probability"] for row in history if "tofu/retain_probability" in row]
    assert found == pytest.approx([document["aggregates"]["retain_probability"] for document in read(run)])
    assert config["rate"] == 0.05
    assert config["method"] == "Toy"
    media = {key: row[key]["_type"] for row in history for key in row if isinstance(row[key], dict)}
    assert media["tofu/forget_quality"] == "image-file"
    assert media["tofu/forget_answers"] == "table-file"
    assert media["tofu/forget_log_truth_ratio"] == "histogram"
    tables = sorted(folder.glob("files/media/table/tofu/forget_answers_*.table.json"))
    table = json.loads(tables[0].read_text())
    assert table["columns"] == ["question", "true answer", "first", "now"]
    assert [row[0] for row in table["data"]] == [row["question"] for row in read(run)[0]["sets"]["forget"]]
    [page] = [artifact for artifact in artifacts if artifact.type == "results"]
    assert [entry.path for entry in page.manifest.contents] == ["results.html"]


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="needs mlflow")
def test_mlflow_has_it_all(run: Path) -> None:
    [page] = (run / "mlruns").rglob("results.html")
    artifacts = page.parent
    table = json.loads((artifacts / "tofu/forget_answers_step=00002.json").read_text())
    assert table["columns"] == ["question", "true answer", "first", "now"]
    assert (artifacts / "tofu/forget_quality_step=00002.png").stat().st_size > 1000
    assert (artifacts.parent / "params/rate").read_text() == "0.05"
    assert (artifacts.parent / "params/method").read_text() == "Toy"
    points = (artifacts.parent / "metrics/tofu/retain_probability").read_text().split()
    stored = [document["aggregates"]["retain_probability"] for document in read(run)]
    assert [float(value) for value in points[1::3]] == pytest.approx(stored)


@pytest.mark.skipif("trackio" not in INSTALLED, reason="needs trackio")
def test_trackio_has_it_all(run: Path) -> None:
    with sqlite3.connect(next((run / "trackio").glob("toy*.db"))) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type='table'")]
        rows = [str(row) for table in tables for row in database.execute(f"select * from {table}")]
    text = "\n".join(rows)
    for wanted in ("tofu/retain_probability", "trackio.image", "trackio.histogram", "| question | true answer |"):
        assert wanted in text
    assert "'rate'" in text or '"rate"' in text
    assert any("results.html" in path.name or "results.html" in text for path in (run / "trackio").rglob("*"))


def test_without_its_package_a_tracker_says_what_to_install(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "trackio" else find(name))
    with pytest.raises(InputError, match="pip install 'dipo-lightning"):
        TrackioLogger()


def test_a_logger_that_is_not_logged_in_is_told_in_a_sentence(tmp_path, monkeypatch, capsys) -> None:
    class Refused(Exception):
        """Stands for W&B's own error."""

    def experiment(logger) -> None:
        raise Refused("No API key configured.")

    monkeypatch.setitem(sys.modules, "wandb.errors", SimpleNamespace(Error=Refused))
    monkeypatch.setattr(CSVLogger, "experiment", property(experiment))
    model = save_toy(tmp_path / "model")
    rows = write_tofu(tmp_path / "data")
    options = [f"--model.pretrained={model}", "--data=dipo_lightning.TOFUDataModule", f"--data.data={rows}"]
    options += ["--data.prompt=plain", "--trainer.accelerator=cpu", "--trainer.logger=CSVLogger"]
    options += [f"--trainer.logger.save_dir={tmp_path}"]
    assert main(["fit", *options, f"--run={tmp_path / 'run'}"]) == 2
    assert "No API key configured. Log in to its server, or let it keep" in capsys.readouterr().err


def test_a_named_run_keeps_its_wandb_run_and_its_mlflow_folder(tmp_path) -> None:
    def logger(name, **options):
        return Namespace(class_path=f"lightning.pytorch.loggers.{name}", init_args=Namespace(**options))

    (tmp_path / "wandb/offline-run-20260101_000000-old42").mkdir(parents=True)
    given = [logger("WandbLogger", save_dir=".", id=None), logger("MLFlowLogger", save_dir="./mlruns")]
    wandb, mlflow = loggers_in(tmp_path, given)
    assert (wandb.init_args.id, wandb.init_args.save_dir) == ("old42", str(tmp_path))
    assert mlflow.init_args.save_dir == str(tmp_path / "mlruns")
    assert loggers_in(tmp_path, [logger("WandbLogger", save_dir=".", id="mine")])[0].init_args.id == "mine"
