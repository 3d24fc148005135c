"""Every essential variant of the step benchmark takes a step; which is faster is not tested."""

import math
import sys

import pytest
import torch

from tests.helpers.toys import toy_model


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore")  # the tool prints what Lightning says
@pytest.mark.parametrize("size", ["2x16", "3x8-16", "1x256"])
def test_every_essential_variant_takes_a_step(size):
    from tools.benchmarks import measuring, steps

    found = steps.measure(toy_model("llama"), steps.Size.of(size), steps.ESSENTIAL, 1, torch.device("cpu"), "float32")
    assert not measuring.FAILED
    assert set(found) == set(steps.ESSENTIAL)
    assert all(math.isfinite(one["value"]) for rounds in found.values() for one in rounds)


def test_a_size_may_be_of_rows_of_different_lengths():
    from tools.benchmarks.steps import Size, make_batch

    assert Size.of("2x2048").lengths == [2048, 2048]
    assert Size.of("1x30-80").lengths == [30]
    assert Size.of("6x30-80").lengths == [30, 40, 50, 60, 70, 80]
    assert Size.of("2x80-300").prompts == [20, 1]
    shared = Size.of("3x24+56-60")
    assert (shared.lengths, shared.prompts) == ([80, 82, 84], [38, 38, 39])
    batch = make_batch(shared.lengths, shared.prompts, 50, torch.device("cpu"), shared.beginning)
    rows = torch.cat([part["input_ids"] for part in batch.values()])
    assert (rows[:, :24] == rows[0, :24]).all()
    assert (rows[:, 24] != rows[0, 24]).any()
    assert [(part["labels"] != -100).sum().item() for part in batch.values()] == [42 + 44 + 45] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore")
def test_the_loss_memory_of_every_likelihood_method_is_measured_in_both_forms():
    from tools.benchmarks import measuring, steps

    names = [name + form for name in steps.LIKELIHOOD for form in steps.FORMS]
    found = steps.measure(
        toy_model("llama"), steps.Size.of("2x16"), [*steps.BARE_PARTS, *names], 1, torch.device("cpu"), "float32"
    )
    assert not measuring.FAILED
    assert set(names) <= set(steps.NAMES)
    assert all(math.isfinite(one["loss"]) for name in names for one in found[name])
    for name in steps.LIKELIHOOD:
        values = [found[name + form][0]["value"] for form in steps.FORMS]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
