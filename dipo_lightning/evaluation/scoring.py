"""Teacher-forced scores of given answers: one forward pass gives every number that is computed from a row's tokens.

Only the positions that predict an answer token reach the output projection. Log-probabilities are computed in float32,
whatever the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dipo_lightning.evaluation.shared_prompts import (
    Example,
    PackedBatch,
    attention_window,
    can_share_prompts,
    group_by_prompt,
    lay_out_examples,
    pack,
)
from dipo_lightning.metrics.functional.membership import standardized_logprobs
from dipo_lightning.models.answers import IGNORED
from dipo_lightning.models.distributed import evaluation_mode, least, plan_batches, shared_out
from dipo_lightning.models.inspection import (
    batch_memory,
    check_ids,
    context_length,
    leaves_rows_alone,
    position_limit,
    same_logits,
    vocabulary_size,
)

BATCH_TOKENS = 2048
ON_GPU = 4  # times as many if their logits fit, since small forward passes leave a GPU idle
CHUNK_ELEMENTS = 2**24  # float32 logits in memory at a time: 64 MiB


@dataclass(frozen=True)
class TokenScores:
    """Scores of the n scored tokens of one row.

    Attributes:
        logprobs: (n,) float32 log-probability of each token in nats.
        correct: (n,) bool, whether the token is the model's first choice.
        choices: (n,) int64, the model's first choice.
        z_scores: (n,) float32, the log-probability standardised over the vocabulary, for Min-K++
            (`standardized_logprobs`); None if not requested.
    """

    logprobs: Tensor
    correct: Tensor
    choices: Tensor
    z_scores: Tensor | None = None

    @property
    def tokens(self) -> int:
        """n, the number of scored tokens."""
        return len(self.logprobs)

    def without_last(self) -> TokenScores:
        """Return the scores without the last token, the one that ends the turn."""
        z_scores = None if self.z_scores is None else self.z_scores[:-1]
        return TokenScores(self.logprobs[:-1], self.correct[:-1], self.choices[:-1], z_scores)

    def greedy_start(self) -> list[int]:
        """Return the known beginning of the greedy answer: the tokens up to the first wrong one, and the choice there.

        Valid if every token of the answer is scored.
        """
        wrong = (~self.correct).nonzero().flatten().tolist()
        return self.choices[: wrong[0] + 1 if wrong else None].tolist()

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood per token in nats; NaN without tokens."""
        return -self.logprobs.double().mean().item()

    @property
    def loss(self) -> float:
        """Summed negative log-likelihood of the row in nats."""
        return -self.logprobs.double().sum().item()


def score(
    policy: nn.Module,
    examples: Sequence[Example],
    *,
    batch_tokens: int | None = None,
    z_scores: Collection[int] = (),
    device: torch.device | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[TokenScores]:
    """Score the supervised tokens of every example; collective, and the same list on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one, sharded or not.
        examples: The rows, in any order. One without a supervised token gets empty scores.
        batch_tokens: Maximum number of tokens in a forward pass, padding included; a longer row gets its own pass. None
            for `tokens_at_once`.
        z_scores: Indices of the examples that need `TokenScores.z_scores`.
        device: Device of the batches; by default that of the policy's parameters.
        progress: Called after each batch of this process with the number of its rows, and at the end with that of the
            other processes.
    """
    device = device or next(policy.parameters()).device
    batch_tokens = batch_tokens or least(tokens_at_once(policy, device))
    examples = fitted(policy, examples)
    wanted = frozenset(z_scores)

    def scores(batch: list[list[int]]) -> dict[int, TokenScores]:
        flat = [index for group in batch for index in group]
        groups = [[examples[i] for i in group] for group in batch]
        return dict(zip(flat, _score_batch(policy, groups, [i in wanted for i in flat], device), strict=True))

    with evaluation_mode(policy):
        results = shared_out(_plan(policy, examples, batch_tokens, device), scores, progress)
    none = torch.empty(0)
    nothing = {want: TokenScores(none, none.bool(), none.long(), none if want else None) for want in (True, False)}
    return [results.get(i, nothing[i in wanted]) for i in range(len(examples))]


def tokens_at_once(policy: nn.Module, device: torch.device) -> int:
    """Return the number of tokens in a forward pass: `BATCH_TOKENS`, or on a GPU up to `ON_GPU` times as many."""
    if device.type != "cuda":
        return BATCH_TOKENS
    fitting = batch_memory(device) // (4 * vocabulary_size(policy))
    return max(BATCH_TOKENS, min(ON_GPU * BATCH_TOKENS, fitting))


def fitted(policy: nn.Module, examples: Sequence[Example]) -> Sequence[Example]:
    """Truncate examples to the policy's position embeddings; warn of those, and of texts longer than its context.

    Raises:
        InputError: An example holds an id without an embedding.
    """
    check_ids(policy, [ids for ids, _ in examples])
    limit, context = position_limit(policy), context_length(policy)
    longest = max((len(ids) for ids, _ in examples), default=0)
    if limit is not None and longest > limit:
        count = sum(len(ids) > limit for ids, _ in examples)
        rank_zero_warn(
            f"{count} of {len(examples)} evaluated texts are longer than the model's {limit} positions (up to "
            f"{longest} tokens): they are cut at the end, and one that has no scored token left is skipped."
        )
        return [(ids[:limit], labels[:limit]) for ids, labels in examples]
    if context is not None and longest > context:
        rank_zero_warn(
            f"The longest evaluated text has {longest} tokens, more than the {context} that the model was made for "
            "(max_position_embeddings)."
        )
    return examples


Group = list[int]
"""Indices of examples that share one row of a batch."""


def _plan(policy: nn.Module, examples: Sequence[Example], budget: int, device: torch.device) -> list[list[Group]]:
    """Plan the batches; rows with several answers and rows with one need different masks, and never share a batch."""
    scored = [i for i, (_, labels) in enumerate(examples) if any(label != IGNORED for label in labels[1:])]
    groups = [[index] for index in scored]
    if can_share_prompts(policy):
        grouped = group_by_prompt(examples, scored, budget, attention_window(policy))
        if _may_share(policy, examples, [group for group in grouped if len(group) > 1], device):
            groups = grouped
    shared, alone = ([group for group in groups if (len(group) > 1) is many] for many in (True, False))
    together = _may_pad(policy, examples, alone, device)
    batches: list[tuple[int, list[Group]]] = []
    for kind, equal in ((shared, False), (alone, not together)):
        lengths = [len(lay_out_examples([examples[i] for i in group])) for group in kind]
        plan = plan_batches(lengths, budget, equal)
        batches += [(lengths[batch[0]], [kind[i] for i in batch]) for batch in plan]
    return [batch for _, batch in sorted(batches, key=lambda found: -found[0])]


def _may_share(policy: nn.Module, examples: Sequence[Example], groups: list[Group], device: torch.device) -> bool:
    """Test on the longest and the shortest answers whether sharing a row leaves their scores unchanged."""
    if not groups:
        return False

    def length(index: int) -> int:
        return len(examples[index][0])

    ends = (
        max(groups, key=lambda group: max(map(length, group))),
        min(groups, key=lambda group: min(map(length, group))),
    )
    tried = [[min(group, key=length), max(reversed(group), key=length)] for group in ends]

    def try_out() -> bool:
        together = _answer_logits(policy, packed([[examples[i] for i in group] for group in tried]), device)
        alone = [_answer_logits(policy, packed([[examples[i]]]), device) for group in tried for i in group]
        return same_logits(together, torch.cat(alone))

    return leaves_rows_alone(policy, "shared", length(tried[0][1]), try_out)


def _may_pad(policy: nn.Module, examples: Sequence[Example], groups: list[Group], device: torch.device) -> bool:
    """Test whether padding to the length of the longest row leaves the scores of shorter ones unchanged."""
    rows = sorted((examples[group[0]] for group in groups), key=lambda example: len(example[0]))
    long = rows[-1] if rows else ([], [])
    shorter = [row for row in rows if len(row[0]) < len(long[0])]
    if not shorter:
        return True
    padded = [shorter[0], shorter[-1]]

    def try_out() -> bool:
        together = _answer_logits(policy, packed([[row] for row in (*padded, long)]), device)
        alone = torch.cat([_answer_logits(policy, packed([[row]]), device) for row in padded])
        return same_logits(together[: len(alone)], alone)

    return leaves_rows_alone(policy, "padded", len(long[0]), try_out)


def _answer_logits(policy: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
    """Return the (N, V) logits of all scored tokens."""
    return _predictor_logits(policy, batch, device)[batch.index.to(device)]


def packed(groups: Sequence[Sequence[Example]]) -> PackedBatch:
    """Collate groups of examples with the same prompt into a batch, a row per group."""
    return pack([lay_out_examples(group) for group in groups], groups)


def _predictor_logits(policy: nn.Module, batch: PackedBatch, device: torch.device) -> Tensor:
    """Return the (M, V) logits at the batch's predictors."""
    output = policy(**batch.inputs(policy, device), use_cache=False).logits
    return at_predictors(output, batch)


def answer_logits(policy: nn.Module, example: Example, device: torch.device) -> Tensor:
    """Return the (N, V) logits of an example's scored tokens, from a forward pass of it alone."""
    return _answer_logits(policy, packed([[example]]), device)


def at_predictors(logits: Tensor, batch: PackedBatch) -> Tensor:
    """Return the logits at the predictors; select them here if the architecture ignored ``logits_to_keep``."""
    return logits if logits.dim() == 2 else logits[batch.predictors.to(logits.device)]


def _score_batch(
    policy: nn.Module, groups: Sequence[Sequence[Example]], wanted: Sequence[bool], device: torch.device
) -> list[TokenScores]:
    """Score one batch; returns the scores of each example."""
    batch = packed(groups)
    logits = _predictor_logits(policy, batch, device)
    return read_scores(logits, first_choices(logits), batch, wanted)


def read_scores(logits: Tensor, choices: FirstChoices, batch: PackedBatch, wanted: Sequence[bool]) -> list[TokenScores]:
    """Return the scores of each example in a batch.

    Args:
        logits: (M, V), at the batch's predictors.
        choices: First choices of these.
        batch: The batch.
        wanted: For each example, whether it needs z-scores.
    """
    device = logits.device
    z_rows = torch.tensor(wanted, dtype=torch.bool).repeat_interleave(torch.tensor(batch.counts, dtype=torch.long))
    statistics = token_statistics(logits, batch.index.to(device), batch.labels.to(device), z_rows.to(device), choices)
    parts = zip(wanted, *(values.cpu().split(batch.counts) for values in statistics), strict=True)
    return [TokenScores(p.clone(), ok.clone(), c.clone(), z.clone() if want else None) for want, p, ok, c, z in parts]


class FirstChoices(NamedTuple):
    """First choice of a model at M positions.

    Attributes:
        ids: (M,) int64, the most likely token.
        logits: (M,) float32, its logit.
        surplus: (M,) float32, its negative log-probability: log of the sum of exp(logit - the largest logit).
    """

    ids: Tensor
    logits: Tensor
    surplus: Tensor


def first_choices(logits: Tensor, chunk_elements: int = CHUNK_ELEMENTS) -> FirstChoices:
    """Compute the first choices of (M, V) logits of any floating dtype, a chunk of positions in float32 at a time."""
    found = []
    for part in logits.split(max(1, chunk_elements // logits.shape[-1])):
        top, ids = part.max(-1)
        top = top.float()
        found.append((ids, top, (part.float() - top[:, None]).exp_().sum(-1).log_()))
    return FirstChoices(*(torch.cat(values) for values in zip(*found, strict=True)))


def token_statistics(
    logits: Tensor,
    index: Tensor,
    labels: Tensor,
    z_rows: Tensor,
    choices: FirstChoices | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute log-probability, first choice and z-score of each label.

    Args:
        logits: (M, V), any floating dtype.
        index: (N,) int64, the row of ``logits`` that predicts each label; one row may predict several.
        labels: (N,) int64.
        z_rows: (N,) bool, the labels whose z-score is needed; it is 0 elsewhere.
        choices: First choices of the logits; None computes them.
        chunk_elements: Maximum number of logits in float32 at a time.

    Returns:
        (N,) float32 log-probabilities, (N,) bool whether the label is the first choice, (N,) int64 first choices, (N,)
        float32 z-scores.
    """
    choices = choices or first_choices(logits, chunk_elements)
    logprobs = logits[index, labels].float() - choices.logits[index] - choices.surplus[index]
    z = torch.zeros_like(logprobs)
    for places in z_rows.nonzero().squeeze(-1).split(max(1, chunk_elements // logits.shape[-1])):
        z[places] = standardized_logprobs(logits[index[places]], labels[places])
    chosen = choices.ids[index]
    return logprobs, chosen == labels, chosen, z
