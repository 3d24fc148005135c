"""Whatever is typed, the command line ends in exit code 0 or in a sentence and exit code 2; no model is loaded."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dipo_lightning.cli import main as cli
from tests.properties.drawing import SCALAR, VALUE, WRITABLE, cases

WORD = WRITABLE.filter(lambda text: "\x00" not in text)
"""What a shell can pass on: no NUL."""

COMMANDS = [*cli.TRAINER_COMMANDS, *cli.COMMANDS]
SIMPLE = {
    "score": ["--log", "--retain_log", "--truth_ratio", "--help"],
    "report": ["--run_folder", "--output", "--rows"],
    "export": ["--checkpoint", "--adapters", "--pretrained", "--trust_remote_code"],
    "chat": ["--original", "--unlearned", "--prompt", "--max_new_tokens"],
    "plan": ["--config", "--gpus", "--memory"],
    "compare": ["--plan", "--dry_run", "--output"],
}
OPTIONS = [
    *(
        "model.beta",
        "model.pair.alpha",
        "model.pair.k",
        "model.pair.selection",
        "model.pair.p",
        "model.lora.rank",
        "model.lora.targets",
    ),
    *("model.optimizer", "model.schedule", "model.warmup_steps", "model.class_path", "model.nothing", "model", "run"),
    *("data.forget", "data.retain", "data.prompt", "data.prompt_options", "data.batch_size", "data.columns", "data"),
    *("data.max_length", "data.nothing", "trainer.max_steps", "trainer.precision", "trainer.callbacks", "ckpt_path"),
    *("trainer.strategy", "trainer.nothing", "seed_everything", "config", "nothing"),
]
BASE = {"model": {"class_path": "dipo_lightning.DiPOModule", "init_args": {"pretrained": "absent/model"}},
        "data": {"class_path": "dipo_lightning.UnlearningDataModule", "init_args": {"forget": "absent.jsonl"}},
        "trainer": {"accelerator": "cpu", "logger": False, "max_steps": 1}}  # fmt: skip


def ended(args: list[str]) -> tuple[int, str]:
    """Run the command line in this process; its exit code and what it wrote to standard error."""
    errors, output = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
        try:
            code = cli.main(args)
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 2 if stopped.code else 0
    return code, errors.getvalue()


def check(args: list[str]) -> None:
    code, errors = ended(args)
    assert code in (0, 2), (code, errors)
    assert "Traceback" not in errors
    if code == 2:
        assert "error: " in errors
        assert len(errors[errors.index("error: ") + 7 :].split()) >= 3, "a sentence"
        assert not set("\x1b\x07\x9b\u202e") & set(errors)


@pytest.fixture(autouse=True)
def hub_is_not_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network it would take 23 s and more to give up on a model's name.

    The environment variable says nothing to a hub that was imported before.
    """
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@cases(150, shrink=False)
@given(words=st.lists(WORD, min_size=1, max_size=3))
def test_commands_of_any_name(words: list[str]) -> None:
    check(words)


@cases(150, shrink=False)
@given(command=st.sampled_from(sorted(SIMPLE)), draw=st.data())
def test_simple_commands_with_any_option(command: str, draw: Any) -> None:
    option = st.one_of(st.sampled_from(SIMPLE[command]), WORD.map(lambda word: f"--{word}"))
    value = st.one_of(WORD, SCALAR.map(lambda value: json.dumps(value)))
    words = draw.draw(st.lists(st.one_of(value, st.tuples(option, value).map("=".join)), max_size=3))
    check([command, *words])


@cases(20, shrink=False)
@given(changes=st.lists(st.tuples(st.sampled_from(OPTIONS), st.one_of(WORD, VALUE.map(json.dumps))), min_size=1,
                        max_size=2))  # fmt: skip
def test_options_of_fit_of_any_value(tmp_path: Path, changes: list[tuple[str, str]]) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(BASE))
    check(["fit", "--config", "base.yaml", *(f"--{name}={value}" for name, value in changes)])


@cases(15, shrink=False)
@given(content=st.one_of(st.binary(max_size=60), VALUE.map(lambda value: json.dumps(value).encode()), st.dictionaries(
    st.sampled_from(["model", "data", "trainer", "run", "ckpt_path", "seed_everything"]), VALUE, max_size=3,
    ).map(lambda value: json.dumps(BASE | value).encode())))  # fmt: skip
def test_configs_of_any_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.yaml").write_bytes(content)
    check(["fit", "--config", "any.yaml"])
