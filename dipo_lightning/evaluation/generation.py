"""Batched greedy decoding whose results equal those of each prompt alone, on any number of processes.

A batch that ran until its last row has finished would decode mostly padding. So it stops when few unfinished rows are
left, and these are continued together with the stragglers of the other batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from dipo_lightning.models.distributed import evaluation_mode, gather, least, own_batches, unsharded
from dipo_lightning.models.head import causal_lm
from dipo_lightning.models.inspection import batch_memory, check_ids, leaves_rows_alone, position_limit, same_logits

BATCH_ROWS = 64
FEW = 0.25  # a batch stops when at most this share of its rows is unfinished ...
FEWEST = 8  # ... unless it has so few rows that a new batch would cost more than it saves
PROBED = 4  # new tokens on which cached decoding is compared with plain forward passes


@dataclass
class _Row:
    """Prompt and its continuation so far, with the maximum and the expected length of the continuation."""

    index: int
    prompt: list[int]
    limit: int
    expected: int
    said: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def remaining(self) -> int:
        return self.limit - len(self.said)

    @property
    def context(self) -> list[int]:
        return self.prompt + self.said

    def take(self, tokens: Sequence[int], stop_ids: Sequence[int]) -> None:
        """Append ``tokens`` up to the first stop id or the limit."""
        tokens = tokens[: self.remaining]
        stop = next((i for i, token in enumerate(tokens) if token in stop_ids), None)
        self.said += tokens if stop is None else tokens[:stop]
        self.done = stop is not None or self.remaining == 0


def generate(
    policy: nn.Module,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_rows: int | None = None,
    expected: Sequence[int] | None = None,
    known: Sequence[Sequence[int]] | None = None,
    device: torch.device | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of every prompt, up to its first stop id; collective, equal on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one, sharded or not. A sharded one is gathered
            once for the whole call, which needs memory for all of it.
        prompts: Token ids of each prompt, none empty.
        max_new_tokens: Maximum number of new tokens; fewer at the end of the model's position embeddings.
        stop_ids: Ids that end a continuation (end of turn, end of sequence); may be empty.
        batch_rows: Maximum number of rows in a batch; None for `rows_at_once`.
        expected: Expected length of each continuation (that of the true answer), so that rows of similar length share a
            batch; changes the speed, not the result.
        known: Known first tokens of each greedy continuation (`TokenScores.greedy_start`).
        device: Device of the batches; by default that of the policy's parameters.
        progress: Called at the start and after each round with the number of rows that have finished since.
    """
    device = device or next(policy.parameters()).device
    expected = expected if expected is not None else [max_new_tokens] * len(prompts)
    rows = [_Row(i, list(p), max_new_tokens, e) for i, (p, e) in enumerate(zip(prompts, expected, strict=True))]
    for row, tokens in zip(rows, known or [()] * len(rows), strict=True):
        row.take(tokens, stop_ids)
    check_ids(policy, prompts)
    limit = position_limit(policy)
    batch_rows = batch_rows or least(rows_at_once(policy, max(map(len, prompts), default=0) + max_new_tokens))
    if full := sum(limit is not None and len(row.prompt) >= limit for row in rows):
        rank_zero_warn(
            f"{full} of {len(rows)} prompts fill the model's {limit} positions: their answers are empty. Shorten them."
        )
    for row in rows:
        row.limit = min(row.limit, max(len(row.said), (limit or row.limit + len(row.prompt)) - len(row.prompt)))
        row.done = row.done or row.remaining == 0
    going = [row for row in rows if not row.done]
    if progress is not None:
        progress(len(rows) - len(going))
    with evaluation_mode(policy), plain_settings(policy), unsharded(policy):
        together = _what_may_go_together(policy, going, limit, device)
        if going and together == "plain":
            rank_zero_info("Answers are generated one by one, without a cache: batches change what this model answers.")
        while going:
            plan = _plan(going, 1 if together == "plain" else batch_rows, together)
            _round(policy, rows, plan, list(stop_ids), limit, device, together == "plain")
            ended = [row for row in going if row.done]
            going = [row for row in going if not row.done]
            if progress is not None:
                progress(len(ended))
    return [row.said for row in rows]


def rows_at_once(model: nn.Module, tokens: int) -> int:
    """Return the number of rows of up to ``tokens`` tokens that a causal LM decodes together on its device.

    On a GPU these are as many as fit into `batch_memory`; elsewhere `BATCH_ROWS`.
    """
    weight = next(model.parameters())
    if weight.device.type != "cuda":
        return BATCH_ROWS
    config = causal_lm(model).config.get_text_config(decoder=True)
    embeddings = causal_lm(model).get_input_embeddings()
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or embeddings.embedding_dim // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * size
    cache = 2 * tokens * getattr(config, "num_hidden_layers", 1) * keys * weight.element_size()
    logits = 40 * embeddings.num_embeddings  # of the next token: in the model's dtype, and some copies in float64
    return max(1, batch_memory(weight.device) // (cache + logits))


def may_be_padded(policy: nn.Module, prompts: Sequence[list[int]], device: torch.device) -> bool:
    """Test whether left padding leaves the policy's continuations of these prompts unchanged."""
    rows = [_Row(number, prompt, PROBED, PROBED) for number, prompt in enumerate(prompts)]
    with plain_settings(policy):
        return _what_may_go_together(policy, rows, position_limit(policy), device) == "padded"


def _what_may_go_together(policy: nn.Module, rows: Sequence[_Row], limit: int | None, device: torch.device) -> str:
    """Test which rows can share a batch and still get the logits of a forward pass of each row alone, without a cache.

    Shorter prompts are batched with the longest to see if left padding changes their logits. It does in models that
    carry a state from token to token regardless of the mask, or that count positions from the start of the batch.

    Returns:
        ``padded`` (rows of any length), ``equal`` (rows of one length), or ``plain`` (one row at a time, without a
        cache, because cached decoding of this model family gives other logits, as with RoBERTa's positions).
    """
    prompts = sorted((row.prompt for row in rows), key=len)
    if not prompts:
        return "plain"
    long = prompts[-1]
    shorter = [prompt for prompt in prompts if len(prompt) < len(long)]
    steps = PROBED if limit is None else min(PROBED, limit - len(long))

    def padded() -> bool:
        return all(_continued_alike(policy, prompt, long, steps, device) for prompt in (shorter[0], shorter[-1]))

    if shorter and leaves_rows_alone(policy, "left-padded", len(long), padded):
        return "padded"
    alike = partial(_continued_alike, policy, long, long[::-1], steps, device)
    return "equal" if leaves_rows_alone(policy, "equal", len(long), alike) else "plain"


def _continued_alike(
    policy: nn.Module, prompt: list[int], company: list[int], steps: int, device: torch.device
) -> bool:
    """Compare the logits of a few greedy tokens after a prompt: in a batch with another prompt, and alone."""
    try:
        beside = _generate(policy, [prompt, company], steps, device, logits=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return False  # a family whose `generate` fails (BLT) is decoded by plain forward passes
    said = beside.sequences[0, -len(beside.logits) :].tolist()
    for step, logits in enumerate(beside.logits):
        expected = _next_logits(policy, prompt + said[:step], device)
        if not same_logits(logits[0], expected):
            return False
    return True


def _next_logits(policy: nn.Module, ids: list[int], device: torch.device) -> Tensor:
    """Return the (V,) logits of the token after ``ids``, from a forward pass of these alone."""
    row = torch.tensor([ids], device=device)
    return policy(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -1]


def _plan(going: Sequence[_Row], batch_rows: int, together: str) -> list[list[int]]:
    """Batch rows that will end at about the same time; returns the row indices of each batch."""
    order = sorted(going, key=lambda r: (len(r.said), r.expected, len(r.prompt), r.index), reverse=True)
    kinds: dict[int, list[int]] = {}
    for row in order:
        kinds.setdefault(0 if together == "padded" else len(row.context), []).append(row.index)
    return [kind[i : i + batch_rows] for kind in kinds.values() for i in range(0, len(kind), batch_rows)]


def _round(
    policy: nn.Module,
    rows: list[_Row],
    plan: list[list[int]],
    stop_ids: list[int],
    limit: int | None,
    device: torch.device,
    plain: bool,
) -> None:
    """Continue every unfinished row by at least one token."""
    results: dict[int, list[int]] = {}
    for batch, own in own_batches(plan):
        if plain:
            continued = [_continue_plainly(policy, rows[i], stop_ids, device) for i in batch]
        else:
            continued = _continue_batch(policy, [rows[i] for i in batch], stop_ids, limit, device)
        if own:
            results.update(zip(batch, continued, strict=True))
    for index, tokens in gather(results).items():
        rows[index].take(tokens, stop_ids)


def _continue_batch(
    policy: nn.Module, rows: list[_Row], stop_ids: list[int], limit: int | None, device: torch.device
) -> list[list[int]]:
    """Decode one left-padded batch until few of its rows are left; returns the new ids, padding after a stop."""
    contexts = [row.context for row in rows]
    length = max(map(len, contexts))
    new = max(row.remaining for row in rows)
    if limit is not None:  # finished rows count too: they stay in the batch until it ends
        new = min(new, limit - length)
    few = 0 if len(rows) <= FEWEST else int(len(rows) * FEW)
    stopping = _FewLeft(length, stop_ids, few) if few and stop_ids else None
    output = _generate(policy, contexts, new, device, stop_ids, stopping)
    return output.sequences[:, length:].tolist()


def _continue_plainly(policy: nn.Module, row: _Row, stop_ids: list[int], device: torch.device) -> list[int]:
    """Decode one row without a cache: each token from a forward pass over all tokens before it."""
    said: list[int] = []
    while len(said) < row.remaining and not (said and said[-1] in stop_ids):
        said.append(int(_next_logits(policy, row.context + said, device).argmax()))
    return said


def _generate(
    policy: nn.Module,
    contexts: Sequence[list[int]],
    new: int,
    device: torch.device,
    stop_ids: Sequence[int] = (),
    stopping: _FewLeft | None = None,
    logits: bool = False,
) -> Any:
    """Let ``transformers`` decode one batch, padded on the left."""
    from transformers import GenerationConfig, StoppingCriteriaList

    length = max(map(len, contexts))
    ids = torch.tensor([[0] * (length - len(c)) + c for c in contexts])
    padding = torch.tensor([length - len(c) for c in contexts])
    last = {context[-1] for context in contexts}
    filler = next(token for token in (*stop_ids[:1], *range(len(last) + 1)) if token not in last)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=new,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=filler,  # fills a row after its stop; at the end of a prompt, it would look like right padding
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=logits,
    )
    return policy.generate(  # type: ignore[operator]
        input_ids=ids.to(device),
        attention_mask=(torch.arange(length) >= padding[:, None]).long().to(device),
        generation_config=config,
        stopping_criteria=None if stopping is None else StoppingCriteriaList([stopping]),
        synced_gpus=False,  # the weights are gathered: no forward waits for another process
    )


class _FewLeft:
    """Stopping criterion that ends a batch when at most ``few`` of its rows are without a stop id."""

    def __init__(self, start: int, stop_ids: list[int], few: int) -> None:
        self.start, self.stop_ids, self.few = start, stop_ids, few
        self.done: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        stops = torch.tensor(self.stop_ids, device=input_ids.device)
        ended = torch.isin(input_ids[:, -1], stops)
        self.done = ended if self.done is None else self.done | ended
        return ((~self.done).sum() <= self.few).expand(len(input_ids))


@contextmanager
def plain_settings(policy: nn.Module) -> Iterator[None]:
    """Ignore the model's generation defaults within a block: with a repetition penalty decoding would not be greedy.

    ``generate`` fills unset fields of a given configuration from the model's. A peft model passes its own on to the
    model it wraps, so both are replaced and restored.
    """
    from transformers import GenerationConfig

    base = causal_lm(policy)
    owners = [policy] if base is policy else [policy, base]
    saved = [(owner, owner.generation_config) for owner in owners]
    try:
        for owner, _ in saved:
            owner.generation_config = GenerationConfig()
        yield
    finally:
        for owner, config in saved:
            owner.generation_config = config
