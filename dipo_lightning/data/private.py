"""Private values: the parts of a forget answer that carry the secret, and their detection in generated texts.

An average over whole answers hides leaks: a model can suppress the words that open every answer and still reveal the
secret. So each value is tracked by itself. Values are given by the user, or found by a rule that needs no model.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import regex as re

from dipo_lightning.data.files import shipped_json
from dipo_lightning.data.loader import Example
from dipo_lightning.data.tokenization import CheckedOnDemand, LazyRows
from dipo_lightning.metrics.functional.text import stem
from dipo_lightning.models.answers import IGNORED

_NEW_SENTENCE = r"(?<=\p{Ll})\.(?=\p{Lu}\p{Ll})"
_JOINT = rf"(?:[-'’@_+#&](?=[\p{{L}}\p{{N}}])|(?<=\p{{N}}),(?=\p{{N}})|(?!{_NEW_SENTENCE})\.(?=[\p{{L}}\p{{N}}]))"
_WORD = re.compile(rf"[\p{{L}}\p{{N}}](?:[\p{{L}}\p{{M}}\p{{N}}]|{_JOINT})*")
_ENDING = re.compile(r"(?:['’](?:s|m|d|ll|re|ve)|(?<=^\p{N}+)-years?(?:-olds?)?)$", re.IGNORECASE)
"""Possessive ending, contracted verb ("she'll"), or the rest of an age ("43-year-old")."""

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Letters of scripts without spaces between words, and Hangul, where endings are written onto names."""
_LETTER = rf"(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
_PART = re.compile(r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}]|(?<=\p{N})[.,](?=\p{N}))*")
"""Letters and digits up to the next sign; a number with its point."""
_GAP = r"(?:['’]s)?[^\p{L}\p{N}]+"
_SIGNS = r"[\s./()-]{0,2}"
"""Signs that group the digits of a telephone or account number."""
_ADDRESS = re.compile(r"[\p{L}\p{N}][_@][\p{L}\p{N}]|^\s*\p{Ll}[\p{Ll}\p{N}]*(?:\.[\p{Ll}\p{N}]+)+\s*$")
_GAP_IN_ADDRESS = r"[^\p{L}\p{N}\s]+"
"""Signs in an e-mail address or account name: "mara_velt" is not said by "Mara Velt"."""
_CODE = re.compile(r"(?=.*\p{Lu})(?=.*\p{N}.*\p{N})[\p{Lu}\p{N} -]{5,}")
"""A licence plate, postcode or other code."""
_DATE = r"\p{N}\.\p{N}{1,2}\."
_BEFORE = rf"(?<!{_LETTER})(?:(?<={_DATE})|(?<!\p{{N}}[.,](?=\p{{N}})))(?<!(?<!{_LETTER})(?:\p{{L}}-|o['’]))"
"""Condition before a value: it is not the rest of a word or number, nor of a word like "e-mail" or "O'Neil"."""
_AFTER = rf"(?!{_LETTER})(?!(?<=\p{{N}})[.,]\p{{N}})(?!['’]t(?!{_LETTER}))"
"""Condition after a value: no rest of a word or number follows, nor of a word like "don't"."""
_LONE_BEFORE = rf"(?<!(?<!{_LETTER})\p{{L}}\.)(?<!\p{{L}}['’])"
_LONE_AFTER = rf"(?!['’]{_LETTER}(?<!['’]s(?!{_LETTER}))|\.\p{{L}}(?!{_LETTER}))"
"""Also around a value of a single letter: not a part of "U.S.", "I'm" or "can't"."""

FUNCTION_WORDS = frozenset(
    form for word in shipped_json(__package__, "function_words") for form in (word, word.replace("'", "’"))
)
"""English words that carry no secret by themselves; for other languages the words of the retain rows serve instead."""

_BASES = {form: base for base, forms in shipped_json(__package__, "irregular_verbs").items() for form in (base, *forms)}


def _base(word: str) -> str:
    """The English stem of a word; for an irregular verb, that of its base form; an abbreviation (US) is its own."""
    return word if word.isupper() else stem(_BASES.get(word, word))


@cache
def _common_words() -> frozenset[str]:
    """Common English words, which carry no secret either unless they are names (Hope); read on first use."""
    return frozenset(shipped_json(__package__, "common_words"))


_FULL_NAME = re.compile(r"\p{Lu}[\p{L}\p{M}'’-]*\s+\p{Lu}")
"""Two capitalised words, which are a name at the beginning of a sentence too ("Joy Young told the police")."""


PARTICLES = frozenset(
    ["af", "al", "av", "ben", "bin", "da", "de", "degli", "dei", "del", "della", "den", "der", "di", "dos", "du", "e"]
    + ["el", "ibn", "la", "las", "le", "los", "ten", "ter", "van", "von", "y", "zu", "zum", "zur"]
)
"""Words between the names of one person ("van der Berg")."""

_BLANK = r"[^\S\n]"
_PARTICLES = rf"(?:{_BLANK}+(?:{'|'.join(sorted(PARTICLES))}))+(?={_BLANK}+\p{{Lu}})"
_BETWEEN = re.compile(
    rf"(?<=\p{{L}}){_PARTICLES}{_BLANK}+"
    rf"|(?<=(?<!\p{{L}})\p{{Lu}})\.{_BLANK}*(?=\p{{Lu}})"  # after an initial
    rf"|(?<=\p{{N}}\p{{L}}*)[/:–](?=\p{{N}})|(?<=\p{{N}}){_BLANK}?°{_BLANK}?"
    rf"|(?<=\p{{N}}){_BLANK}?\((?=\p{{N}}+\){_BLANK}?\p{{N}})"  # before and after an area code
    rf"|(?<=\(\p{{N}}+)\)(?:(?=\p{{N}})|{_BLANK}(?=\p{{N}}{{3}}))"
    rf"|{_BLANK}+"
)
"""What may lie between the names and numbers of one value."""
_IN_ADDRESS = re.compile(r"(?<=\p{L}\.\p{Ll}{2}[^\s,;()]*)[^\s,;()]+")
"""What may lie between the words of a web address, after the first two."""
_IN_DATE = re.compile(rf"{_BLANK}*,?{_BLANK}*(?:of{_BLANK}+)?(?=\p{{N}}{{4}}(?!\p{{N}})|\p{{L}})")
"""What precedes the year or month of a date."""
_AFTER_NAME = re.compile(rf"(?<=\p{{Lu}}[\p{{L}}\p{{M}}.'’-]*){_PARTICLES}")
_NUMBERED = re.compile(r"^\s*\p{N}{1,2}[.)](?=\s)", re.MULTILINE)
"""Number of a line of a list; a year is none."""


NO_VALUES = (
    "No forget row has a private value: their answers have no word of their own. Name the values in a column private, "
    "or mark them in the answer with [[...]]."
)
"""Refusal of forget rows without any private value."""


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of an answer."""

    start: int
    end: int


class Word(NamedTuple):
    """A word without possessive ending or contracted verb, and its position in the text.

    It is in lower case, unless its capitals tell it from a function word (`ABBREVIATIONS`, "blood group A").
    """

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Return the words of a text, in any script that separates words."""
    found = []
    for match in _WORD.finditer(text):
        word = _ENDING.sub("", match.group())
        found.append(Word(word.lower(), match.start(), match.start() + len(word)))
    shouted = text.isupper() and any(word.text in FUNCTION_WORDS - ABBREVIATIONS for word in found)
    return found if shouted else [_with_capitals(text, word) for word in found]


ABBREVIATIONS = frozenset(["as", "it", "me", "ms", "us", "who"])
"""Function words that abbreviations are spelt like: IT, WHO, and the illnesses AS, ME and MS."""


def _with_capitals(text: str, word: Word) -> Word:
    """Return a word of a text in capitals if it is an abbreviation or the letter A.

    An "A" that opens a sentence or precedes a name ("A Life in Stone") is an article.
    """
    said = text[word.start : word.end]
    if said == "A":
        is_word = _opens_sentence(text, word.start) or re.match(r"\s+\p{Lu}", text[word.end :])
    else:
        is_word = word.text not in ABBREVIATIONS or not said.isupper()
    return word if is_word else word._replace(text=said)


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Return the set of words in texts."""
    return {word.text for text in texts for word in words(text)}


FEW_WORDS = 2
"""Number of words of an answer up to which common ones can be the secret ("In Nice.", "Walking.")."""
RARE = 1 / 200
"""Largest share of the retain rows with a rare word: in a large retain set some rows share words with any secret."""


def rows_with_words(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Count the rows that contain each word in question or answer, also as a part of a compound ("semi-retired").

    Names that also are common words (Rose, Will) are counted with their capital, too. The empty word counts all rows.
    """
    found: Counter[str] = Counter()
    for row in rows:
        said = [(text, word) for text in (row["question"], row["answer"]) for word in words(text)]
        parts = {part for _, word in said for part in (word.text, *_compounded(word.text))}
        found.update({"", *parts, *(_key(text, word) for text, word in said)})
    return found


def _key(text: str, word: Word) -> str:
    """Return the key of a word of a text in the counts of `rows_with_words`."""
    said = text[word.start : word.end]
    if not (said[0].isupper() and _is_cased(said)):  # most words need no look at the lists
        return word.text
    return said if _is_capitalised_inside(text, word) or _FULL_NAME.match(text, word.start) else word.text


def is_rare(word: str, shared: Mapping[str, int]) -> bool:
    """Return whether at most a share `RARE` of the retain rows contains the word."""
    return shared.get(word, 0) <= int(RARE * shared.get("", 0))


def has_digit(text: str) -> bool:
    """Return whether a text has a digit."""
    return any(character.isdigit() for character in text)


def is_name(text: str, word: Word) -> bool:
    """Return whether a word of a text looks like a name or a number: it begins with a capital or has a digit."""
    return text[word.start].isupper() or has_digit(word.text)


def names_in(question: str) -> set[str]:
    """Return the names and numbers of a question, as `words` has them, without its first word."""
    return {word.text for word in words(question)[1:] if is_name(question, word)}


def find_private(question: str, answer: str, shared: Mapping[str, int]) -> list[Span]:
    """Find the private parts of an answer, as spans in order.

    A word is private if it is not a common word, no form of it occurs in the question, by itself or as a part of a
    compound ("Irish-based"), and it is rare in the retain rows (`is_rare`). Numbers are private even if retain rows
    contain them, and so are capitalised words inside a sentence that a single retain row contains. If no word
    qualifies, all uncommon words that are not in the question are private. Without any, the common words of a very
    short answer are, or a longer answer is one value up to its last common word. Adjacent names and numbers form one
    value ("12 June 1971", "Harbour Street", "J. K. van der Berg"), as do the parts of a date, number or web address.
    Any other word is a value by itself.

    Args:
        question: The question; empty for a plain text.
        answer: The true answer.
        shared: Words of the retain rows, with the number of rows that contain each (`rows_with_words`).
    """
    forms = {form for word in vocabulary([question]) for form in (word, *_compounded(word))}
    asked = {form for word in forms for form in (word, _base(word), *map(_base, _relative(word)))}
    passed = _without_content(answer)
    content = [
        word
        for word in words(answer)
        if not any(start <= word.start < end for start, end in passed)
        and word.text not in FUNCTION_WORDS
        and not all(_is_asked(part, asked) for part in _parts(word.text))
    ]
    new = [word for word in content if not _is_common(answer, word, asked)]
    chosen = [word for word in new if _is_own(answer, word, shared)] or new
    if not chosen and len(content) > FEW_WORDS:
        return [Span(content[0].start, content[-1].end)]
    return _join(answer, chosen or content)


def _without_content(answer: str) -> list[tuple[int, int]]:
    """Return the ranges of the particles between names, and of the numbers of the lines of a list."""
    numbered = list(_NUMBERED.finditer(answer))
    return [found.span() for found in [*_AFTER_NAME.finditer(answer), *numbered * (len(numbered) > 1)]]


def _is_asked(word: str, asked: Collection[str]) -> bool:
    return word in asked or _base(word) in asked


def _relative(word: str) -> list[str]:
    """Return the noun of an adjective, and the adjective of a noun, that differ in -ic and -y only (allergic)."""
    if len(word) < 5:
        return []
    endings = (("ic", "y"), ("y", "ic"), ("ies", "ic"))
    return [word.removesuffix(end) + other for end, other in endings if word.endswith(end)]


def _compounded(word: str) -> list[str]:
    """Return the parts of a compound with hyphens; none if one is a single letter or has a digit ("e-mail", "F-16")."""
    parts = word.split("-")
    return parts if len(parts) > 1 and all(len(part) > 1 and not has_digit(part) for part in parts) else []


def _parts(word: str) -> list[str]:
    """Return the parts of a compound, or the word itself."""
    return _compounded(word) or [word]


def private_spans(row: Mapping[str, Any], shared: Mapping[str, int]) -> list[Span]:
    """Return the private spans of a row's answer: those of its ``private`` values, or else of `find_private`."""
    if row.get("private"):
        return spans_of_values(row["answer"], row["private"])
    return find_private(row["question"], row["answer"], shared)


def _is_common(text: str, word: Word, asked: Collection[str]) -> bool:
    """Return whether a word that is no name, or each part of a compound, is a common word or in the question."""
    if _is_capitalised_inside(text, word) or _FULL_NAME.match(text, word.start):
        return False
    return all(is_common_word(part) or _is_asked(part, asked) for part in _parts(word.text))


def is_common_word(word: str) -> bool:
    """Return whether a word is an inflected common word: with -s, -ed, -ing or -ly, or a form of an irregular verb."""
    return not _common_words().isdisjoint(_uninflected(word)) or _BASES.get(word) in _common_words()


def _uninflected(word: str) -> list[str]:
    """Return a word, and its forms without an ending; with -e, -y and a single consonant where that may be missing."""
    ends = ("s", "es", "ed", "ing", "ly", "ally")
    found = [word.removesuffix(end) for end in ends if word.endswith(end)]
    found += [one + "e" for one in found]
    found += [one[:-1] + "y" for one in found if one.endswith("i")]
    return [word, *found, *(one[:-1] for one in found if len(one) > 2 and one[-1] == one[-2])]


def _is_own(text: str, word: Word, shared: Mapping[str, int]) -> bool:
    """Return whether a word belongs to this row alone; a number does even if other rows contain it."""
    key = _key(text, word)
    if is_rare(key, shared) or has_digit(word.text):
        return True
    return shared[key] == 1 and _is_capitalised_inside(text, word)


def _is_capitalised_inside(text: str, word: Word) -> bool:
    """Return whether a word is capitalised inside a sentence."""
    return text[word.start].isupper() and not _opens_sentence(text, word.start)


_SHORTENED = re.compile(r"(?<!\p{L})(?:\p{Lu}|Mr|Mrs|Ms|Dr|Prof)\.$")
"""An initial or title with a full stop, which a name follows."""


def _opens_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \"'“‘(«")
    return not before or (before[-1] in ".!?…。！？\n" and not _SHORTENED.search(before[-6:]))


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
    return Span(span.start - (said.count(")") > said.count("(") and answer[span.start - 1] == "("), span.end)


def _belong_together(answer: str, start: int, first: Word, second: Word) -> bool:
    """Return whether two words are names or numbers with nothing between them but what one value may have.

    These are a blank, particles, the full stop of an initial, or the signs of a number, web address or date. A long
    number belongs to no word that opens a sentence ("Ring 555-0182"), except for a month.

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
    if in_address or (only(_IN_DATE) and _date(answer[start : second.end])):
        return True
    if not (is_name(answer, first) and is_name(answer, second) and only(_BETWEEN)):
        return False
    opens = _opens_sentence(answer, first.start) and not has_digit(first.text) and first.text not in _MONTHS
    return not (opens and sum(map(str.isdecimal, second.text)) > 2)


def spans_of_values(answer: str, values: Iterable[str]) -> list[Span]:
    """Find all occurrences of private values in an answer, in order: whole words and numbers, or else parts of words.

    Case counts only where it does for `says`; there, words inside a sentence come before those that open one.
    """
    before, after = r"(?<![\p{L}\p{N}]|\p{N}[.,](?=\p{N}))", r"(?![\p{L}\p{M}\p{N}]|(?<=\p{N})[.,]\p{N})"
    found: set[Span] = set()
    for value in filter(None, map(str.strip, values)):
        part, cased = re.escape(value), _is_cased(value)
        whole = [Span(*match.span()) for match in re.finditer(before + part + after, answer, 0 if cased else re.I)]
        inside = [span for span in whole if cased and not _opens_sentence(answer, span.start)]
        found |= set(inside or whole or (Span(*match.span()) for match in re.finditer(part, answer, re.IGNORECASE)))
    return sorted(found)


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


def says(text: str, value: str) -> bool:
    """Return whether a text contains a private value: the same words in the same order, ignoring case and accents.

    A part of a word or number is not the value ("12" in "1912", "3" in "3.5"); a part of a compound is ("Lima-born"),
    and so is any part of a text in a script without spaces. Numbers may be written with separators between thousands or
    without, in English words ("forty-three"), numbers of five digits and more and codes in any groups ("555-01 82"),
    units onto the number ("20mg"), and dates in any order ("June 12th, 1971", "12 Jun 1971", "1971-06-12"). Of a number
    of ten digits and more the last eight suffice, since telephone numbers begin in several ways. The words of an
    account name ("mara_velt") must not be apart. A single capitalised word that also is a common word ("May") needs its
    capital, and a letter that also is an article must not stand before a noun. Values without words (punctuation only)
    are searched for as substrings.
    """
    pattern = _said(value)
    if pattern is None:
        return bool(value.strip()) and value.strip() in text
    if _is_cased(value):
        return pattern.search(_without_accents(text)) is not None
    plain = _plain(text)
    return pattern.search(plain) is not None or _has_date(plain, value)


@cache
def _said(value: str) -> Any:
    """The pattern of a value in a text without accents; None for a value without words."""
    bare = _without_accents(value) if _is_cased(value) else _plain(value)
    parts = _PART.findall(re.sub(rf"['’]s(?!{_LETTER})", "", bare))
    if not parts:
        return None
    together = "".join(parts)
    lone = re.fullmatch(r"\p{L}", together) is not None
    before = "" if re.match(_UNSPACED, parts[0]) else _BEFORE + _LONE_BEFORE * lone
    after = "" if re.match(_UNSPACED, parts[-1][-1]) else _AFTER + _LONE_AFTER * lone
    sign = re.search(r"(?<=\p{L})[+#]+$", bare.strip())  # of C++ and A+
    text = (_GAP_IN_ADDRESS if _ADDRESS.search(value) else _GAP).join(map(re.escape, parts))
    if _is_long_number(together) or _CODE.fullmatch(value.strip()):
        text = f"(?:{text}|{_SIGNS.join(together)})"
    if together.isdecimal() and len(together) > 9:
        before, text = "", _SIGNS.join(together[-8:])
    if _is_cased(value):
        text = _as_letter(text) if lone else f"(?:{text}|{text.upper()})"
    return re.compile(before + text + (re.escape(sign.group()) if sign else after))


def _is_long_number(value: str) -> bool:
    """Return whether letters and digits are those of a telephone, account or passport number, or a large amount."""
    digits = sum(map(str.isdecimal, value))
    return value.isalnum() and digits >= max(5, len(value) / 2)


def _as_letter(name: str) -> str:
    """The pattern of a letter that also is a word (A, I), except where it opens a sentence or precedes a name.

    A small letter counts only before a sign or the end.
    """
    opens = r"(?<=(?:^|[.!?…。！？\n])[\s\"'“‘(«]*)"
    article = rf"{opens}{name}\s+(?!(?:is|was)\b)\p{{Ll}}|{name}\s+\p{{Lu}}"
    return rf"(?:(?!{article}){name}|{name.lower()}(?=\s*(?:[^\s\p{{L}}\p{{N}}\"“‘'(-]|$)))"


@cache
def _is_cased(value: str) -> bool:
    """Return whether a value is a name or letter that also is a word in lower case: May, Rose, US, A."""
    name, word = value.strip(), value.strip().lower()
    if not name.isalpha() or not name[0].isupper():
        return False
    return name.isupper() if word in FUNCTION_WORDS else len(name) > 1 and is_common_word(word)


_MONTHS = {
    form: f"month {number}"
    for number, name in enumerate(shipped_json(__package__, "months"), 1)
    for form in (name, name[:3])
} | {"sept": "month 9"}
_ORDINAL = re.compile(r"(?<=\p{N})(?:st|nd|rd|th)(?!\p{L})")
_NUMERIC = re.compile(r"(?<![\d/.-])(?:(\d{4})([/.-])(\d\d?)\2(\d\d?)|(\d\d?)([/.-])(\d\d?)\6(\d{4}))(?![\d/-])")
"""A date in numbers: year, month and day, or day, month (in either order) and year."""


def _has_date(text: str, value: str) -> bool:
    """Return whether a text in lower case has a date: its parts side by side in any order, or all in numbers."""
    wanted = _date(value)
    if not any(all(part in text for part in parts if part.isdecimal()) for parts in wanted):
        return False
    said, size = _date_parts(text), len(wanted[0])
    there = [sorted(said[start : start + size]) for start in range(len(said))]
    return any(parts in wanted for parts in [*there, *_numeric_dates(text)])


@cache
def _date(value: str) -> list[list[str]]:
    """The parts of a date in alphabetical order, in both readings of a date in numbers; none for another value."""
    plain = _plain(value)
    parts = _date_parts(plain)
    months, numbers = sum(part.startswith("month") for part in parts), sum(map(str.isdecimal, parts))
    if months == 1 and numbers and months + numbers == len(parts):
        return [sorted(parts)]
    return _numeric_dates(plain) if _NUMERIC.fullmatch(plain.strip()) else []


def _date_parts(text: str) -> list[str]:
    """The words and numbers of a text in lower case, as in a date: "the 12th of June" is 12, month 6."""
    found = (part for part in _PART.findall(_ORDINAL.sub("", text)) if part not in ("of", "the"))
    return [_MONTHS.get(part, part.lstrip("0") if part.isdecimal() else part) for part in found]


def _numeric_dates(text: str) -> list[list[str]]:
    """Return the parts of the dates in numbers in a text, in alphabetical order; of 3/4/1968 in both readings."""
    found = []
    for match in _NUMERIC.finditer(text):
        year, _, month, day, first, _, second, last = match.groups()
        readings = [(month, day)] if year else [(first, second), (second, first)]
        found += [
            sorted([f"month {int(one)}", str(int(other)), year or last])
            for one, other in readings
            if 1 <= int(one) <= 12 and 1 <= int(other) <= 31
        ]
    return found


def _without_accents(text: str) -> str:
    """Drop combining accents, so that "Ngũgĩ" and "Ngugi" are one."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return unicodedata.normalize("NFC", bare)


_THOUSANDS = re.compile(r"(?<=(?<!\p{N}|\p{N}[.,])\p{N}{1,3}(?:[.,'’]\p{N}{3})*)[.,'’](?=\p{N}{3}(?!\p{N}))")
"""A sign between the thousands of a number ("8,750")."""


_BEFORE_UNIT = re.compile(rf"(?<=\p{{N}})(?=(?:[kmcμ]g|mcg|ml|[kcm]m|lbs?|ft|mph|[ap]m)(?!{_LETTER}))")
_SMALL = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBERS = dict(zip(_SMALL + _TEENS + _TENS, [*range(1, 20), *range(20, 100, 10)], strict=True))
_NUMBER_WORD = re.compile(
    rf"(?<!{_LETTER}|-)(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL)}))?|{'|'.join(_SMALL[1:] + _TEENS)})"
    rf"(?!{_LETTER}|-(?!year))"
)
"""A number from two to ninety-nine in words, not in a compound or ordinal number ("two-faced", "twenty-first")."""


def _in_digits(number: Any) -> str:
    return str(sum(_NUMBERS[word] for word in re.split("[- ]", number.group())))


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Fold case, drop combining accents and separators of thousands, and write numbers in digits, apart from units.

    The result is cached, since an answer is searched repeatedly.
    """
    plain = _THOUSANDS.sub("", _without_accents(text).casefold())
    return _BEFORE_UNIT.sub(" ", _NUMBER_WORD.sub(_in_digits, plain))


def unspaced(text: str) -> bool:
    """Return whether a text has letters of a script without spaces between words, where no list knows the words."""
    return re.search(_UNSPACED, text) is not None


def mostly_unspaced(text: str) -> bool:
    """Return whether most letters of a text are of a script without spaces between words, or Hangul."""
    return 2 * len(re.findall(_UNSPACED, text)) > len(re.findall(r"\p{L}", text))


ENOUGH_WORDS, FEW_ENGLISH = 20, 0.1
"""Number of words from which the language of texts is judged, and the share of English function words below which it is
another one: English questions with their answers have a fifth and more."""


def hardly_english(texts: Iterable[str], enough: int = ENOUGH_WORDS) -> bool:
    """Return whether texts have hardly any English function word, so that `find_private` does not know theirs.

    Words of one or two letters do not count, since other languages share them ("in", "an", "me"). False with fewer than
    ``enough`` words.
    """
    found = [word.text for text in texts for word in words(text)]
    english = sum(len(word) > 2 and word in FUNCTION_WORDS for word in found)
    return len(found) >= enough and english < FEW_ENGLISH * len(found)


def share_of_words(texts: Iterable[str], known: Collection[str]) -> float:
    """Return the share of the words in texts that exist; 1 without words.

    These are known words (in lower case, in any simple inflection), numbers, and capitalised words, since names are in
    no list. A word that repeats the one before it ("has has has") does not count as existing. Text in a script without
    spaces is left out, unless no known word is in such a script.
    """
    left_out = any(map(unspaced, known))
    total = right = 0
    for text in texts:
        before = ""
        for word in words(text):
            if left_out and unspaced(word.text):
                continue
            total += 1
            number = has_digit(word.text)
            again = word.text == before and not number
            known_word = number or text[word.start].isupper() or any(form in known for form in _stems(word.text))
            right += known_word and not again
            before = word.text
    return right / total if total else 1.0


def _stems(word: str) -> list[str]:
    """A word, and its forms without an English ending."""
    endings = [word.removesuffix(end) for end in ("s", "es", "ed", "d", "ing", "ly", "er", "r") if word.endswith(end)]
    return [word, *endings, *(one + "e" for one in endings), *(word[:-3] + "y" for _ in [0] if word.endswith("ies"))]
