"""Mentions of a value in a text: its words, or another spelling of the same name, number, code or date."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from typing import Any

import regex as re

from dipo_lightning.data.files import shipped_json
from dipo_lightning.data.language import UNSPACED, is_cased, number_forms


def says(text: str, value: str) -> bool:
    """Return whether a text contains a private value: the same words in the same order, ignoring case and accents.

    - A part of a word or number is not the value ("12" in "1912", "3" in "3.5"). A part of a compound is ("Lima-born"),
      and so is any part of a text in a script without spaces.
    - The last word may be in the plural, or in the singular ("Fridays" says "Friday").
    - A single capitalised word that also is a common word ("May") needs its capital. A letter that also is an article
      ("A") must not stand before a noun.
    - Numbers may be written with separators between thousands or without, with a decimal comma, in English words
      ("forty-three"; "85k" and "2.3 million", too), and with a unit attached ("20mg"). Numbers below 13 are not looked
      for in the other spelling, since they are in too many texts by chance.
    - Numbers of five digits and more, and codes, may be written in any groups ("555-01 82"). Of a number of ten digits
      and more the last eight suffice, since telephone numbers begin in several ways.
    - The parts of a date may be in any order, or all in numbers ("June 12th, 1971", "12 Jun 1971", "1971-06-12").
    - The words of an e-mail address or account name ("mara_velt") must not be apart.
    - A value without words (punctuation only) is searched for as it is.
    """
    pattern = _pattern(value)
    if pattern is None:
        return bool(value.strip()) and value.strip() in text
    if is_cased(value):
        return pattern.search(_without_accents(text)) is not None
    plain = _plain(text)
    return pattern.search(plain) is not None or _has_date(plain, value)


_LETTER = rf"(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])"
"""Letter or digit of a script with spaces between words."""
_BEFORE = "".join(
    [
        rf"(?<!{_LETTER})",  # not after the beginning of a word
        r"(?:(?<=\p{N}\.\p{N}{1,2}\.)|(?<!\p{N}[.,](?=\p{N})))",  # nor of a number, except for a date ("12.6.1971")
        rf"(?<!(?<!{_LETTER})(?:\p{{L}}-|o['’]))",  # nor of a word like "e-mail" or "O'Neil"
    ]
)
"""Condition before a value."""
_AFTER = "".join(
    [
        rf"(?!{_LETTER})",  # not before the rest of a word
        r"(?!(?<=\p{N})[.,]\p{N})",  # nor of a number
        rf"(?!['’]t(?!{_LETTER}))",  # nor of a word like "don't"
    ]
)
"""Condition after a value."""
_LONE_BEFORE = rf"(?<!(?<!{_LETTER})\p{{L}}\.)(?<!\p{{L}}['’])"
"""Further condition before a value of a single letter: it is not the last one of "U.S." or "can't"."""
_LONE_AFTER = rf"(?!['’]{_LETTER}(?<!['’]s(?!{_LETTER}))|\.\p{{L}}(?!{_LETTER}))"
"""Further condition after a value of a single letter: it is not the first one of "U.S." or "I'm"."""
_PART = re.compile(r"[\p{L}\p{N}](?:[\p{L}\p{M}\p{N}]|(?<=\p{N})[.,](?=\p{N}))*")
"""Letters and digits up to the next sign; a number with its point."""
_GAP = r"(?:['’]s)?[^\p{L}\p{N}]+"
"""Possessive ending, blanks and signs between the words of a value."""
_ADDRESS = re.compile(
    r"[\p{L}\p{N}][_@][\p{L}\p{N}]"  # mara_velt, mara@velt
    r"|^\s*\p{Ll}[\p{Ll}\p{N}]*(?:\.[\p{Ll}\p{N}]+)+\s*$"  # mara.velt
)
"""E-mail address, web address or account name."""
_GAP_IN_ADDRESS = r"[^\p{L}\p{N}\s]+"
"""Signs between the words of an address: "mara_velt" is not said by "Mara Velt"."""
_CODE = re.compile(r"(?=.*\p{Lu})(?=.*\p{N}.*\p{N})[\p{Lu}\p{N} -]{5,}")
"""Licence plate, postcode or other code."""
_GROUPS = r"[\s./()-]{0,2}"
"""Signs that group the digits of a telephone or account number."""


@cache
def _pattern(value: str) -> Any:
    """Return the pattern of a value in a text without accents; None for a value without words."""
    bare = _without_accents(value) if is_cased(value) else _plain(value)
    parts = _PART.findall(_without_possessive(bare))
    if not parts:
        return None
    together = "".join(parts)
    lone = re.fullmatch(r"\p{L}", together) is not None
    before = "" if re.match(UNSPACED, parts[0]) else _BEFORE + _LONE_BEFORE * lone
    after = "" if re.match(UNSPACED, parts[-1][-1]) else _AFTER + _LONE_AFTER * lone
    if sign := re.search(r"(?<=\p{L})[+#]+$", bare.strip()):  # of C++ and A+
        after = re.escape(sign.group())
    gap = _GAP_IN_ADDRESS if _ADDRESS.search(value) else _GAP
    text = gap.join([*map(re.escape, parts[:-1]), _in_any_number(value, parts[-1])])
    if _is_long_number(together) or _CODE.fullmatch(value.strip()):
        text = f"(?:{text}|{_GROUPS.join(together)})"
    if together.isdecimal() and len(together) > 9:
        before, text = "", _GROUPS.join(together[-8:])
    if is_cased(value):
        text = _as_letter(text) if lone else f"(?:{text}|{text.upper()})"
    return re.compile(before + text + after)


def _without_possessive(value: str) -> str:
    return re.sub(rf"['’]s(?!{_LETTER})", "", value)


def _in_any_number(value: str, last: str) -> str:
    """Return the pattern of the last word of a value in its own number and in the other."""
    written = _PART.findall(_without_possessive(value))[-1]
    forms = [] if is_cased(value) or _ADDRESS.search(value) else map(str.casefold, number_forms(written))
    return f"(?:{'|'.join([re.escape(last), *forms])})"


def _is_long_number(value: str) -> bool:
    """Return whether letters and digits are those of a telephone, account or passport number, or a large amount."""
    digits = sum(map(str.isdecimal, value))
    return value.isalnum() and digits >= max(5, len(value) / 2)


def _as_letter(name: str) -> str:
    """Return the pattern of a letter that also is a word (A, I), except where it opens a sentence or precedes a name.

    A small letter counts only before a sign or the end.
    """
    opens = r"(?<=(?:^|[.!?…。！？\n])[\s\"'“‘(«]*)"
    article = rf"{opens}{name}\s+(?!(?:is|was)\b)\p{{Ll}}|{name}\s+\p{{Lu}}"
    return rf"(?:(?!{article}){name}|{name.lower()}(?=\s*(?:[^\s\p{{L}}\p{{N}}\"“‘'(-]|$)))"


_THOUSANDS = re.compile(r"(?<=(?<!\p{N}|\p{N}[.,])\p{N}{1,3}(?:[.,'’]\p{N}{3})*)[.,'’](?=\p{N}{3}(?!\p{N}))")
"""Sign between the thousands of a number ("8,750")."""
UNIT = "|".join(
    [
        r"[µμnmcdk]?(?:g|m[²³]?|mol|[lL])|mcg|lbs?|oz|ft|cc",  # mass, length, area, volume
        r"[mkMGT](?:Hz|W|Wh|V|B|bit)|Hz|k?cal|kJ|k?Pa|mmHg|bpm|IU|mph",
        r"h|min|[ap]m",
    ]
)
"""Units that are written onto numbers; no *s*, since "90s" is a decade."""
_BEFORE_UNIT = re.compile(rf"(?<=\p{{N}})(?=(?:{UNIT})(?!{_LETTER}))", re.IGNORECASE)
"""Place between a number and the unit that is written onto it."""
_SMALL = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_AMOUNT = re.compile(
    rf"(?<![\p{{L}}\p{{N}}.,])(\p{{N}}+(?:\.\p{{N}}+)?)(?:k|\s?(thousand|million|billion))(?!{_LETTER})"
)
"""Number with a word for its zeros."""
_ZEROS = {"thousand": 3, "million": 6, "billion": 9}
_DECIMAL_COMMA = re.compile(r"(?<=\p{N})(?<![.,]\p{N}+),(?=\p{N}{1,2}(?!\p{N}|[.,]\p{N}))")
"""Comma before one or two decimals ("1250,50")."""
_NUMBERS = dict(zip(_SMALL + _TEENS + _TENS, [*range(1, 20), *range(20, 100, 10)], strict=True))
"""Numbers by their words."""
_NUMBER_WORD = re.compile(
    rf"(?<!{_LETTER}|-)(?:(?:{'|'.join(_TENS)})(?:[- ](?:{'|'.join(_SMALL)}))?|{'|'.join(_TEENS[3:])})"
    rf"(?!{_LETTER}|-(?!year))"
)
"""Number from thirteen to ninety-nine in words, not in a compound or ordinal number ("twenty-first").

Smaller ones are in too many texts by chance.
"""


@lru_cache(maxsize=4096)
def _plain(text: str) -> str:
    """Fold case, drop accents and separators of thousands, and write numbers in digits, apart from units.

    The result is cached, since an answer is searched repeatedly.
    """
    plain = _THOUSANDS.sub("", _without_accents(text).casefold())
    plain = _AMOUNT.sub(_with_zeros, _DECIMAL_COMMA.sub(".", plain))
    return _BEFORE_UNIT.sub(" ", _NUMBER_WORD.sub(_in_digits, plain))


def _with_zeros(amount: Any) -> str:
    """Return the amount of a match of `_AMOUNT` in digits, if it is whole."""
    digits, _, decimals = amount[1].partition(".")
    zeros = _ZEROS[amount[2] or "thousand"]
    return digits + decimals.ljust(zeros, "0") if len(decimals) <= zeros else amount.group()


def _in_digits(number: Any) -> str:
    """Return the number of a match of `_NUMBER_WORD` in digits."""
    return str(sum(_NUMBERS[word] for word in re.split("[- ]", number.group())))


def _without_accents(text: str) -> str:
    """Drop accents and strokes, so that "Ngũgĩ" and "Ngugi" are one, and "Łukasz" and "Lukasz"."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text)
    bare = "".join(_base_letter(sign) for sign in decomposed if not unicodedata.combining(sign))
    return unicodedata.normalize("NFC", bare)


@cache
def _base_letter(sign: str) -> str:
    """Return the letter without its stroke, a plain hyphen for a hyphen, and any other sign as it is."""
    if sign in "\u2010\u2011":
        return "-"
    stroked = re.fullmatch(r"(LATIN (?:SMALL|CAPITAL) LETTER [A-Z]) WITH STROKE", unicodedata.name(sign, ""))
    return unicodedata.lookup(stroked[1]) if stroked else sign


MONTHS = {
    form: f"month {number}"
    for number, name in enumerate(shipped_json(__package__, "months"), 1)
    for form in (name, name[:3])
} | {"sept": "month 9"}
"""Months ("month 6") by their names and abbreviations in lower case."""


LONGEST_DATE = 40
"""Number of characters that no date exceeds."""


def is_date(value: str) -> bool:
    """Return whether a value is a date: a month with a day or year, or all in numbers."""
    return len(value) <= LONGEST_DATE and bool(_date(value))


def _has_date(text: str, value: str) -> bool:
    """Return whether a text in lower case has a date: its parts side by side in any order, or all in numbers."""
    wanted = _date(value)
    if not any(all(part[-2:] in text for part in parts if part.isdecimal()) for parts in wanted):
        return False
    said, size = _date_parts(text), len(wanted[0])
    there = [sorted(said[start : start + size]) for start in range(len(said))]
    return any(parts in wanted for parts in [*there, *_numeric_dates(text)])


_NUMERIC = re.compile(
    r"(?<![\d/.-])(?:"
    r"(\d{4})([/.-])(\d\d?)\2(\d\d?)"  # year, month and day
    r"|(\d\d?)([/.-])(\d\d?)\6(\d{4}|\d{2})"  # day and month, in either order, and year
    r")(?![\d/-]|\.\d)"
)
"""Date in numbers."""


@lru_cache(maxsize=4096)
def _date(value: str) -> list[list[str]]:
    """Return the sorted parts of a date, in both readings of a date in numbers; none for another value."""
    plain = _plain(value)
    parts = _date_parts(plain)
    months, numbers = sum(part.startswith("month") for part in parts), sum(map(str.isdecimal, parts))
    if months == 1 and numbers and months + numbers == len(parts):
        return [sorted(parts)]
    return _numeric_dates(plain) if _NUMERIC.fullmatch(plain.strip()) else []


_ORDINAL = re.compile(r"(?<=\p{N})(?:st|nd|rd|th)(?!\p{L})")
"""Ending of an ordinal number in digits."""


def _date_parts(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case, as in a date: "the 12th of June" is 12, month 6."""
    found = (part for part in _PART.findall(_ORDINAL.sub("", text)) if part not in ("of", "the"))
    return [MONTHS.get(part, part.lstrip("0") if part.isdecimal() else part) for part in found]


def _numeric_dates(text: str) -> list[list[str]]:
    """Return the sorted parts of each date in numbers in a text; of 3/4/1968 and 3/4/68 in all readings."""
    found = []
    for match in _NUMERIC.finditer(text):
        year, _, month, day, first, _, second, last = match.groups()
        readings = [(month, day)] if year else [(first, second), (second, first)]
        written = year or last
        years = [written] if len(written) == 4 else [f"19{written}", f"20{written}"]
        found += [
            sorted([f"month {int(one)}", str(int(other)), year])
            for year in years
            for one, other in readings
            if 1 <= int(one) <= 12 and 1 <= int(other) <= 31
        ]
    return found
