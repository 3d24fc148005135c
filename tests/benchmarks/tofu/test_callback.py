"""TOFU's evaluation in a run: what it writes, that the numbers are right, and that training never notices it."""

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import roc_auc_score

from dipo_lightning.benchmarks.muse.callback import MUSEEvaluation
from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.benchmarks.user_data.callback import MemorizationEvaluation
from dipo_lightning.cli.main import main
from dipo_lightning.cli.score import score
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.callback import refuse_twins
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.metrics.functional.text import rouge_l
from tests.evaluation.test_generation import plain_generate
from tests.helpers.aggregate import tofu
from tests.helpers.nested import nested
from tests.helpers.small_tofu import SIZES, ToyData, ToyModule, read, trainer, write_tofu
from tests.helpers.toys import toy_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.isinstance.treespec, LeafSpec:FutureWarning",  # Lightning 2.6 asks torch 2.13 by an old name
)

OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "batch_tokens": 200, "generation_rows": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tofu(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of another toy, which stands for the retain model."""
    folder = tmp_path_factory.mktemp("reference")
    trainer(folder, TOFUEvaluation(**nested(**OPTIONS))).test(
        ToyModule(seed=7), datamodule=ToyData(data), verbose=False
    )
    return next(folder.rglob("evaluations/*.json"))


def fit(folder: Path, data: Path, *callbacks: pl.Callback, **options: Any) -> tuple[ToyModule, pl.Trainer]:
    pl.seed_everything(3, verbose=False)
    module, run = ToyModule(), trainer(folder, *callbacks, limit_val_batches=0, **options)
    run.fit(module, datamodule=ToyData(data))
    return module, run


def test_training_does_not_notice_evaluations(tmp_path: Path, data: Path) -> None:
    without, _ = fit(tmp_path / "a", data)
    callback = TOFUEvaluation(**nested(every_n_steps=1, max_rows=2, **OPTIONS))
    with_it, run = fit(tmp_path / "b", data, callback)
    assert [Path(file).name for file in callback.files] == [
        "tofu_epoch=000_step=00000.json",
        "tofu_epoch=000_step=00001.json",
        "tofu_epoch=001_step=00002.json",
        "tofu_epoch=001_step=00003.json",
        "tofu_epoch=002_step=00004.json",
    ]
    assert run.global_step == 4
    for (name, a), b in zip(without.named_parameters(), with_it.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_rows_equal_one_at_a_time(tmp_path: Path, data: Path) -> None:
    module = ToyModule()
    trainer(tmp_path, TOFUEvaluation(**nested(**OPTIONS))).test(module, datamodule=ToyData(data), verbose=False)
    document = read(tmp_path)[0]
    style, policy = ToyData().style, module.policy.eval()
    files = {"forget": "forget10_perturbed", "real_authors": "real_authors_perturbed", "holdout": "holdout10"}
    texts = {name: (data / f"{file}.json").read_text() for name, file in files.items()}
    source = {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}

    def nll(question: str, answer: str) -> float:
        return nll_of(*style.example(question, answer))

    def own_nll(prompt: list[int], said: list[int]) -> float:
        return nll_of(prompt + said, [-100] * len(prompt) + said)

    def nll_of(ids: list[int], labels: list[int]) -> float:
        with torch.no_grad():
            logp = policy(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        values = [-logp[t - 1, label].item() for t, label in enumerate(labels) if label != -100]
        return sum(values) / len(values)

    for name, rows in source.items():
        assert [row["index"] for row in document["sets"][name]] == list(range(SIZES[name]))
        for given, got in zip(rows, document["sets"][name], strict=True):
            question = given["question"]
            assert got["nll"] == pytest.approx(nll(question, given["answer"]), rel=1e-5)
            correct = given.get("paraphrased_answer", given["answer"])
            assert got["correct_nll"] == pytest.approx(nll(question, correct), rel=1e-5)
            wrong = [nll(question, text) for text in given.get("perturbed_answer", [])]
            assert got["wrong_nll"] == pytest.approx(wrong, rel=1e-5)
            assert got["tokens"] == len(style.answer_ids(given["answer"])) + 1
            if name == "holdout":
                assert got["generation"] is None
                continue
            said = plain_generate(policy, style.prompt(question), 8, style.stop_ids)
            text = style.tokenizer.decode(said, skip_special_tokens=True).strip()
            assert got["generation"] == text
            if name == "forget":
                assert got["generation_tokens"] == len(said) > 0
                assert got["generation_nll"] == pytest.approx(own_nll(style.prompt(question), said), rel=1e-4)
            assert got["rouge_l_recall"] == rouge_l([text], [given["answer"]]).recall.item()


def test_written_rows_give_the_written_aggregates(tmp_path: Path, data: Path, reference: Path) -> None:
    callback = TOFUEvaluation(**nested(retain_log=str(reference), **OPTIONS))
    fit(tmp_path, data, callback, max_epochs=1)
    for document, path in zip(read(tmp_path), callback.files, strict=True):
        log = read_log(path)
        again = tofu(log.sets, read_log(reference), skipped=log.skipped)
        assert json.loads(json.dumps(again)) == document["aggregates"]
        assert 0 < document["aggregates"]["forget_quality"]["p"] <= 1
        assert document["aggregates"]["forget_quality"]["n"] == SIZES["forget"]
        attacks = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference")
        assert all(0 <= document["aggregates"][f"forget_{attack}_auc"] <= 1 for attack in attacks)
        gaps = {}
        for name in ("forget", "holdout"):
            rows = zip(log.sets[name], read_log(reference).sets[name], strict=True)
            gaps[name] = [row["nll"] - other["nll"] for row, other in rows]
        pairs = [(a < b) + (a == b) / 2 for a in gaps["forget"] for b in gaps["holdout"]]
        assert document["aggregates"]["forget_reference_auc"] == pytest.approx(sum(pairs) / len(pairs))
        assert document["settings"]["prompt_style"] == ToyData().style.fingerprint()
        assert document["provenance"]["versions"]["torch"]


def test_gradients_and_other_texts_of_each_row(tmp_path: Path, data: Path) -> None:
    own = {"invented": "tests.helpers.user_project.Invented"}
    callback = TOFUEvaluation(gradnorm=True, metrics=own, **nested(**OPTIONS))
    module, _ = fit(tmp_path, data, callback, max_epochs=1)
    document, policy, style = callback.last, module.policy.eval(), ToyData().style
    texts = (data / "forget10_perturbed.json").read_text().splitlines()
    google = RougeScorer(["rougeL"], use_stemmer=True)
    for given, got in zip(map(json.loads, texts), document["sets"]["forget"], strict=True):
        ids, labels = style.example(given["question"], given["answer"])
        logp = policy(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        chosen = [logp[t - 1, label] for t, label in enumerate(labels[:-1]) if label != -100]
        gradients = torch.autograd.grad(-torch.stack(chosen).mean(), list(policy.parameters()))
        assert got["gradnorm"] == pytest.approx(np.mean([one.norm().item() for one in gradients]), rel=1e-4)
        recall = [
            google.score(text, got["generation"])["rougeL"].recall
            for text in (given["paraphrased_answer"], *given["perturbed_answer"])
        ]
        assert got["paraphrased_rouge"] == pytest.approx(recall[0])
        assert got["perturbed_rouge"] == pytest.approx(np.mean(recall[1:]))
        wrong = " ".join(given["perturbed_answer"]).split()
        assert got["invented"] == len([word for word in got["generation"].split() if word not in wrong])
    assert score(callback.files[-1])["invented"] == document["aggregates"]["invented"] > 0
    norms = {name: [row["gradnorm"] for row in document["sets"][name]] for name in ("forget", "holdout")}
    label = [0] * SIZES["forget"] + [1] * SIZES["holdout"]
    found = document["aggregates"]
    assert found["forget_gradnorm_auc"] == pytest.approx(roc_auc_score(label, norms["forget"] + norms["holdout"]))
    for name in ("paraphrased_rouge", "perturbed_rouge"):
        assert found[f"forget_{name}"] == pytest.approx(np.mean([row[name] for row in document["sets"]["forget"]]))


def test_gradients_need_rows_to_compare_with(tmp_path: Path, data: Path) -> None:
    callback = TOFUEvaluation(gradnorm=True, membership=False, **nested(**OPTIONS))
    with pytest.raises(InputError, match="gradnorm compares.*no holdout10, or membership is false"):
        trainer(tmp_path, callback).test(ToyModule(), datamodule=ToyData(data), verbose=False)


def test_intervals_are_in_the_log_and_in_the_table(
    tmp_path: Path, data: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    callback = TOFUEvaluation(retain_log=str(reference), bootstrap=40, bootstrap_seed=3, **nested(**OPTIONS))
    trainer(tmp_path, callback).test(ToyModule(), datamodule=ToyData(data), verbose=False)
    [document] = read(tmp_path)
    assert document["bootstrap"] == {"resamples": 40, "seed": 3}
    found = document["intervals"]
    named = {"forget_quality_p", "forget_quality_log10_p", "forget_probability", "model_utility", "privleak_auc"}
    assert named <= set(found)
    assert "forget_quality_n" not in found
    again = score(callback.files[-1], reference, bootstrap=40, bootstrap_seed=3)
    assert again["intervals"] == found
    assert again["stored_aggregates_hold"] is True
    low, high = found["forget_probability"]
    assert f"[{low:.3g}, {high:.3g}]" in capsys.readouterr().out
    with pytest.raises(InputError, match="bootstrap is -1"):
        score(callback.files[-1], bootstrap=-1)
    with pytest.raises(InputError, match=r"TOFUEvaluation\.bootstrap is -1"):
        TOFUEvaluation(bootstrap=-1)
    with pytest.raises(InputError, match="bootstrap is 1; a 95 % interval needs at least 40"):
        TOFUEvaluation(bootstrap=1)


def test_checkpoint_and_early_stopping_watch_it(tmp_path: Path, data: Path, reference: Path) -> None:
    keep = ModelCheckpoint(tmp_path, monitor="tofu/retain_probability", mode="max", filename="best")
    stop = EarlyStopping("tofu/forget_quality_p", mode="max", stopping_threshold=-1.0)  # any p is above: stop at once
    callback = TOFUEvaluation(**nested(retain_log=str(reference), **OPTIONS))
    _, run = fit(tmp_path, data, stop, keep, callback, enable_checkpointing=True, max_epochs=5)
    assert run.current_epoch == 1
    assert keep.best_model_score.item() == callback.last["aggregates"]["retain_probability"]
    assert run.callback_metrics["tofu/forget_quality_p"].dtype == torch.float64


def test_validate_and_test_return_the_scalars(tmp_path: Path, data: Path, reference: Path) -> None:
    callback = TOFUEvaluation(**nested(retain_log=str(reference), **OPTIONS))
    run, module = trainer(tmp_path, callback), ToyModule().eval()
    validated = run.validate(module, datamodule=ToyData(data), verbose=False)[0]
    tested = run.test(module, datamodule=ToyData(data), verbose=False)[0]
    assert validated == tested
    assert validated["tofu/forget_quality_p"] == callback.last["aggregates"]["forget_quality"]["p"]
    assert validated["tofu/model_utility"] == callback.last["aggregates"]["model_utility"]


def test_a_resumed_run_goes_on(tmp_path: Path, data: Path) -> None:
    whole = TOFUEvaluation(**nested(max_rows=2, **OPTIONS))
    fit(tmp_path / "whole", data, whole)
    _, run = fit(tmp_path / "half", data, TOFUEvaluation(**nested(max_rows=2, **OPTIONS)), max_epochs=1)
    run.save_checkpoint(tmp_path / "half.ckpt")
    callback = TOFUEvaluation(**nested(max_rows=2, **OPTIONS))
    run = trainer(tmp_path / "rest", callback, limit_val_batches=0)
    run.fit(ToyModule(), datamodule=ToyData(data), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    names = [Path(file).name for file in callback.files]
    assert names == [Path(file).name for file in whole.files]
    assert callback.first["sets"] == whole.first["sets"]  # the answers "before" are those of the first run


def test_without_reference_it_says_why_there_is_no_forget_quality(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = fit(tmp_path, data, TOFUEvaluation(**nested(at_start=False, **OPTIONS)), max_epochs=1)
    shown = capsys.readouterr().out
    assert "No forget quality: no log of a retain model was given" in shown
    assert len(list(tmp_path.rglob("tofu_*.json"))) == 1
    assert "tofu/forget_quality_p" not in run.callback_metrics
    assert run.callback_metrics["tofu/retain_probability"] > 0


def test_the_table_holds_first_and_now(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = TOFUEvaluation(**nested(**OPTIONS))
    fit(tmp_path, data, callback, max_epochs=1)
    line = [line for line in capsys.readouterr().out.splitlines() if "model utility " in line][-1]
    values = [document["aggregates"]["model_utility"] for document in (callback.first, callback.last)]
    assert line.split()[-2:] == [f"{value:.4g}" for value in values]


def test_without_generation_there_is_no_rouge(tmp_path: Path, data: Path) -> None:
    trainer(tmp_path, TOFUEvaluation(**nested(generate=False))).test(
        ToyModule(), datamodule=ToyData(data), verbose=False
    )
    document = read(tmp_path)[0]
    assert document["sets"]["forget"][0]["rouge_l_recall"] is None
    assert document["aggregates"]["model_utility"] is None
    assert document["aggregates"]["forget_probability"] > 0
    assert read_log(next(tmp_path.rglob("tofu_*.json"))).sets["forget"]


class BrokenToy(ToyModule):
    """Gives no finite loss to any row that holds one token."""

    token = 0

    def __init__(self) -> None:
        super().__init__()
        self.policy.get_input_embeddings().register_forward_hook(
            lambda layer, args, output: output.masked_fill((args[0] == self.token)[..., None], math.nan)
        )


@pytest.fixture
def one_broken_row(data: Path, tmp_path: Path) -> Path:
    folder = write_tofu(tmp_path / "broken")
    path = folder / "forget10_perturbed.json"
    lines = path.read_text().splitlines()
    row = json.loads(lines[2])
    row["perturbed_answer"][1] = "zzz @@@ zzz"
    path.write_text("\n".join([*lines[:2], json.dumps(row), *lines[3:]]))
    BrokenToy.token = ToyData().tokenizer("@", add_special_tokens=False)["input_ids"][0]
    return folder


def test_a_row_without_a_value_is_skipped_and_listed(tmp_path: Path, one_broken_row: Path) -> None:
    module = BrokenToy()
    run = trainer(tmp_path, TOFUEvaluation(**nested(**OPTIONS)))
    run.test(module, datamodule=ToyData(one_broken_row), verbose=False)
    document = read(tmp_path)[0]
    assert [row["index"] for row in document["sets"]["forget"]] == [0, 1, 3, 4, 5]
    assert document["skipped"]["forget"][0]["index"] == 2
    assert "its wrong answers, its own answer is not finite" in document["skipped"]["forget"][0]["reason"]
    assert document["aggregates"]["forget_truth_ratio"] > 0


def test_a_row_without_a_value_ends_the_run_where_asked(tmp_path: Path, one_broken_row: Path) -> None:
    run = trainer(tmp_path, TOFUEvaluation(**nested(on_missing="raise", **OPTIONS)))
    with pytest.raises(InputError, match="Row 2 of forget has no value"):
        run.test(BrokenToy(), datamodule=ToyData(one_broken_row), verbose=False)


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_rows", 0), ("measuring.max_new_tokens", 0), ("measuring.batch_tokens", -1), ("schedule.every_n_epochs", 0),
     ("measuring.min_k_fraction", 1.5), ("truth_ratio", "harmonic"), ("samples", -1),
     ("measuring.on_missing", "ignore")],
)  # fmt: skip
def test_wrong_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"TOFUEvaluation.{option} is"):
        TOFUEvaluation(**nested(**{option.rpartition(".")[2]: value}))


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("every_n_epochs", "schedule.every_n_epochs"),
        ("rows", "max_rows"),
        ("max_new_tokens", "measuring.max_new_tokens"),
    ],
)
def test_a_former_name_of_an_option_is_answered_with_the_present_one(former: str, present: str) -> None:
    with pytest.raises(InputError, match=f"TOFUEvaluation has no option {former}; it is {present} now"):
        TOFUEvaluation(**{former: 1})


class Unloaded(ToyModule):
    def configure_model(self) -> None:
        raise AssertionError("the model was loaded before the options were checked")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": "/nowhere"}, "nowhere"),
        ({"split": "forget03"}, "forget03"),
        ({"retain_log": "/nowhere/log.json"}, "nowhere"),
        ({"max_rows": 3, "retain_log": "REFERENCE"}, "3 rows in the log and 6 in the reference"),
        ({"prompt_style": "llama2", "retain_log": "REFERENCE"}, "prompt_style"),
    ],
)
def test_what_cannot_be_right_is_refused_before_the_model_is_loaded(
    tmp_path: Path, data: Path, reference: Path, options: dict[str, Any], message: str
) -> None:
    options = {key: str(reference) if value == "REFERENCE" else value for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, TOFUEvaluation(**options)).fit(Unloaded(), datamodule=ToyData(data))


class OwnTOFU(TOFUEvaluation):
    """A user's own, which writes the same files."""


def test_two_evaluations_of_one_name_are_refused(tmp_path: Path, data: Path) -> None:
    with pytest.raises(InputError, match="trainer.callbacks has 2 evaluations named 'tofu'"):
        fit(tmp_path, data, TOFUEvaluation(**nested(**OPTIONS)), OwnTOFU(**nested(**OPTIONS)))
    refuse_twins([TOFUEvaluation(), MemorizationEvaluation(), MUSEEvaluation()])


def test_an_evaluation_added_to_one_that_is_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    added = ["--trainer.callbacks+=TOFUEvaluation", "--trainer.callbacks+=TOFUEvaluation"]
    parts = ["--model.pretrained=model", "--data.forget=forget.jsonl", "--trainer.accelerator=cpu"]
    assert main(["fit", *parts, *added]) == 2
    assert "2 evaluations named 'tofu'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_is_quick_and_leaves_the_reference_out(tmp_path: Path, data: Path, reference: Path) -> None:
    callback = TOFUEvaluation(**nested(retain_log=str(reference), **OPTIONS))
    fit(tmp_path, data, callback, fast_dev_run=True)
    assert len(callback.last["sets"]["retain"]) == 2
    assert "fast_dev_run" in callback.last["aggregates"]["forget_quality_absent"]


def test_toys_with_the_same_seed_are_the_same() -> None:  # what the comparisons above stand on
    assert torch.equal(toy_model("gpt2").lm_head.weight, toy_model("gpt2").lm_head.weight)
