"""Every essential variant of the step benchmark takes a step; which is faster is not tested."""

import math
import sys

import pytest
import torch

from tests.helpers.toys import toy_model


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.filterwarnings("ignore")  # the tool prints what Lightning says
def test_every_essential_variant_takes_a_step():
    from tools.benchmarks import measuring, steps

    found = steps.measure(toy_model("llama"), (2, 16), steps.ESSENTIAL, 1, torch.device("cpu"), "float32")
    assert not measuring.FAILED
    assert set(found) == set(steps.ESSENTIAL)
    assert all(math.isfinite(one["value"]) for rounds in found.values() for one in rounds)
