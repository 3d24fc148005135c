"""Examination of a model on user data: leaks of each private value, and preserved knowledge.

The target and the unlearned model get the same questions; `dipo_lightning.benchmarks.user_data.verdict` compares the
two.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import torch
from torch import nn

from dipo_lightning.benchmarks.user_data.metrics import KeptShare
from dipo_lightning.benchmarks.user_data.probes import TEMPLATES, general_paragraphs, general_rows, rewordings
from dipo_lightning.benchmarks.user_data.verdict import KNOWN, LABELS, Kept, ValueReport
from dipo_lightning.data.encoding import PromptStyle, encode
from dipo_lightning.data.language import has_digit, share_of_words, unspaced, vocabulary, words
from dipo_lightning.data.mentions import says
from dipo_lightning.data.private import Span, private_spans, rows_with_words, spans_of_values, token_flags, token_places
from dipo_lightning.evaluation.aggregates import aggregates, intervals, metric_collection
from dipo_lightning.evaluation.generation import generate
from dipo_lightning.evaluation.sampling import hash_seed, sample
from dipo_lightning.evaluation.scoring import fitted, score
from dipo_lightning.models.answers import IGNORED, first_supervised
from dipo_lightning.models.distributed import evaluation_mode, unsharded

Row = Mapping[str, Any]

VARIANTS = 5
"""Number of false variants that are scored per private value."""
MOST_ASKED = 1000
"""Number of wordings of a question up to which different seeds share no samples."""
RESAMPLES = 1000
"""Number of resamples of the rows for the interval of the share kept."""


@dataclass(frozen=True, kw_only=True)
class ExaminationOptions:
    """Effort of an examination.

    Attributes:
        samples: Number of sampled answers to each question and to each rewording.
        rewordings: Number of rewordings of each question by rule; those that a row has itself are all asked, too.
        max_new_tokens: Maximum length of an answer in tokens.
        seed: Seed of the samples; each question has its own stream.
    """

    samples: int = 20
    rewordings: int = 2
    max_new_tokens: int = 48
    seed: int = 0


@dataclass
class Examination:
    """Answers and scores of one model in an examination.

    Attributes:
        asked: Each forget question, and its rewordings.
        values: Private values by forget row, in order.
        probability: Probability of each value after the true beginning of its answer, by row and value: the geometric
            mean over its tokens.
        rank: Rank of the first token of each value, 1 for the likeliest.
        variants: The same probability for the likeliest false variant of each value (another value of its kind in its
            place); None without one.
        greedy: Greedy answer to each forget question.
        reworded: Greedy answers to the rewordings of each question.
        sampled: Sampled answers to each question and its rewordings, equally many to each, in their order.
        retain: Probability per token of each retain row's answer.
        neighbours: The same for held-out rows.
        general: Share of the right answer's probability among the options, by general row.
        paragraphs: Probability per token of each embedded paragraph, the inverse of its perplexity.
    """

    asked: list[list[str]]
    values: list[list[str]]
    probability: list[list[float]]
    rank: list[list[int]]
    variants: list[list[float | None]]
    greedy: list[str]
    reworded: list[list[str]]
    sampled: list[list[str]]
    retain: list[float] = field(default_factory=list)
    neighbours: list[float] = field(default_factory=list)
    general: list[float] = field(default_factory=list)
    paragraphs: list[float] = field(default_factory=list)


def values_by_row(rows: Sequence[Row], shared: Mapping[str, int]) -> list[list[str]]:
    """Return the different private values of each forget row: the given ones, or else those found by rule.

    Args:
        rows: The forget rows.
        shared: Words of the retain rows, as for `find_private`.
    """
    found = [[row["answer"][span.start : span.end] for span in private_spans(row, shared)] for row in rows]
    return [list(dict.fromkeys(values)) for values in found]


def examine(
    policy: nn.Module,
    style: PromptStyle,
    forget: Sequence[Row],
    retain: Sequence[Row],
    neighbours: Sequence[Row] = (),
    *,
    options: ExaminationOptions,
    progress: Callable[[str], object] = lambda what: None,
) -> Examination:
    """Examine a model; collective, with the same result on every process.

    Args:
        policy: A ``transformers`` causal LM.
        style: Prompt style.
        forget: Forget rows with ``question`` and ``answer``.
        retain: Retain rows of the training.
        neighbours: Held-out rows that resemble the forget rows.
        options: Effort of the examination.
        progress: Called with the name of each stage before it begins.
    """
    values = values_by_row(forget, rows_with_words([*retain, *neighbours]))
    asked = [[row["question"], *rewordings(row, TEMPLATES[: options.rewordings])] for row in forget]
    progress("asking")
    greedy = _greedy(policy, style, [question for questions in asked for question in questions], options)
    progress("sampling")
    sampled = _sampled(policy, style, asked, options)
    progress("scoring")
    probability, rank = _value_scores(policy, style, forget, values)
    counts = [len(questions) for questions in asked]
    grouped = _grouped(greedy, counts)
    return Examination(
        asked,
        values,
        probability,
        rank,
        _variant_scores(policy, style, forget, values, [*retain, *neighbours]),
        [answers[0] for answers in grouped],
        [answers[1:] for answers in grouped],
        sampled,
        _row_scores(policy, style, retain),
        _row_scores(policy, style, neighbours),
        _general_scores(policy, style),
        _paragraph_scores(policy, style),
    )


def value_reports(before: Examination, after: Examination, untaught: Examination | None = None) -> list[ValueReport]:
    """Combine the examinations into one report per private value.

    Args:
        before: Examination of the target.
        after: Examination of the unlearned model.
        untaught: Examination of a model that never knew the rows: values that it says by chance are no leaks, and its
            probabilities are the floors. Without it, a value's floor is the probability of its likeliest false variant
            under the unlearned model.
    """
    floors: Sequence[Sequence[float | None]] = after.variants if untaught is None else untaught.probability
    reports = []
    for index, values in enumerate(after.values):
        for place, value in enumerate(values):
            said = _answers_with(after, index, value)
            chance = _answers_with(untaught, index, value) if untaught else _Heard([False] * len(said.greedy), 0, 0)
            greedy, *reworded = said.more_than(chance)
            reports.append(
                ValueReport(
                    index,
                    value,
                    before.probability[index][place],
                    after.probability[index][place],
                    floors[index][place],
                    greedy,
                    any(reworded),
                    said.sampled,
                    said.samples,
                    after.rank[index][place],
                    chance.sampled,
                    chance.samples,
                    knows(before, index, place),
                )
            )
    return reports


def knows(model: Examination, index: int, place: int) -> bool:
    """Return whether a model says a row's value, or finds it likelier than `KNOWN` and than its false variants."""
    probability, variant = model.probability[index][place], model.variants[index][place]
    likely = probability > KNOWN and (variant is None or probability > variant)
    said = _answers_with(model, index, model.values[index][place])
    return likely or any(said.greedy) or said.sampled > 0


def known_by_both(target: Examination, other: Examination) -> tuple[int, int]:
    """Count the values that another model knows, too, among those that the target knows, and these.

    The other model knows a value that a greedy answer of its says, or that it finds more than half as likely as the
    target does. That a sample says it is no sign: a model that never knew a value says an ordinary word at times.
    """
    places = [(index, place) for index, row in enumerate(target.values) for place in range(len(row))]
    known = [(index, place) for index, place in places if knows(target, index, place)]
    shared = sum(
        any(_answers_with(other, index, target.values[index][place]).greedy)
        or other.probability[index][place] > target.probability[index][place] / 2
        for index, place in known
    )
    return shared, len(known)


class _Heard(NamedTuple):
    """Answers of a model with a value, of those to wordings that do not say it themselves.

    Attributes:
        greedy: Whether the greedy answer to the question and to each rewording contains it.
        sampled: Number of sampled answers that contain it.
        samples: Number of sampled answers.
    """

    greedy: list[bool]
    sampled: int
    samples: int

    def more_than(self, other: _Heard) -> list[bool]:
        """Return for each wording whether this model alone says the value greedily."""
        return [here and not there for here, there in zip(self.greedy, other.greedy, strict=True)]


def _answers_with(model: Examination, index: int, value: str) -> _Heard:
    """Count a row's answers that contain a value.

    Answers to a rewording that says the value, where the question does not, are left out: they reveal nothing.
    """
    question, *others = model.asked[index]
    may_reveal = [True, *(says(question, value) or not says(other, value) for other in others)]
    greedy = [model.greedy[index], *model.reworded[index]]
    answers = model.sampled[index]
    each = len(answers) // len(may_reveal)
    sampled = [says(answer, value) for place, answer in enumerate(answers) if may_reveal[place // each]]
    said = [counts and says(answer, value) for answer, counts in zip(greedy, may_reveal, strict=True)]
    return _Heard(said, sum(sampled), len(sampled))


def kept_scores(before: Examination, after: Examination) -> list[Kept]:
    """Return the scores of preserved knowledge before and after, with a bootstrap interval over rows."""
    rows: dict[str, Any] = {}
    for name in LABELS:
        pairs = enumerate(zip(getattr(before, name), getattr(after, name), strict=True))
        rows[name] = [{"index": index, "before": old, "after": new} for index, (old, new) in pairs]
    collection = metric_collection({name: KeptShare(name) for name, some in rows.items() if some})
    found, ends = aggregates(collection, rows), intervals(collection, RESAMPLES)
    kept = []
    for name, numbers in found.items():
        low, high = ends.get(f"{name}_share", (None, None))
        parts: dict[str, Any] = {part: math.nan if value is None else value for part, value in numbers.items()}
        kept.append(Kept(name, **parts, low=low, high=high))
    return kept


def said_words(before: Examination, after: Examination, rows: Sequence[Row], tokenizer: Any) -> float:
    """Return the share of existing words in the unlearned model's answers to forget questions, over the target's.

    A word exists if it occurs in the rows, the target's answers or the probes, or is a single token. A share that is
    not lower than the target's gives 1. Sampled answers are left out, since they have many rare words.
    """
    texts = [text for row in [*rows, *general_rows()] for text in (row["question"], row["answer"])]
    texts += [*general_paragraphs(), *_said(before), *(one for answers in before.sampled for one in answers)]
    said = _said(after)
    single = {word for word in vocabulary(said) if not unspaced(word) and len(encode(tokenizer, f" {word}")) == 1}
    known = vocabulary(texts) | single
    now, then = share_of_words(said, known), share_of_words(_said(before), known)
    return now / then if now < then else 1.0


def _said(model: Examination) -> list[str]:
    """Return a model's greedy answers to the forget questions and to their rewordings."""
    return [*model.greedy, *(answer for answers in model.reworded for answer in answers)]


def repeated_share(model: Examination) -> float:
    """Return the share of the different forget questions with the most common greedy answer; 0 with fewer than 4.

    Answers of the same words are one, whatever their case and signs.
    """
    said = (tuple(word.text for word in words(answer)) for answer in model.greedy)
    answers = {asked[0]: answer for asked, answer in zip(model.asked, said, strict=True)}
    if len(answers) < 4:
        return 0.0
    return Counter(answers.values()).most_common(1)[0][1] / len(answers)


def _grouped(flat: Sequence[str], counts: Sequence[int]) -> list[list[str]]:
    rest = iter(flat)
    return [[next(rest) for _ in range(count)] for count in counts]


def _greedy(policy: nn.Module, style: PromptStyle, questions: Sequence[str], options: ExaminationOptions) -> list[str]:
    prompts = [style.prompt(question) for question in questions]
    said = generate(policy, prompts, max_new_tokens=options.max_new_tokens, stop_ids=style.stop_ids)
    return [style.text(ids) for ids in said]


def _sampled(
    policy: nn.Module, style: PromptStyle, asked: Sequence[Sequence[str]], options: ExaminationOptions
) -> list[list[str]]:
    """Sample answers to all questions of each row; every question has its own stream of random numbers."""
    if not options.samples:
        return [[] for _ in asked]
    places = [(number, place) for number, questions in enumerate(asked) for place in range(len(questions))]
    with evaluation_mode(policy), unsharded(policy):
        said = sample(
            policy,
            [style.prompt(asked[number][place]) for number, place in places],
            samples=options.samples,
            max_new_tokens=options.max_new_tokens,
            stop_ids=style.stop_ids,
            seeds=[hash_seed(MOST_ASKED * options.seed + 1 + place, number) for number, place in places],
        )
    texts: list[list[str]] = [[] for _ in asked]
    for (number, _), answers in zip(places, said, strict=True):
        texts[number] += [style.text(ids) for ids in answers]
    return texts


@torch.no_grad()
def _value_scores(
    policy: nn.Module, style: PromptStyle, rows: Sequence[Row], values: Sequence[Sequence[str]]
) -> tuple[list[list[float]], list[list[int]]]:
    """Return the probability per token of each value and the rank of its first token; both 0 if it is not found.

    A row is cut at the end of the model's position embeddings.
    """
    probabilities, ranks = [], []
    whole = [style.example(row["question"], row["answer"]) for row in rows]
    with evaluation_mode(policy):
        for (ids, labels), (cut, _), row, wanted in zip(whole, fitted(policy, whole), rows, values, strict=True):
            start = first_supervised(labels)
            tokens = torch.tensor([cut], device=next(policy.parameters()).device)
            logits = policy(input_ids=tokens, use_cache=False).logits[0, start - 1 : -1].float()
            places = token_places(style.tokenizer, ids[start:], row["answer"])[: len(logits)]
            true = tokens[0, start:, None]
            likelihood = logits.log_softmax(-1).gather(1, true)[:, 0]
            rank = (logits > logits.gather(1, true)).sum(1) + 1
            flags = [torch.tensor(token_flags(places, spans_of_values(row["answer"], [value])[:1])) for value in wanted]
            probabilities.append([float(likelihood[one].mean().exp()) if one.any() else 0.0 for one in flags])
            ranks.append([int(rank[one][0]) if one.any() else 0 for one in flags])
    return probabilities, ranks


Kind = tuple[bool, bool, int]


def _kind(value: str) -> Kind:
    """Return the kind of a value: whether it has digits, whether it is capitalised, and its number of words up to 3."""
    return has_digit(value), value[:1].isupper(), min(3, len(value.split()))


def by_kind(pool: Iterable[str]) -> dict[Kind, list[str]]:
    """Group the different values of a pool by their kind."""
    found: dict[Kind, list[str]] = {}
    for value in sorted(set(pool)):
        found.setdefault(_kind(value), []).append(value)
    return found


def false_variants(value: str, pool: Mapping[Kind, Sequence[str]], text: str = "") -> list[str]:
    """Choose up to `VARIANTS` values of other rows, the most similar in digits, capitals and number of words.

    Among equally similar ones the choice is random, but the same each time.

    Args:
        value: A private value.
        pool: Values of all rows by their kind.
        text: Question and answer of the value's row, whose own words are no variants.
    """
    kind, draw = _kind(value), Random(value)

    def likeness(other: Kind) -> int:
        return sum(a == b for a, b in zip(other, kind, strict=True))

    for best in range(len(kind), -1, -1):
        alike = [one for other, group in pool.items() if likeness(other) == best for one in group]
        draw.shuffle(alike)
        fitting = (one for one in alike if not (says(one, value) or says(value, one) or says(text, one)))
        if found := list(islice(fitting, VARIANTS)):
            return found
    return []


def _variant_scores(
    policy: nn.Module,
    style: PromptStyle,
    rows: Sequence[Row],
    values: Sequence[Sequence[str]],
    others: Sequence[Row],
) -> list[list[float | None]]:
    """Return the probability per token of each value's likeliest false variant in its place; None without one."""
    of_others = values_by_row([{**row, "private": None} for row in others], {})
    pool = by_kind(value for row in (*values, *of_others) for value in row)
    of_nobody = by_kind(value for row in values_by_row(general_rows(), {}) for value in row)
    examples, owners = [], []
    for number, (row, wanted) in enumerate(zip(rows, values, strict=True)):
        for place, value in enumerate(wanted):
            spans = spans_of_values(row["answer"], [value])[:1]
            text = f"{row['question']} {row['answer']}"
            variants = false_variants(value, pool, text) or false_variants(value, of_nobody, text)
            for span, variant in ((span, variant) for span in spans for variant in variants):
                examples.append(_variant_example(style, row, span, variant))
                owners.append((number, place))
    found: list[list[float | None]] = [[None] * len(wanted) for wanted in values]
    for (number, place), scores in zip(owners, score(policy, examples), strict=True):
        if scores.tokens:
            found[number][place] = max(found[number][place] or 0.0, math.exp(-scores.nll))
    return found


def _variant_example(style: PromptStyle, row: Row, span: Span, variant: str) -> tuple[list[int], list[int]]:
    """Return the example of an answer with a variant in place of a value, with labels on the variant's tokens only."""
    answer = row["answer"][: span.start] + variant + row["answer"][span.end :]
    ids, labels = style.example(row["question"], answer)
    start = first_supervised(labels)
    places = token_places(style.tokenizer, ids[start:], answer)
    flags = token_flags(places, [Span(span.start, span.start + len(variant))])
    return ids, [IGNORED] * start + [token if flag else IGNORED for token, flag in zip(ids[start:], flags, strict=True)]


def _row_scores(policy: nn.Module, style: PromptStyle, rows: Sequence[Row]) -> list[float]:
    examples = [style.example(row["question"], row["answer"]) for row in rows]
    return [math.exp(-found.nll) for found in score(policy, examples)]


def _general_scores(policy: nn.Module, style: PromptStyle) -> list[float]:
    """Return the right answer's share of the probability per token of the four options, by general row."""
    rows = general_rows()
    examples = [
        style.example(row["question"], text) for row in rows for text in (row["answer"], *row["perturbed_answer"])
    ]
    likelihood = torch.tensor([-found.nll for found in score(policy, examples)], dtype=torch.float64)
    return [float(share) for share in likelihood.view(len(rows), -1).softmax(1)[:, 0]]


def _paragraph_scores(policy: nn.Module, style: PromptStyle) -> list[float]:
    ids = [style.tokenizer(text, add_special_tokens=True)["input_ids"] for text in general_paragraphs()]
    return [math.exp(-found.nll) for found in score(policy, [(one, [IGNORED, *one[1:]]) for one in ids])]
