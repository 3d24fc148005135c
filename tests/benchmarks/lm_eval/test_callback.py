"""The options of the evaluation in a trial and after it."""

from types import SimpleNamespace
from typing import Any

import pytest

from dipo_lightning.benchmarks.lm_eval import callback
from dipo_lightning.evaluation.callback import FAST_DEV_ROWS


def test_a_trial_leaves_the_limit_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callback, "load_tasks", lambda tasks, options: {})
    monkeypatch.setattr(callback, "settings_of", lambda tasks, loaded, options: {"limit": options.limit})
    evaluation, limits = callback.LMEvalEvaluation(["toy"], limit=50), []
    for trial in (False, True, False):
        trainer: Any = SimpleNamespace(fast_dev_run=trial, datamodule=SimpleNamespace(tokenizer=object()))
        evaluation.check(trainer, SimpleNamespace())  # type: ignore[arg-type]
        limits.append((evaluation.settings["limit"], evaluation.harness.limit))
    assert limits == [(50, 50), (FAST_DEV_ROWS, FAST_DEV_ROWS), (50, 50)]
