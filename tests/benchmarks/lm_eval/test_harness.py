"""Tasks that the test writes, through the harness on toy models: callback, command, page and comparison, offline."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_lightning.benchmarks.lm_eval.callback import LMEvalEvaluation
from dipo_lightning.cli.main import main
from dipo_lightning.cli.score import score
from dipo_lightning.comparison.results import add_columns_beside
from tests.helpers.harness_tasks import DOCUMENTS, write_tasks
from tests.helpers.small_tofu import ToyData, ToyModule, read, trainer
from tests.helpers.toys import save_toy, toy_model, toy_tokenizer
from tests.helpers.user_run import user_run

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness's own packages


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def chosen(model, document) -> int:
    """The choice with the highest sum of log-likelihoods, by hand."""
    tokenizer, sums = toy_tokenizer(), []
    prompt = f"Question: {document['question']}\nAnswer:"
    for choice in document["choices"]:
        start = len(tokenizer(prompt).input_ids)
        tokens = torch.tensor([tokenizer(f"{prompt} {choice}").input_ids])
        with torch.no_grad():
            logs = model(tokens).logits[0, :-1].double().log_softmax(-1)
        sums.append(logs.gather(1, tokens[0, 1:, None])[start - 1 :].sum().item())
    return max(range(3), key=sums.__getitem__)


def test_the_callback_measures_the_policy_in_memory_and_leaves_no_trace(tasks, tmp_path):
    names = ["toy", "toy_says", "toy_texts"]
    evaluation = LMEvalEvaluation(names, include_path=str(tasks), batch_size=3)
    logger, module = TensorBoardLogger(tmp_path, name="run"), ToyModule()
    torch.manual_seed(0)
    trainer(tmp_path, evaluation, logger=logger, max_epochs=1, limit_val_batches=0).fit(module, datamodule=ToyData())
    plain = ToyModule()
    torch.manual_seed(0)
    trainer(tmp_path / "plain", max_epochs=1, limit_val_batches=0).fit(plain, datamodule=ToyData())
    first, last = read(tmp_path)
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for document, model in ((first, ToyModule().policy.eval()), (last, module.policy.eval())):
        right = [chosen(model, row) == row["answer"] for row in DOCUMENTS]
        assert document["aggregates"]["toy_acc"] == pytest.approx(sum(right) / 7)
        assert [row["acc"] for name in ("toy_few", "toy_more") for row in document["sets"][name]] == right
        assert "toy_few_acc" not in document["aggregates"]
        assert isinstance(document["sets"]["toy_says"][0]["generation"], str)
        pairs = [row["word_perplexity"] for row in document["sets"]["toy_texts"]]
        expected = torch.tensor([-sum(pair[0] for pair in pairs) / sum(pair[1] for pair in pairs)]).exp().item()
        assert document["aggregates"]["toy_texts_word_perplexity"] == pytest.approx(expected, rel=1e-5)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.step for event in events.Scalars("lm_eval/toy_acc")] == [0, 2]
    assert score(evaluation.files[-1])["stored_aggregates_hold"] is True


def test_the_command_measures_a_model_and_a_run(tasks, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_toy("model", seed=3)
    options = ["--tasks", "toy,toy_says", "--include_path", str(tasks), "--device", "cpu"]
    assert main(["lm-eval", "model", *options]) == 0
    said = capsys.readouterr().out
    assert "toy: acc" in said
    [log] = Path("model-lm-eval").glob("*.json")
    right = [chosen(toy_model(seed=3), row) == row["answer"] for row in DOCUMENTS]
    assert score(log)["toy_acc"] == pytest.approx(sum(right) / 7)
    run = user_run(tmp_path / "run")
    assert main(["lm-eval", str(run), *options, "--limit", "1"]) == 0
    [log] = (run / "evaluations").glob("lm_eval_*.json")
    content = log.read_text()
    assert main(["lm-eval", str(run), *options, "--limit", "2"]) == 0
    assert log.read_text() == content, "other settings have a log of their own"
    assert len([*(run / "evaluations").glob("lm_eval_*.json")]) == 2
    next(other for other in (run / "evaluations").glob("lm_eval_*.json") if other != log).unlink()
    document = json.loads(content)
    assert document["provenance"]["step"] == 6
    assert len(document["sets"]["toy_more"]) == 1
    assert "toy: acc" in (run / "results.html").read_text()
    rows = [{"step": 6}]
    add_columns_beside(rows, run)
    assert rows[0]["lm_eval_toy_acc"] == document["aggregates"]["toy_acc"]


def test_an_unknown_task_gets_the_nearest_name(tasks, capsys):
    assert main(["lm-eval", "model", "--tasks", "wmdp_boi"]) == 2
    assert "Did you mean wmdp_bio" in capsys.readouterr().err
