"""A process with closed sockets, in which a model that says hostile things is unlearned, measured, exported and shown.

Usage: ``python -m tests.safety.closed_run``, in a folder with ``model``, ``tofu`` and the rows; see test_closed_run.py.
"""

from __future__ import annotations

import builtins
import socket
import sys
from typing import Any, NoReturn

HOSTILE = (
    "</td></script><script>alert('x')</script><img src=x onerror=alert(1)>|**bold** [a](javascript:alert(1)) `c` "
    "\x1b[31mred\x1b]0;title\x07\x9b2J\x00\x08\r\u202egnp\u2066\u200b{{ 7*7 }}\n# head"
)
OBEYED = "\x1b\x07\x9b\x00\x08\u202e\u2066\u200b"
"""What a terminal would act on, or a reader not see."""


def refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise AssertionError(f"the network was asked: {args}")


def close_sockets() -> None:
    """Make every way to another machine an error that nothing catches as a mere lack of network."""
    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.socket.connect_ex = refuse  # type: ignore[method-assign]
    socket.socket.sendto = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse


def say_hostile_things() -> None:
    """Let every text that is decoded from tokens be the hostile one."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    for tokenizer in (PreTrainedTokenizerBase, PreTrainedTokenizerFast):
        tokenizer.decode = lambda *args, **kwargs: HOSTILE


def main() -> None:
    close_sockets()
    say_hostile_things()
    from dipo_lightning.cli.main import main as command

    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.devices=1"]
    own = ["--data=dipo_lightning.UnlearningDataModule", "--data.forget=forget.jsonl", "--data.retain=retain.jsonl"]
    data = [*own, "--data.batch_size=2", "--data.prompt=plain"]
    memory = ["--trainer.callbacks+=MemorizationEvaluation", "--trainer.callbacks.measuring.max_new_tokens=4"]
    tofu = ["--trainer.callbacks+=TOFUEvaluation", "--trainer.callbacks.data=tofu", "--trainer.callbacks.max_rows=3",
            "--trainer.callbacks.split=forget10", "--trainer.callbacks.measuring.max_new_tokens=4"]  # fmt: skip
    pages = ["--trainer.callbacks+=ResultsPage", "--trainer.callbacks+=ExportModel"]
    fit = [*quiet, "--trainer.max_epochs=1", *memory, *tofu, *pages, f"--model.pretrained={sys.argv[1]}", *data]
    log = "run/evaluations/tofu_epoch=001_step=00002.json"
    commands = [
        ["fit", *fit, "--model.lora.rank=2", "--run=run"],
        ["validate", *quiet, *memory, f"--model.pretrained={sys.argv[1]}", *data],
        ["export", "run/checkpoints/last.ckpt", "--output", "exported", "--adapters", "separate"],
        ["report", "run", "--output", "page.html"],
        ["score", log, "--retain_log", log],
        ["chat", "model", "run/model", "--prompt", "plain", "--max_new_tokens", "4"],
    ]
    for arguments in commands:
        code = command(arguments)
        assert code == 0, (arguments, code)
    builtins.print("all done")


if __name__ == "__main__":
    main()
