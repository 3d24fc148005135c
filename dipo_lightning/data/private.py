"""Private values: the parts of a forget answer that carry the secret, and their detection in generated texts.

An average over whole answers hides leaks: a model can suppress the words that open every answer and still reveal the
secret. So each value is tracked by itself. Values are given by the user, or found by a rule that needs no model.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import regex as re

from dipo_lightning.data.files import shipped_json
from dipo_lightning.data.loader import Example
from dipo_lightning.data.tokenization import CheckedOnDemand, LazyRows
from dipo_lightning.metrics.functional.text import stem
from dipo_lightning.models.answers import IGNORED

_NEW_SENTENCE = r"(?<=\p{Ll})\.(?=\p{Lu}\p{Ll})"
_JOINT = rf"(?:[-'’](?=[\p{{L}}\p{{N}}])|(?<=\p{{N}}),(?=\p{{N}})|(?!{_NEW_SENTENCE})\.(?=[\p{{L}}\p{{N}}]))"
_WORD = re.compile(rf"[\p{{L}}\p{{N}}](?:[\p{{L}}\p{{M}}\p{{N}}]|{_JOINT})*")
_POSSESSIVE = re.compile(r"['’]s$", re.IGNORECASE)

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Letters of scripts without spaces between words, and Hangul, where endings are written onto names."""
_LETTER = rf"(?:(?!{_UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
_PART = re.compile(r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}]|(?<=\p{N})[.,](?=\p{N}))*")
"""Letters and digits up to the next sign; a number with its point."""
_GAP = r"(?:['’]s)?[^\p{L}\p{N}]+"
_DATE = r"\p{N}\.\p{N}{1,2}\."
_BEFORE = rf"(?<!{_LETTER})(?:(?<={_DATE})|(?<!\p{{N}}[.,](?=\p{{N}})))(?<!(?<!{_LETTER})(?:\p{{L}}-|o['’]))"
"""Condition before a value: it is not the rest of a word or number, nor of a word like "e-mail" or "O'Neil"."""
_AFTER = rf"(?!{_LETTER})(?!(?<=\p{{N}})[.,]\p{{N}})(?!['’]t(?!{_LETTER}))"
"""Condition after a value: no rest of a word or number follows, nor of a word like "don't"."""
_LONE_BEFORE = rf"(?<!(?<!{_LETTER})\p{{L}}\.)(?<!\p{{L}}['’])"
_LONE_AFTER = rf"(?!['’]{_LETTER}(?<!['’]s(?!{_LETTER}))|\.\p{{L}}(?!{_LETTER}))"
"""Also around a value of a single letter: not a part of "U.S.", "I'm" or "can't"."""

FUNCTION_WORDS = frozenset(shipped_json(__package__, "function_words"))
"""English words that carry no secret by themselves; for other languages the words of the retain rows serve instead."""

_BASES = {form: base for base, forms in shipped_json(__package__, "irregular_verbs").items() for form in (base, *forms)}


def _base(word: str) -> str:
    """The English stem of a word; for an irregular verb, that of its base form."""
    return stem(_BASES.get(word, word))


@cache
def _common_words() -> frozenset[str]:
    """Common English words, which carry no secret either unless they are names (Hope); read on first use."""
    return frozenset(shipped_json(__package__, "common_words"))


@cache
def _common_bases() -> frozenset[str]:
    """Stems of the common words."""
    return frozenset(map(_base, _common_words()))


_FULL_NAME = re.compile(r"\p{Lu}[\p{L}\p{M}'’-]*\s+\p{Lu}")
"""Two capitalised words, which are a name at the beginning of a sentence too ("Joy Young told the police")."""

_ADVERB = re.compile(r"^(?!.*(?:fly|family|supply|homily|assembly|anomaly|monopoly)$).{4,}ly$")
"""A word of six letters or more in -ly, which says how and not what."""

_AGENT = re.compile(r"(?:er|or|ar|ist|ian|ant|ent|ive|man|woman)s?$")
"""Ending of many occupations, which may have the stem of a common word: manage and manager, report and reporter."""


class Span(NamedTuple):
    """Characters ``start`` to ``end`` (exclusive) of an answer."""

    start: int
    end: int


class Word(NamedTuple):
    """A word in lower case without possessive ending, and its position in the text."""

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Return the words of a text, in any script that separates words."""
    found = []
    for match in _WORD.finditer(text):
        word = _POSSESSIVE.sub("", match.group())
        found.append(Word(word.lower(), match.start(), match.start() + len(word)))
    return found


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Return the set of words in texts."""
    return {word.text for text in texts for word in words(text)}


RARE = 1 / 200
"""Largest share of the retain rows with a rare word: in a large retain set some rows share words with any secret."""


def rows_with_words(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Count the rows that contain each word in question or answer; the empty word counts all rows."""
    found: Counter[str] = Counter()
    for row in rows:
        found.update({"", *vocabulary((row["question"], row["answer"]))})
    return found


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
    """Return the names and numbers of a question, in lower case, without its first word."""
    return {word.text for word in words(question)[1:] if is_name(question, word)}


def find_private(question: str, answer: str, shared: Mapping[str, int]) -> list[Span]:
    """Find the private parts of an answer, as spans in order.

    A word is private if it is not a common word, no form of it occurs in the question, by itself or as a part of a
    compound ("Irish-based"), and it is rare in the retain rows (`is_rare`). Numbers are private even if retain rows
    contain them, and so are capitalised words inside a sentence that a single retain row contains. If no word
    qualifies, all uncommon words that are not in the question are private. Adjacent names and numbers form one value
    ("12 June 1971", "Harbour Street"); any other word is a value by itself.

    Args:
        question: The question; empty for a plain text.
        answer: The true answer.
        shared: Words of the retain rows in lower case, with the number of rows that contain each (`rows_with_words`).
    """
    forms = {form for word in vocabulary([question]) for form in (word, *_compounded(word))}
    asked = {form for word in forms for form in (word, _base(word))}

    def is_known(word: str, name: bool) -> bool:
        return not asked.isdisjoint((word, _base(word))) or (not name and _is_common_word(word))

    new = []
    for word in words(answer):
        parts, name = _compounded(word.text) or [word.text], _is_name(answer, word) or _opens_name(answer, word)
        if not (word.text in FUNCTION_WORDS or word.text in asked or all(is_known(part, name) for part in parts)):
            new.append(word)
    chosen = [word for word in new if _is_own(answer, word, shared)] or new
    return _join(answer, chosen)


def _compounded(word: str) -> list[str]:
    """Return the parts of a compound with hyphens; none if one is a single letter or has a digit ("e-mail", "F-16")."""
    parts = word.split("-")
    return parts if len(parts) > 1 and all(len(part) > 1 and not has_digit(part) for part in parts) else []


def private_spans(row: Mapping[str, Any], shared: Mapping[str, int]) -> list[Span]:
    """Return the private spans of a row's answer: those of its ``private`` values, or else of `find_private`."""
    if row.get("private"):
        return spans_of_values(row["answer"], row["private"])
    return find_private(row["question"], row["answer"], shared)


def _is_common_word(word: str) -> bool:
    """Return whether a word is a function word, an adverb, or a form of a common word, but no occupation."""
    if word in FUNCTION_WORDS or _ADVERB.search(word) or not {word, word.removesuffix("s")}.isdisjoint(_common_words()):
        return True
    return _base(word) in _common_bases() and (word in _BASES or not _AGENT.search(word))


def _is_own(text: str, word: Word, shared: Mapping[str, int]) -> bool:
    """Return whether a word belongs to this row alone; a number does even if other rows contain it."""
    if is_rare(word.text, shared) or has_digit(word.text):
        return True
    return shared[word.text] == 1 and _is_name(text, word)


def _is_name(text: str, word: Word) -> bool:
    """Return whether a word is capitalised inside a sentence."""
    return text[word.start].isupper() and not _opens_sentence(text, word.start)


def _opens_name(text: str, word: Word) -> bool:
    """Return whether a word and the next one are capitalised, as in a name that opens a sentence."""
    return _FULL_NAME.match(text, word.start) is not None


def _opens_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \"'“‘(«")
    return not before or before[-1] in ".!?…。！？\n"


def _join(answer: str, chosen: Sequence[Word]) -> list[Span]:
    """Join names and numbers that are separated by white space only."""
    spans: list[Span] = []
    before = False
    for word in chosen:
        name = is_name(answer, word)
        if spans and before and name and not answer[spans[-1].end : word.start].strip():
            spans[-1] = Span(spans[-1].start, word.end)
        else:
            spans.append(Span(word.start, word.end))
        before = name
    return spans


def spans_of_values(answer: str, values: Iterable[str]) -> list[Span]:
    """Find all occurrences of private values in an answer, in order.

    These are whole words and numbers as the value is spelled, or else in any case, or else parts of words.
    """
    found: set[Span] = set()
    for value in filter(None, map(str.strip, values)):
        part = re.escape(value)
        whole = (
            rf"(?<![\p{{L}}\p{{N}}]|\p{{N}}[.,](?=\p{{N}})){part}(?![\p{{L}}\p{{M}}\p{{N}}]|(?<=\p{{N}})[.,]\p{{N}})"
        )
        tried = ((whole, 0), (whole, re.IGNORECASE), (part, re.IGNORECASE))
        matches = (list(re.finditer(pattern, answer, flags)) for pattern, flags in tried)
        found |= {Span(*match.span()) for match in next(filter(None, matches), [])}
    return sorted(found)


def token_flags(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[bool]:
    """Flag the tokens whose characters in the answer (``offset_mapping``) overlap a private span."""
    return [any(span.start < end and start < span.end for span in spans) for start, end in offsets]


def token_places(tokenizer: Any, ids: Sequence[int], text: str) -> list[tuple[int, int]]:
    """Return the character range (start, end) of each token in a text, without leading white space.

    Ids after the text, such as the end of the turn, get ranges beyond its end. White space around the text may be
    missing in the ids, since chat templates strip it.
    """
    ends = [len(tokenizer.decode(list(ids[: place + 1]))) for place in range(len(ids))]
    stripped = text.strip()
    shift = max(0, tokenizer.decode(list(ids)).find(stripped)) - text.find(stripped)
    places = []
    for start, end in zip([0, *ends], ends, strict=False):
        start, end = start - shift, end - shift
        while 0 <= start < min(end, len(text)) and text[start].isspace():
            start += 1
        places.append((start, end))
    return places


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
    """Return whether a text contains a private value: the same words, ignoring case and accents.

    They may stand in another order ("June 12th, 1971") and with up to two other words among them. A part of a word or
    number is not the value ("12" in "1912", "3" in "3.5"); a part of a compound is ("Lima-born"), and so is any part of
    a text in a script without spaces. A single capitalised word that is also a common word (the month of May) counts
    with its capital only. Values without words (punctuation only) are searched for as substrings.
    """
    said = _said(value)
    if said is None:
        return bool(value.strip()) and value.strip() in text
    pattern, parts, cased = said
    plain = _without_accents(text)
    if cased:
        return pattern.search(plain) is not None
    plain = plain.casefold()
    return pattern.search(plain) is not None or _in_any_order(plain, parts)


def _in_any_order(text: str, parts: Sequence[str]) -> bool:
    """Return whether a text has all of two or more words close together."""
    if len(parts) < 2 or not all(part in text for part in parts):
        return False
    said = [re.sub(rf"^(\p{{N}}+){_ORDINAL}$", r"\1", part) for part in _PART.findall(text)]
    wanted, width = Counter(parts), len(parts) + 2
    return any(wanted <= Counter(said[start : start + width]) for start in range(max(1, len(said) - 1)))


_ORDINAL = "(?:st|nd|rd|th)"


@cache
def _said(value: str) -> tuple[Any, list[str], bool] | None:
    """The pattern of a value in a text without accents, its words, and whether case counts; None without words."""
    bare = re.sub(rf"['’]s(?!{_LETTER})", "", _without_accents(value))
    parts = _PART.findall(bare)
    if not parts:
        return None
    cased = len(parts) == 1 and bare.strip()[0].isupper() and bare.strip().lower() in FUNCTION_WORDS | _common_words()
    parts = parts if cased else [part.casefold() for part in parts]
    lone = re.fullmatch(r"\p{L}", "".join(parts)) is not None
    before = "" if re.match(_UNSPACED, parts[0]) else _BEFORE + _LONE_BEFORE * lone
    after = "" if re.match(_UNSPACED, parts[-1][-1]) else _AFTER + _LONE_AFTER * lone
    forms = [re.escape(part) + (f"{_ORDINAL}?" if part.isdecimal() else "") for part in parts]
    text = f"(?:{forms[0]}|{forms[0].upper()})" if cased else _GAP.join(forms)
    return re.compile(before + text + after), parts, cased


def _without_accents(text: str) -> str:
    """Drop combining accents, so that "Ngũgĩ" and "Ngugi" are one."""
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(character for character in decomposed if not unicodedata.combining(character))
    return unicodedata.normalize("NFC", bare)


def unspaced(text: str) -> bool:
    """Return whether a text has letters of a script without spaces between words, where no list knows the words."""
    return re.search(_UNSPACED, text) is not None


def mostly_unspaced(text: str) -> bool:
    """Return whether most letters of a text are of a script without spaces between words, or Hangul."""
    return 2 * len(re.findall(_UNSPACED, text)) > len(re.findall(r"\p{L}", text))


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
            known_word = number or text[word.start].isupper() or any(stem in known for stem in _stems(word.text))
            right += known_word and not again
            before = word.text
    return right / total if total else 1.0


def _stems(word: str) -> list[str]:
    """A word, and its forms without an English ending."""
    endings = [word.removesuffix(end) for end in ("s", "es", "ed", "d", "ing", "ly", "er", "r") if word.endswith(end)]
    return [word, *endings, *(stem + "e" for stem in endings), *(word[:-3] + "y" for _ in [0] if word.endswith("ies"))]
