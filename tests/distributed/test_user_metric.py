"""A user's metric, named in YAML, on two processes: in console, TensorBoard, JSON, `score` and `compare`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dipo_lightning.cli.score import score
from dipo_lightning.comparison.results import Scale, evaluation_rows, read_evaluations
from tests.distributed.pool import Pool
from tests.distributed.test_command_line import LAUNCHERS, command


def test_a_metric_named_in_yaml_is_in_every_place_of_a_run_on_two_processes(
    pool: Pool, task: str, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", tmp_path / "metrics.yaml"
    options = {"metrics": {"words": "tests.helpers.user_project.Words"}, "measuring": {"max_new_tokens": 6}}
    evaluation = {"class_path": "dipo_lightning.callbacks.MemorizationEvaluation", "init_args": options}
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": [evaluation]}}))
    arguments = [*command(task, "ddp", run), f"--config={config}"]
    (code, said), (other, _) = pool.run("command_line", arguments=arguments, environment=LAUNCHERS["torchrun"])
    assert (code, other) == (0, 0)
    assert "words said" in said
    benchmark, documents = read_evaluations(run)
    rows = documents[-1]["sets"]["forget"]
    mean = sum(len(row["generation"].split()) for row in rows) / len(rows)
    assert sorted(row["index"] for row in rows) == list(range(len(rows)))
    assert documents[-1]["aggregates"]["words"] == pytest.approx(mean)
    assert score(sorted((run / "evaluations").glob("*.json"))[-1])["words"] == pytest.approx(mean)
    assert "words" in Scale.of(benchmark).columns(evaluation_rows(documents))
    events = EventAccumulator(str(run)).Reload()
    tag = next(tag for tag in events.Tags()["scalars"] if tag.endswith("/words"))
    assert events.Scalars(tag)[-1].value == pytest.approx(mean)
