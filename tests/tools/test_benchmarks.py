"""Every essential variant of the step benchmark takes a step; which is faster is not tested."""

import math
import sys

import pytest
import torch

from tests.helpers.toys import toy_model


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore")  # the tool prints what Lightning says
@pytest.mark.parametrize("size", [(2, 16), (1, 256)], ids=["short rows", "long rows"])
def test_every_essential_variant_takes_a_step(size):
    from tools.benchmarks import measuring, steps

    found = steps.measure(toy_model("llama"), size, steps.ESSENTIAL, 1, torch.device("cpu"), "float32")
    assert not measuring.FAILED
    assert set(found) == set(steps.ESSENTIAL)
    assert all(math.isfinite(one["value"]) for rounds in found.values() for one in rounds)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore")
def test_the_loss_memory_of_every_likelihood_method_is_measured_in_both_forms():
    from tools.benchmarks import measuring, steps

    names = [name + form for name in steps.LIKELIHOOD for form in steps.FORMS]
    found = steps.measure(toy_model("llama"), (2, 16), [*steps.BARE_PARTS, *names], 1, torch.device("cpu"), "float32")
    assert not measuring.FAILED
    assert set(names) <= set(steps.NAMES)
    assert all(math.isfinite(one["loss"]) for name in names for one in found[name])
    for name in steps.LIKELIHOOD:
        values = [found[name + form][0]["value"] for form in steps.FORMS]
        assert values[0] == pytest.approx(values[1], rel=1e-4)
