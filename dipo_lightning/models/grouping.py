"""Forward passes of a training batch on a CPU, in groups that compute no token for nothing.

Two things are saved. Sequences of similar length run together, since the longest of a forward decides how much padding
the others get. And a beginning that many sequences share, such as the one that a chat template gives all prompts, runs
once: under causal attention its states do not depend on what follows, so all sequences continue from its keys and
values, through which the gradient of each returns to it. Equal to one forward up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dipo_lightning.models.distributed import is_sharded
from dipo_lightning.models.head import causal_lm, decoder
from dipo_lightning.models.inspection import dropout_rates, leaves_rows_alone, same_logits

FORWARD_TOKENS = 128
"""Fixed cost of another forward and backward pass, in tokens; about right for 135 million weights on a CPU."""
WORTHWHILE = 8
"""Minimum number of tokens of a shared beginning."""

Inputs = Callable[[list[int], int, int], dict[str, Tensor]]
"""Arguments of the decoder for some rows, from one place to another: their ids, or the embeddings of these."""


class Plan(NamedTuple):
    """Groups of sequences that run together.

    Attributes:
        beginning: Number of tokens with which all sequences of ``sharing`` begin; 0 if that is empty.
        sharing: Groups of sequences that continue from them.
        others: Groups of sequences that run from their first token.
    """

    beginning: int
    sharing: list[list[int]]
    others: list[list[int]]


def hidden_at(model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return the final hidden states of a causal LM at some positions.

    On a GPU, sharded, or with hooks inside the decoder, which expect to see the whole batch, it takes one forward.

    Args:
        model: A ``transformers`` causal LM.
        ids: (B, L) int64, padded on the right.
        mask: (B, L) int64, 0 at masked tokens and padding.
        positions: (B, L) bool, with N positions that are True.
        lengths: Number of tokens of each sequence.

    Returns:
        (N, H), sequence by sequence.
    """

    def inputs(rows: list[int], start: int, end: int) -> dict[str, Tensor]:
        return {"input_ids": ids[rows, start:end]}

    plan = Plan(0, [], [])
    if ids.device.type == "cpu" and not is_sharded(model) and not _hooked(model):
        ready = (positions | (mask == 0)).int().cummax(1).values == 0  # before the first needed or masked position
        plan = forward_plan([row[:end].tolist() for row, end in zip(ids, ready.sum(1).tolist(), strict=True)], lengths)
        if plan.beginning and not _continues(model, ids, mask, plan, lengths):
            plan = Plan(0, [], length_groups(lengths))
    if not plan.beginning and len(plan.others) < 2:
        return decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[positions]
    groups = [*plan.sharing, *plan.others]
    starts = [plan.beginning] * len(plan.sharing) + [0] * len(plan.others)
    each = zip(_states(model, inputs, mask, plan, lengths), groups, starts, strict=True)
    found = torch.cat([one[positions[rows, start : start + one.shape[1]]] for one, rows, start in each])
    sequences = positions.nonzero()[:, 0]
    return found[torch.cat([torch.isin(sequences, torch.tensor(rows)).nonzero()[:, 0] for rows in groups]).argsort()]


def forward_plan(beginnings: Sequence[Sequence[int]], lengths: Sequence[int]) -> Plan:
    """Choose the groups with the fewest tokens, padding included, where another forward costs `FORWARD_TOKENS`.

    Args:
        beginnings: The tokens of each sequence that it may share with others.
        lengths: Number of tokens of each sequence.
    """
    apart = Plan(0, [], length_groups(lengths))
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, tokens in enumerate(beginnings):
        if len(tokens) >= WORTHWHILE:
            alike.setdefault(tuple(tokens[:WORTHWHILE]), []).append(row)
    common = {first: len(commonprefix([list(beginnings[row]) for row in rows])) for first, rows in alike.items()}
    best = max(alike, key=lambda first: (len(alike[first]) - 1) * common[first], default=None)
    if best is None:
        return apart
    others = sorted(set(range(len(lengths))) - set(alike[best]))
    rest = [length - common[best] for length in lengths]
    plan = Plan(common[best], _groups_of(alike[best], rest), _groups_of(others, lengths))
    return min(apart, plan, key=lambda one: _cost(one, lengths))


def length_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Group sequences by length so that all tokens, with padding, and `FORWARD_TOKENS` per group add up to the least.

    Args:
        lengths: Number of tokens of each sequence.

    Returns:
        Indices of each group's sequences, ascending; groups of shorter sequences come first.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    costs, starts = [0], [0]  # of the cheapest groups of the first 0, 1, ... sequences, and where their last one starts
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, start = min((costs[start] + (end - start) * longest + FORWARD_TOKENS, start) for start in range(end))
        costs.append(cost)
        starts.append(start)
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.insert(0, sorted(order[starts[end] : end]))
        end = starts[end]
    return groups


def _groups_of(rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    return [[rows[i] for i in group] for group in length_groups([lengths[row] for row in rows])]


def _cost(plan: Plan, lengths: Sequence[int]) -> int:
    cost = plan.beginning + FORWARD_TOKENS * bool(plan.beginning)
    for groups, start in ((plan.sharing, plan.beginning), (plan.others, 0)):
        cost += sum(len(rows) * (max(lengths[row] for row in rows) - start) + FORWARD_TOKENS for rows in groups)
    return cost


def _states(model: nn.Module, inputs: Inputs, mask: Tensor, plan: Plan, lengths: Sequence[int]) -> list[Tensor]:
    """Return the (b, n, H) hidden states of each group, those of the shared beginning left out."""
    from dipo_lightning.models.kv_cache import expanded, pairs

    run, found = decoder(model), list[Tensor]()
    if plan.beginning:
        first, start = plan.sharing[0][:1], plan.beginning
        options = {"attention_mask": mask[first, :start], "past_key_values": expanded([], 1), "use_cache": True}
        kept = pairs(run(**inputs(first, 0, start), **options).past_key_values)
        for rows in plan.sharing:
            end = max(lengths[row] for row in rows)
            options = {"attention_mask": mask[rows, :end], "past_key_values": expanded(kept, len(rows))}
            found.append(run(**inputs(rows, start, end), **options, use_cache=True).last_hidden_state)
    for rows in plan.others:
        end = max(lengths[row] for row in rows)
        output = run(**inputs(rows, 0, end), attention_mask=mask[rows, :end], use_cache=False)
        found.append(output.last_hidden_state)
    return found


def _hooked(model: nn.Module) -> bool:
    """Return whether a module inside the decoder has hooks."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for module in decoder(model).modules() for kind in kinds)


def _continues(model: nn.Module, ids: Tensor, mask: Tensor, plan: Plan, lengths: Sequence[int]) -> bool:
    """Test on the longest and the shortest sequence whether states and gradients are those of the sequence alone.

    Random numbers (dropout) would be drawn once for a shared beginning, and recomputed activations have no cache.
    """
    causal = causal_lm(model)
    if getattr(causal, "is_activation_checkpointing", False) or (model.training and dropout_rates(model)):
        return False
    rows = sorted((row for group in plan.sharing for row in group), key=lambda row: lengths[row])
    layout = f"shared beginning in {'training' if model.training else 'evaluation'}"
    return leaves_rows_alone(model, layout, lengths[rows[-1]], lambda: _try_out(model, ids, mask, plan, rows, lengths))


def _try_out(model: nn.Module, ids: Tensor, mask: Tensor, plan: Plan, rows: list[int], lengths: Sequence[int]) -> bool:
    ends = [rows[0], rows[-1]]
    mask, lengths = mask[ends], [lengths[row] for row in ends]

    start = plan.beginning

    def values(plan: Plan) -> tuple[Tensor, Tensor]:
        """States after the beginning, and the gradient of their weighted sum on the embeddings."""
        embedded = decoder(model).get_input_embeddings()(ids[ends]).detach().requires_grad_()  # type: ignore[operator]

        def inputs(rows: list[int], first: int, end: int) -> dict[str, Tensor]:
            return {"inputs_embeds": embedded[rows, first:end]}

        found = zip(_states(model, inputs, mask, plan, lengths), lengths, strict=True)
        states = torch.cat([one[0, start - plan.beginning : length - plan.beginning] for one, length in found])
        weights = torch.arange(states.numel(), device=states.device).view_as(states).cos()
        (gradient,) = torch.autograd.grad((states * weights).sum(), embedded)
        return states.detach(), torch.cat([gradient[:, :start].sum(0), *gradient[:, start:]])

    try:
        with torch.enable_grad():
            shared, alone = values(Plan(start, [[0], [1]], [])), values(Plan(0, [], [[0], [1]]))
    except Exception:  # the family needs a cache of its own kind, ids, or one token at a time
        return False
    return all(map(same_logits, shared, alone))
