"""Sampling of several continuations of each prompt, each prompt with its own stream of random numbers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import may_be_padded, rows_at_once
from dipo_lightning.models.head import causal_lm
from dipo_lightning.models.inspection import position_limit


def hash_seed(seed: int, index: int) -> int:
    """Return the seed of a question; runs with different seeds share none, up to a million questions."""
    return torch_seed(seed * 1_000_003 + index)


def torch_seed(number: int) -> int:
    """Return a number as a seed that torch takes: itself, or modulo 2**64 if it has more than 64 bits."""
    return number if -(2**63) <= number < 2**64 else number % 2**64


def answer_room(longest: int) -> int:
    """Return the maximum length of a sampled answer in tokens: somewhat more than the longest true one, within limits.

    A run that ends when no answer says a secret has to look at answers of the length that its examination looks at.
    """
    return min(256, max(48, longest + 16))


def prompts_at_once(policy: nn.Module, samples: int, tokens: int) -> int:
    """Return the number of prompts per batch on the policy's device, for texts of up to that many tokens."""
    return max(1, rows_at_once(policy, tokens) // max(1, samples))


@torch.no_grad()
def sample(
    policy: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    seeds: Sequence[int],
    temperature: float = 1.0,
    min_p: float = 0.0,
    visible: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    banned_first: Sequence[Sequence[int]] | None = None,
    observe: Callable[[list[int], Tensor, list[list[int]]], None] | None = None,
) -> list[list[list[int]]]:
    """Sample several continuations of each prompt; the prompt itself is computed once.

    The random numbers are drawn on the CPU, one per continuation and position, so that they depend on the prompt's seed
    alone. Not collective: the caller sets evaluation mode and gathers sharded weights.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one.
        prompts: Token ids, none empty.
        samples: Number of continuations per prompt.
        max_new_tokens: Maximum number of tokens in a continuation.
        stop_ids: Ids that end a continuation.
        seeds: A seed per prompt.
        temperature: Sampling temperature, above 0.
        min_p: Probability, as a share of the likeliest token's, below which a token is not sampled.
        visible: For each prompt, 1 per token, or 0 if the model must not attend to it; positions are unchanged.
        banned: For each prompt, tokens that must not be sampled.
        banned_first: For each prompt, further tokens with which a continuation must not begin.
        observe: Called before each new token with the numbers of the n unfinished continuations (``prompt * samples +
            sample``), their (n, V) logits and their tokens so far.

    Returns:
        The continuations of each prompt, cut before a stop id or at the end of the model's position embeddings.

    Raises:
        InputError: The model's cache cannot be repeated for several continuations.
    """
    said: list[list[list[int]]] = [[[] for _ in range(samples)] for _ in prompts]
    limit = position_limit(policy)
    room = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(prompt)) for prompt in prompts]
    for batch in _batches(policy, prompts, room, samples, visible is not None):
        generators = [torch.Generator().manual_seed(seeds[number]) for number in batch]
        view = [[1] * len(prompts[n]) if visible is None else list(visible[n]) for n in batch]
        limits, first = ([list(one[n]) if one else [] for n in batch] for one in (banned, banned_first))
        numbers = [number * samples + place for number in batch for place in range(samples)]
        found = _sample_batch(
            policy, [list(prompts[n]) for n in batch], view, limits, first, generators, samples, room[batch[0]],
            set(stop_ids), temperature, min_p, numbers, observe,
        )  # fmt: skip
        for number, continuations in zip(batch, found, strict=True):
            said[number] = continuations
    return said


def _batches(
    policy: nn.Module, prompts: Sequence[Sequence[int]], room: Sequence[int], samples: int, masked: bool
) -> list[list[int]]:
    """Batch prompts: of different lengths if padding does not change their continuations, else of one length.

    All prompts of a batch have room for the same number of new tokens; prompts without room are left out.
    """
    device = next(policy.parameters()).device
    order = sorted((n for n in range(len(prompts)) if room[n] > 0), key=lambda number: len(prompts[number]))
    size = prompts_at_once(policy, samples, max((len(prompts[n]) + room[n] for n in order), default=0))
    apart = len({len(prompts[number]) for number in order}) > 1
    padded = (
        apart
        and takes_positions(policy)
        and (masked or may_be_padded(policy, [list(prompts[n]) for n in order], device))
    )
    groups: dict[tuple[int, int], list[int]] = {}
    for number in order:
        groups.setdefault((0 if padded else len(prompts[number]), room[number]), []).append(number)
    return [group[start : start + size] for group in groups.values() for start in range(0, len(group), size)]


def _sample_batch(
    policy: nn.Module,
    prompts: list[list[int]],
    visible: list[list[int]],
    banned: list[list[int]],
    banned_first: list[list[int]],
    generators: list[torch.Generator],
    samples: int,
    max_new_tokens: int,
    stop_ids: set[int],
    temperature: float,
    min_p: float,
    numbers: list[int],
    observe: Callable[[list[int], Tensor, list[list[int]]], None] | None,
) -> list[list[list[int]]]:
    """Sample the continuations of a batch of prompts, padded on the left; finished ones leave the batch."""
    device = next(policy.parameters()).device
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(one)) + one for one in visible], device=device)
    positions = torch.tensor([[0] * (width - len(one)) + list(range(len(one))) for one in prompts], device=device)
    positioned = ["position_ids"] if takes_positions(policy) else []
    masked = not bool(mask.all())

    def view() -> dict[str, Tensor]:
        """Return the mask and the positions, if there are padded or hidden tokens."""
        return {"attention_mask": mask, **dict.fromkeys(positioned, positions)} if masked else {}

    output = policy(input_ids=ids, use_cache=True, logits_to_keep=1, **view())
    logits = output.logits[:, -1].repeat_interleave(samples, 0)
    cache = _repeated(output.past_key_values, samples)
    mask, positions = mask.repeat_interleave(samples, 0), positions[:, -1:].repeat_interleave(samples, 0)
    said: list[list[int]] = [[] for _ in range(len(prompts) * samples)]
    rows = list(range(len(said)))  # still in the batch
    going = set(rows)
    for step in range(max_new_tokens):
        for place, row in enumerate(rows if any(banned) else ()):
            logits[place, banned[row // samples]] = torch.finfo(logits.dtype).min
        for prompt, first in enumerate([] if step else banned_first):
            logits[prompt * samples : (prompt + 1) * samples, first] = torch.finfo(logits.dtype).min
        if observe:
            places = [place for place, row in enumerate(rows) if row in going]
            unfinished = [rows[place] for place in places]
            observe([numbers[row] for row in unfinished], logits[places], [said[row] for row in unfinished])
        uniform = torch.cat([torch.rand(samples, generator=one, dtype=torch.float64) for one in generators])
        logits = logits / temperature
        if min_p:
            unlikely = logits < logits.amax(-1, keepdim=True) + math.log(min_p)
            logits = logits.masked_fill(unlikely, torch.finfo(logits.dtype).min)
        tokens = draw_tokens(logits, uniform[rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row in going and token in stop_ids:
                going.discard(row)
            elif row in going:
                said[row].append(token)
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) <= len(rows) // 2 and hasattr(cache, "batch_select_indices"):
            kept = torch.tensor([place for place, row in enumerate(rows) if row in going], device=device)
            cache.batch_select_indices(kept)
            tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            rows = [row for row in rows if row in going]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = positions + 1
        output = policy(input_ids=tokens[:, None], past_key_values=cache, use_cache=True, **view())
        logits, cache = output.logits[:, -1], output.past_key_values
    return [said[start : start + samples] for start in range(0, len(said), samples)]


def takes_positions(policy: nn.Module) -> bool:
    """Return whether the policy's forward accepts ``position_ids``."""
    return "position_ids" in inspect.signature(causal_lm(policy).forward).parameters


def draw_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw one token per row by inverse transform sampling.

    Args:
        logits: (n, V).
        uniform: (n,) float64 in [0, 1).

    Returns:
        (n,) int64 on the logits' device; never a token of probability 0.
    """
    cumulative = logits.double().softmax(-1).cumsum(-1)
    wanted = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, wanted, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)


def _repeated(cache: Any, samples: int) -> Any:
    if not hasattr(cache, "batch_repeat_interleave"):
        raise InputError(
            f"Sampling repeats the cache of a prompt, which {type(cache).__name__} does not allow: leave sampling out."
        )
    cache = copy.copy(cache)
    cache.batch_repeat_interleave(samples)
    return cache
