"""Checks of the policy during selective unlearning: the private values that sampled answers say or could have said.

The *risk* of a sampled answer is the expected number of private values that begin in it: the probability of the tokens
that begin one, summed over its positions. That is an upper bound, since "bass" mostly begins other words than
"bassoon", and "Shadows" stands in other places than in "The Dance of Shadows". So in a check that may end the run, the
rest of the value is scored too where its first token is not improbable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dipo_lightning.evaluation.scoring import TokenScores, score
from dipo_lightning.methods.selective.bans import WordEdges, following
from dipo_lightning.methods.selective.examples import ExampleMaker, PrivateExample
from dipo_lightning.methods.selective.targets import padded
from dipo_lightning.models.answers import IGNORED

THOROUGH_SAMPLES, MOST_THOROUGH_SAMPLES = 10, 2400
"""Samples per row and wording in the check that ends a run, and about the most in all: of many rows fewer are taken, so
that this check takes no longer than another."""
SAYABLE = 1e-3
"""Probability of an answer's first value, given the text before it, above which twenty samples may contain it."""

LEAST_CHECKS = 4
"""First check that may end a run: a few words are forgotten before the sentences around them are whole again.

To earlier ones a value counts as remaining, so that their models are hardly ever the best.
"""
QUIET_CHECKS = 8
"""Number of successive checks without a leak that end a run, whatever the risk: further steps hardly lower it then."""
NOTHING_LEFT = "a thorough check found nothing left to forget"
"""What ends a run that is as good as the checks can tell."""
RISK = 2e-4
"""Maximum number of private values expected per sampled answer, in a check that ends a run."""
NOTABLE = 1e-4
"""Probability of a value's first token above which the rest of the value is scored."""
RISKY_ANSWERS = 4
"""Sampled answers per forget row that are kept as training rows."""


@dataclass
class Check:
    """One check of the policy.

    Attributes:
        policy: The model that is sampled.
        maker: Builder of the examples, which knows the private values.
        wordings: Examples of each forget row, one for each wording.
        variants: False variants of the answers.
        device: Device of the policy's forward passes.
        step: Optimiser steps so far, for the log.
        sample: Sampler of continuations: takes policy, prompts, number of samples, ``purpose`` (for random numbers of
            its own) and ``observe``, and returns the same on every process.
        broadcast: Function that returns the first process's object on every process.
        risky: The riskiest answers, as training rows.
        leaks: Number of leaks found so far.
    """

    policy: nn.Module
    maker: ExampleMaker
    wordings: Sequence[Sequence[PrivateExample]]
    variants: Sequence[PrivateExample]
    device: torch.device
    step: int
    sample: Callable[..., list[list[list[int]]]]
    broadcast: Callable[[Any], Any]
    risky: list[PrivateExample] = field(default_factory=list)
    leaks: int = 0

    @property
    def most_risky(self) -> int:
        """Number of risky answers that are kept."""
        return RISKY_ANSWERS * len(self.wordings)

    def ask(self, asked: Sequence[PrivateExample], samples: int, purpose: str = "check") -> tuple[int, float]:
        """Sample answers in some wordings; return the number of leaks found, and the mean risk of an answer.

        While leaks are found, the risk is an upper bound.
        """
        answered, own, of_any, notable = self._answered(asked, samples, purpose)
        order = sorted(range(len(answered)), key=lambda place: -of_any[place])
        risky = [self.maker.said(*answered[place]) for place in order if of_any[place] > RISK and answered[place][2]]
        self.risky = (risky[: self.most_risky // 2] + self.risky)[: self.most_risky]
        found = sum(self.maker.says_value(index, ids) for index, _, ids in answered)
        sayable, likelier = self._values_left(asked)
        remaining = found + sayable + likelier
        self.leaks += remaining
        if not remaining:  # else the risk decides nothing, and an upper bound will do
            for number, other in self._other_words(notable, answered):
                own[number] -= other
        risk = sum(own) / max(1, len(own))
        rank_zero_info(
            f"step {self.step}: {found} of {len(asked) * samples} sampled answers say a private value, "
            f"{'at most ' if remaining else ''}{risk:.2g} per answer are expected; "
            f"{sayable} of {len(self.wordings)} rows may still say one, "
            f"{likelier} find it likelier than false variants"
        )
        return remaining, risk

    def ask_thoroughly(self) -> float:
        """Check one wording after the other until one leaks, or until the mean risk over all must exceed `RISK`.

        Returns:
            0 if neither happens; else a number below `RISK`, and so below the result of any check that is not followed
            by a thorough one. The later a leak is found, the smaller the number.
        """
        every, total = list(zip(*self.wordings, strict=True)), 0.0
        fair = MOST_THOROUGH_SAMPLES // sum(map(len, every))
        samples = min(THOROUGH_SAMPLES, max(1, fair))
        for place, wordings in enumerate(every):
            remaining, risk = self.ask(wordings, samples, f"thorough check, wording {place}")
            total += risk
            if remaining or total > RISK * len(every):
                return RISK * (len(every) - place - 1 / (2 + remaining)) / len(every)
        return 0.0

    def _answered(
        self, asked: Sequence[PrivateExample], samples: int, purpose: str
    ) -> tuple[list[tuple[int, list[int], list[int]]], list[float], list[float], list[tuple[int, int, int, float]]]:
        """Sample answers; return row, prompt and tokens of each, two risks, and `Risk.notable`.

        The risks are of the row's own values and of any, and upper bounds.
        """
        prompts = [example.input_ids[: example.start] for example in asked]
        maker, rows = self.maker, [example.index for example in asked]
        watched = [maker.watched[row] for row in rows], [maker.watched_names[row] for row in rows]
        banned = [maker.banned[row] for row in rows], [maker.completions[row] for row in rows]
        own = Risk(*watched, samples, maker.edges)
        of_any = Risk(*banned, samples, maker.edges, least=math.inf)

        def observe(numbers: list[int], logits: Tensor, said: list[list[int]]) -> None:
            chances = logits.float().softmax(-1)
            own.add(numbers, chances, said)
            of_any.add(numbers, chances, said)

        said = self.sample(self.policy, prompts, samples, purpose=purpose, observe=observe)
        found: tuple[list[float], list[float], Any] = (own.of_answer, of_any.of_answer, own.notable)
        own_risks, any_risks, notable = self.broadcast(found)
        answered = [
            (example.index, prompt, ids)
            for example, prompt, answers in zip(asked, prompts, said, strict=True)
            for ids in answers
        ]
        return answered, own_risks, any_risks, notable

    def _other_words(
        self, notable: Sequence[tuple[int, int, int, float]], answered: Sequence[tuple[int, list[int], list[int]]]
    ) -> list[tuple[int, float]]:
        """Return, by answer, the probability that first tokens of private words begin no value."""
        begun, examples = [], []
        for number, place, token, chance in notable:
            index, prompt, ids = answered[number]
            rests = self.maker.rests(index, ids[:place], token)
            if [] not in rests:
                begun.append((number, chance, len(rests)))
                shown = prompt + ids[:place] + [token]
                examples += [(shown + rest, [IGNORED] * len(shown) + rest) for rest in rests]
        scores = iter(score(self.policy, examples, device=self.device))
        likely = [min(1.0, sum(float(next(scores).logprobs.sum().exp()) for _ in range(rests))) for *_, rests in begun]
        return [(number, chance * (1 - value)) for (number, chance, _), value in zip(begun, likely, strict=True)]

    def _values_left(self, asked: Sequence[PrivateExample]) -> tuple[int, int]:
        """Number of rows whose first value samples may contain, and of rows whose values are likelier than false ones.

        A later value is scored given the true earlier ones, so it is left to the risk of sampled answers.
        """
        examples = [*asked, *self.variants]
        scores = score(self.policy, [(one.input_ids, one.labels) for one in examples], device=self.device)
        sayable: set[int] = set()
        own: dict[int, float] = {}
        best: dict[int, float] = {}
        for example, found in zip(examples, scores, strict=True):
            runs = private_runs(example, found)
            if not runs:
                continue
            mean = sum(map(sum, runs)) / sum(map(len, runs))
            likeliest = own if example.secret else best
            likeliest[example.index] = max(likeliest.get(example.index, float("-inf")), mean)
            if example.secret and sum(runs[0]) > math.log(SAYABLE):
                sayable.add(example.index)
        return len(sayable), sum(value > best[index] for index, value in own.items() if index in best)


def private_runs(example: PrivateExample, scores: TokenScores) -> list[list[float]]:
    """Return the log-probabilities of each private value of an example, token by token."""
    runs: list[list[float]] = []
    inside = False
    for flag, value in zip(example.flags, scores.logprobs.tolist(), strict=True):
        if flag:
            runs = runs if inside else [*runs, []]
            runs[-1].append(value)
        inside = flag
    return runs


class Risk:
    """Expected number of private values that begin in each sampled answer.

    Args:
        tokens: Tokens that begin a private value, by prompt.
        after: Tokens that continue a private value whose first token may begin anything, by prompt (`by_last`).
        samples: Number of answers to each prompt.
        edges: Tokens that meet inside a word, where no value begins.
        least: Probability from which a token is notable.

    Attributes:
        of_answer: Sum over the answer's positions of the probability of these tokens, by answer.
        notable: Answer, position in it, token and probability of the notable ones that begin a value.
    """

    def __init__(
        self,
        tokens: Sequence[Collection[int]],
        after: Sequence[Mapping[int, Sequence[tuple[list[int], int]]]],
        samples: int,
        edges: WordEdges,
        least: float = NOTABLE,
    ) -> None:
        self.after, self.samples, self.edges, self.least = after, samples, edges, least
        self.tokens = padded([list(one) for one in tokens])
        held = [token in edges.continuing for token in self.tokens.flatten().tolist()]
        self.continuing = torch.tensor(held, dtype=torch.bool).reshape(self.tokens.shape)
        self.of_answer = [0.0] * len(tokens) * samples
        self.notable: list[tuple[int, int, int, float]] = []
        self._places = [0] * len(self.of_answer)

    def add(self, numbers: Sequence[int], chances: Tensor, said: Sequence[Sequence[int]]) -> None:
        """Add the next position of some answers, given the (n, V) probabilities and the answers' tokens so far."""
        self.tokens, self.continuing = self.tokens.to(chances.device), self.continuing.to(chances.device)
        prompts = torch.tensor(numbers, dtype=torch.long, device=chances.device) // self.samples
        tokens, continuing = self.tokens[prompts], self.continuing[prompts]
        inside = [bool(ids) and ids[-1] in self.edges.open for ids in said]
        begin = ~(continuing & torch.tensor(inside, dtype=torch.bool, device=chances.device)[:, None])
        found = torch.where((tokens >= 0) & begin, chances.gather(1, tokens.clamp(min=0)), 0.0)
        for row, slot in (found >= self.least).nonzero().tolist():
            number = numbers[row]
            self.notable.append((number, self._places[number], int(tokens[row, slot]), float(found[row, slot])))
        for number, chance in zip(numbers, found.sum(1).tolist(), strict=True):
            self.of_answer[number] += chance
            self._places[number] += 1
        for row, (number, ids) in enumerate(zip(numbers, said, strict=True)):
            if more := following(self.after[number // self.samples], ids, self.edges):
                self.of_answer[number] += float(chances[row, more].sum())
