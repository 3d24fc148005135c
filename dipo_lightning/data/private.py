"""Private values: the parts of a forget answer that carry the secret, as spans of characters and as tokens.

An average over whole answers hides leaks: a model can suppress the words that open every answer and still reveal the
secret. So each value is tracked by itself. Values are given by the user, or found by a rule that needs no model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import regex as re

from dipo_lightning.data.language import (
    COMMON_NAMES,
    FUNCTION_WORDS,
    KINDS,
    PARTICLES,
    Word,
    base_form,
    compound_parts,
    has_digit,
    is_capitalised_inside,
    is_cased,
    is_certain_name,
    is_common_word,
    is_name,
    opens_sentence,
    relatives,
    words,
)
from dipo_lightning.data.loader import Example
from dipo_lightning.data.mentions import MONTHS, UNIT, is_date
from dipo_lightning.data.tokenization import CheckedOnDemand, LazyRows
from dipo_lightning.models.answers import IGNORED

NO_VALUES = (
    "No forget row has a private value: their answers have no word of their own. Name the values in a column private, "
    "or mark them in the answer with [[...]]."
)
"""Refusal of forget rows without any private value."""
FEW_WORDS = 2
"""Number of words of an answer up to which common ones can be the secret ("In Nice.", "Walking.")."""
RARE = 1 / 200
"""Largest share of the retain rows with a rare word: in a large retain set some rows share words with any secret."""


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of an answer."""

    start: int
    end: int


def private_spans(row: Mapping[str, Any], shared: Mapping[str, int]) -> list[Span]:
    """Return the private spans of a row's answer: those of its ``private`` values, or else of `find_private`."""
    if row.get("private"):
        return spans_of_values(row["answer"], row["private"])
    return find_private(row["question"], row["answer"], shared)


def spans_of_values(answer: str, values: Iterable[str]) -> list[Span]:
    """Find all occurrences of private values in an answer, in order: whole words and numbers, or else parts of words.

    Case counts only where it does for `says`; there, words inside a sentence come before those that open one.
    """
    before, after = r"(?<![\p{L}\p{N}]|\p{N}[.,](?=\p{N}))", r"(?![\p{L}\p{M}\p{N}]|(?<=\p{N})[.,]\p{N})"
    found: set[Span] = set()
    for value in filter(None, map(str.strip, values)):
        part, cased = re.escape(value), is_cased(value)
        whole = [Span(*match.span()) for match in re.finditer(before + part + after, answer, 0 if cased else re.I)]
        inside = [span for span in whole if cased and not opens_sentence(answer, span.start)]
        found |= set(inside or whole or (Span(*match.span()) for match in re.finditer(part, answer, re.IGNORECASE)))
    return sorted(found)


def find_private(question: str, answer: str, shared: Mapping[str, int]) -> list[Span]:
    """Find the private parts of an answer, as spans in order.

    A word is private if it is not a common word, no form of it occurs in the question, by itself or as a part of a
    compound ("Irish-based"), and it is rare in the retain rows (`is_rare`). But:

    - A name is in the question only if it is spelt alike there: Robert is not in one about Emma Roberts.
    - Numbers are private even if retain rows contain them, and so are capitalised words inside a sentence that a single
      retain row contains.
    - A noun that tells the kind of a private name after it is not: Tartu is in "the University of Tartu". A number of
      one digit is no value beside others, since any text may have it.
    - If no word qualifies, all uncommon words that are not in the question are private.
    - Without any of these, the common words of a very short answer are, or a longer answer is one value up to its last
      common word.

    Adjacent names form one value ("Harbour Street", "J. K. van der Berg"), also with a short number ("7 Harbour
    Street", "Flat 12"), as do the parts of a date, number or web address. Any other word is a value by itself.

    Args:
        question: The question; empty for a plain text.
        answer: The true answer.
        shared: Words of the retain rows, with the number of rows that contain each (`rows_with_words`).
    """
    asked, passed, said = _Asked(question), _without_content(answer), words(answer)
    content = [
        word
        for place, word in enumerate(said)
        if not any(start <= word.start < end for start, end in passed)
        and (word.text not in FUNCTION_WORDS or _inside_name(answer, said, place))
        and not asked.has(answer, word)
    ]
    new = [word for word in content if not _is_common(answer, word, asked)]
    chosen = [word for word in new if _is_own(answer, word, shared)] or new
    if not chosen and len(content) > FEW_WORDS:
        return [Span(content[0].start, content[-1].end)]
    spans = _join(answer, _without_kinds(answer, chosen or content))
    return [
        span for span in spans if not answer[span.start : span.end].isdecimal() or span.end - span.start > 1
    ] or spans


def shared_words(rows: Iterable[Mapping[str, Any]], shared: Mapping[str, int]) -> dict[str, int]:
    """Return the words of answers that would be private without the retain rows, as they are spelt.

    Rows with given values are left out.

    Returns:
        The number of retain rows with each word: first capitalised ones, then those in the fewest rows.
    """
    found: dict[str, int] = {}
    for row in (row for row in rows if not row.get("private")):
        answer = row["answer"]
        alone, beside = (find_private(row["question"], answer, some) for some in ({}, shared))
        left_out = (word for word in words(answer) if _inside(word, alone) and not _inside(word, beside))
        found |= {answer[word.start : word.end]: shared[_key(answer, word)] for word in left_out}
    return dict(sorted(found.items(), key=lambda item: (item[0].islower(), item[1])))


def _inside(word: Word, spans: Iterable[Span]) -> bool:
    return any(span.start <= word.start < span.end for span in spans)


NO_PART = frozenset(["a", "the", "i", "mr", "mrs", "ms", "dr"])
"""Function words beside a name that are no part of it."""


def _inside_name(answer: str, said: Sequence[Word], place: int) -> bool:
    """Return whether a function word is part of a name (Do Thi Ha, An Nguyen): capitalised, and beside another one."""
    word = said[place]
    if word.text in NO_PART or answer.isupper() or not is_capitalised_inside(answer, word):
        return False
    beside = [other for other in said[max(0, place - 1) : place + 2] if other.text not in FUNCTION_WORDS]
    gaps = ((other, answer[min(word.end, other.end) : max(word.start, other.start)]) for other in beside)
    return any(gap == " " and answer[other.start].isupper() for other, gap in gaps)


_BLANK = r"[^\S\n]"
_PARTICLES = rf"(?:{_BLANK}+(?:{'|'.join(sorted(PARTICLES))}))+(?={_BLANK}+\p{{Lu}})"
"""Particles before a name."""
_AFTER_NAME = re.compile(rf"(?<=\p{{Lu}}[\p{{L}}\p{{M}}.'’-]*){_PARTICLES}")
"""Particles between two names."""
_NUMBERED = re.compile(r"^\s*\p{N}{1,2}[.)](?=\s)", re.MULTILINE)
"""Number of a line of a list; a year is none."""


_AFTER_NUMBER = re.compile(rf"(?<=\p{{N}}){_BLANK}?(?:{UNIT}|s)(?:/(?:{UNIT}|s))*(?![\p{{L}}\p{{N}}])")
"""Unit after a number ("3.1 mmol/L")."""


def _without_content(answer: str) -> list[tuple[int, int]]:
    """Return the ranges of the particles between names, of units, and of the numbers of the lines of a list."""
    numbered = list(_NUMBERED.finditer(answer))
    passed = [*_AFTER_NAME.finditer(answer), *_AFTER_NUMBER.finditer(answer), *numbered * (len(numbered) > 1)]
    return [found.span() for found in passed]


_OF_NAME = re.compile(rf"{_BLANK}+of{_BLANK}+(?:the{_BLANK}+)?(?=\p{{Lu}})")
"""The word "of" before a name."""


def _without_kinds(answer: str, chosen: Sequence[Word]) -> list[Word]:
    """Leave out the nouns of `KINDS` that only tell the kind of the chosen name after them."""
    starts = {word.start for word in chosen}
    kinds = ((word, _OF_NAME.match(answer, word.end)) for word in chosen if word.text in KINDS)
    telling = {word.start for word, name in kinds if name and name.end() in starts}
    return [word for word in chosen if word.start not in telling]


class _Asked:
    """Words of a question, in all forms."""

    def __init__(self, question: str) -> None:
        self._names: set[str] = set()  # as they are spelt
        others: set[str] = set()
        for word in words(question):
            (self._names if is_certain_name(question, word) else others).update((word.text, *compound_parts(word.text)))
        self._others = _forms(others)
        self._all = self._others | _forms(self._names)

    def has(self, answer: str, word: Word) -> bool:
        """Return whether the question has a word of an answer, or each part of a compound; a name only as spelt."""
        found = self._has_name if _may_be_name(answer, word) else self.has_form
        return all(map(found, _parts(word.text)))

    def has_form(self, word: str) -> bool:
        """Return whether the question has a word in any form."""
        return word in self._all or base_form(word) in self._all

    def _has_name(self, name: str) -> bool:
        """Return whether the question has a name as it is spelt, or a form of it among the words that are no names."""
        if name in self._names:
            return True
        return name not in COMMON_NAMES and (name in self._others or base_form(name) in self._others)


def _forms(found: Collection[str]) -> set[str]:
    return {form for word in found for form in (word, base_form(word), *map(base_form, relatives(word)))}


def _may_be_name(text: str, word: Word) -> bool:
    """Return whether a word is a name, or opens a sentence and is no common word."""
    return is_certain_name(text, word) or (text[word.start].isupper() and not is_common_word(word.text))


def _is_common(text: str, word: Word, asked: _Asked) -> bool:
    """Return whether a word that is no name, or each part of a compound, is a common word or in the question."""
    if is_certain_name(text, word):
        return False
    return all(is_common_word(part) or asked.has_form(part) for part in _parts(word.text))


def _parts(word: str) -> list[str]:
    """Return the parts of a compound, or the word itself."""
    return compound_parts(word) or [word]


def _is_own(text: str, word: Word, shared: Mapping[str, int]) -> bool:
    """Return whether a word belongs to this row alone; a number does even if other rows contain it."""
    key = _key(text, word)
    if is_rare(key, shared) or has_digit(word.text):
        return True
    return shared[key] == 1 and is_capitalised_inside(text, word)


def is_rare(word: str, shared: Mapping[str, int]) -> bool:
    """Return whether at most a share `RARE` of the retain rows contains the word."""
    return shared.get(word, 0) <= int(RARE * shared.get("", 0))


def rows_with_words(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Count the rows that contain each word in question or answer, also as a part of a compound ("semi-retired").

    Names that also are common words (Rose, Will) are counted with their capital, too. The empty word counts all rows.
    """
    found: Counter[str] = Counter()
    for row in rows:
        said = [(text, word) for text in (row["question"], row["answer"]) for word in words(text)]
        parts = {part for _, word in said for part in (word.text, *compound_parts(word.text))}
        found.update({"", *parts, *(_key(text, word) for text, word in said)})
    return found


def _key(text: str, word: Word) -> str:
    """Return the key of a word of a text in the counts of `rows_with_words`."""
    said = text[word.start : word.end]
    if not (said[0].isupper() and is_cased(said)):  # most words need no look at the lists
        return word.text
    return said if is_certain_name(text, word) else word.text


def _join(answer: str, chosen: Sequence[Word]) -> list[Span]:
    """Join adjacent names and numbers."""
    spans: list[Span] = []
    last = None
    for word in chosen:
        if last and _belong_together(answer, spans[-1].start, last, word):
            spans[-1] = Span(spans[-1].start, word.end)
        else:
            spans.append(Span(word.start, word.end))
        last = word
    return [_with_bracket(answer, span) for span in spans]


def _with_bracket(answer: str, span: Span) -> Span:
    """Extend a span to the bracket that opens an area code."""
    said = answer[span.start : span.end]
    left_open = said.count(")") > said.count("(") and answer[span.start - 1] == "("
    return Span(span.start - 1, span.end) if left_open else span


_BETWEEN = re.compile(
    "|".join(
        [
            rf"(?<=\p{{L}}){_PARTICLES}{_BLANK}+",  # particles between names
            rf"(?<=(?<!\p{{L}})\p{{Lu}})\.{_BLANK}*(?=\p{{Lu}})",  # the full stop of an initial
            r"(?<=\p{N}\p{L}*)[/:–](?=\p{N})",  # signs inside dates, times and ranges
            rf"(?<=\p{{N}}){_BLANK}?°{_BLANK}?",  # the sign of degrees
            rf"(?<=\p{{N}}){_BLANK}?\((?=\p{{N}}+\){_BLANK}?\p{{N}})",  # the bracket before an area code
            rf"(?<=\(\p{{N}}+)\)(?:(?=\p{{N}})|{_BLANK}(?=\p{{N}}{{3}}))",  # and after it
            rf"{_BLANK}+",
        ]
    )
)
"""Signs between the names and numbers of one value."""
_IN_ADDRESS = re.compile(r"(?<=\p{L}\.\p{Ll}{2}[^\s,;()]*)[^\s,;()]+")
"""Signs between the words of a web address, after the first two."""
_IN_DATE = re.compile(rf"{_BLANK}*,?{_BLANK}*(?:of{_BLANK}+)?(?=\p{{N}}{{4}}(?!\p{{N}})|\p{{L}})")
"""Signs before the year or month of a date, and "of"."""


def _belong_together(answer: str, start: int, first: Word, second: Word) -> bool:
    """Return whether two words are names or numbers with nothing between them but what one value may have.

    These are a blank, particles, the full stop of an initial, or the signs of a number, web address or date. A number
    and a name belong together if the number is short (`_is_part_of_name`).

    Args:
        answer: The answer.
        start: Start of the value that the first word ends.
        first: The first word.
        second: The next one.
    """

    def only(pattern: Any) -> bool:
        found = pattern.match(answer, first.end)
        return found is not None and found.end() == second.start

    in_address = _IN_ADDRESS.fullmatch(answer, first.end, second.start)
    if in_address or (only(_IN_DATE) and is_date(answer[start : second.end])):
        return True
    if not (is_name(answer, first) and is_name(answer, second) and only(_BETWEEN)):
        return False
    if has_digit(first.text) == has_digit(second.text) or "°" in answer[first.end : second.start]:
        return True
    if is_date(answer[start : first.end]):
        return False  # "in March 2015 Ana Ruiz"
    return _is_part_of_name(answer, second if has_digit(second.text) else first, first)


_MORE_NUMBERS = re.compile(rf"(?:{_BLANK}|[-/–:])\p{{N}}|{_BLANK}*(?:{'|'.join(MONTHS)})(?!\p{{L}})", re.IGNORECASE)
"""Further parts of a number or date."""
_YEAR_BEFORE = re.compile(r"\b(?:in|since|until|till|by|before|after|during|around)\s+$", re.IGNORECASE)
"""Word before a year."""


def _is_part_of_name(answer: str, number: Word, first: Word) -> bool:
    """Return whether a number beside a name is part of it, as in "7 Harbour Street" and "Flat 12".

    A number is none that has more than four digits ("Visa 4111111111111234"), a point or comma or a unit ("Metformin
    500 mg"), that goes on after the name ("Tel 030 9018"), or that is a year ("in 2019 Maria Bauer"). A number of three
    digits and more does not belong to a word that opens a sentence, either ("Ring 555").

    Args:
        answer: The answer.
        number: The number.
        first: The first of both words.
    """
    if number is first:
        is_year = len(number.text) == 4 and _YEAR_BEFORE.search(answer[: number.start])
        return not is_year and re.fullmatch(r"\p{N}{1,4}\p{L}?", number.text) is not None
    opens = opens_sentence(answer, first.start) and first.text not in MONTHS
    if opens and sum(map(str.isdecimal, number.text)) > 2:
        return False
    if re.fullmatch(r"\p{Lu}{1,2}", answer[first.start : first.end]):
        return True  # the letters of a code: "KX 447 0931"
    short = re.fullmatch(r"\p{N}{1,4}\p{L}?|\p{L}+\p{N}+", number.text) is not None
    return short and not (_MORE_NUMBERS.match(answer, number.end) or _AFTER_NUMBER.match(answer, number.end))


class PrivateTokens(CheckedOnDemand):
    """Question-answer examples with supervision on the tokens of private values only.

    A row without a private value keeps its whole answer; one whose values were all cut off has nothing to train on.

    Args:
        examples: Tokenised rows.
        rows: Rows of the examples, in order.
        shared: Words of the retain rows, as for `find_private`.
        tokenizer: The model's tokenizer.
    """

    def __init__(
        self, examples: Sequence[Example], rows: Sequence[Mapping[str, Any]], shared: Mapping[str, int], tokenizer: Any
    ) -> None:
        self.examples, self.rows, self.shared, self.tokenizer = examples, rows, shared, tokenizer
        self.checks, self.looked_at = {}, examples.looked_at if isinstance(examples, LazyRows) else ()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.examples)

    def check_each(self, check: Callable[[Example], object], name: str = "model") -> None:
        """Call ``check`` with every example; for a large set, with some of them now and with the others when used."""
        if isinstance(self.examples, LazyRows):
            super().check_each(check, name)
        else:
            for example in self:
                check(example)

    def make(self, index: int) -> Example:
        """Return the example at a position with labels on private tokens only; without labels if all were cut off."""
        example, row = self.examples[index], self.rows[index]
        places = [place for place, label in enumerate(example["labels"]) if label != IGNORED]
        ids = [example["input_ids"][place] for place in places]
        spans = private_spans(row, self.shared)
        flags = token_flags(token_places(self.tokenizer, ids, row["answer"]), spans)
        if not spans:
            return example
        labels = list(example["labels"])
        for place, flag in zip(places, flags, strict=True):
            labels[place] = labels[place] if flag else IGNORED
        return {**example, "labels": labels}


def token_flags(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Flag the tokens whose characters in the answer (``offset_mapping``) overlap a private span."""
    return [any(span.start < end and start < span.end for span in spans) for start, end in offsets]


def token_places(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Return the character range (start, end) of each token in a text, without leading white space.

    Ids after the text, such as the end of the turn, get ranges beyond its end. White space around the text may be
    missing in the ids, since chat templates strip it. All tokens of one character get its range.
    """
    whole = tokenizer.decode(list(ids))
    stripped = text.strip()
    shift = max(0, whole.find(stripped)) - text.find(stripped)
    places = []
    for start, end in _ranges(tokenizer, ids, whole):
        start, end = start - shift, end - shift
        while 0 <= start < min(end, len(text)) and text[start].isspace():
            start += 1
        places.append((start, end))
    return places


def _ranges(tokenizer: Any, ids: Sequence[int], whole: str) -> list[tuple[int, int]]:
    """Return the character range of each token in the whole decoded text.

    The beginning of a character decodes to replacement characters, which are not in the whole text.
    """
    begun = (tokenizer.decode(list(ids[: place + 1])) for place in range(len(ids)))
    ends = [len(text) if whole.startswith(text) else None for text in begun]
    ranges: list[tuple[int, int]] = []
    start, waiting = 0, 0
    for place, end in enumerate(ends):
        waiting += 1
        if end is not None or place + 1 == len(ends):
            end = len(whole) if end is None else end
            ranges += [(start, end)] * waiting
            start, waiting = end, 0
    return ranges
