"""Several answers to one question in one row of a batch: the prompt is computed once, and no answer sees another.

TOFU scores seven answers to each question, a chat prompt is often longer than an answer, and wrong answers begin like
the right one. So the answers form a tree behind the prompt. The attention mask lets each token see only the tokens
before it in its own answer, and positions continue from the end of the prompt: every token is computed as in a row of
its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dipo_lightning.models.answers import IGNORED, first_supervised
from dipo_lightning.models.head import causal_lm
from dipo_lightning.models.inspection import attention_implementation

Example = tuple[list[int], list[int]]
"""``input_ids`` and ``labels`` of a row, from a `PromptStyle`; -100 where a token is not scored."""

WORTHWHILE = 8  # tokens; a shorter prompt costs less than the wider attention


@dataclass(frozen=True)
class Layout:
    """Prompt and answers as one row: a prefix tree.

    Attributes:
        ids: The n tokens: the prompt, then the tokens that each answer adds.
        parents: Place of the token before each one; -1 for the first.
        positions: Position of each token in a row of its own.
        prompt: Number of tokens of the prompt.
        paths: Places of each answer's tokens.
        following: Place of the next token, by the place before it and its id.
    """

    ids: list[int]
    parents: list[int]
    positions: list[int]
    prompt: int
    paths: list[list[int]]
    following: dict[tuple[int, int], int]

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self.ids)

    @property
    def branches(self) -> bool:
        """True if the row holds more than one answer, so that it needs a mask of its own."""
        return len(self.paths) > 1


def lay_out(prompt: Sequence[int], answers: Iterable[Sequence[int]]) -> Layout:
    """Lay out the answers to one prompt; common prefixes are stored once."""
    count = len(prompt)
    row = Layout(list(prompt), list(range(-1, count - 1)), list(range(count)), count, [], {})
    for answer in answers:
        path, at = [], count - 1
        for token in answer:
            place = row.following.setdefault((at, token), len(row.ids))
            if place == len(row.ids):
                row.ids.append(token)
                row.parents.append(at)
                row.positions.append(row.positions[at] + 1)
            path.append(at := place)
        row.paths.append(path)
    return row


def lay_out_examples(group: Sequence[Example]) -> Layout:
    """Lay out examples with the same prompt."""
    prompt = prompt_of(group[0])
    return lay_out(prompt, [ids[len(prompt) :] for ids, _ in group])


@dataclass(frozen=True)
class PackedBatch:
    """Batch of B rows, each with a prompt and its answers.

    Attributes:
        layouts: Layout of each row.
        ids: (B, L) int64, padded on the right with 0.
        predictors: (B, L) bool, the positions whose logits are read.
        index: (N,) int64, the place of each scored token's predictor among all ``predictors`` in order.
        labels: (N,) int64, the scored tokens, example by example.
        counts: Number of scored tokens of each example.
    """

    layouts: Sequence[Layout]
    ids: Tensor
    predictors: Tensor
    index: Tensor
    labels: Tensor
    counts: list[int]

    @property
    def shared(self) -> bool:
        """True if a row holds more than one answer."""
        return any(layout.branches for layout in self.layouts)

    def inputs(self, policy: nn.Module, device: torch.device, past: int | None = None) -> dict[str, Tensor]:
        """Return the arguments of the policy's forward, with an ordinary mask if no row holds more than one answer.

        Args:
            policy: The causal LM.
            device: Device of the tensors.
            past: Number of cached tokens before every row; None without a cache.
        """
        arguments = {"input_ids": self.ids, "logits_to_keep": self.predictors}
        if self.shared or past is not None:
            filled = [layout.positions + [0] * (self.ids.shape[1] - len(layout)) for layout in self.layouts]
            arguments["position_ids"] = torch.tensor(filled) + (past or 0)
            seen = torch.stack([ancestors(layout, self.ids.shape[1]) for layout in self.layouts])
            seen = torch.cat([seen.new_ones(*seen.shape[:2], past or 0), seen], -1)
            arguments["attention_mask"] = attention(seen, attention_implementation(policy))
        else:
            lengths = torch.tensor([[len(layout)] for layout in self.layouts])
            arguments["attention_mask"] = (torch.arange(self.ids.shape[1]) < lengths).long()
        return {name: value.to(device) for name, value in arguments.items()}


def ancestors(layout: Layout, length: int) -> Tensor:
    """Return the (length, length) bool mask by which a token sees itself and the tokens before it in its answer."""
    seen = np.eye(length, dtype=bool)
    seen[: layout.prompt, : layout.prompt] = np.tri(layout.prompt, dtype=bool)
    for place in range(layout.prompt, len(layout)):
        seen[place] |= seen[layout.parents[place]]
    return torch.from_numpy(seen)


def attention(seen: Tensor, implementation: str) -> Tensor:
    """Convert the mask of visible tokens to the (B, 1, L, P + L) format of the model's attention.

    Args:
        seen: (B, L, P + L) bool, the `ancestors` behind P cached tokens.
        implementation: ``sdpa`` takes a bool mask, ``eager`` an additive one.
    """
    if implementation == "sdpa":
        return seen[:, None]
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]


def pack(
    layouts: Sequence[Layout], groups: Sequence[Sequence[Example]], also: Sequence[Iterable[int]] | None = None
) -> PackedBatch:
    """Collate rows into a batch.

    Args:
        layouts: Layouts of the rows.
        groups: The scored examples of each row, in the order of the first paths of its layout.
        also: Further places of each row whose logits are read.
    """
    length = max(map(len, layouts))
    predictors = torch.zeros(len(layouts), length, dtype=torch.bool)
    scored: list[list[tuple[int, int]]] = []  # predictor and label of every token, by example
    for number, (layout, group) in enumerate(zip(layouts, groups, strict=True)):
        for path, (_, labels) in zip(layout.paths, group, strict=False):
            places = zip(path, labels[layout.prompt :], strict=True)
            scored.append([(layout.parents[place], label) for place, label in places if label != IGNORED])
            predictors[number, [place for place, _ in scored[-1]]] = True
        if also is not None:
            predictors[number, list(also[number])] = True
    place = (predictors.flatten().cumsum(0) - 1).view_as(predictors)
    rows = [number for number, group in enumerate(groups) for _ in group]
    index = [place[row, [at for at, _ in tokens]] for row, tokens in zip(rows, scored, strict=True)]
    return PackedBatch(
        layouts=layouts,
        ids=torch.tensor([layout.ids + [0] * (length - len(layout)) for layout in layouts]),
        predictors=predictors,
        index=torch.cat(index) if index else torch.empty(0, dtype=torch.long),
        labels=torch.tensor([label for tokens in scored for _, label in tokens], dtype=torch.long),
        counts=[len(tokens) for tokens in scored],
    )


def prompt_of(example: Example) -> list[int]:
    """Return the ids before the first scored token, not counting the very first token, which nothing predicts."""
    ids, labels = example
    return ids[: 1 + first_supervised(labels[1:])]


def group_by_prompt(
    examples: Sequence[Example], indices: Iterable[int], most_tokens: int, window: int | None
) -> list[list[int]]:
    """Group examples with the same prompt.

    Args:
        examples: All examples.
        indices: Examples to group; each has a scored token.
        most_tokens: Maximum number of tokens in a group of several examples.
        window: Length up to which an example may share a row: the model's attention window, which an explicit mask
            would override. None without a bound.

    Returns:
        Indices of each group, in the original order.
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
    """Return the smallest attention window of the policy's layers in tokens; None without a bound."""
    config = causal_lm(policy).config.get_text_config(decoder=True)
    bounds = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((bound for bound in bounds if isinstance(bound, int)), default=None)


def can_share_prompts(policy: nn.Module) -> bool:
    """Return whether all layers of the policy are attention layers that accept an explicit mask.

    Necessary, not sufficient: some families ignore the mask or the positions, which only a test shows.
    """
    causal = causal_lm(policy)
    return (
        getattr(causal, "_supports_attention_backend", False)
        and not getattr(causal, "_is_stateful", True)
        and attention_implementation(policy) in ("sdpa", "eager")
    )
