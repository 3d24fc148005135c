"""The layout of the charts: read back from the event file, and every pattern finds a tag that is really logged."""

import re
from typing import ClassVar

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from dipo_lightning.benchmarks.muse.callback import MUSEEvaluation
from dipo_lightning.benchmarks.tofu.callback import TOFUEvaluation
from dipo_lightning.benchmarks.user_data.callback import MemorizationEvaluation
from dipo_lightning.evaluation.aggregates import metric_meanings
from dipo_lightning.evaluation.tensorboard import layout, write_layout
from dipo_lightning.metrics import RowMean

TRAINING = ("forget", "retain", "margin", "loss", "gradient_norm", "reward_preferred", "reward_dispreferred")


class Answered(RowMean):
    field: ClassVar[str] = "rouge"


def test_the_layout_is_in_the_event_file(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        write_layout(writer, [TOFUEvaluation()])
    events = EventAccumulator(str(tmp_path)).Reload()
    [event] = events.Tensors("custom_scalars__config__")
    found = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in found.category] == ["1 Training", "2 Evaluation", "3 Optimisation"]
    assert list(found.category[0].chart[0].multiline.tag) == ["^train/forget$", "^train/retain$"]


@pytest.mark.parametrize("kind", [TOFUEvaluation, MUSEEvaluation, MemorizationEvaluation])
def test_every_pattern_finds_what_is_logged(kind):
    evaluation = kind(metrics={"answered": Answered("forget")})
    logged = {f"train/{name}" for name in TRAINING} | {f"{kind.name}/answered"}
    logged |= {f"{kind.name}/{name}" for name in metric_meanings(kind.benchmark.metrics({}))}
    for charts in layout([evaluation]).values():
        for title, (chart, patterns) in charts.items():
            assert chart == "Multiline"
            for pattern in patterns:
                assert any(re.match(pattern, tag) for tag in logged), (title, pattern)


def test_another_logger_is_left_alone():
    write_layout(object())
