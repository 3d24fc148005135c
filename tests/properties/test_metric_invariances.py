"""Invariances of every metric, on random models and rows: order, sharding, batch size, padding side, a constant."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dipo_lightning.evaluation.scoring import TokenScores, score
from dipo_lightning.metrics.functional import exact_memorization, extraction_strength, min_k
from dipo_lightning.metrics.functional.membership import standardized_logprobs
from tests.helpers.aggregate import tofu
from tests.helpers.toys import toy_model
from tests.metrics.distributed_worker import all_metrics, fill, results, rows_of
from tests.properties.drawing import cases

SETS = ("forget", "retain", "real_authors", "world_facts")
Example = tuple[list[int], list[int]]


@functools.cache
def model(family: str, seed: int) -> Any:
    sizes = {"n_layer": 1} if family == "gpt2" else {"num_hidden_layers": 1}
    return toy_model(family, seed, **sizes)


MODELS = st.builds(model, st.sampled_from(["llama", "gpt2", "qwen2"]), st.integers(0, 2))
TOKEN = st.integers(3, 319)
PROMPT = st.lists(TOKEN, min_size=1, max_size=6).map(lambda tokens: [1, *tokens])
ANSWER = st.lists(TOKEN, min_size=1, max_size=8).map(lambda tokens: [*tokens, 2])
EXAMPLE = st.tuples(PROMPT, ANSWER).map(lambda both: (both[0] + both[1], [-100] * len(both[0]) + both[1]))
EXAMPLES = st.lists(EXAMPLE, min_size=1, max_size=6)
QUESTION = st.tuples(PROMPT, st.lists(ANSWER, min_size=4, max_size=4))
"""A prompt with its answer, a paraphrase and two wrong ones."""


def metrics(scores: Sequence[TokenScores]) -> torch.Tensor:
    """(rows, 5): mean NLL, exact memorisation, extraction strength, Min-K and Min-K++ of each row."""
    return torch.tensor([
        [row.nll, exact_memorization(row.correct), extraction_strength(row.correct), min_k(row.logprobs),
         min_k(row.z_scores)]
        for row in scores
    ], dtype=torch.float64)  # fmt: skip


def measured(policy: Any, examples: Sequence[Example], batch_tokens: int = 2048) -> torch.Tensor:
    return metrics(score(policy, examples, batch_tokens=batch_tokens, z_scores=range(len(examples))))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=2e-4, atol=2e-4)


def questions_as_rows(policy: Any, questions: Sequence[Any], batch_tokens: int = 2048) -> list[dict[str, Any]]:
    """Rows of a log, of each question by its place."""
    texts = [(p + a, [-100] * len(p) + a) for p, answers in questions for a in answers]
    nll = [row.nll for row in score(policy, texts, batch_tokens=batch_tokens)]
    parts = [nll[4 * i : 4 * i + 4] for i in range(len(questions))]
    return [
        {"index": i, "nll": own, "correct_nll": right, "wrong_nll": list(wrong), "rouge_l_recall": 0.5 + 0.1 * (i % 3)}
        for i, (own, right, *wrong) in enumerate(parts)
    ]


def numbers(aggregates: dict[str, Any]) -> dict[str, Any]:
    flat = aggregates | {f"forget_quality_{name}": value for name, value in aggregates["forget_quality"].items()}
    return {name: value for name, value in flat.items() if isinstance(value, float | int)}


@cases(25)
@given(policy=MODELS, examples=EXAMPLES, draw=st.data())
def test_the_order_of_rows(policy: Any, examples: list[Example], draw: Any) -> None:
    order = draw.draw(st.permutations(range(len(examples))))
    same(measured(policy, [examples[i] for i in order]), measured(policy, examples)[list(order)])


@cases(25)
@given(policy=MODELS, examples=EXAMPLES, batch_tokens=st.integers(1, 120))
def test_the_batch_size(policy: Any, examples: list[Example], batch_tokens: int) -> None:
    same(measured(policy, examples, batch_tokens), measured(policy, examples))


@cases(20)
@given(policy=MODELS, questions=st.lists(QUESTION, min_size=2, max_size=4), batch_tokens=st.integers(1, 120),
       draw=st.data())  # fmt: skip
def test_order_and_batch_size_from_models_to_aggregates(
    policy: Any, questions: list[Any], batch_tokens: int, draw: Any
) -> None:
    reference = dict.fromkeys(SETS, questions_as_rows(model("llama", 3), questions))
    rows = questions_as_rows(policy, questions, batch_tokens)
    shuffled = {name: draw.draw(st.permutations(rows)) for name in SETS}
    found = numbers(tofu(shuffled, reference))
    expected = numbers(tofu(dict.fromkeys(SETS, questions_as_rows(policy, questions)), reference))
    assert {"model_utility", "forget_quality_p", "forget_truth_ratio"} <= set(found)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@cases(25)
@given(policy=MODELS, examples=EXAMPLES)
def test_the_padding_side(policy: Any, examples: list[Example]) -> None:
    longest = max(len(ids) for ids, _ in examples) + 2
    both = []
    for left in (True, False):
        padded = [pad(ids, longest, left) for ids, _ in examples]
        ids, mask = (torch.tensor(part) for part in zip(*padded, strict=True))
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)
        with torch.no_grad():
            logits = policy(input_ids=ids, attention_mask=mask, position_ids=positions).logits
        starts = [longest - len(tokens) if left else 0 for tokens, _ in examples]
        both.append(metrics([row_scores(logits[i, start:], examples[i]) for i, start in enumerate(starts)]))
    same(both[0], both[1])
    same(both[0], measured(policy, examples))


@cases(25)
@given(policy=MODELS, examples=EXAMPLES, constant=st.floats(-30, 30))
def test_a_constant_added_to_all_logits(policy: Any, examples: list[Example], constant: float) -> None:
    same(measured(Raised(policy, constant), examples), measured(policy, examples))


@cases(20)
@given(ranks=st.integers(1, 5), draw=st.data())
def test_sharding_into_any_ranks(ranks: int, draw: Any) -> None:
    """Rows go to any rank, some to several, and a rank may have none: the merged metrics are the same bits."""
    sets = rows_of("target")
    shards: list[dict[str, list]] = [{name: [] for name in sets} for _ in range(ranks + 1)]  # the last one has none
    for name, rows in sets.items():
        owners = draw.draw(st.lists(st.integers(0, ranks - 1), min_size=len(rows), max_size=len(rows)))
        again = draw.draw(st.lists(st.tuples(st.sampled_from(rows), st.integers(0, ranks - 1)), max_size=2))
        for row, owner in [*zip(rows, owners, strict=True), *again]:
            shards[owner][name].append(row)
    merged = filled(shards[0])
    for shard in shards[1:]:
        part = filled(shard)
        for name, metric in merged.items():
            metric.merge_state(part[name])
    assert results(merged) == whole()


@functools.cache
def whole() -> dict[str, Any]:
    return results(filled(rows_of("target")))


def filled(sets: dict[str, list]) -> dict[str, Any]:
    found = all_metrics()
    fill(found, sets)
    return found


class Raised(torch.nn.Module):
    """The same model with a constant added to every logit."""

    def __init__(self, policy: Any, constant: float) -> None:
        super().__init__()
        self.policy, self.config, self.constant = policy, policy.config, constant

    def forward(self, **inputs: Any) -> Any:
        output = self.policy(**inputs)
        output.logits = output.logits + self.constant
        return output

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.policy.get_input_embeddings()


def pad(ids: list[int], length: int, left: bool) -> tuple[list[int], list[int]]:
    """Ids and mask of one length."""
    nothing = [0] * (length - len(ids))
    return (nothing + ids, nothing + [1] * len(ids)) if left else (ids + nothing, [1] * len(ids) + nothing)


def row_scores(logits: torch.Tensor, example: Example) -> TokenScores:
    """Scores from the logits of one row without padding in front."""
    ids, labels = example
    places = [i for i in range(len(ids) - 1) if labels[i + 1] != -100]
    chosen, targets = logits[places], torch.tensor([labels[i + 1] for i in places])
    logprobs = chosen.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    return TokenScores(
        logprobs, chosen.argmax(-1) == targets, chosen.argmax(-1), standardized_logprobs(chosen, targets)
    )
