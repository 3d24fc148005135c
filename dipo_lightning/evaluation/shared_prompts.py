"""Several answers to one question in one row of a batch: the question is computed once, and no answer sees another.

TOFU scores seven answers to each question, and a chat prompt is often longer than an answer. Laid out as ``prompt,
answer, answer, ...`` with an attention mask that shows each answer the prompt and itself, and with positions that go
on from the prompt's end, every token gets what it would get in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipo_lightning.models.head import causal_lm
from dipo_lightning.models.inspection import attention_implementation

Example = tuple[list[int], list[int]]
"""``input_ids`` and ``labels`` of one row, as a `PromptStyle` makes them; -100 where a token is not scored."""

WORTHWHILE = 8  # a shorter prompt costs less than the wider attention


@dataclass(frozen=True)
class PackedBatch:
    """B rows, each with a prompt and all its answers.

    Attributes:
        ids: (B, L) int64, padded on the right with 0.
        positions: (B, L) int64, each token's position in the row it would have alone.
        segments: (B, L) int64: 0 for the prompt, 1, 2, ... for the answers, -1 for padding.
        predictors: (B, L) bool, the positions whose logits are read.
        index: (N,) int64, for every scored token its predictor's place among the ``predictors`` in order.
        labels: (N,) int64, the scored tokens, example by example.
        counts: Scored tokens of each example.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    predictors: Tensor
    index: Tensor
    labels: Tensor
    counts: list[int]

    @property
    def shared(self) -> bool:
        """True if some row holds more than one answer."""
        return bool(self.segments.max() > 1)

    def inputs(self, policy: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Return the arguments of the policy's forward: a plain mask where no row holds more than one answer."""
        arguments = {"input_ids": self.ids, "logits_to_keep": self.predictors}
        if self.shared:
            arguments["position_ids"] = self.positions
            arguments["attention_mask"] = attention(self.segments, attention_implementation(policy))
        else:
            arguments["attention_mask"] = (self.segments >= 0).long()
        return {name: value.to(device) for name, value in arguments.items()}


def attention(segments: Tensor, implementation: str) -> Tensor:
    """Return the (B, 1, L, L) mask in which a token sees the prompt and its own answer, up to itself.

    Args:
        segments: (B, L), see `PackedBatch`.
        implementation: ``sdpa`` takes a bool mask, ``eager`` one to add.
    """
    length = segments.shape[1]
    same = segments[:, :, None] == segments[:, None, :]
    seen = (same | (segments[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
    if implementation == "sdpa":
        return seen[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def pack(groups: Sequence[Sequence[Example]]) -> PackedBatch:
    """Lay out each group, whose examples have the same prompt, as one row."""
    rows = [_lay_out(group) for group in groups]
    length = max(len(row["ids"]) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (length - len(row[name])) for row in rows])

    predictors = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, row in enumerate(rows):
        predictors[number, row["predictors"]] = True
    place = (predictors.flatten().cumsum(0) - 1).view_as(predictors)
    return PackedBatch(
        ids=padded("ids", 0),
        positions=padded("positions", 0),
        segments=padded("segments", -1),
        predictors=predictors,
        index=torch.cat([place[number, row["predictors"]] for number, row in enumerate(rows)]),
        labels=torch.tensor([label for row in rows for label in row["labels"]]),
        counts=[count for row in rows for count in row["counts"]],
    )


def _lay_out(group: Sequence[Example]) -> dict[str, list[int]]:
    """Return one row: its ids, positions and segments, and what is scored in it."""
    prompt = prompt_of(group[0])
    row: dict[str, list[int]] = {
        "ids": list(prompt),
        "positions": list(range(len(prompt))),
        "segments": [0] * len(prompt),
        "predictors": [],
        "labels": [],
        "counts": [],
    }
    for number, (ids, labels) in enumerate(group, start=1):
        start = len(row["ids"])
        scored = [place for place in range(len(prompt), len(ids)) if labels[place] != -100]
        row["predictors"] += [
            place - 1 if place == len(prompt) else start + place - 1 - len(prompt) for place in scored
        ]
        row["labels"] += [labels[place] for place in scored]
        row["counts"].append(len(scored))
        row["ids"] += ids[len(prompt) :]
        row["positions"] += range(len(prompt), len(ids))
        row["segments"] += [number] * (len(ids) - len(prompt))
    return row


def prompt_of(example: Example) -> list[int]:
    """Return the ids before the first scored token that something predicts."""
    ids, labels = example
    return ids[: next(place for place in range(1, len(labels)) if labels[place] != -100)]


def group_by_prompt(
    examples: Sequence[Example], indices: Iterable[int], most_tokens: int, window: int | None
) -> list[list[int]]:
    """Group examples with the same prompt.

    Args:
        examples: All examples.
        indices: Which of them to group; each has a scored token.
        most_tokens: Most tokens of a group, unless it is a single example.
        window: Longest example that may be laid out beside others: what the model's attention sees at once, a bound
            that a mask given whole would override. None for no bound.

    Returns:
        Indices of each group, in the order in which they came.
    """
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, ...], tuple[list[int], int]] = {}
    for index in indices:
        ids = examples[index][0]
        prompt = tuple(prompt_of(examples[index]))
        group, used = open_groups.get(prompt, ([], 0))
        more = len(ids) - len(prompt)
        fits = group and used + more <= most_tokens and (window is None or len(ids) <= window)
        if fits and len(prompt) >= WORTHWHILE:
            group.append(index)
            open_groups[prompt] = group, used + more
        else:
            groups.append([index])
            if window is None or len(ids) <= window:
                open_groups[prompt] = groups[-1], len(ids)
    return groups


def attention_window(policy: nn.Module) -> int | None:
    """Return the most tokens that every layer of the policy sees at once, or None for no bound."""
    config = causal_lm(policy).config.get_text_config(decoder=True)
    bounds = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((bound for bound in bounds if isinstance(bound, int)), default=None)


def can_share_prompts(policy: nn.Module) -> bool:
    """Tell whether the policy's layers are attention alone, through an interface that takes a whole mask.

    Necessary, not sufficient: some families ignore such a mask or the positions, which only a trial shows.
    """
    causal = causal_lm(policy)
    return (
        getattr(causal, "_supports_attention_backend", False)
        and not getattr(causal, "_is_stateful", True)
        and attention_implementation(policy) in ("sdpa", "eager")
    )
