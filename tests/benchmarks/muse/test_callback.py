"""MUSE's evaluation in a run: what it writes, what PrivLeak compares with, and what it refuses."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from dipo_lightning.benchmarks.muse.callback import MUSEEvaluation
from dipo_lightning.benchmarks.muse.data import MUSEDataModule
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.quickstart.newspaper import write_fictitious_news
from tests.helpers.aggregate import muse
from tests.helpers.nested import nested
from tests.helpers.toys import save_toy, toy_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.13 by an old name
)

OPTIONS = {"max_rows": 4, "verbmem_tokens": 6, "knowmem_tokens": 4}


class ToyModule(pl.LightningModule):
    """A toy that trains on the forget half alone."""

    def __init__(self, seed=0):
        super().__init__()
        self.save_hyperparameters()
        self.policy = toy_model("llama", seed, max_position_embeddings=2048).train()

    def training_step(self, batch, batch_idx):
        half = batch["forget"]
        return self.policy(input_ids=half["input_ids"], labels=half["labels"]).loss

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("muse")
    write_fictitious_news(folder / "news", articles=5)
    save_toy(folder / "toy")
    return folder


def data(folder):
    return MUSEDataModule(str(folder / "toy"), data=str(folder / "news"), max_length=256, batch_size=2)


def trainer(where, *callbacks, **options):
    return pl.Trainer(
        default_root_dir=where,
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        inference_mode=False,
        callbacks=list(callbacks),
        **options,
    )


@pytest.fixture(scope="module")
def reference(folder):
    """The log of another toy, which stands for the retain model."""
    callback = MUSEEvaluation(baseline="none", **OPTIONS)
    found = trainer(folder, callback).test(ToyModule(seed=7), datamodule=data(folder), verbose=False)
    assert "muse/privleak" not in found[0]
    assert callback.last["aggregates"]["privleak_absent"] == "baseline is none"
    return callback.files[-1]


def test_a_run_writes_every_row_and_all_numbers(tmp_path, folder, reference):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = MUSEEvaluation(retain_log=reference, **OPTIONS)
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="run")
    run = trainer(tmp_path, callback, max_epochs=2, logger=logger, log_every_n_steps=1)
    run.fit(ToyModule(), datamodule=data(folder))
    assert len(callback.files) == 3
    first, last = (json.loads(Path(callback.files[i]).read_text()) for i in (0, -1))
    assert {name: len(rows) for name, rows in last["sets"].items()} == dict.fromkeys(last["sets"], 4)
    assert set(last["sets"]) >= {"verbmem", "knowmem_forget", "knowmem_retain", "privleak_forget", "privleak_holdout"}
    for name in ("verbmem", "knowmem_forget", "knowmem_retain", "privleak"):
        assert isinstance(last["aggregates"][name], float)
        assert float(run.callback_metrics[f"muse/{name}"]) == last["aggregates"][name]
    assert first["sets"]["verbmem"][0]["prompt"] == last["sets"]["verbmem"][0]["prompt"]
    assert first["sets"]["privleak_forget"][0]["min_k"] != last["sets"]["privleak_forget"][0]["min_k"]
    log = read_log(callback.files[-1])
    assert muse(log.sets, read_log(reference)) == last["aggregates"]
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "muse/knowmem_retain" in events.Tags()["scalars"]
    assert any(tag.startswith("muse/verbmem_texts") for tag in events.Tags()["tensors"])


def test_auc_is_scikit_learns_on_raw_scores(folder, reference):
    log = read_log(reference)
    forget, holdout = ([row["min_k"] for row in log.sets[f"privleak_{name}"]] for name in ("forget", "holdout"))
    expected = roc_auc_score([1] * len(forget) + [0] * len(holdout), forget + holdout)
    assert log.aggregates["privleak_auc"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("baseline", "auc"), [(0.5, 0.5), ("news", 0.4772), ("books", 0.5393)])
def test_privleak_against_a_stated_auc(tmp_path, folder, baseline, auc):
    callback = MUSEEvaluation(baseline=baseline, **OPTIONS)
    trainer(tmp_path, callback).test(ToyModule(), datamodule=data(folder), verbose=False)
    found = callback.last["aggregates"]
    assert found["privleak_auc_retrain"] == auc
    assert found["privleak"] == pytest.approx(100 * (found["privleak_auc"] - auc) / auc)


def test_the_published_auc_is_for_the_published_corpus_only(folder, monkeypatch):
    def rows(name, config, split):
        return [json.loads(line) for line in (folder / "news" / config / f"{split}.jsonl").read_text().splitlines()]

    monkeypatch.setattr("datasets.load_dataset", rows)
    for name, auc in (("muse-bench/MUSE-News", 0.4772), ("muse-bench/MUSE-Books", 0.5393)):
        callback = MUSEEvaluation(data=name, **OPTIONS)
        module = data(folder)
        module.check()
        run = trainer(folder, callback)
        run.datamodule = module
        callback.check(run, None)
        assert callback.auc_retrain == auc


def test_no_silent_baseline(tmp_path, folder):
    with pytest.raises(InputError, match="has nothing to compare with.*baseline: 0.5"):
        trainer(tmp_path, MUSEEvaluation(**OPTIONS)).test(ToyModule(), datamodule=data(folder), verbose=False)


def rows_of(folder, forget, retain):
    """Another data module of ours, on files."""
    return UnlearningDataModule(
        str(folder / "toy"), str(forget), str(retain), prompt="text", max_length=256, batch_size=1
    )


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_beside_any_data_module(tmp_path, folder, command):
    """On a folder in the schema, whatever the run is about."""
    news, callback = folder / "news", MUSEEvaluation(data=str(folder / "news"), baseline=0.5, **OPTIONS)
    (tmp_path / "mine.jsonl").write_text('{"text": "A text of mine."}\n' * 2)
    module = rows_of(folder, tmp_path / "mine.jsonl", news / "train" / "retain1.jsonl")
    getattr(trainer(tmp_path, callback, max_steps=1), command)(ToyModule(), datamodule=module)
    assert callback.last["settings"]["data"] == str(news)
    assert {len(rows) for rows in callback.last["sets"].values()} == {4}


def test_nothing_is_measured_unasked(tmp_path, folder):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"text": "A text of mine."}\n' * 2)
    module = rows_of(folder, mine, folder / "news" / "train" / "retain1.jsonl")
    with pytest.raises(InputError, match="data is not given, and there is no MUSEDataModule.*MUSE-News or"):
        trainer(tmp_path, MUSEEvaluation(baseline=0.5), max_epochs=1).fit(ToyModule(), datamodule=module)


@pytest.mark.parametrize(
    ("forget", "retain", "message"),
    [
        ("train/forget", "privleak/holdout", "10 of 10 privleak/holdout rows are data.retain rows"),
        ("train/retain2", "train/retain1", "20 of 20 retain2 rows are data.forget rows"),
    ],
)
def test_what_is_held_out_is_trained_on_by_another_data_module(tmp_path, folder, forget, retain, message):
    news = folder / "news"
    options = OPTIONS | {"max_rows": None, "data": str(news), "baseline": 0.5}
    module = rows_of(folder, news / f"{forget}.jsonl", news / f"{retain}.jsonl")
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, MUSEEvaluation(**options), max_epochs=1).fit(ToyModule(), datamodule=module)
    allowed = MUSEEvaluation(**options | {"allow_overlap": True})
    run = trainer(tmp_path, allowed)
    run.datamodule, run.state.fn = module, "fit"
    allowed.check(run, None)


def test_a_target_has_read_retain2_but_not_the_holdout_set(folder):
    news = folder / "news"
    for part, refused in (("train/retain2", False), ("raw/holdout", True)):
        callback = MUSEEvaluation(data=str(news), baseline=0.5, **OPTIONS)
        run = trainer(folder, callback)
        run.datamodule, run.state.fn = FineTuningDataModule(str(folder / "toy"), str(news / f"{part}.jsonl")), "fit"
        run.datamodule.check()
        said = pytest.raises(InputError, match="holdout rows are data.train rows") if refused else nullcontext()
        with said:
            callback.check(run, None)


def test_a_reference_of_other_rows_or_another_corpus(tmp_path, folder, reference):
    write_fictitious_news(tmp_path / "other", seed=1, articles=5)
    cases = [
        ({"max_rows": 3}, "has 3 rows in the log and 4 in the reference"),
        ({"data": str(tmp_path / "other")}, "is of another corpus: row 0 of privleak_forget"),
        ({"variant": "open_unlearning"}, "variant is 'open_unlearning' in the log"),
    ]
    for changed, message in cases:
        run = trainer(tmp_path, MUSEEvaluation(retain_log=reference, **OPTIONS | changed))
        module = ToyModule()
        with pytest.raises(InputError, match=message):
            run.test(module, datamodule=data(folder), verbose=False)


def test_open_unlearnings_log_is_a_retain_log(tmp_path, folder):
    """As exact as this package's own of the same model: rows, and the AUC that PrivLeak compares with."""
    options = OPTIONS | {"variant": "open_unlearning"}
    retain = MUSEEvaluation(baseline="none", **options)
    trainer(tmp_path, retain).test(ToyModule(seed=7), datamodule=data(folder), verbose=False)
    sets, theirs = retain.last["sets"], {}
    names = {"forget_verbmem": "verbmem", "forget_knowmem": "knowmem_forget", "retain_knowmem": "knowmem_retain"}
    for metric, name in names.items():
        texts = {
            str(row["index"]): {
                "rougeL_f1": row["rouge"],
                "input": row.get("prompt", row.get("question")),
                "ground_truth": row["answer"],
            }
            for row in sets[name]
        }
        theirs[f"{metric}_ROUGE"] = {"agg_value": 0.0, "value_by_index": texts}
    theirs["mia_min_k"] = {
        part: {"value_by_index": {str(row["index"]): {"score": row["min_k"]} for row in sets[f"privleak_{part}"]}}
        for part in ("forget", "holdout")
    } | {"agg_value": 0.5, "auc": 0.5}
    (tmp_path / "MUSE_EVAL.json").write_text(json.dumps(theirs))
    found = []
    for log in (retain.files[-1], str(tmp_path / "MUSE_EVAL.json")):
        callback = MUSEEvaluation(retain_log=log, **options)
        found += trainer(tmp_path / "run", callback).test(ToyModule(), datamodule=data(folder), verbose=False)
    assert found[1]["muse/privleak"] == found[0]["muse/privleak"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "max_rows is 0"),
        ({"generation_rows": 0}, "generation_rows is 0"),
        ({"min_k_fraction": 0.0}, "min_k_fraction is 0.0"),
        ({"variant": "muse2"}, "variant is 'muse2'"),
        ({"baseline": "new"}, "baseline is 'new'"),
        ({"baseline": 0.0}, r"must be in \(0, 1\]"),
        ({"baseline": 0.5, "retain_log": "x.json"}, "both retain_log and baseline"),
        ({"space": "both"}, "space is 'both'"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        MUSEEvaluation(**nested(**options))
