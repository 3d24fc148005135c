"""The supervised positions of a batch, as a model sees them: what every objective is computed from.

Positions are selected before the output projection, so prompts and padding never reach the vocabulary, and all
halves of a batch (forget, retain, ...) share one forward.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from dipo_lightning.errors import RunError
from dipo_lightning.losses.chunked_likelihood import chunked_nll, chunked_nll_sum
from dipo_lightning.losses.chunking import in_chunks
from dipo_lightning.losses.likelihood import token_nll
from dipo_lightning.losses.reductions import sequence_reduce
from dipo_lightning.models.head import Head, decoder, output_head
from dipo_lightning.models.sharding import is_sharded
from dipo_lightning.models.token_batch import TokenBatch, selected_labels, selected_rows, supervised_positions


@dataclass
class Answers:
    """One half of a batch at its N supervised positions, flattened row by row.

    Attributes:
        batch: The token batch itself (``input_ids`` (B, L), ``attention_mask``, ``labels``, ``index`` (B,)).
        hidden: (N, H) final hidden states, where the head is computed from them; else None.
        head: What makes logits of ``hidden``.
        denominators: ``rows`` and the supervised tokens of each half to divide sums by, so that terms are means over
            the global batch; None divides by what is in this batch.
        half: Which half of the batch this is.
        chunk_size: Positions whose vocabulary-sized values may live at the same time, where a likelihood comes from
            hidden states.
    """

    batch: TokenBatch
    hidden: Tensor | None = None
    head: Head | None = None
    denominators: Mapping[str, float] | None = None
    half: str = "forget"
    chunk_size: int = 1024
    _logits: Tensor | None = field(default=None, repr=False)

    @property
    def logits(self) -> Tensor:
        """(N, V) logits of the model at the supervised positions."""
        if self._logits is None:
            assert self.hidden is not None
            assert self.head is not None
            self._logits = self.head(self.hidden)
        return self._logits

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64, the supervised token that each position predicts."""
        return selected_labels(self.batch["labels"])

    @cached_property
    def rows(self) -> Tensor:
        """(N,) int64, the row of the batch each position belongs to."""
        return selected_rows(self.batch["labels"])

    @cached_property
    def nll(self) -> Tensor:
        """(N,) negative log-likelihood of each supervised token; from hidden states in a memory without N x V."""
        if self.hidden is None or self.head is None or self._logits is not None:
            return token_nll(self.logits, self.labels)
        if self.head.linear:
            return chunked_nll(self.hidden, self.head.weight, self.labels, self.chunk_size)
        head = self.head
        return in_chunks(lambda x, y: (token_nll(head(x), y),), self.chunk_size, self.hidden, self.labels)[0]

    @property
    def mean_nll(self) -> Tensor:
        """Sum of ``nll`` over `token_denominator`, without the single ones where nothing else asks for them."""
        if self.hidden is not None and self.head is not None and self.head.linear and "nll" not in self.__dict__:
            total = chunked_nll_sum(self.hidden, self.head.weight, self.labels, self.chunk_size)
            return total / self.token_denominator
        return self.nll.sum() / self.token_denominator

    def sequence_nll(self, reduction: str = "sum") -> Tensor:
        """(B,) summed or mean NLL of each row's answer."""
        return sequence_reduce(self.nll, self.rows, self.count, reduction)

    @property
    def count(self) -> int:
        """B, the rows of this half."""
        return self.batch["input_ids"].shape[0]

    @property
    def row_denominator(self) -> float:
        """What a sum over rows is divided by."""
        return self.denominators["rows"] if self.denominators else float(self.count)

    @property
    def token_denominator(self) -> float:
        """What a sum over supervised tokens is divided by.

        Raises:
            RunError: The data module counts the tokens of other halves, but not of this one.
        """
        if self.denominators:
            if self.half not in self.denominators:
                raise RunError(
                    f"The data module counts no tokens of {self.half}: average over its rows (row_denominator)."
                )
            return self.denominators[self.half]
        return float(max(1, len(self.labels)))


Compute = Callable[[dict[str, Answers]], dict[str, Tensor]]


def compute_answers(
    model: nn.Module,
    halves: Mapping[str, TokenBatch],
    compute: Compute,
    denominators: Mapping[str, float] | None = None,
    from_hidden: bool = False,
) -> dict[str, Tensor]:
    """Run ``model`` once over all halves and return what ``compute`` makes of their supervised positions.

    Args:
        model: A ``transformers`` causal LM, sharded or not.
        halves: Token batches by name; they are concatenated, padded to the longest.
        compute: Called with one `Answers` a half. With ``from_hidden`` it runs inside the model's forward, where a
            sharded output projection is gathered.
        denominators: See `Answers`.
        from_hidden: Give hidden states and the head instead of logits; right where `head_is_known` says so.
    """
    joined = concatenate(list(halves.values()))
    if from_hidden:
        run: Any = getattr(model, "_from_hidden", None)
        if run is None:  # attached once, so that FSDP2 gathers the root's parameters around it
            run = types.MethodType(_run_from_hidden, model)
            model._from_hidden = run
            if is_sharded(model):
                register_fsdp_forward_method(model, "_from_hidden")
                run = model._from_hidden
        return run(joined, halves, compute, denominators)
    logits = answer_logits(model, joined)
    return compute(_split(halves, denominators, logits=logits))


def answer_logits(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the (N, V) logits of ``model`` at the supervised positions of ``batch``."""
    positions = supervised_positions(batch["labels"])
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=positions,
        use_cache=False,
    )
    logits = output.logits
    return logits if logits.dim() == 2 else logits[positions]  # some families ignore the positions


def answer_hidden(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the (N, H) final hidden states of ``model`` at the supervised positions; not through FSDP2's root."""
    output = decoder(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return output.last_hidden_state[supervised_positions(batch["labels"])]


def concatenate(batches: list[TokenBatch]) -> TokenBatch:
    """Stack token batches into one, right-padded to the longest."""
    if len(batches) == 1:
        return batches[0]
    length = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    joined: dict[str, Tensor] = {
        name: torch.cat(
            [nn.functional.pad(batch[name], (0, length - batch[name].shape[1]), value=value) for batch in batches]
        )
        for name, value in fill.items()
    }
    joined["index"] = torch.cat([batch["index"] for batch in batches])
    return joined


def _run_from_hidden(
    model: nn.Module,
    joined: TokenBatch,
    halves: Mapping[str, TokenBatch],
    compute: Compute,
    denominators: Mapping[str, float] | None,
) -> dict[str, Tensor]:
    hidden = answer_hidden(model, joined)
    return compute(_split(halves, denominators, hidden=hidden, head=output_head(model)))


def _split(
    halves: Mapping[str, TokenBatch],
    denominators: Mapping[str, float] | None,
    logits: Tensor | None = None,
    hidden: Tensor | None = None,
    head: Head | None = None,
) -> dict[str, Answers]:
    """Give each half its own positions of the joined forward."""
    counts = [int(supervised_positions(batch["labels"]).sum()) for batch in halves.values()]
    values: Any = logits if logits is not None else hidden
    answers = {}
    for (half, batch), part in zip(halves.items(), torch.split(values, counts), strict=True):
        answers[half] = Answers(batch, head=head, denominators=denominators, half=half)
        if logits is not None:
            answers[half]._logits = part
        else:
            answers[half].hidden = part
    return answers
