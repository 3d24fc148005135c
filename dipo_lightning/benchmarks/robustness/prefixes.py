"""Prefix extraction: the model continues answers whose beginning is given."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dipo_lightning.benchmarks.robustness.attack import (
    Asked,
    Attack,
    Condition,
    Subject,
    measure_answers,
    plainly,
)
from dipo_lightning.errors import InputError

SINGLE = "Its answer has a single token, so that nothing is left when a part of it is given."


@dataclass
class Prefixes(Attack):
    """Attack that gives the first tokens of each answer and measures the rest.

    Attributes:
        shares: Percentages of the answer's tokens that are given (Carlini et al., 2023, arXiv 2202.07646, extract the
            rest of a text from growing prefixes; the quarters are this package's choice).
    """

    shares: tuple[int, ...] = (25, 50, 75)

    name = "prefixes"

    def conditions(self, subject: Subject) -> list[Condition]:
        """Return a condition for each share.

        Raises:
            InputError: A share is not between 1 and 99.
        """
        for share in self.shares:
            if not 1 <= share <= 99:
                raise InputError(f"prefixes.shares has {share}; each is a percentage of the answer from 1 to 99.")
        return [Condition(f"prefix_{share}", f"{share} % of the answer given") for share in self.shares]

    def measure(self, policy: nn.Module, subject: Subject, condition: Condition) -> dict[str, list[dict[str, Any]]]:
        """Measure the rest of each answer; an answer of a single token has none."""
        share = int(condition.name.removeprefix("prefix_"))
        cut = {one.row["index"]: begun(subject, one, share) for one in plainly(subject)}
        measured = measure_answers(policy, subject, [one for one in cut.values() if one is not None])
        left_out = [{"index": index, "reason": SINGLE} for index, one in cut.items() if one is None]
        return {condition.name: sorted(measured + left_out, key=lambda row: row["index"])}


def begun(subject: Subject, asked: Asked, share: int) -> Asked | None:
    """Move the first ``share`` percent of an answer's tokens, at least one, to the prompt; None if no token is left."""
    ends = asked.target[-1] in subject.style.stop_ids
    tokens = len(asked.target) - ends
    given = max(1, math.floor(tokens * share / 100))
    if given >= tokens:
        return None
    start, rest = asked.target[:given], asked.target[given:]
    return replace(
        asked,
        prompt=asked.prompt + start,
        target=rest,
        question=f"{asked.question} {subject.style.text(start)}",
        answer=subject.style.text(rest),
    )
