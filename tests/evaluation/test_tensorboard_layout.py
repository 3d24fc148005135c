"""The layout of the charts: read back from the event file, and every pattern finds a tag that is really logged."""

import re

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from dipo_lightning.evaluation.tensorboard import LAYOUT, write_layout

LOGGED = {
    *("train/forget", "train/retain", "train/margin", "train/loss", "train/gradient_norm"),
    *("train/reward_preferred", "train/reward_dispreferred", "tofu/forget_quality_p", "tofu/forget_quality_log10_p"),
    *("tofu/model_utility", "tofu/forget_probability", "user_data/retain_rouge", "user_data/utility", "muse/verbmem"),
    *("user_data/forget_exact_memorization", "muse/knowmem_forget"),
}


def test_the_layout_is_in_the_event_file(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        write_layout(writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    [event] = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUT)
    assert [list(category.chart[0].multiline.tag) for category in layout.category][0] == [
        "^train/forget$",
        "^train/retain$",
    ]


def test_every_pattern_finds_what_is_logged():
    for charts in LAYOUT.values():
        for title, (kind, patterns) in charts.items():
            assert kind == "Multiline"
            for pattern in patterns:
                assert any(re.match(pattern, tag) for tag in LOGGED), (title, pattern)


def test_another_logger_is_left_alone():
    write_layout(object())
