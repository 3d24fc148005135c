"""Scores of given answers and the policy's own answer to a question, from one forward pass over its prompt.

The answers to a question form a tree behind its prompt. As long as the greedily decoded answer follows a path in the
tree, the logits there give its next token; where it leaves the tree, generation continues with the keys and values of
that forward pass. Finished rows leave the batch. The common prefix of all prompts (a system prompt) is computed once.

The policy's answers in an earlier evaluation would be good drafts too. But the rounding of every number would then
depend on them, and a resumed run would end with other digits than an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dipo_lightning.evaluation.generation import BATCH_ROWS, PROBED
from dipo_lightning.evaluation.scoring import (
    BATCH_TOKENS,
    TokenScores,
    answer_logits,
    at_predictors,
    first_choices,
    read_scores,
)
from dipo_lightning.evaluation.shared_prompts import (
    WORTHWHILE,
    Example,
    Layout,
    PackedBatch,
    attention_window,
    can_share_prompts,
    lay_out,
    pack,
    prompt_of,
)
from dipo_lightning.models.answers import IGNORED
from dipo_lightning.models.distributed import evaluation_mode, plan_batches, shared_out, unsharded
from dipo_lightning.models.inspection import (
    check_ids,
    context_length,
    leaves_rows_alone,
    position_limit,
    same_logits,
)

if TYPE_CHECKING:
    from dipo_lightning.models.kv_cache import Pairs

EFFICIENT = 32  # rows; in a smaller batch each token costs more time
SHRUNK = 0.75  # finished rows leave a batch when at most this share of it is unfinished


class Question(NamedTuple):
    """Prompt that the policy answers.

    Attributes:
        prompt: Token ids.
        examples: Indices of the scored answers among the examples.
        expected: Length of the true answer in tokens; questions with answers of similar length share a batch.
    """

    prompt: list[int]
    examples: list[int]
    expected: int


class Said(NamedTuple):
    """Answer of the policy.

    Attributes:
        ids: Token ids, cut before the first stop id.
        nll: Mean negative log-likelihood of these tokens in nats; None without tokens.
    """

    ids: list[int]
    nll: float | None


@dataclass
class _Row:
    """Question with the answer so far and the log-probability of each of its tokens."""

    number: int
    question: Question
    layout: Layout
    limit: int
    scores: list[TokenScores] = field(default_factory=list)
    said: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    done: bool = False
    probe: list[Tensor] = field(default_factory=list)

    def take(self, token: int, logprob: float, stop_ids: Collection[int]) -> None:
        """Append a token, or stop."""
        if token in stop_ids:
            self.done = True
            return
        self.said.append(token)
        self.logprobs.append(logprob)
        self.done = len(self.said) >= self.limit

    @property
    def result(self) -> tuple[list[TokenScores], Said]:
        """Scores of the question's examples, and the policy's own answer."""
        nll = -sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
        return self.scores, Said(self.said, nll)


class _Kept(NamedTuple):
    """Unfinished rows, their keys and values (B, heads, L, head size), and the (B, L) mask of those positions."""

    rows: list[_Row]
    pairs: Pairs
    mask: Tensor


def score_and_answer(
    policy: nn.Module,
    examples: Sequence[Example],
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    batch_tokens: int = BATCH_TOKENS,
    batch_rows: int = BATCH_ROWS,
    z_scores: Collection[int] = (),
    device: torch.device | None = None,
    progress: Callable[[int], object] | None = None,
) -> tuple[dict[int, TokenScores], dict[int, Said]]:
    """Score given answers to questions and answer them greedily; collective, with the same result on every process.

    Args:
        policy: A ``transformers`` causal LM or a peft model around one, sharded or not. A sharded one is gathered once
            for the whole call, which needs memory for all of it.
        examples: Answers to score, each with its prompt.
        questions: Questions to answer.
        max_new_tokens: Maximum length of the policy's answers in tokens.
        stop_ids: Ids that end an answer; may be empty.
        batch_tokens: Maximum number of tokens in a scoring forward pass, padding included.
        batch_rows: Maximum number of questions in a batch.
        z_scores: Indices of the examples that need `TokenScores.z_scores`.
        device: Device of the batches; by default that of the policy's parameters.
        progress: Called after each batch with the number of its questions.

    Returns:
        Scores by index of the example, and answers by index of the question. Cases that this method does not cover are
        missing (a question too long for the policy's window or for a batch; a family whose layers carry a state or do
        not accept such a mask): use `dipo_lightning.evaluation.scoring.score` and
        `dipo_lightning.evaluation.generation.generate` for these.
    """
    device = device or next(policy.parameters()).device
    if max_new_tokens < 1 or not can_share_prompts(policy):
        return {}, {}
    check_ids(policy, [question.prompt for question in questions])
    run = _Run(policy, examples, questions, list(stop_ids), batch_tokens, frozenset(z_scores), device)
    rows = run.rows(max_new_tokens)

    def answers(unit: list[_Row]) -> dict[int, tuple[list[TokenScores], Said]]:
        return {row.number: row.result for row in run.answered([run.fresh(row) for row in unit])}

    with evaluation_mode(policy), unsharded(policy):
        if not rows or not run.holds(rows):
            return {}, {}
        results = shared_out(_units(rows, batch_rows), answers, progress)
    scores = {
        index: one
        for number, (scored, _) in results.items()
        for index, one in zip(questions[number].examples, scored, strict=True)
    }
    return scores, {number: said for number, (_, said) in results.items()}


def _units(rows: Sequence[_Row], batch_rows: int) -> list[list[_Row]]:
    """Batch rows with answers of similar length, the same on any number of processes.

    The number of batches is even unless they would be small, and the rows of two successive batches are dealt out in
    turn, so that two processes get the same share.
    """
    order = sorted(rows, key=lambda row: (-row.question.expected, -len(row.layout), row.number))
    count = -(-len(order) // batch_rows)
    count += count % 2 if len(order) >= 2 * EFFICIENT else 0
    size = -(-len(order) // count)
    windows = [order[start : start + 2 * size] for start in range(0, len(order), 2 * size)]
    parts = [1 + (len(window) > size) for window in windows]
    return [window[i::part] for window, part in zip(windows, parts, strict=True) for i in range(part)]


class _Run:
    """State that all forward passes of one call share."""

    def __init__(
        self,
        policy: nn.Module,
        examples: Sequence[Example],
        questions: Sequence[Question],
        stop_ids: list[int],
        batch_tokens: int,
        wanted: frozenset[int],
        device: torch.device,
    ) -> None:
        self.policy, self.examples, self.questions, self.device = policy, examples, questions, device
        self.stop_ids, self.batch_tokens, self.wanted = stop_ids, batch_tokens, wanted
        self.common = common_beginning([question.prompt for question in questions])
        self.beginning: Pairs = []

    def rows(self, limit: int) -> list[_Row]:
        """Return the questions that, with their longest answer, fit the policy's window and positions and a batch."""
        bounds = (attention_window(self.policy), position_limit(self.policy), context_length(self.policy))
        most = min((bound for bound in bounds if bound is not None), default=None)
        found = []
        for number, question in enumerate(self.questions):
            scored = [self.examples[index] for index in question.examples]
            longest = max([len(question.prompt) + limit, *(len(ids) for ids, _ in scored)])
            if (most is None or longest <= most) and all(_follows(one, question.prompt) for one in scored):
                row = self.row(number, limit)
                if len(row.layout) <= self.batch_tokens:
                    found.append(row)
        return found

    def row(self, number: int, limit: int) -> _Row:
        question = self.questions[number]
        answers = [self.examples[index][0][len(question.prompt) :] for index in question.examples]
        return _Row(number, question, lay_out(question.prompt[self.common :], answers), limit)

    def fresh(self, row: _Row) -> _Row:
        """Return a new row for the same question, without scores or an answer."""
        return _Row(row.number, row.question, row.layout, row.limit)

    def compute_beginning(self) -> None:
        """Compute the keys and values of the tokens with which all prompts begin."""
        from dipo_lightning.models.kv_cache import expanded, pairs

        if self.common and not self.beginning:
            ids = torch.tensor([self.questions[0].prompt[: self.common]], device=self.device)
            cache = expanded([], 1)
            self.policy(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            self.beginning = pairs(cache)

    def holds(self, rows: Sequence[_Row]) -> bool:
        """Test on the longest and the shortest row whether scores and answers equal those of each row alone."""

        def length(row: _Row) -> int:
            return len(row.question.prompt) + max([row.limit, *map(len, row.layout.paths)])

        ends = max(rows, key=length), min(rows, key=length)
        held = leaves_rows_alone(self.policy, "answered", length(ends[0]), lambda: self._try_out(ends))
        if held:
            self.compute_beginning()
        return held

    def _try_out(self, ends: Sequence[_Row]) -> bool:
        rows = [self.fresh(row) for row in ends]
        stop_ids, self.stop_ids = self.stop_ids, []
        try:
            self.compute_beginning()
            return self._are_as_if_alone(rows)
        except (AttributeError, NotImplementedError, TypeError, ValueError):
            return False  # the family needs a cache of its own kind
        finally:
            self.stop_ids = stop_ids

    def _are_as_if_alone(self, rows: list[_Row]) -> bool:
        batch, logits, cache = self._forward(rows)
        scored = [index for row in rows for index in row.question.examples]
        together = logits[batch.index.to(logits.device)].split(batch.counts)
        for place in {0, batch.counts.index(max(batch.counts)), len(scored) - 1} if scored else ():
            alone = answer_logits(self.policy, self.examples[scored[place]], self.device)
            if not len(alone) or not same_logits(together[place], alone):
                return False
        kept = self._after_forward(rows, batch, logits, cache)
        if kept is None or not kept.pairs:
            return False
        for row in rows:
            row.limit, row.done = min(row.limit, len(row.said) + PROBED), False
        self._decode([kept], probe=True)
        return all(same_logits(torch.stack(row.probe), self._alone(row, len(row.probe))) for row in rows if row.probe)

    def _alone(self, row: _Row, count: int) -> Tensor:
        """Return the (count, V) logits of the answer's last tokens, from the row alone and without a cache."""
        ids = torch.tensor([row.question.prompt + row.said[:-1]], device=self.device)
        logits = self.policy(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        return logits[0, -count:]

    def answered(self, rows: list[_Row]) -> list[_Row]:
        """Score and answer one batch of questions."""
        going = []
        for batch in plan_batches([len(row.layout) for row in rows], self.batch_tokens):
            part = [rows[i] for i in batch]
            kept = self._after_forward(part, *self._forward(part))
            if kept is not None:
                going.append(kept)
        if going:
            self._decode(going)
        return rows

    def _forward(self, rows: Sequence[_Row]) -> tuple[PackedBatch, Tensor, Any]:
        """Run the prompts with all their answers, and return the batch, its logits (M, V) and the cache."""
        from dipo_lightning.models.kv_cache import expanded

        groups = [
            [tuple(part[self.common :] for part in self.examples[index]) for index in row.question.examples]
            for row in rows
        ]
        batch = pack([row.layout for row in rows], groups, [self._visited(row.layout) for row in rows])  # type: ignore[arg-type]
        cache = expanded(self.beginning, len(rows))
        inputs = batch.inputs(self.policy, self.device, past=self.common)
        logits = self.policy(**inputs, past_key_values=cache, use_cache=True).logits
        return batch, at_predictors(logits, batch), cache

    def _visited(self, layout: Layout) -> list[int]:
        """Return the places of a layout after which the policy's answer may continue."""
        return [
            layout.prompt - 1,
            *(at for at in range(layout.prompt, len(layout)) if layout.ids[at] not in self.stop_ids),
        ]

    def _after_forward(self, rows: list[_Row], batch: PackedBatch, logits: Tensor, cache: Any) -> _Kept | None:
        """Read the scores and the part of each answer inside its tree; keep the cache of the unfinished rows."""
        from dipo_lightning.models.kv_cache import taken

        choices = first_choices(logits)
        scored = [index for row in rows for index in row.question.examples]
        scores = iter(read_scores(logits, choices, batch, [index in self.wanted for index in scored]))
        number = (batch.predictors.flatten().cumsum(0) - 1).view_as(batch.predictors).tolist()
        ids, logprobs = choices.ids.tolist(), (-choices.surplus).tolist()
        going, places = [], []
        for at, row in enumerate(rows):
            row.scores = [next(scores) for _ in row.question.examples]
            walked = self._walk(row, [(ids[place], logprobs[place]) for place in number[at]])
            if not row.done:
                going.append(at)
                places.append([*range(self.common + row.layout.prompt), *(self.common + place for place in walked)])
        if not going:
            return None
        length = max(map(len, places))
        filled = torch.tensor([[0] * (length - len(one)) + one for one in places], device=self.device)
        lengths = torch.tensor([len(one) for one in places], device=self.device)
        mask = (torch.arange(length, device=self.device) >= length - lengths[:, None]).long()
        kept = taken(cache, torch.tensor(going, device=self.device), filled)
        return _Kept([rows[at] for at in going], kept, mask)

    def _walk(self, row: _Row, choices: Sequence[tuple[int, float]]) -> list[int]:
        """Decode greedily inside the row's tree, and return the places of all but the last token.

        Args:
            row: The row.
            choices: First choice after each place of the layout and its log-probability.
        """
        places: list[int] = []
        at: int | None = row.layout.prompt - 1
        while at is not None and not row.done:
            if at >= row.layout.prompt:
                places.append(at)
            token, logprob = choices[at]
            row.take(token, logprob, self.stop_ids)
            at = row.layout.following.get((at, token))
        return places

    def _decode(self, parts: Sequence[_Kept], probe: bool = False) -> None:
        """Continue all rows, token by token, from the last token of each."""
        from dipo_lightning.models.kv_cache import joined, selected

        rows = [row for part in parts for row in part.rows]
        cache, mask = joined([part.pairs for part in parts], [part.mask for part in parts])
        while rows:
            ids = torch.tensor([[row.said[-1]] for row in rows], device=self.device)
            positions = torch.tensor([[len(row.question.prompt) + len(row.said) - 1] for row in rows])
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
            output = self.policy(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions.to(self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = output.logits[:, -1]
            choices = first_choices(logits)
            for at, (row, token, surplus) in enumerate(
                zip(rows, choices.ids.tolist(), choices.surplus.tolist(), strict=True)
            ):
                if not row.done:
                    if probe:
                        row.probe.append(logits[at])
                    row.take(token, -surplus, self.stop_ids)
            going = [at for at, row in enumerate(rows) if not row.done]
            if len(going) <= SHRUNK * len(rows):
                kept = torch.tensor(going, dtype=torch.long, device=self.device)
                rows, cache, mask = [rows[at] for at in going], selected(cache, kept), mask[kept]


def common_beginning(prompts: Sequence[list[int]]) -> int:
    """Return the length of the prefix that all prompts share and none equals; 0 if it is too short to save time."""
    if len(prompts) < 2:
        return 0
    count = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
    return count if count >= WORTHWHILE else 0


def _follows(example: Example, prompt: list[int]) -> bool:
    """Return whether an example is an answer to this prompt, with a scored token."""
    ids, labels = example
    return any(label != IGNORED for label in labels[1:]) and len(ids) > len(prompt) and prompt_of(example) == prompt
