"""The output head of a causal LM, and whether its logits are exactly ``hidden @ W.T``.

Losses computed from hidden states stand on that identity. Some families add a bias (Phi), bend the logits (Gemma-2's
soft cap) or scale them (Cohere, Granite), and new ones will do other things; so the head is not recognised by name but
fed hidden states whose logits are known. `Head` writes the four of them down; what it doesn't describe is told apart
in the same way, and computed by the model itself.

The causal language model itself, whatever peft has put around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """From hidden states to logits, as a model does it: ``cap(scale * (hidden @ W.T + b))``.

    Attributes:
        weight: (V, H).
        bias: (V,), or None.
        scale: Factor of the logits.
        cap: c of the soft cap ``c * tanh(logits / c)``, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @property
    def linear(self) -> bool:
        """Whether this is the product with ``weight`` and nothing else."""
        return self.bias is None and self.scale == 1 and self.cap is None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return (..., V) logits of (..., H) hidden states."""
        logits = nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def output_head(model: nn.Module) -> Head:
    """Read the head off a model and its configuration; right where `head_is_known` says so."""
    causal = causal_lm(model)
    projection, config = causal.get_output_embeddings(), causal.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(projection.weight, projection.bias, scale, getattr(config, "final_logit_softcapping", None))


@torch.no_grad()
def head_is_known(model: nn.Module) -> bool:
    """Find out whether `output_head` gives the logits of ``model``, by the forward that `linear_head` makes.

    Args:
        model: A causal LM or a PeftModel around one, with all weights on one device; call it before sharding.
    """
    causal = causal_lm(model)
    if type(causal.get_output_embeddings()) is not nn.Linear:
        return False
    head = output_head(model)
    logits, expected = _logits_of(causal, states := _probes(head.weight)), head(states)
    return logits is not None and _same(logits, expected)


def decoder(model: nn.Module) -> nn.Module:
    """Return the module that gives the final hidden states (``last_hidden_state`` (B, L, H)), also in a PeftModel."""
    return causal_lm(model).get_decoder()


def output_projection(model: nn.Module) -> nn.Parameter:
    """Return the weight W (V, H) of the output projection, also inside a PeftModel."""
    return causal_lm(model).get_output_embeddings().weight


@torch.no_grad()
def linear_head(model: nn.Module) -> Head | None:
    """Find out whether the logits are exactly ``decoder(model)(...).last_hidden_state @ output_projection(model).T``.

    One forward of two tokens, in which the decoder's output is replaced: by a zero state, whose logits must be zero
    (no bias), and by a large random one, whose logits must be its product with W (no soft cap, no scale). A projection
    that has a bias or an adapter is refused even where that is zero now, since training changes it.

    Args:
        model: A causal LM or a PeftModel around one, with all weights on one device; call it before sharding.

    Returns:
        The head, or None where the identity does not hold.
    """
    causal = causal_lm(model)
    projection = causal.get_output_embeddings()
    if type(projection) is not nn.Linear or projection.bias is not None:
        return None
    weight = projection.weight
    states = _probes(weight)
    logits = _logits_of(causal, states)
    if logits is None or not _same(logits, nn.functional.linear(states, weight)) or logits[0, 0].count_nonzero():
        return None
    return Head(weight)


def _probes(weight: Tensor) -> Tensor:
    """Hidden states (1, 2, H): zero, and one that has logits of some 100, beyond any soft cap."""
    states = torch.zeros(1, 2, weight.shape[1], dtype=weight.dtype, device=weight.device)
    direction = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0)).to(states)
    states[0, 1] = direction * (100 / (weight @ direction).abs().max().clamp_min(torch.finfo(weight.dtype).tiny))
    return states


def _same(logits: Tensor, expected: Tensor) -> bool:
    """Whether the model's logits are what is expected, up to the rounding of their dtype."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-2
    return torch.allclose(logits.to(expected.dtype), expected, rtol=tolerance, atol=100 * tolerance)


def _logits_of(causal: Any, states: Tensor) -> Tensor | None:
    """The logits that the model makes of `states` (1, 2, H), or None where its decoder gives no such states."""
    fits = []

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = getattr(output, "last_hidden_state", None)
        fits.append(hidden is not None and hidden.shape == states.shape)
        if fits[-1]:
            output.last_hidden_state = states.to(hidden)
        return output

    handle = causal.get_decoder().register_forward_hook(replace)
    training = causal.training
    try:
        tokens = torch.zeros(1, 2, dtype=torch.long, device=states.device)
        logits = causal.eval()(input_ids=tokens, use_cache=False).logits
    finally:
        handle.remove()
        causal.train(training)
    return logits if fits == [True] else None


def causal_lm(model: nn.Module) -> Any:
    """Return the ``transformers`` model that a peft model is wrapped around, adapters in place; else ``model``.

    The wrapper hides what code needs that looks at a model as ``transformers`` made it: its config, its decoder, its
    defaults for generation. Told by the method rather than by the class, so that peft need not be imported.

    Args:
        model: A ``transformers`` causal LM, or a peft model around one; sharded or not.

    Returns:
        The model, no copy; typed loosely, because what it offers beside ``nn.Module`` comes with its family.
    """
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()
