"""Blind view of the reference: its outputs while some words of the prompt are masked out of its attention.

They are the subject's name in selective unlearning, and the whole question for DiPO's ``contrast``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dipo_lightning.data.private import Span, token_flags, token_places
from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import Answers, TokenBatch
from dipo_lightning.models.inspection import same_logits
from dipo_lightning.reference.references import Reference, build_reference


def forward_reference(module: Any) -> Reference:
    """Build a module's reference as a model that runs forward passes, since a blind view has no cache.

    Raises:
        InputError: ``model.reference`` names another kind.
    """
    name = "adapters_off" if module.lora is not None else "live"
    if module.reference_name not in ("auto", name):
        raise InputError(f"model.reference is {module.reference_name}; this method needs {name} or auto here.")
    return build_reference(module, name)


def blind_answers(reference: Reference, batch: TokenBatch, sight: Sequence[Sequence[int]], **form: Any) -> Answers:
    """Return the reference's answers to a batch with some tokens masked.

    Args:
        reference: A reference that runs forward passes.
        batch: Token batch of B sequences.
        sight: For each sequence, 0 at every masked token and 1 at the others; it may be shorter than the padded batch.
        **form: ``from_hidden`` and ``chunk_size`` of `Reference.answers`.
    """
    seen = torch.zeros_like(batch["attention_mask"])
    for place, flags in enumerate(sight):
        seen[place, : len(flags)] = torch.tensor(flags, device=seen.device)
    blind = batch | {"attention_mask": batch["attention_mask"] * seen}
    return reference.answers({"forget": blind}, **form)["forget"]


def without_question(tokenizer: Any, ids: Sequence[int], question: str) -> list[int]:
    """Return a flag for each token of a prompt (``ids``): 0 if it belongs to the question, else 1 (BOS, tags).

    Raises:
        InputError: The prompt does not contain the question verbatim.
    """
    text = tokenizer.decode(list(ids))
    start = text.find(question.strip())
    if start < 0:
        raise InputError(
            f"The prompt {text!r} does not contain its question {question!r} word for word, so it cannot be masked."
        )
    span = Span(start, start + len(question.strip()))
    return [int(not flag) for flag in token_flags(token_places(tokenizer, ids, text), [span])]


@torch.no_grad()
def check_blindness(model: nn.Module, name: str) -> None:
    """Check that a masked token changes nothing after it.

    Args:
        model: A ``transformers`` causal LM.
        name: The option that needs this, for the message.

    Raises:
        InputError: A masked token changes later ones, as in recurrent models, which carry a state past the mask.
    """
    size = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 7, 4, 5, 6]], device=next(model.parameters()).device) % size
    mask = torch.ones_like(ids)
    mask[:, 2] = 0
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 3:]
    if not same_logits(logits[0], logits[1]):
        raise InputError(
            f"{name} needs a model that can be kept from seeing a word by its attention mask; this one sees masked "
            "tokens all the same, as recurrent models do. Use DiPOModule with pair.memory_vector: centered."
        )
