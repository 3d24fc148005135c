"""The pair: by hand, and the fast form against the plain one."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.methods.dipo.pair import (
    PairOptions,
    confident_set,
    contrast_vector,
    make_pair,
    memory_vector,
    pair_parts,
)
from tests.helpers.plain_dipo import pair_difference

SELECTIONS = ("top_k", "top_p", "relative")
KINDS = ("centered", "raw")


def by_hand(logits: list[float], chosen: set[int], alpha: float, kind: str) -> tuple[list[float], list[float]]:
    """Both distributions of one position in plain Python."""
    tau = max(value for z, value in enumerate(logits) if z not in chosen) if kind == "centered" else 0.0
    pair = []
    for sign in (-1, 1):
        weights = [math.exp(h + (sign * alpha * (h - tau) if z in chosen else 0.0)) for z, h in enumerate(logits)]
        pair.append([weight / sum(weights) for weight in weights])
    return pair[0], pair[1]


# probabilities 0.5, 0.05, 0.3, 0.15
LOGITS = torch.tensor([[0.5, 0.05, 0.3, 0.15]], dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (PairOptions("top_k", k=1), {0}),
        (PairOptions("top_k", k=3), {0, 2, 3}),
        (PairOptions("top_p", p=0.49), {0}),
        (PairOptions("top_p", p=0.51), {0, 2}),
        (PairOptions("top_p", p=0.81), {0, 2, 3}),
        (PairOptions("top_p", p=0.99), {0, 2, 3}),  # never everything
        (PairOptions("relative", rho=0.59), {0, 2}),
        (PairOptions("relative", rho=1.0), {0}),
        (PairOptions("relative", rho=0.01), {0, 2, 3}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_by_hand(options: PairOptions, chosen: set[int], kind: str) -> None:
    options = PairOptions(options.selection, options.k, options.p, options.rho, kind, 1.3)
    found = confident_set(LOGITS, options)
    assert set(found[0].nonzero().flatten().tolist()) == chosen
    preferred, dispreferred = (
        torch.tensor([x], dtype=torch.float64) for x in by_hand(LOGITS[0].tolist(), chosen, 1.3, kind)
    )
    log_preferred, log_dispreferred = make_pair(LOGITS, options)
    torch.testing.assert_close(log_preferred.exp(), preferred, rtol=0, atol=1e-14)
    torch.testing.assert_close(log_dispreferred.exp(), dispreferred, rtol=0, atol=1e-14)
    torch.testing.assert_close(pair_difference(LOGITS, options), preferred - dispreferred, rtol=0, atol=1e-14)
    base = LOGITS.softmax(-1)
    for part, expected in zip(pair_parts(LOGITS, options), (preferred, dispreferred), strict=True):
        torch.testing.assert_close(part, expected - base, rtol=0, atol=1e-14)
    other = LOGITS.flip(-1)
    for part, expected in zip(pair_parts(LOGITS, options, other), (preferred, dispreferred), strict=True):
        torch.testing.assert_close(part, expected - other.softmax(-1), rtol=0, atol=1e-14)


def test_centered_alpha_one_pulls_the_set_down_to_tau() -> None:
    log_preferred, _ = make_pair(LOGITS, PairOptions("top_k", k=2, alpha=1.0))
    torch.testing.assert_close(log_preferred[0, [0, 2]], log_preferred[0, 3].expand(2))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, PairOptions, bool]:
    """Random logits (ties, all scales) and options."""
    width = draw(st.sampled_from([2, 3, 17, 64, 640, 1024]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(draw(st.integers(1, 4)), width, generator=generator, dtype=torch.float64)
    logits = logits * draw(st.sampled_from([1e-3, 1.0, 5.0, 30.0])) + draw(st.sampled_from([0.0, -40.0, 7.0]))
    ties = draw(st.booleans())
    if ties:
        logits = logits.round()
    options = PairOptions(
        selection=draw(st.sampled_from(SELECTIONS)),
        k=draw(st.sampled_from([1, 2, 10, width - 1]).filter(lambda k: k < width)),
        p=draw(st.sampled_from([0.0123, 0.5123, 0.9123, 0.999123])),
        rho=draw(st.sampled_from([1e-6, 0.0123, 0.5123, 1.0])),
        memory_vector=draw(st.sampled_from(KINDS)),
        alpha=draw(st.sampled_from([1e-3, 0.5, 1.0, 3.0])),
    )
    return logits, options, ties


def away_from_edges(logits: Tensor, options: PairOptions) -> bool:
    """Return whether no cumulated probability or ratio sits on the option's value, where rounding may decide."""
    ranked = logits.softmax(-1).sort(descending=True).values
    if options.selection == "top_p":
        return bool(((ranked.cumsum(-1) - options.p).abs() > 1e-9).all())
    return options.rho == 1.0 or bool(((ranked / ranked[:, :1] / options.rho - 1).abs() > 1e-9).all())


@settings(max_examples=150, deadline=None)
@given(problems())
def test_fast_is_plain(problem: tuple[Tensor, PairOptions, bool]) -> None:
    logits, options, ties = problem
    assume(options.selection == "top_k" or away_from_edges(logits, options))
    log_preferred, log_dispreferred = make_pair(logits, options)
    plain, fast = log_preferred.exp() - log_dispreferred.exp(), pair_difference(logits, options)
    if ties and options.memory_vector == "raw":  # which of equal logits are taken is free: compare what was made
        plain, fast = plain.sort(-1).values, fast.sort(-1).values
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(problems(), st.floats(-100, 100))
def test_centered_ignores_a_constant(problem: tuple[Tensor, PairOptions, bool], constant: float) -> None:
    logits, options, _ = problem
    options = PairOptions(options.selection, options.k, options.p, options.rho, "centered", options.alpha)
    assume(options.selection == "top_k" or away_from_edges(logits, options))
    torch.testing.assert_close(
        pair_difference(logits + constant, options), pair_difference(logits, options), rtol=1e-6, atol=1e-9
    )


def test_raw_does_not_ignore_a_constant() -> None:
    raw = PairOptions("top_k", k=1, memory_vector="raw")
    high, low = pair_difference(LOGITS + 40, raw), pair_difference(LOGITS - 40, raw)
    assert high[0, 0] < 0 < low[0, 0]  # the documented trap: low logits are amplified in the "suppressed" member


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_a_memorised_token_in_float32(selection: str, kind: str) -> None:
    """The set holds all but 1e-9 of the mass: 1 - sum(set) would be noise in float32."""
    logits = torch.randn(3, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 5] += 30
    options = PairOptions(selection, k=1, p=0.5, rho=0.5, memory_vector=kind, alpha=1.0)
    torch.testing.assert_close(
        pair_difference(logits.float(), options).double(), pair_difference(logits, options), rtol=1e-4, atol=1e-9
    )


def test_large_raw_logits_do_not_overflow() -> None:
    logits = torch.full((1, 100), 60.0)
    logits[0, 3] = 90.0
    difference = pair_difference(logits, PairOptions("top_k", k=1, memory_vector="raw", alpha=3.0))
    assert difference.isfinite().all()
    assert difference[0, 3].item() == pytest.approx(-1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("selection", SELECTIONS)
def test_bfloat16_is_raised_to_float32(selection: str, kind: str) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(1)).bfloat16()
    options = PairOptions(selection, memory_vector=kind)
    assert pair_difference(logits, options).dtype == torch.float32
    assert torch.equal(pair_difference(logits, options), pair_difference(logits.float(), options))


def test_inputs_are_left_alone_and_not_followed() -> None:
    logits = torch.randn(3, 128, requires_grad=True)
    before = logits.detach().clone()
    assert not pair_difference(logits, PairOptions()).requires_grad
    assert not pair_parts(logits, PairOptions())[0].requires_grad
    assert not make_pair(logits, PairOptions())[0].requires_grad
    assert torch.equal(logits.detach(), before)


def test_no_positions() -> None:
    assert pair_difference(torch.zeros(0, 20), PairOptions()).shape == (0, 20)
    assert pair_parts(torch.zeros(0, 20), PairOptions())[1].shape == (0, 20)


def test_errors() -> None:
    with pytest.raises(InputError, match="k is 10"):
        pair_difference(torch.zeros(1, 4), PairOptions("top_k"))
    with pytest.raises(InputError, match="k is 10"):
        make_pair(torch.zeros(1, 4), PairOptions("top_k"))
    with pytest.raises(InputError, match="whole vocabulary"):
        memory_vector(LOGITS, torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(InputError, match="memory_vector"):
        memory_vector(LOGITS, torch.zeros(1, 4, dtype=torch.bool), "other")


def softmax(logits: list[float]) -> list[float]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]


def test_contrast_moves_only_what_the_question_makes_likelier() -> None:
    draw = torch.Generator().manual_seed(3)
    seeing, blind = (3 * torch.randn(6, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    pair = [x.exp() for x in make_pair(seeing - 5, PairOptions(memory_vector="contrast", alpha=0.5), blind + 2)]
    for position in range(6):
        with_it, without = (softmax(x[position].tolist()) for x in (seeing, blind))
        gain = [max(0.0, math.log(p / q)) for p, q in zip(with_it, without, strict=True)]
        for sign, found in zip((-1, 1), pair, strict=True):
            weights = [p * math.exp(sign * 0.5 * m) for p, m in zip(with_it, gain, strict=True)]
            expected = torch.tensor([weight / sum(weights) for weight in weights], dtype=torch.float64)
            torch.testing.assert_close(found[position], expected, rtol=0, atol=1e-14)
    assert (contrast_vector(seeing, seeing) == 0).all()


def test_contrast_needs_a_second_view_of_the_reference() -> None:
    with pytest.raises(InputError, match="without the question"):
        make_pair(LOGITS, PairOptions(memory_vector="contrast"))
    with pytest.raises(InputError, match="write source: reference"):
        PairOptions(memory_vector="contrast", source="policy")


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_weighting_scales_alpha_by_the_bits_of_a_position(kind: str) -> None:
    rows = [[0.5, 0.05, 0.3, 0.15], [0.97, 0.01, 0.015, 0.005]]
    logits = torch.tensor(rows, dtype=torch.float64).log()
    options = PairOptions("top_k", k=1, memory_vector=kind, alpha=1.3, weighting="entropy")
    pair, parts = make_pair(logits, options), pair_parts(logits, options)
    for position, row in enumerate(rows):
        alpha = 1.3 * min(1.0, -sum(p * math.log2(p) for p in row))
        for log_p, part, expected in zip(
            pair, parts, by_hand(logits[position].tolist(), {0}, alpha, kind), strict=True
        ):
            right = torch.tensor(expected, dtype=torch.float64)
            torch.testing.assert_close(log_p[position].exp(), right, rtol=0, atol=1e-14)
            torch.testing.assert_close(part[position], right - logits[position].exp(), rtol=0, atol=1e-14)
