"""Words of texts: how a text is split into words, which of them are names or common words, and in which language."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from typing import NamedTuple

import regex as re

from dipo_lightning.data.files import shipped_json
from dipo_lightning.metrics.functional.text import stem

FUNCTION_WORDS = frozenset(
    form for word in shipped_json(__package__, "function_words") for form in (word, word.replace("'", "’"))
)
"""English words that carry no secret by themselves; for other languages the words of the retain rows serve instead."""
ABBREVIATIONS = frozenset(["as", "it", "me", "ms", "us", "who"])
"""Function words that abbreviations are spelt like: IT, WHO, and the illnesses AS, ME and MS."""
PARTICLES = frozenset(
    ["al", "ben", "bin", "el", "ibn"]  # Arabic and Hebrew
    + ["den", "der", "ten", "ter", "van"]  # Dutch
    + ["von", "zu", "zum", "zur"]  # German
    + ["da", "de", "degli", "dei", "del", "della", "di", "dos", "du", "e", "la", "las", "le", "los", "y"]  # Romance
    + ["af", "av"]  # Scandinavian
)
"""Words between the names of one person ("van der Berg")."""


class Word(NamedTuple):
    """A word without possessive ending or contracted verb, and its position in the text.

    It is in lower case, unless its capitals tell it from a function word (`ABBREVIATIONS`, "blood group A").
    """

    text: str
    start: int
    end: int


_NEW_SENTENCE = r"(?<=\p{Ll})\.(?=\p{Lu}\p{Ll})"
"""Full stop with no blank after it ("in Lima.It is")."""
_JOINTS = (
    r"[-'’](?=[\p{L}\p{N}])",  # of compounds and contractions
    r"(?!(?<=\p{Ll})!(?=\p{Lu}\p{Ll}))[@_+#&$!^*=~|\\%]+(?=[\p{L}\p{N}])",  # of addresses, accounts and passwords
    r"(?<=\p{N}),(?=\p{N})",  # between thousands
    rf"(?!{_NEW_SENTENCE})\.(?=[\p{{L}}\p{{N}}])",  # of decimals, abbreviations and addresses
)
"""Signs inside a word."""
_WORD = re.compile(rf"[\p{{L}}\p{{N}}](?:[\p{{L}}\p{{M}}\p{{N}}]|(?:{'|'.join(_JOINTS)}))*")
_ENDINGS = (
    r"['’](?:s|m|d|ll|re|ve)",  # possessive ("Ann's") or contracted verb ("she'll")
    r"(?<=^\p{N}+)-years?(?:-olds?)?",  # the rest of an age ("43-year-old")
)
"""Endings that are no part of the word before them."""
_ENDING = re.compile(rf"(?:{'|'.join(_ENDINGS)})$", re.IGNORECASE)


def words(text: str) -> list[Word]:
    """Return the words of a text, in any script that separates words."""
    found = []
    for match in _WORD.finditer(text):
        word = _ENDING.sub("", match.group())
        found.append(Word(word.lower(), match.start(), match.start() + len(word)))
    shouted = text.isupper() and any(word.text in FUNCTION_WORDS - ABBREVIATIONS for word in found)
    return found if shouted else [_with_capitals(text, word) for word in found]


def _with_capitals(text: str, word: Word) -> Word:
    """Return a word of a text in capitals if it is an abbreviation or the letter A.

    An "A" that opens a sentence or precedes a name ("A Life in Stone") is an article.
    """
    said = text[word.start : word.end]
    if said == "A":
        is_word = opens_sentence(text, word.start) or re.match(r"\s+\p{Lu}", text[word.end :])
    else:
        is_word = word.text not in ABBREVIATIONS or not said.isupper()
    return word if is_word else word._replace(text=said)


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Return the set of words in texts."""
    return {word.text for text in texts for word in words(text)}


def has_digit(text: str) -> bool:
    """Return whether a text has a digit."""
    return any(character.isdigit() for character in text)


def is_name(text: str, word: Word) -> bool:
    """Return whether a word of a text looks like a name or a number: it begins with a capital or has a digit."""
    return text[word.start].isupper() or has_digit(word.text)


def names_in(question: str) -> set[str]:
    """Return the names and numbers of a question, as `words` has them, without its first word."""
    return {word.text for word in words(question)[1:] if is_name(question, word)}


_FULL_NAME = re.compile(r"\p{Lu}[\p{L}\p{M}'’-]*\s+\p{Lu}")
"""Two capitalised words, which are a name at the beginning of a sentence too ("Joy Young told the police")."""
COMMON_NAMES = frozenset(
    ["chance", "drew", "earnest", "honor", "honour", "hope", "love", "lucky", "mark", "may", "passion", "rose", "true"]
    + ["unity", "will", "young"]
)
"""Common words that are names, too."""
KINDS = frozenset(
    ["academy", "bank", "church", "college", "faculty", "hospital", "institute", "museum", "school", "university"]
    + ["abbey", "cathedral", "chapel", "convent", "diocese", "monastery", "mosque", "parish", "synagogue", "temple"]
    + ["bay", "cape", "city", "county", "district", "gulf", "isle", "kingdom", "lake", "port", "province", "republic"]
    + ["state", "strait", "town", "village", "association", "board", "bureau", "chamber", "council", "court", "guild"]
    + ["department", "embassy", "federation", "league", "ministry", "office", "order", "society", "union"]
)
"""Nouns that tell the kind of a name after *of* ("the University of Tartu")."""


def is_certain_name(text: str, word: Word) -> bool:
    """Return whether a word is capitalised as a name: inside a sentence, or before another capitalised word.

    There a common word that is no name just opens the sentence ("Near Strumble Head").
    """
    if is_capitalised_inside(text, word):
        return True
    if _FULL_NAME.match(text, word.start) is None:  # most words need no look at the lists
        return False
    return word.text in COMMON_NAMES or not is_common_word(word.text)


def is_capitalised_inside(text: str, word: Word) -> bool:
    """Return whether a word is capitalised inside a sentence."""
    return text[word.start].isupper() and not opens_sentence(text, word.start)


_SHORTENED = re.compile(r"(?<!\p{L})(?:\p{Lu}|Mr|Mrs|Ms|Dr|Prof)\.$")
"""Initial or title with a full stop, which a name follows."""


def opens_sentence(text: str, start: int) -> bool:
    """Return whether a sentence begins at a position of a text, apart from quotation marks and brackets."""
    before = text[:start].rstrip(" \"'“‘(«")
    return not before or (before[-1] in ".!?…。！？\n" and not _SHORTENED.search(before[-6:]))


@cache
def is_cased(value: str) -> bool:
    """Return whether a value is a name or letter that also is a word in lower case: May, Rose, US, A."""
    name, word = value.strip(), value.strip().lower()
    if not name.isalpha() or not name[0].isupper():
        return False
    return name.isupper() if word in FUNCTION_WORDS else len(name) > 1 and is_common_word(word)


_BASES = {form: base for base, forms in shipped_json(__package__, "irregular_verbs").items() for form in (base, *forms)}
"""Base forms of irregular verbs, by each of their forms."""


def base_form(word: str) -> str:
    """Return the English stem of a word; for an irregular verb, that of its base form; abbreviations (US) stay."""
    return word if word.isupper() else stem(_BASES.get(word, word))


def number_forms(word: str) -> list[str]:
    """Return the regular English plural of a word, or what may be its singular if it looks like a plural.

    Words of fewer than four letters, abbreviations and words with other signs have none. A name that ends in -s is no
    plural (Travis), except for a weekday (Wednesdays).
    """
    if len(word) < 4 or word.isupper() or not (word.isascii() and word.isalpha()):
        return []
    hissing, consonant = r"(?:s|x|z|ch|sh)", r"[^aeiou]"
    if re.search(r"[^sui]s$", word) and (word.islower() or word.endswith("days")):
        if re.search(rf"{consonant}ies$", word):
            return [word[:-3] + "y"]
        return [word[:-1], *([word[:-2]] if re.search(rf"{hissing}es$", word) else [])]
    if re.search(rf"{consonant}y$", word):
        return [word[:-1] + "ies"]
    return [word + ("es" if re.search(rf"{hissing}$", word) else "s")]


def relatives(word: str) -> list[str]:
    """Return the noun of an adjective, and the adjective of a noun, that differ in -ic and -y only (allergic)."""
    if len(word) < 5:
        return []
    endings = (("ic", "y"), ("y", "ic"), ("ies", "ic"))
    return [word.removesuffix(end) + other for end, other in endings if word.endswith(end)]


def compound_parts(word: str) -> list[str]:
    """Return the parts of a compound with hyphens; none if one is a single letter or has a digit ("e-mail", "F-16")."""
    parts = word.split("-")
    return parts if len(parts) > 1 and all(len(part) > 1 and not has_digit(part) for part in parts) else []


def is_common_word(word: str) -> bool:
    """Return whether a word is an inflected common word: with -s, -ed, -ing or -ly, or a form of an irregular verb."""
    return not _common_words().isdisjoint(_uninflected(word)) or _BASES.get(word) in _common_words()


@cache
def _common_words() -> frozenset[str]:
    """Return common English words, which carry no secret either unless they are names (Hope); read on first use."""
    return frozenset(shipped_json(__package__, "common_words"))


def _uninflected(word: str) -> list[str]:
    """Return a word, and its forms without an ending; with -e, -y and a single consonant where that may be missing."""
    ends = ("s", "es", "ed", "ing", "ly", "ally")
    found = [word.removesuffix(end) for end in ends if word.endswith(end)]
    found += [one + "e" for one in found]
    found += [one[:-1] + "y" for one in found if one.endswith("i")]
    return [word, *found, *(one[:-1] for one in found if len(one) > 2 and one[-1] == one[-2])]


UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""Letters of scripts without spaces between words, and Hangul, where endings are written onto names."""


def unspaced(text: str) -> bool:
    """Return whether a text has letters of a script without spaces between words, where no list knows the words."""
    return re.search(UNSPACED, text) is not None


def mostly_unspaced(text: str) -> bool:
    """Return whether most letters of a text are of a script without spaces between words, or Hangul."""
    return 2 * len(re.findall(UNSPACED, text)) > len(re.findall(r"\p{L}", text))


ENOUGH_WORDS = 20
"""Number of words from which the language of texts is judged."""
FEW_ENGLISH = 0.1
"""Share of English function words below which the language is another one; English rows have a fifth and more."""


def hardly_english(texts: Iterable[str], enough: int = ENOUGH_WORDS) -> bool:
    """Return whether texts have hardly any English function word, so that `FUNCTION_WORDS` lacks theirs.

    Words of one or two letters do not count, since other languages share them ("in", "an", "me"). False with fewer than
    ``enough`` words.
    """
    found = [word.text for text in texts for word in words(text)]
    english = sum(len(word) > 2 and word in FUNCTION_WORDS for word in found)
    return len(found) >= enough and english < FEW_ENGLISH * len(found)


def share_of_words(texts: Iterable[str], known: Collection[str]) -> float:
    """Return the share of the words in texts that exist; 1 without texts.

    These are known words (in lower case, in any simple inflection), compounds of them ("two-legged"), numbers, and
    capitalised words, since names are in no list. A word that repeats the one before it ("has has has") does not count
    as existing, nor does a text without any word, as one word. Text in a script without spaces is left out, unless no
    known word is in such a script.
    """
    left_out = any(map(unspaced, known))
    total = right = 0
    for text in texts:
        before, found = "", words(text)
        total += not found
        for word in found:
            if left_out and unspaced(word.text):
                continue
            total += 1
            number = has_digit(word.text)
            again = word.text == before and not number
            known_word = number or text[word.start].isupper() or _exists(word.text, known)
            right += known_word and not again
            before = word.text
    return right / total if total else 1.0


def _exists(word: str, known: Collection[str]) -> bool:
    """Return whether a word, or each part of a compound, is known in some simple inflection."""
    if any(form in known for form in _stems(word)):
        return True
    parts = compound_parts(word)
    return bool(parts) and all(_exists(part, known) for part in parts)


def _stems(word: str) -> list[str]:
    """Return a word, and its forms without an English ending."""
    ends = ("s", "es", "ed", "d", "ing", "ly", "er", "r")
    found = [word.removesuffix(end) for end in ends if word.endswith(end)]
    found += [one + "e" for one in found]
    return [word, *found, *([word.removesuffix("ies") + "y"] if word.endswith("ies") else [])]
