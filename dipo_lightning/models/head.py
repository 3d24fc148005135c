"""The output head of a causal LM: its projection, and the family's own changes to the logits after it.

Losses computed from hidden states depend on it. Some families add a bias (Phi), cap the logits (Gemma-2) or scale them
(Cohere, Granite), and new ones will do other things. So a head is not recognised by its name but tested on hidden
states whose logits are known, and a head that `Head` can't describe is left to the model itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """Map from hidden states to logits, in the same order as the model: ``cap(scale * (hidden @ W.T + b))``.

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
        """True if this is the product with ``weight`` and nothing else."""
        return self.bias is None and self.scale == 1 and self.cap is None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return (..., V) logits of (..., H) hidden states."""
        logits = nn.functional.linear(hidden, self.weight, self.bias)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def output_head(model: nn.Module) -> Head:
    """Read the head from a model and its configuration; correct only if `known_head` confirms it."""
    causal = causal_lm(model)
    projection, config = causal.get_output_embeddings(), causal.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1.0)
    return Head(projection.weight, projection.bias, scale, getattr(config, "final_logit_softcapping", None))


def decoder(model: nn.Module) -> nn.Module:
    """Return the module that gives the final hidden states (``last_hidden_state`` (B, L, H)), also in a PeftModel."""
    causal = causal_lm(model)
    found = causal.get_decoder()
    return found if hasattr(found, "get_input_embeddings") else causal.base_model  # ModernBERT's is its projection


def output_projection(model: nn.Module) -> nn.Parameter:
    """Return the weight W (V, H) of the output projection, also inside a PeftModel."""
    return causal_lm(model).get_output_embeddings().weight


@torch.no_grad()
def known_head(model: nn.Module) -> Head | None:
    """Return the output head if it gives exactly the model's logits, else None.

    It is tested in one forward pass of two tokens in which the decoder's output is replaced: by a zero state, whose
    logits show a bias, and by a large random state, whose logits show a scale or a cap. A projection with an adapter
    does not count as known, even if the adapter is zero now, since training changes it. Call this before sharding, with
    all weights on one device.
    """
    causal = causal_lm(model)
    if type(causal.get_output_embeddings()) is not nn.Linear:
        return None
    head = output_head(model)
    states = _probes(head.weight)
    logits, expected = _logits_of(causal, states), head(states)
    if logits is None or not _same(logits, expected):
        return None
    if head.bias is None and logits[0, 0].count_nonzero():
        return None
    return head


def _probes(weight: Tensor) -> Tensor:
    """Hidden states (1, 2, H): zeros, and a state with logits of up to 100, beyond any soft cap."""
    states = torch.zeros(1, 2, weight.shape[1], dtype=weight.dtype, device=weight.device)
    direction = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(0)).to(states)
    states[0, 1] = direction * (100 / (weight @ direction).abs().max().clamp_min(torch.finfo(weight.dtype).tiny))
    return states


def _same(logits: Tensor, expected: Tensor) -> bool:
    """Return whether the model's logits equal the expected ones up to the rounding of their dtype."""
    tolerance = 1e-5 if expected.dtype == torch.float32 else 1e-2
    return torch.allclose(logits.to(expected.dtype), expected, rtol=tolerance, atol=100 * tolerance)


def _logits_of(causal: Any, states: Tensor) -> Tensor | None:
    """The model's logits for `states` (1, 2, H), or None if its decoder's output has another form."""
    fits = []

    def replace(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        hidden = getattr(output, "last_hidden_state", None)
        fits.append(hidden is not None and hidden.shape == states.shape)
        if fits[-1]:
            output.last_hidden_state = states.to(hidden)
        return output

    handle = decoder(causal).register_forward_hook(replace)
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

    The wrapper hides attributes of the ``transformers`` model that other code needs: its config, its decoder, its
    defaults for generation. A wrapper is recognised by its method, not its class, so that peft need not be imported.
    """
    unwrap = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()
