"""Teacher-forced scores of given answers: one forward serves every number that is read from a row's tokens.

Only the positions that predict an answer token reach the output projection, and their log-probabilities are taken in
float32 whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dipo_lightning.evaluation.shared_prompts import (
    Example,
    attention_window,
    can_share_prompts,
    group_by_prompt,
    pack,
    prompt_of,
)
from dipo_lightning.metrics.functional.min_k import standardized_logprobs
from dipo_lightning.models.distributed import evaluation_mode, gather, own_batches, plan_batches

BATCH_TOKENS = 2048
CHUNK_ELEMENTS = 2**24  # float32 logits held at a time: 64 MiB


@dataclass(frozen=True)
class TokenScores:
    """What the model gives to the n scored tokens of one row.

    Attributes:
        logprobs: (n,) float32 log-probability of each token, nats.
        correct: (n,) bool, whether the token is the model's first choice there.
        choices: (n,) int64, the model's first choice.
        z_scores: (n,) float32, the log-probability standardised over the vocabulary, as Min-K++ takes it
            (`standardized_logprobs`); None where not asked for.
    """

    logprobs: Tensor
    correct: Tensor
    choices: Tensor
    z_scores: Tensor | None = None

    @property
    def tokens(self) -> int:
        """n, the tokens scored."""
        return len(self.logprobs)

    def without_last(self) -> TokenScores:
        """Return the scores without those of the last token: of an answer without the token that ends the turn."""
        z_scores = None if self.z_scores is None else self.z_scores[:-1]
        return TokenScores(self.logprobs[:-1], self.correct[:-1], self.choices[:-1], z_scores)

    def greedy_start(self) -> list[int]:
        """Return what greedy decoding says first: the scored tokens while they are its choice, and its own after them.

        Holds where every token of the answer is scored.
        """
        wrong = (~self.correct).nonzero().flatten().tolist()
        return self.choices[: wrong[0] + 1 if wrong else None].tolist()

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of a token, nats; NaN where there is none."""
        return -self.logprobs.double().mean().item()

    @property
    def loss(self) -> float:
        """Summed negative log-likelihood of the row, nats."""
        return -self.logprobs.double().sum().item()


def score(
    policy: nn.Module,
    examples: Sequence[Example],
    *,
    batch_tokens: int = BATCH_TOKENS,
    z_scores: Collection[int] = (),
    device: torch.device | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[TokenScores]:
    """Score the supervised tokens of every example; collective, and the same list on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one, sharded or not.
        examples: The rows, in any order of length. One with no supervised token gets empty scores.
        batch_tokens: Most tokens of a forward, padding included.
        z_scores: Indices of the examples that need `TokenScores.z_scores`.
        device: Where the batches go; default is where the policy's parameters are.
        progress: Called with the number of rows done after each of this process's batches, and at the end with those of
            the others.
    """
    device = device or next(policy.parameters()).device
    groups = _groups(policy, examples, batch_tokens)
    wanted = frozenset(z_scores)
    results: dict[int, TokenScores] = {}
    with evaluation_mode(policy):
        for numbers, own in own_batches(plan_batches([tokens for _, tokens in groups], batch_tokens)):
            batch = [groups[number][0] for number in numbers]
            flat = [index for group in batch for index in group]
            scored = _score_batch(
                policy, [[examples[i] for i in g] for g in batch], [i in wanted for i in flat], device
            )
            if own:
                results.update(zip(flat, scored, strict=True))
                if progress is not None:
                    progress(len(flat))
    done = len(results)
    results = gather(results)
    if progress is not None:
        progress(len(results) - done)
    nothing = TokenScores(torch.empty(0), torch.empty(0, dtype=torch.bool), torch.empty(0, dtype=torch.long))
    return [results.get(i, nothing) for i in range(len(examples))]


def _groups(policy: nn.Module, examples: Sequence[Example], batch_tokens: int) -> list[tuple[list[int], int]]:
    """Return what becomes one row of a batch: indices of examples that share a prompt, and the row's tokens."""
    scored = [i for i, (_, labels) in enumerate(examples) if any(label != -100 for label in labels[1:])]
    if can_share_prompts(policy):
        groups = group_by_prompt(examples, scored, batch_tokens, attention_window(policy))
    else:
        groups = [[index] for index in scored]
    prompts = [len(prompt_of(examples[group[0]])) for group in groups]
    return [
        (group, prompt + sum(len(examples[i][0]) - prompt for i in group))
        for group, prompt in zip(groups, prompts, strict=True)
    ]


def _score_batch(
    policy: nn.Module, groups: Sequence[Sequence[Example]], wanted: Sequence[bool], device: torch.device
) -> list[TokenScores]:
    """Run one forward and split what its answer positions say by example."""
    batch = pack(groups)
    output = policy(**batch.inputs(policy, device), use_cache=False).logits
    # an architecture may ignore the mask of positions
    logits = output if output.dim() == 2 else output[batch.predictors.to(device)]
    z_rows = torch.tensor(wanted).repeat_interleave(torch.tensor(batch.counts))
    statistics = token_statistics(logits, batch.index.to(device), batch.labels.to(device), z_rows.to(device))
    parts = zip(wanted, *(values.cpu().split(batch.counts) for values in statistics), strict=True)
    return [TokenScores(p.clone(), ok.clone(), c.clone(), z.clone() if want else None) for want, p, ok, c, z in parts]


def token_statistics(
    logits: Tensor, index: Tensor, labels: Tensor, z_rows: Tensor, chunk_elements: int = CHUNK_ELEMENTS
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read log-probability, first choice and z-score of each label from its logits, a chunk of positions at a time.

    Args:
        logits: (M, V), any floating dtype.
        index: (N,) int64, the row of ``logits`` that predicts each label; some predict several.
        labels: (N,) int64.
        z_rows: (N,) bool, the labels whose z-score is wanted; elsewhere it is 0.
        chunk_elements: Most logits that are held in float32 at once.

    Returns:
        (N,) float32 log-probabilities, (N,) bool whether the label is the first choice, (N,) int64 first choices, (N,)
        float32 z-scores.
    """
    rows = max(1, chunk_elements // logits.shape[-1])
    chunks = zip(index.split(rows), labels.split(rows), z_rows.split(rows), strict=True)
    parts = [_chunk(logits[places], chosen, z) for places, chosen, z in chunks]
    logprobs, choices, z = (torch.cat(values) for values in zip(*parts, strict=True))
    return logprobs, choices == labels, choices, z


def _chunk(logits: Tensor, labels: Tensor, z_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = logits.float().log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    z = torch.zeros_like(chosen)
    if z_rows.any():
        z[z_rows] = standardized_logprobs(logits[z_rows], labels[z_rows])
    return chosen, logits.argmax(-1), z
