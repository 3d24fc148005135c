"""open-unlearning's starting points, offline: a faked hub of the same layout with toy checkpoints and a log."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dipo_lightning.benchmarks.tofu.logs import retain_log_name
from dipo_lightning.cli.configs import shipped_folder
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.benchmark import find_benchmark
from dipo_lightning.evaluation.logs import check_comparable, read_log
from dipo_lightning.evaluation.rows import EvaluationLog
from tests.helpers.cached_hub import cached_snapshot
from tests.helpers.small_tofu import SIZES, row, write_tofu
from tests.helpers.toys import save_toy, toy_tokenizer

HEADERS = "system\n\nToday Date: 10 Apr 2025\n\nYou are a helpful assistant.user\n\n{}assistant\n\n"
LOG = "tofu_Llama-3.2-1B-Instruct_retain90"


def their_log(template: str = HEADERS) -> dict:
    """A TOFU_EVAL.json of the small TOFU's forget rows."""
    rows = [row("forget", i, wrong=5, paraphrase=True) for i in range(SIZES["forget"])]
    losses = {str(i): {"prob": 0.5, "avg_loss": 1.0 + i / 10} for i in range(len(rows))}
    wrong = {str(i): {"prob": [0.5] * 5, "avg_loss": [1.0, 1.2, 0.9, 2.0, 1.5]} for i in range(len(rows))}
    texts = {
        str(i): {"input": template.format(one["question"]), "ground_truth": one["answer"], "rougeL_recall": 0.0}
        for i, one in enumerate(rows)
    }
    return {
        "forget_Q_A_Prob": {"agg_value": 0.5, "value_by_index": losses},
        "forget_Q_A_PARA_Prob": {"agg_value": 0.5, "value_by_index": losses},
        "forget_Q_A_PERT_Prob": {"agg_value": 0.5, "value_by_index": wrong},
        "forget_Q_A_ROUGE": {"agg_value": 0.0, "value_by_index": texts},
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("hub")
    save_toy(cached_snapshot(home, "models", "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"))
    logs = cached_snapshot(home, "datasets", "open-unlearning/eval")
    (logs / LOG).mkdir()
    (logs / LOG / "TOFU_EVAL.json").write_text(json.dumps(their_log()))
    write_tofu(home / "tofu")
    return home


def test_the_ready_configuration_runs_from_their_target_to_their_retain_log(hub, tmp_path):
    command = [
        *(sys.executable, "-m", "dipo_lightning", "fit", "--config", "open_unlearning/tofu/llama-3.2-1b"),
        *("--config", "trainer/cpu", "--trainer.max_epochs", "1", "--run", "run", "--data.data", str(hub / "tofu")),
        "--model.activation_checkpointing=false",
    ]
    environment = os.environ | {"HF_HOME": str(hub), "HF_HUB_CACHE": str(hub / "hub"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first = sorted((tmp_path / "run/evaluations").glob("*.json"))[0]
    document = json.loads(first.read_text())
    assert document["aggregates"]["forget_quality"]["n"] == SIZES["forget"]
    assert document["settings"]["truth_ratio"] == "open_unlearning"
    said = (tmp_path / "run/console.log").read_text() + done.stdout + done.stderr
    assert "as the pad token" in said
    assert (tmp_path / "run/model/model.safetensors").exists()


def test_their_prompt_is_chat_with_their_system_prompt_and_date():
    theirs = prompt_style("open_unlearning", toy_tokenizer())
    same = {"system_prompt": "You are a helpful assistant.", "date": "10 Apr 2025"}
    assert theirs.fingerprint() == prompt_style("chat", toy_tokenizer(), **same).fingerprint()
    assert theirs.prompt("Who?") == prompt_style("chat", toy_tokenizer(), **same).prompt("Who?")
    other = prompt_style("open_unlearning", toy_tokenizer(), date="1 May 2025")
    assert other.options["date"] == "1 May 2025"


@pytest.mark.parametrize(
    ("pretrained", "split", "log"),
    [
        ("open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "forget10", f"{LOG}/TOFU_EVAL.json"),
        ("/models/tofu_Llama-2-7b-chat-hf_full", "forget01", "tofu_Llama-2-7b-chat-hf_retain99/TOFU_EVAL.json"),
        ("meta-llama/Llama-3.2-1B-Instruct", "forget10", ""),
        ("open-unlearning/tofu_Llama-3.2-1B-Instruct_full", "authors", ""),
    ],
)
def test_the_retain_log_follows_from_the_target_and_the_split(pretrained, split, log):
    assert retain_log_name(pretrained, split) == log


def test_muses_logs_follow_from_the_corpus():
    muse = find_benchmark("open-unlearning/muse")
    assert muse.hub_log("any", {"data": "muse-bench/MUSE-News"}) == "muse_Llama-2-7b-hf_News_retrain/MUSE_EVAL.json"
    assert muse.hub_log("any", {"data": "/my/newspaper"}) == ""


def test_a_log_that_nothing_names_is_asked_for():
    with pytest.raises(InputError, match="for this run name the log itself"):
        read_log("open-unlearning/eval")
    with pytest.raises(InputError, match="there is no such file"):
        read_log("open-unlearning/other.json")


@pytest.mark.parametrize(("template", "warned"), [(HEADERS, True), ("[INST] {} [/INST]", False)])
def test_only_their_llama3_logs_bring_the_warning(template, warned, tmp_path):
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps(their_log(template)))
    theirs = read_log(tmp_path / "TOFU_EVAL.json")
    rows = [{"index": i, "question": row("forget", i)["question"]} for i in range(SIZES["forget"])]
    benchmark = find_benchmark(theirs.format)
    mine = EvaluationLog(benchmark.format, {"truth_ratio": "open_unlearning"}, {"forget": rows})
    with pytest.warns(UserWarning, match="as the pad token") if warned else contextlib.nullcontext():
        check_comparable(mine, theirs, benchmark)
    check_comparable(theirs, theirs, benchmark)  # made alike: nothing to warn of


@pytest.mark.parametrize(
    "file", sorted((shipped_folder() / "open_unlearning").rglob("*.yaml")), ids=lambda file: file.stem
)
def test_every_configuration_names_their_models_and_its_own_prompt(file):
    config = yaml.safe_load(file.read_text())
    source, prompt = config["model"]["init_args"]["pretrained"], config["data"]["init_args"].get("prompt")
    if file.parent.name == "muse":
        assert (
            source
            == f"muse-bench/MUSE-{file.stem.split('-')[0].title()}_{'retrain' if 'retain' in file.stem else 'target'}"
        )
    else:
        assert source.startswith("open-unlearning/tofu_Llama-")
        assert source.endswith("_retain90" if file.stem.endswith("-retain") else "_full")
        assert prompt == ("llama2" if "Llama-2" in source else "open_unlearning")
