"""A pair of the user's own, through one overridden method, and the accelerators against the generic path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dipo_lightning import DiPOModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.dipo.margins import CachedMargins, ExactMargins, SparseMargins
from dipo_lightning.models.answers import Answers
from tests.helpers.toys import VOCABULARY
from tests.methods.test_exactness import BATCH, PATHS, gradients, ours, plain_loss

POSITIONS = int((BATCH["forget"]["labels"][:, 1:] != -100).sum())


class SamePair(DiPOModule):
    """The package's pair in an override, which keeps the accelerators away."""

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        return super().make_pair(logits, forget)


class Contrast(DiPOModule):
    """A pair that changes all logits: towards and away from those of a second model, known by position."""

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        second = torch.randn(POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(5))
        gap = logits - second.to(logits)[forget.positions]
        assert forget.labels.shape == forget.sequence_ids.shape == logits.shape[:1]
        return (logits - 0.5 * gap).log_softmax(-1), (logits + 0.5 * gap).log_softmax(-1)


def loss_and_gradients(module: DiPOModule) -> tuple[Tensor, dict[str, Tensor]]:
    loss = module.training_step(BATCH, 0)
    return loss.detach(), gradients(loss, module.policy)  # type: ignore[arg-type]


def assert_same(found: tuple[Tensor, dict[str, Tensor]], right: tuple[Tensor, dict[str, Tensor]], limit: float) -> None:
    torch.testing.assert_close(found[0].double(), right[0].double(), rtol=limit, atol=0)
    assert found[1].keys() == right[1].keys()
    for name, gradient in found[1].items():
        expected = right[1][name].double()
        assert (gradient.double() - expected).norm() <= 10 * limit * expected.norm() + 1e-12, name


PLACES = [("llama", path) for path in PATHS if path != "directions"]
PLACES += [(family, path) for family in ("gemma2", "phi") for path in ("logits", "one chunk", "chunks")]


@pytest.mark.parametrize(("family", "path"), PLACES)
@pytest.mark.parametrize("source", ["reference", "policy"])
def test_another_pair_is_one_method_on_every_path(family: str, path: str, source: str) -> None:
    module = ours(family, path, torch.float64, {"source": source}, cls=Contrast)
    assert isinstance(module.margins, ExactMargins)
    reference: Any = ours(family, "logits", torch.float64, {}).frozen_reference
    loss = plain_loss(module.policy, reference.model, module)  # type: ignore[arg-type]
    right = loss.detach(), gradients(loss, module.policy)  # type: ignore[arg-type]
    assert_same(loss_and_gradients(module), right, 1e-6 if family == "gemma2" else 1e-9)


class Drawn(DiPOModule):
    """A pair that draws random numbers, and keeps what it drew."""

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        noise = torch.randn_like(logits)
        self.draws = [*getattr(self, "draws", []), noise]
        return (logits - noise).log_softmax(-1), (logits + noise).log_softmax(-1)


class Replayed(DiPOModule):
    """The pair of a `Drawn` with the given draws."""

    noise: Tensor

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        noise = self.noise[forget.positions]
        return (logits - noise).log_softmax(-1), (logits + noise).log_softmax(-1)


def test_the_gradient_of_a_random_pair_is_that_of_the_draw_of_its_loss() -> None:
    drawn = ours("llama", "chunks", torch.float64, {}, cls=Drawn)
    replayed = ours("llama", "chunks", torch.float64, {}, cls=Replayed)
    found = loss_and_gradients(drawn)
    draws = torch.cat(drawn.draws)  # type: ignore[arg-type]
    replayed.noise = draws[:POSITIONS]
    assert len(draws) == 2 * POSITIONS, "once more for the gradient"
    assert_same(found, loss_and_gradients(replayed), 1e-9)


ODD_PAIRS: dict[str, Any] = {
    "probabilities": lambda logits: (logits.softmax(-1), (2 * logits).softmax(-1)),
    "logits": lambda logits: (logits / 2, logits * 2),
    "one of them": lambda logits: (logits.log_softmax(-1), logits),
    "one tensor": lambda logits: logits.log_softmax(-1),
    "width": lambda logits: (logits[:, :10].log_softmax(-1), logits[:, :10].log_softmax(-1)),
    "three": lambda logits: [logits.log_softmax(-1)] * 3,
    "nothing": lambda logits: None,
    "NaN": lambda logits: (logits.log_softmax(-1), logits.log_softmax(-1) * torch.nan),
    "all -inf": lambda logits: (logits.log_softmax(-1), torch.full_like(logits, -torch.inf)),
}


@pytest.mark.parametrize("odd", ODD_PAIRS)
def test_a_pair_that_is_not_two_tensors_of_log_probabilities_is_refused(odd: str) -> None:
    class Odd(DiPOModule):
        def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
            return ODD_PAIRS[odd](logits)

    module = ours("llama", "chunks", torch.float32, {}, cls=Odd)
    with pytest.raises(InputError, match=r"^Odd\.make_pair\(\) returns .*log_softmax\(-1\)"):
        module.training_step(BATCH, 0)


def test_a_pair_of_low_precision_and_with_excluded_tokens_is_accepted() -> None:
    class Excluding(DiPOModule):
        def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
            kept = logits.scatter(1, forget.labels[:, None], -torch.inf)
            return kept.log_softmax(-1).bfloat16(), logits.log_softmax(-1).bfloat16()

    module = ours("llama", "chunks", torch.float32, {}, cls=Excluding)
    loss, found = loss_and_gradients(module)
    assert bool(loss.isfinite())
    assert all(bool(gradient.isfinite().all()) for gradient in found.values())


@pytest.mark.parametrize("path", ["logits", "chunks"])
def test_the_base_logits_of_a_pair_are_never_of_low_precision(path: str) -> None:
    seen: list[torch.dtype] = []

    class Watching(SamePair):
        def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
            seen.append(logits.dtype)
            return super().make_pair(logits, forget)

    module = ours("llama", path, torch.float32, {}, cls=Watching)
    with torch.autocast("cpu", torch.bfloat16):
        module.training_step(BATCH, 0)
    assert set(seen) == {torch.float32}


OWN_PAIRS: list[dict[str, Any]] = [
    {},
    {"selection": "top_p", "p": 0.6},
    {"selection": "relative", "rho": 0.2},
    {"memory_vector": "raw"},
    {"source": "policy"},
    {"weighting": "entropy"},
]


@pytest.mark.parametrize("options", OWN_PAIRS, ids=str)
@pytest.mark.parametrize("path", ["chunks", "hidden_states", "directions"])
def test_an_accelerator_gives_what_the_generic_path_gives(path: str, options: dict[str, Any]) -> None:
    if path == "directions" and options == {"source": "policy"}:
        pytest.skip("directions are the reference's")
    kept = {"freeze_projection": path == "directions"}
    fast = ours("llama", path, torch.float64, options | kept, logged=True)
    assert isinstance(fast.margins, CachedMargins if path == "directions" else SparseMargins)
    generic = ours("llama", "chunks", torch.float64, options | kept, logged=True, cls=SamePair)
    assert isinstance(generic.margins, ExactMargins)
    assert_same(loss_and_gradients(fast), loss_and_gradients(generic), 1e-9)
    for name, value in fast._watched.items():
        torch.testing.assert_close(value, generic._watched[name], rtol=1e-9, atol=1e-12, msg=name)


def test_the_bar_shows_the_margin_and_the_loss_without_its_constant() -> None:
    module = ours("llama", "chunks", torch.float64, {}, logged=True)
    shown: dict[str, float] = {}
    module.log = lambda name, value, **_: shown.update({name: float(value)})  # type: ignore[method-assign]
    loss = float(module.training_step(BATCH, 0).detach())
    assert shown["loss"] == pytest.approx(loss - 2 / module.beta * 0.6931471805599453)
    assert shown["margin"] == float(module._watched["margin"])
    forget = float(module._batches[0].terms["forget"])
    assert float(module._watched["forget_change"]) == pytest.approx(forget - 2 / module.beta * 0.6931471805599453)
