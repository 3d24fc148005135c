"""Forward passes of a training batch on a CPU, in groups that waste no computation on padding or repeated tokens.

Two things are saved. Sequences of similar length run together, since the longest of a forward decides how much padding
the others get. And a beginning that many sequences share, such as the one that a chat template gives all prompts, runs
once: under causal attention its states do not depend on what follows, so all sequences continue from its keys and
values, through which the gradient of each returns to it. Equal to one forward up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os.path import commonprefix
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from dipo_lightning.models.distributed import is_sharded
from dipo_lightning.models.head import causal_lm, decoder
from dipo_lightning.models.inspection import dropout_rates, rope_types, vocabulary_size

FORWARD_TOKENS = 128
"""Fixed cost of one more forward and backward pass, in tokens; about right for 135 million weights on a CPU."""
WORTHWHILE = 8
"""Minimum number of tokens of a shared beginning."""

Inputs = Callable[[list[int], int, int], dict[str, Tensor]]
"""Arguments of the decoder for some rows, from position ``start`` to ``end``: token ids or their embeddings."""

_whole: WeakSet[nn.Module] = WeakSet()
_shares: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


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

    A model on a GPU, a sharded model, one that `run_whole` names, or one with hooks inside the decoder, which expect
    the whole batch, runs in one forward.

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
    if ids.device.type == "cpu" and not is_sharded(model) and causal_lm(model) not in _whole and not _hooked(model):
        ready = (positions | (mask == 0)).int().cummax(1).values == 0  # before the first needed or masked position
        ends = zip(ready.sum(1).tolist(), lengths, strict=True)
        beginnings = [row[: min(end, length - 1)].tolist() for row, (end, length) in zip(ids, ends, strict=True)]
        plan = forward_plan(beginnings, lengths)
        if plan.beginning and not _can_share(model):
            plan = Plan(0, [], length_groups(lengths))
    if not plan.beginning and len(plan.others) < 2:
        return decoder(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[positions]
    groups = [*plan.sharing, *plan.others]
    starts = [plan.beginning] * len(plan.sharing) + [0] * len(plan.others)
    each = zip(_states(model, inputs, mask, plan, lengths), groups, starts, strict=True)
    found = torch.cat([one[positions[rows, start : start + one.shape[1]]] for one, rows, start in each])
    sequences = positions.nonzero()[:, 0]
    return found[torch.cat([torch.isin(sequences, torch.tensor(rows)).nonzero()[:, 0] for rows in groups]).argsort()]


def run_whole(model: nn.Module) -> None:
    """Run all batches of a model in one forward from now on."""
    _whole.add(causal_lm(model))


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
    """Return whether a module inside the decoder has hooks other than those by which transformers collects outputs."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = (hook for module in decoder(model).modules() for kind in kinds for hook in getattr(module, kind).values())
    return any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks)


def _can_share(model: nn.Module) -> bool:
    """Return whether sequences can continue from the keys and values of a beginning; tested once per model.

    Random numbers (dropout) would be drawn once for all sequences, recomputed activations have no cache, and some
    rotary embeddings depend on the length of the whole sequence.
    """
    causal = causal_lm(model)
    checkpointed = getattr(causal, "is_activation_checkpointing", False)
    if checkpointed or (model.training and dropout_rates(model)) or rope_types(model) & {"dynamic", "longrope"}:
        return False
    if causal not in _shares:
        with torch.inference_mode(False):
            _shares[causal] = _try_out(model)
    return _shares[causal]


def _try_out(model: nn.Module) -> bool:
    """Compare states and gradients of two short sequences that share a beginning with those of each alone."""
    start, lengths = 8, [11, 17]
    run: Any = decoder(model)
    embeddings = run.get_input_embeddings()
    ids = torch.arange(2 * lengths[1], device=embeddings.weight.device).view(2, -1) % vocabulary_size(model)
    ids[1, :start] = ids[0, :start]

    def values(plan: Plan) -> tuple[Tensor, Tensor]:
        """States after the beginning, and the gradient of their weighted sum on the embeddings."""
        embedded = embeddings(ids).detach().requires_grad_()

        def inputs(rows: list[int], first: int, end: int) -> dict[str, Tensor]:
            return {"inputs_embeds": embedded[rows, first:end]}

        found = zip(_states(model, inputs, torch.ones_like(ids), plan, lengths), lengths, strict=True)
        states = torch.cat([one[0, start - plan.beginning : length - plan.beginning] for one, length in found])
        weights = torch.arange(states.numel(), device=states.device).view_as(states).cos()
        (gradient,) = torch.autograd.grad((states * weights).sum(), embedded)
        return states.detach(), torch.cat([gradient[:, :start].sum(0), *gradient[:, start:]])

    try:
        with torch.enable_grad(), torch.autocast(ids.device.type, enabled=False):
            shared, alone = values(Plan(start, [[0], [1]], [])), values(Plan(0, [], [[0], [1]]))
    except Exception:  # the family needs its own kind of cache, needs token ids, or decodes one token at a time
        return False
    norm, pairs = torch.linalg.vector_norm, zip(shared, alone, strict=True)
    tolerance = max(torch.finfo(dtype).eps for dtype in (shared[0].dtype, torch.float32)) ** 0.5
    return all(norm(here - there) < tolerance * norm(there) for here, there in pairs)
