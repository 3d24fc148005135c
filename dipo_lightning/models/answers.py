"""Batches of examples, and a model's outputs at their supervised positions, from which every loss is computed.

Positions are selected before the output projection, so prompts and padding never reach the vocabulary, and all parts of
a batch (forget, retain, alternative) share one forward.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dipo_lightning.errors import RunError
from dipo_lightning.losses.chunking import in_chunks, sequence_reduce
from dipo_lightning.losses.likelihood import chunked_kl_sum, chunked_nll, chunked_nll_sum, token_kl, token_nll
from dipo_lightning.models.distributed import is_sharded
from dipo_lightning.models.grouping import hidden_at
from dipo_lightning.models.head import Head, output_head

IGNORED = -100
"""Label of a position that is not supervised (torch's default ``ignore_index``)."""

TokenBatch: TypeAlias = dict[str, Tensor]
"""``input_ids``, ``attention_mask``, ``labels`` (batch, length) and ``index`` (batch,), all int64."""


def first_supervised(labels: Sequence[int]) -> int:
    """Return the position of the first supervised label; the number of labels without one."""
    return next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))


def collate(examples: Sequence[Mapping[str, Any]], pad_token_id: int = 0) -> TokenBatch:
    """Make a right-padded batch of tokenised examples; the mask comes from their lengths, so any id can pad.

    Returns:
        ``input_ids``, ``attention_mask`` (1 on an example's own tokens) and ``labels`` (-100 where not supervised),
        each (batch, length) int64, and ``index`` (batch,) int64.
    """
    size = (len(examples), max((len(example["input_ids"]) for example in examples), default=0))
    batch = {
        "input_ids": torch.full(size, pad_token_id, dtype=torch.long),
        "attention_mask": torch.zeros(size, dtype=torch.long),
        "labels": torch.full(size, IGNORED, dtype=torch.long),
        "index": torch.tensor([int(example["index"]) for example in examples], dtype=torch.long),
    }
    for place, example in enumerate(examples):
        end = len(example["input_ids"])
        batch["input_ids"][place, :end] = torch.as_tensor(example["input_ids"], dtype=torch.long)
        batch["labels"][place, :end] = torch.as_tensor(example["labels"], dtype=torch.long)
        batch["attention_mask"][place, :end] = 1
    return batch


def collate_parts(items: Sequence[Mapping[str, Mapping[str, Any]]], pad_token_id: int = 0) -> dict[str, TokenBatch]:
    """Make a right-padded batch of each part; a plain function, so that any kind of loader worker can pickle it."""
    return {part: collate([item[part] for item in items], pad_token_id) for part in items[0]}


def concatenate(batches: Sequence[TokenBatch]) -> TokenBatch:
    """Stack token batches into one, right-padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    length = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    joined = {
        name: torch.cat([pad(batch[name], (0, length - batch[name].shape[1]), value=value) for batch in batches])
        for name, value in fill.items()
    }
    joined["index"] = torch.cat([batch["index"] for batch in batches])
    return joined


def supervised_positions(labels: Tensor) -> Tensor:
    """Mark the positions whose logits predict a supervised token: (batch, length) bool, never the last position."""
    positions = torch.zeros_like(labels, dtype=torch.bool)
    positions[:, :-1] = labels[:, 1:] != IGNORED
    return positions


def supervised_labels(labels: Tensor) -> Tensor:
    """Return the token that each supervised position predicts: (N,) int64, in the order of ``logits[positions]``."""
    return labels[:, 1:][labels[:, 1:] != IGNORED]


def supervised_sequences(labels: Tensor) -> Tensor:
    """Return the sequence of the batch that each supervised position belongs to: (N,) int64, ascending."""
    return supervised_positions(labels).nonzero()[:, 0]


@dataclass
class Answers:
    """One part of a batch at its N supervised positions, flattened sequence by sequence.

    Attributes:
        batch: The token batch itself (``input_ids`` (B, L), ``attention_mask``, ``labels``, ``index`` (B,)).
        hidden: (N, H) final hidden states, if ``head`` computes the logits from them; else None.
        head: Map from hidden states to logits.
        denominators: Divisors that turn sums into means over the global batch: ``rows`` for sums over sequences, the
            name of a part for sums over its supervised tokens. None divides by the counts of this batch.
        part: Name of the part of the batch.
        chunk_size: Number of positions whose vocabulary-sized values are in memory at the same time.
        positions: (n,) int64, indices of the selected ones among the N positions; None selects all.
    """

    batch: TokenBatch
    hidden: Tensor | None = None
    head: Head | None = None
    denominators: Mapping[str, float] | None = None
    part: str = "forget"
    chunk_size: int = 1024
    positions: Tensor | None = None
    _logits: Tensor | None = field(default=None, repr=False)

    @property
    def logits(self) -> Tensor:
        """(N, V) logits of the model at the supervised positions."""
        if self._logits is None:
            assert self.head is not None
            assert self.hidden is not None
            self._logits = self.head(self.hidden)
        return self._logits

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64, the supervised token that each position predicts."""
        labels = supervised_labels(self.batch["labels"])
        return labels if self.positions is None else labels[self.positions]

    @cached_property
    def sequence_ids(self) -> Tensor:
        """(N,) int64, the sequence of the batch that each position belongs to."""
        sequences = supervised_sequences(self.batch["labels"])
        return sequences if self.positions is None else sequences[self.positions]

    @property
    def batch_size(self) -> int:
        """B, the sequences of this part."""
        return self.batch["input_ids"].shape[0]

    def at(self, positions: Tensor) -> Answers:
        """Return the same answers at some of their positions (n,) int64, without hidden states and logits."""
        return replace(self, hidden=None, positions=positions, _logits=None)

    @cached_property
    def nll(self) -> Tensor:
        """(N,) negative log-likelihood of each supervised token; from hidden states, without N x V values in memory."""
        if self.hidden is None or self.head is None:
            return token_nll(self.logits, self.labels)
        if self.head.linear:
            return chunked_nll(self.hidden, self.head.weight, self.labels, self.chunk_size)
        return over_logits(lambda positions, logits: (token_nll(logits, self.labels[positions]),), self)[0]

    @property
    def mean_nll(self) -> Tensor:
        """Sum of ``nll`` divided by `token_denominator`; the single values are not kept unless something reads them."""
        if self.hidden is not None and self.head is not None and self.head.linear and "nll" not in self.__dict__:
            total = chunked_nll_sum(self.hidden, self.head.weight, self.labels, self.chunk_size)
            return total / self.token_denominator
        return self.nll.sum() / self.token_denominator

    def sequence_nll(self, reduction: str = "sum") -> Tensor:
        """(B,) summed or mean NLL of each sequence's answer."""
        return sequence_reduce(self.nll, self.sequence_ids, self.batch_size, reduction)

    @property
    def sequence_denominator(self) -> float:
        """Divisor of a sum over sequences: their number."""
        return self.denominators["rows"] if self.denominators else float(self.batch_size)

    @property
    def token_denominator(self) -> float:
        """Divisor of a sum over supervised tokens: their number.

        Raises:
            RunError: The data module counts the tokens of other parts, but not of this one.
        """
        if self.denominators:
            if self.part not in self.denominators:
                raise RunError(
                    f"The data module counts no tokens of {self.part}: average over its sequences "
                    "(sequence_denominator)."
                )
            return self.denominators[self.part]
        return float(max(1, len(self.labels)))


def divergence(policy: Answers, reference: Answers) -> Tensor:
    """Sum KL(reference || policy) over the positions; from hidden states, without N x V values in memory.

    Args:
        policy: The policy's answers.
        reference: The frozen reference's answers at the same positions.

    Returns:
        Scalar, nats, differentiable once in the policy.
    """
    head, frozen = policy.head, reference.head
    if policy.hidden is not None and reference.hidden is not None and head and frozen and head.linear and frozen.linear:
        return chunked_kl_sum(policy.hidden, head.weight, reference.hidden, frozen.weight, policy.chunk_size)
    (tokens,) = over_logits(lambda _, here, there: (token_kl(here, there),), policy, reference)
    return tokens.sum()


def over_logits(function: Callable[..., tuple[Tensor, ...]], *answers: Answers) -> tuple[Tensor, ...]:
    """Return the result of ``function`` on the logits of one or more models, computed for a few positions at a time.

    Args:
        function: Called with the positions (n,) int64 and the (n, V) logits of each of the answers; returns (n,)
            tensors.
        *answers: Answers of one or more models at the same N positions.

    Returns:
        (N,) tensors, differentiable if ``function`` is.
    """
    heads = [_same if one.hidden is None else one.head for one in answers]
    states = [one.logits if one.hidden is None else one.hidden for one in answers]
    positions = torch.arange(len(states[0]), device=states[0].device)

    def compute(positions: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        return function(positions, *(head(state) for head, state in zip(heads, states, strict=True)))  # type: ignore[misc]

    return in_chunks(compute, answers[0].chunk_size, positions, *states)


def _same(logits: Tensor) -> Tensor:
    return logits


Compute = Callable[[dict[str, Answers]], dict[str, Tensor]]


class _How(NamedTuple):
    """Options of `compute_answers`."""

    denominators: Mapping[str, float] | None
    chunk_size: int


def compute_answers(
    model: nn.Module,
    parts: Mapping[str, TokenBatch],
    compute: Compute,
    denominators: Mapping[str, float] | None = None,
    from_hidden: bool = False,
    chunk_size: int = 1024,
) -> dict[str, Tensor]:
    """Run ``model`` over all parts at once and return the result of ``compute`` on their supervised positions.

    Args:
        model: A ``transformers`` causal LM, sharded or not.
        parts: Token batches by name; they are concatenated, padded to the longest.
        compute: Called with one `Answers` per part. With ``from_hidden`` it runs inside the model's forward, where a
            sharded output projection is gathered.
        denominators: See `Answers`.
        from_hidden: Pass hidden states and the head instead of logits; valid if `known_head` finds one. On a CPU the
            batch may run in several forwards (`dipo_lightning.models.grouping`); with gradient accumulation this
            needs memory for a second copy of the gradients.
        chunk_size: See `Answers`.
    """
    how = _How(denominators, chunk_size)
    if not from_hidden:
        logits = answer_logits(model, concatenate(list(parts.values())))
        return compute(_answers(parts, how, logits, None))
    run: Any = getattr(model, "_from_hidden", None)
    if run is None:  # attached once, so that FSDP2 gathers the root's parameters around it
        model._from_hidden = types.MethodType(_run_from_hidden, model)  # type: ignore[assignment]
        if is_sharded(model):
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(model, "_from_hidden")
        run = model._from_hidden
    return run(parts, compute, how)


def answer_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the (N, V) logits of ``model`` at the supervised positions of ``batch``."""
    positions = supervised_positions(batch["labels"])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs, logits_to_keep=positions, use_cache=False).logits
    return logits if logits.dim() == 2 else logits[positions]  # some families ignore the positions


def answer_hidden(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the (N, H) final hidden states of ``model`` at the supervised positions; not through FSDP2's root.

    Args:
        model: A ``transformers`` causal LM.
        batch: Token batch, which may run in several forwards (`dipo_lightning.models.grouping`).
    """
    positions = supervised_positions(batch["labels"])
    return hidden_at(model, batch["input_ids"], batch["attention_mask"], positions, used_lengths(batch))


def used_lengths(batch: TokenBatch) -> list[int]:
    """Return the length of each sequence without the padding, which includes masked tokens at supervised positions."""
    used = batch["attention_mask"].bool() | (batch["labels"] != IGNORED)
    return (used * torch.arange(1, used.shape[1] + 1, device=used.device)).amax(1).clamp(min=1).tolist()


def _run_from_hidden(
    model: nn.Module, parts: Mapping[str, TokenBatch], compute: Compute, how: _How
) -> dict[str, Tensor]:
    hidden = answer_hidden(model, concatenate(list(parts.values())))
    return compute(_answers(parts, how, hidden, output_head(model)))


def _answers(parts: Mapping[str, TokenBatch], how: _How, values: Tensor, head: Head | None) -> dict[str, Answers]:
    """Give each part its own positions of a joint forward: of hidden states if there is a head, else of logits."""
    found = {}
    for (part, batch), own in zip(parts.items(), split(values, parts), strict=True):
        found[part] = Answers(batch, None if head is None else own, head, how.denominators, part, how.chunk_size)
        found[part]._logits = own if head is None else None
    return found


def split(values: Tensor, parts: Mapping[str, TokenBatch]) -> tuple[Tensor, ...]:
    """Give each part its own positions of a joint forward, whose values (N, ...) are in the order of the parts."""
    return values.split([int(supervised_positions(batch["labels"]).sum()) for batch in parts.values()])
