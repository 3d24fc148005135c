"""Scores and own answers from one forward equal those of every row alone, for every family, or are left to others."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from dipo_lightning.evaluation.answering import Question, _units, common_beginning, score_and_answer
from tests.evaluation.test_generation import EOS_ID, plain_generate, stops_that_come
from tests.evaluation.test_scoring import plain_score
from tests.helpers.families import SIZES, family_model
from tests.helpers.toys import FAMILIES, VOCABULARY, toy_model

LIMIT = 12


def questions(model: torch.nn.Module, stop_ids: list[int], system: int = 9, seed: int = 0) -> tuple[list, list]:
    """Questions behind one system prompt; their answers share beginnings, some are what the model says itself."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(count)]

    examples: list[tuple[list[int], list[int]]] = []
    asked, start = [], ids(system)
    for number in range(7):
        prompt = start + ids(draw.randrange(1, 12))
        own = plain_generate(model, prompt, LIMIT, stop_ids)
        answers = [own[: draw.randrange(1, 6)] + ids(draw.randrange(1, 6)) for _ in range(draw.randrange(1, 4))]
        if number % 3 == 0:  # to its end
            answers.append([*own, stop_ids[0]])
        if number % 3 == 1 and own:  # a beginning of it
            answers += [own[:4], own[:4] + ids(2)]
        if number == 5:
            answers = []
        first = len(examples)
        examples += [(prompt + answer, [-100] * len(prompt) + answer) for answer in answers]
        asked.append(Question(prompt, list(range(first, len(examples))), len(answers[0]) if answers else 3))
    return examples, asked


def check(model: torch.nn.Module, examples: list, asked: list, stop_ids: list[int], **options: object) -> None:
    scores, said = score_and_answer(
        model, examples, asked, max_new_tokens=LIMIT, stop_ids=stop_ids, z_scores=range(3), **options
    )
    assert sorted(scores) == list(range(len(examples)))
    for index, example in enumerate(examples):
        logp, correct, z = plain_score(model, example)
        torch.testing.assert_close(scores[index].logprobs.double(), logp, rtol=1e-5, atol=1e-5)
        assert torch.equal(scores[index].correct, correct)
        assert (scores[index].z_scores is not None) == (index < 3)
        if index < 3:
            torch.testing.assert_close(scores[index].z_scores.double(), z, rtol=1e-4, atol=1e-4)
    for number, question in enumerate(asked):
        ids = plain_generate(model, question.prompt, LIMIT, stop_ids)
        assert said[number].ids == ids
        if ids:
            logp, _, _ = plain_score(model, (question.prompt + ids, [-100] * len(question.prompt) + ids))
            assert said[number].nll == pytest.approx(-logp.mean().item(), rel=1e-4)
        else:
            assert said[number].nll is None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [0, 9])
def test_every_row_is_as_if_alone(family: str, system: int) -> None:
    model = toy_model(family)
    stop_ids = stops_that_come(model, [[1, 2], [3, 4], [5, 6]])
    examples, asked = questions(model, stop_ids, system)
    assert (common_beginning([one.prompt for one in asked]) > 0) == (system > 0)
    check(model, examples, asked, stop_ids)
    check(model, examples, asked, stop_ids, batch_tokens=64, batch_rows=3)


def test_without_stop_ids_every_answer_runs_to_its_end() -> None:
    model = toy_model()
    examples, asked = questions(model, [EOS_ID])
    _, said = score_and_answer(model, examples, asked, max_new_tokens=5, stop_ids=[])
    assert [len(one.ids) for one in said.values()] == [5] * len(asked)


def test_the_eager_implementation_is_as_exact() -> None:
    model = toy_model()
    model.set_attn_implementation("eager")
    check(model, *questions(model, [EOS_ID]), [EOS_ID])


@pytest.mark.parametrize("family", SIZES)
def test_what_a_family_cannot_do_is_left_to_others(family: str) -> None:
    model = family_model(family)
    examples, asked = questions(model, [2], system=4)
    scores, said = score_and_answer(model, examples, asked, max_new_tokens=LIMIT, stop_ids=[2])
    for index, found in scores.items():
        torch.testing.assert_close(
            found.logprobs.double(), plain_score(model, examples[index])[0], rtol=1e-4, atol=1e-4
        )
    for number, found in said.items():
        assert found.ids == plain_generate(model, asked[number].prompt, LIMIT, [2])


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_window_is_never_widened(family: str) -> None:
    model = toy_model(family, sliding_window=22)
    examples, asked = questions(model, [EOS_ID], system=4)
    scores, said = score_and_answer(model, examples, asked, max_new_tokens=LIMIT, stop_ids=[EOS_ID])
    assert 0 < len(said) < len(asked), "the questions that fit the window with their answers"
    assert sorted(scores) == sorted(index for number in said for index in asked[number].examples)
    for number, found in said.items():
        assert found.ids == plain_generate(model, asked[number].prompt, LIMIT, [EOS_ID])


def test_each_token_is_computed_once() -> None:
    model = toy_model()
    examples, asked = questions(model, [EOS_ID])
    options = {"max_new_tokens": LIMIT, "stop_ids": [EOS_ID]}
    score_and_answer(model, examples, asked, **options)  # the layout is tried out once
    computed: list[int] = []
    handle = model.register_forward_pre_hook(lambda m, a, k: computed.append(k["input_ids"].numel()), with_kwargs=True)
    _, said = score_and_answer(model, examples, asked, batch_tokens=10, **options)
    assert list(said) == [5], "no other question fits such a batch: it has no answers"
    computed.clear()
    _, said = score_and_answer(model, examples, asked, **options)
    handle.remove()
    apart = sum(len(ids) for ids, _ in examples)
    apart += sum(len(one.prompt) + len(said[number].ids) for number, one in enumerate(asked))
    assert sum(computed) < 0.6 * apart


@pytest.mark.parametrize(
    ("rows", "sizes"), [(40, [40]), (70, [35, 35]), (71, [36, 35]), (130, [33, 33, 32, 32]), (3, [3])]
)
def test_two_processes_have_as_much_to_do(rows: int, sizes: list[int]) -> None:
    made = [SimpleNamespace(question=Question([], [], n % 7), layout=[0] * (n % 5), number=n) for n in range(rows)]
    units = _units(made, 64)
    assert [len(unit) for unit in units] == sizes
    assert sorted(row.number for unit in units for row in unit) == list(range(rows))
    for start in range(0, len(units), 2):
        work = [sum(row.question.expected for row in unit) / len(unit) for unit in units[start : start + 2]]
        assert max(work) - min(work) < 0.3
    longest = [max(row.question.expected for row in unit) for unit in units[::2]]
    assert longest == sorted(longest, reverse=True)
