"""Training examples of selective unlearning: prompts and answers with private and other tokens marked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from dipo_lightning.data.encoding import PromptStyle, encode
from dipo_lightning.data.language import (
    FUNCTION_WORDS,
    PARTICLES,
    Word,
    has_digit,
    is_common_word,
    is_name,
    names_in,
    number_forms,
    vocabulary,
    words,
)
from dipo_lightning.data.mentions import says
from dipo_lightning.data.private import (
    FEW_WORDS,
    Span,
    is_rare,
    private_spans,
    rows_with_words,
    token_flags,
    token_places,
)
from dipo_lightning.errors import InputError
from dipo_lightning.methods.selective.bans import (
    by_last,
    completions,
    first_tokens,
    following,
    shared_parts,
    telling_parts,
    token_forms,
    word_edges,
)
from dipo_lightning.models.answers import IGNORED, first_supervised

Row = Mapping[str, Any]

_INSIDE_NAME = re.compile(r"(?<=\b\w)\.\s*|\s+[\"“(]?|[\"”)]\s+")
"""White space, quotation marks and brackets between the names of one person, and the full stop of an initial."""

MOST_NEIGHBOURS = 120
"""Maximum number of retain subjects that forget questions are asked about, and of such questions in training."""


@dataclass
class PrivateExample:
    """Prompt and answer with marked private tokens.

    Attributes:
        index: Index of the forget row.
        input_ids: Token ids of prompt and answer.
        labels: Token ids of the answer, -100 in the prompt.
        private: For each token, whether it is part of a private value.
        visible: For each token, 0 where the subject's name is masked out for the blind reference.
        secret: Whether the private tokens are the true ones; those of a false variant are not.
    """

    index: int
    input_ids: list[int]
    labels: list[int]
    private: list[bool]
    visible: list[int]
    secret: bool = True

    @property
    def start(self) -> int:
        """Position of the answer's first token; the number of tokens if none of it is left."""
        return first_supervised(self.labels)

    @property
    def flags(self) -> list[bool]:
        """Flags of the answer's tokens, True for private ones."""
        return [flag for flag, label in zip(self.private, self.labels, strict=True) if label != IGNORED]


class RarestWord(NamedTuple):
    """Rarest word of a private value, after its first token.

    Attributes:
        rest: Tokens that complete the word.
        word: The word.
        value: The value.
    """

    rest: list[int]
    word: str
    value: str


def identifiers(question: str, shared: Mapping[str, int]) -> set[str]:
    """Find the words of a question that identify its subject.

    These are its names and numbers that are rare in the retain rows (`is_rare`), or else its rare content words.

    Args:
        question: The question.
        shared: Words of the retain rows, as for `find_private`.
    """
    own = {word.text for word in words(question)[1:] if is_rare(word.text, shared)} - FUNCTION_WORDS
    return own & names_in(question) or own


def subject_in(question: str, own: set[str]) -> str:
    """Return the longest run of adjacent names (or word) of a question with a word of ``own`` in it; "" for none."""
    runs: list[list[Word]] = []
    particles: list[Word] = []
    for word in words(question)[1:]:
        name = is_name(question, word)
        together = [*runs[-1][-1:], *particles, word] if runs else []
        joined = together and all(_INSIDE_NAME.fullmatch(question, a.end, b.start) for a, b in pairwise(together))
        if joined and word.text in PARTICLES and not name:
            particles.append(word)
            continue
        if joined and name:
            runs[-1] += [*particles, word]
        elif name or word.text in own:
            runs.append([word])
        particles = []
    named = [run for run in runs if not own.isdisjoint(word.text for word in run)]
    longest = max(named, key=len, default=None)
    return _closed(question, longest[0].start, longest[-1].end) if longest else ""


def _closed(question: str, start: int, end: int) -> str:
    """Return a part of a question, with the sign that closes what it leaves open."""
    name = question[start:end]
    left_open = name.count('"') % 2 or any(name.count(sign) > name.count(other) for sign, other in ("()", "“”"))
    return name + question[end] if left_open and question[end : end + 1] in tuple('")”') else name


class ExampleMaker:
    """Builder of examples for the forget rows, with each row's private values and subject.

    Attributes:
        edges: Tokens that meet inside a word.
        spans: Private spans of each row's answer.
        shared: Number of retain rows that contain each word (`rows_with_words`).
        names: Names in each row's question that identify its subject.
        secrets: Words of the private values of all rows about each row's subject, in lower case but for abbreviations.
        forms: The same words also in plural and singular.
        needed: Tokens of each row's question and answer, -100 for private ones.
        banned: Tokens that begin one of these words, by row.
        watched: Tokens that begin the rarest word of one of the row's own values, by row, each with these words.
        completions: By row, the tokens to ban after others (`completions`), by the last of these.
        watched_names: The same for the words of `watched` alone, of numbers only for those that are a whole value.
    """

    def __init__(
        self, rows: Sequence[Row], retain: Iterable[Row], style: PromptStyle, max_length: int | None = None
    ) -> None:
        shared = rows_with_words(retain)
        self.rows, self.style, self.max_length, self.shared = rows, style, max_length, shared
        self.tokenizer: Any = style.tokenizer
        self.edges = word_edges(self.tokenizer)
        self.spans = [private_spans(row, shared) for row in rows]
        self.subjects = [identifiers(row["question"], shared) for row in rows]
        self.names = [own & names_in(row["question"]) for row, own in zip(rows, self.subjects, strict=True)]
        self.secrets = self._secrets()
        self.forms = [self._in_any_number(index) for index in range(len(rows))]
        self.names_only = self._names_only()
        self.needed = [self._needed(index) for index in range(len(rows))]
        self.banned = [self._banned(index) for index in range(len(rows))]
        rarest = [self._rarest(index) for index in range(len(rows))]
        self.watched = [self._watched(index, own) for index, own in enumerate(rarest)]
        self.completions = [self._completions(index, secrets) for index, secrets in enumerate(self.forms)]
        names = [[word for word, value in own if not has_digit(word) or len(words(value)) == 1] for own in rarest]
        self.watched_names = [self._completions(index, own) for index, own in enumerate(names)]

    def _words(self, answer: str, spans: Sequence[Span]) -> set[str]:
        whole = {(word.start, word.end): word.text for word in words(answer)}  # an "A" may be an article by itself
        found = set[str]()
        for start, end in spans:
            value = answer[start:end]
            said = {whole.get((start + word.start, start + word.end), word.text) for word in words(value)}
            found |= said - shared_parts(value, self.shared)
        return found - FUNCTION_WORDS

    @staticmethod
    def _is_phrase(answer: str, span: Span) -> bool:
        """Return whether a value is a phrase of ordinary words, which other answers may need."""
        value = answer[span.start : span.end]
        content = [word for word in words(value) if word.text not in FUNCTION_WORDS]
        return len(content) > FEW_WORDS and 2 * sum(is_name(value, word) for word in content) < len(content)

    def _secrets(self) -> list[set[str]]:
        """Private words of each row, and those of rows about the same name that this row does not say itself."""
        answers = [(row["answer"], spans) for row, spans in zip(self.rows, self.spans, strict=True)]
        own = [self._words(answer, spans) for answer, spans in answers]
        of_name: dict[str, set[str]] = {}
        for names, (answer, spans) in zip(self.names, answers, strict=True):
            found = self._words(answer, [span for span in spans if not self._is_phrase(answer, span)])
            for name in names:
                of_name.setdefault(name, set()).update(found)
        others = [set[str]().union(*(of_name[name] for name in names)) for names in self.names]
        said = [vocabulary([row["question"], row["answer"]]) for row in self.rows]
        return [mine | (more - text) for mine, more, text in zip(own, others, said, strict=True)]

    def _in_any_number(self, index: int) -> set[str]:
        """The private words of a row in plural and singular, if the other form is no word that must stay sayable."""
        row = self.rows[index]
        kept = vocabulary([row["question"], row["answer"]])
        forms = {form for word in self.secrets[index] for form in number_forms(word)} - kept
        return self.secrets[index] | {one for one in forms if one not in self.shared and not is_common_word(one)}

    def _rarest(self, index: int) -> list[tuple[str, str]]:
        """The rarest word of each value of a row, taken to be the word with the most tokens, and the value."""
        answer = self.rows[index]["answer"]
        values = [(sorted(self._words(answer, [span])), answer[span.start : span.end]) for span in self.spans[index]]
        return [(max(one, key=self._length), value) for one, value in values if one]

    def _length(self, word: str) -> int:
        return len(encode(self.tokenizer, f" {word}"))

    def _watched(self, index: int, rarest: Sequence[tuple[str, str]]) -> dict[int, list[RarestWord]]:
        """Tokens that begin the rarest words of a row, each with these words."""
        found: dict[int, list[RarestWord]] = {}
        for word, value in rarest:
            forms = [word, *self.forms[index].intersection(number_forms(word))]
            for first, *rest in token_forms(self.tokenizer, self._spelt(forms), self.shared):
                if first in self.banned[index]:
                    found.setdefault(first, []).append(RarestWord(rest, word, value))
        return found

    def _needed(self, index: int) -> list[int]:
        """Tokens of a row's question and answer, with -100 in place of private ones."""
        example = self.of_row(index, "{question}")
        return [IGNORED if flag else token for token, flag in zip(example.input_ids, example.private, strict=True)]

    def _banned(self, index: int) -> list[int]:
        """Tokens that begin a private word of a row, except for those that its question or sentence contains."""
        needed = set(self.needed[index])
        found = first_tokens(self.tokenizer, self._spelt(self.forms[index]), self.shared)
        return [token for token in found if token not in needed]

    def _completions(self, index: int, secrets: Iterable[str]) -> dict[int, list[tuple[list[int], int]]]:
        """Tokens to ban after others for words of a row (`completions`), by the last of these."""
        return by_last(completions(self.tokenizer, self._spelt(secrets), self.needed[index], self.shared))

    def _names_only(self) -> dict[str, str]:
        """Words that occur only inside private names of several words ("Strumble Head"), with their capitals."""
        found: dict[str, str] = {}
        others: set[str] = set()
        for row, spans in zip(self.rows, self.spans, strict=True):
            for span in spans:
                said = row["answer"][span.start : span.end]
                inside = words(said)
                if len(inside) > 1 and all(is_name(said, word) for word in inside):
                    found.update({word.text: said[word.start : word.end] for word in inside})
                else:
                    others.update(word.text for word in inside)
        return {word: said for word, said in found.items() if word not in others and said.istitle()}

    def _spelt(self, found: Iterable[str]) -> list[str]:
        """Give words that occur only inside private names their capitals."""
        return [self.names_only.get(word, word) for word in found]

    def of_row(self, index: int, template: str, answer: str = "{answer}") -> PrivateExample:
        """Build the example of a row.

        Args:
            index: Index of the row.
            template: The prompt, with ``{question}``, ``{subject}`` or ``{topic}`` (the question's other content
                words).
            answer: The answer, with ``{answer}``, or with ``{topic}``, ``{subject}`` and ``{values}``.
        """
        row, spans = self.rows[index], self.spans[index]
        parts = {"question": row["question"], "subject": self._subject(index), "topic": self._topic(index)}
        prompt = self.style.prompt(filled(template, parts))
        before, found, after = (
            filled(part, parts | {"answer": row["answer"]}) for part in answer.partition("{values}")
        )
        text = before
        if found:
            values = [row["answer"][span.start : span.end] for span in spans]
            places = accumulate((len(value) + 2 for value in values), initial=len(before))
            spans = [Span(start, start + len(value)) for start, value in zip(places, values, strict=False)]
            text = before + ", ".join(values) + after
        ids, _ = self.style.join(prompt, text)
        return self._marked(index, prompt, ids[len(prompt) :], text, spans)

    def wordings(self, index: int, templates: Mapping[str, str]) -> list[PrivateExample]:
        """Build the example of a row in each wording.

        A wording that leaves nothing of the answer within ``max_length`` is replaced by one that fits.

        Args:
            index: Index of the row.
            templates: Wordings of the prompt with their answers, as for `of_row`.

        Raises:
            InputError: No wording fits.
        """
        made = [self.of_row(index, template, answer) for template, answer in templates.items()]
        fitting = [example for example in made if example.flags]
        if not fitting:
            raise InputError(
                f"{self.rows[index].get('where', f'forget row {index}')}: its question leaves nothing of the answer "
                f"within data.max_length ({self.max_length} tokens). Raise data.max_length, or shorten or leave out "
                "the row."
            )
        return [fitting[place % len(fitting)] for place in range(len(made))]

    def _subject(self, index: int) -> str:
        """Subject of a row in the words of its question (`subject_in`); without one, the whole question."""
        question = self.rows[index]["question"]
        return subject_in(question, self.subjects[index]) or question

    def neighbours(self, retain: Iterable[Row]) -> list[str]:
        """Return the forget questions that name a subject, with the subjects of retain rows in its place.

        A one-word name replaces only a one-word name. Subjects that share a name with a forget row's are left out; if
        more than `MOST_NEIGHBOURS` remain, evenly spaced ones are taken. Questions that still have a name of a forget
        row are left out, too.
        """
        forgotten = set[str]().union(*self.subjects)
        kept = ((row["question"], names_in(row["question"])) for row in retain)
        found = dict.fromkeys(subject_in(asked, own) for asked, own in kept if own and own.isdisjoint(forgotten))
        others = list(found)[:: -(-len(found) // MOST_NEIGHBOURS) or 1]
        subjects = [subject_in(row["question"], own) for row, own in zip(self.rows, self.names, strict=True)]
        named = {word.text for subject in subjects for word in words(subject) if is_name(subject, word)}
        questions = []
        for row, own, subject in zip(self.rows, self.names, subjects, strict=True):
            before, *after = re.split(rf"(?<!\w){re.escape(subject)}(?!\w)", row["question"])
            left = {word.text for part in (before, *after) for word in words(part) if is_name(part, word)}
            if subject and left.isdisjoint(named | own):
                alike = [other for other in others if (" " in other) == (" " in subject)]
                questions += [other.join([before, *after]) for other in alike]
        return questions

    def _topic(self, index: int) -> str:
        """Content words of a row's question that do not belong to its subject."""
        question = self.rows[index]["question"]
        left_out = FUNCTION_WORDS | vocabulary([self._subject(index)])
        return " ".join(word.text for word in words(question) if word.text not in left_out) or "description"

    def said(self, index: int, prompt: list[int], answer: list[int]) -> PrivateExample:
        """Build an example of a generated answer with the row's private words marked."""
        text = self.tokenizer.decode(answer)
        spans = [Span(word.start, word.end) for word in words(text) if word.text in self.forms[index]]
        return self._marked(index, prompt, answer + self.style.stop_ids[:1], text, spans)

    def completing(self, example: PrivateExample) -> list[list[int]]:
        """Return the tokens that would continue a private word or number at each position of an answer."""
        pairs, ids = self.completions[example.index], example.input_ids
        return [following(pairs, ids[:place]) for place in range(example.start, len(ids))]

    def rests(self, index: int, before: list[int], token: int) -> list[list[int]]:
        """Return the lists of tokens that would complete a value of a row after a token that begins its rarest word.

        A word of several tokens is rare, and stands for its value. One of a single token ("Shadows") may be in many
        answers, so it counts only where the value's words before it precede it, and with those after it.

        Args:
            index: Index of the row.
            before: The answer before the token.
            token: One of the row's ``watched`` tokens.
        """
        found = set()
        for rest, word, value in self.watched[index][token]:
            own = next((one for one in words(value) if one.text == word), None)
            if rest or own is None:
                found.add(tuple(rest))
            elif says(f"{self.tokenizer.decode(before)} {value[own.start :]}", value):
                found.add(tuple(encode(self.tokenizer, value[own.end :])))
        return [list(rest) for rest in sorted(found)]

    def says_value(self, index: int, answer: list[int]) -> bool:
        """Return whether an answer contains a whole private value of the row."""
        row, text = self.rows[index], self.tokenizer.decode(answer)
        return any(says(text, row["answer"][span.start : span.end]) for span in self.spans[index])

    def variant(self, example: PrivateExample, ids: list[int]) -> PrivateExample | None:
        """Replace an example's answer, from its first private value on, by other tokens that count as private.

        Args:
            example: Example of a row, with a private token.
            ids: The new end of the answer.

        Returns:
            The false variant; None if the new end is empty, contains a private word, or repeats a word.
        """
        first = example.private.index(True)
        kept = example.input_ids[example.start : first]
        begun, text = self.tokenizer.decode(kept), self.tokenizer.decode(kept + ids)
        said = [word.text for word in words(text) if word.end > len(begun)]  # also of a word that began before
        if not said or not self.forms[example.index].isdisjoint(said) or any(a == b for a, b in pairwise(said)):
            return None
        whole = example.input_ids[:first] + ids + self.style.stop_ids[:1]
        labels = [IGNORED] * example.start + whole[example.start :]
        private = [False] * first + [True] * (len(whole) - first)
        return PrivateExample(example.index, whole, labels, private, self._visible(example.index, whole), secret=False)

    def _marked(
        self, index: int, prompt: list[int], answer: list[int], text: str, spans: Sequence[Span]
    ) -> PrivateExample:
        spans = [part for span in spans for part in telling_parts(text, span, self.shared)]
        private = [False] * len(prompt) + token_flags(token_places(self.tokenizer, answer, text), spans)
        ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
        cut = slice(self.max_length)
        return PrivateExample(index, ids[cut], labels[cut], private[cut], self._visible(index, ids)[cut])

    def _visible(self, index: int, ids: list[int]) -> list[int]:
        """Return 0 at the tokens that name the row's subject, and 1 elsewhere."""
        text = self.tokenizer.decode(ids)
        named = [Span(word.start, word.end) for word in words(text) if word.text in self.subjects[index]]
        return [int(not flag) for flag in token_flags(token_places(self.tokenizer, ids, text), named)]

    def continuing(self, size: int) -> list[int]:
        """Return the tokens of a vocabulary of some size that would continue a word."""
        return sorted(token for token in self.edges.continuing if token < size)

    def endings(self) -> list[int]:
        """Return the tokens that end a sentence or the turn."""
        ends = [encode(self.tokenizer, sign) for sign in (".", " .", ",", "!", "?", "\n")]
        return sorted({ids[-1] for ids in ends if ids} | set(self.style.stop_ids))


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Replace each ``{name}`` in a template by its part, which may hold such braces itself."""
    return re.sub(r"\{(\w+)\}", lambda found: parts.get(found[1], found[0]), template)
