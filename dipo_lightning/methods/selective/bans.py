"""Bans on tokens: which token of a private word is held down, so that no other word is.

A ban on the first token of a word is the strongest, but that token may be another word, or begin many.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from dipo_lightning.data.encoding import encode
from dipo_lightning.data.language import FUNCTION_WORDS, is_common_word, unspaced, words
from dipo_lightning.data.private import Span, is_rare

PART = "\ufffd"
"""What a part of a character decodes to."""

CENTURIES = frozenset({"18", "19", "20"})
"""Numbers that years begin with."""
_CENTURY = re.compile(rf"(?<!\d)(?:{'|'.join(sorted(CENTURIES))})(?=\d\d(?!\d))")
_LONG = re.compile(r"\d{4,}")


def telling_parts(text: str, span: Span, shared: Mapping[str, int]) -> list[Span]:
    """Return the spans of a private value without the digits that tell nothing, and that numbers about others need.

    These are the century of a year ("19" of "1968"), and the part of a long number that retain rows share, such as the
    prefix of a telephone number.

    Args:
        text: The answer.
        span: The value in it.
        shared: Words of the retain rows, as for `find_private`.
    """
    value = text[span.start : span.end]
    common = shared_parts(value, shared)
    left_out = [Span(*found.span()) for found in _CENTURY.finditer(value)]
    left_out += [Span(word.start, word.end) for word in words(value) if word.text in common]
    edges = [0, *(edge for cut in sorted(left_out) for edge in cut), len(value)]
    parts = ((start, value[start:end]) for start, end in zip(edges[::2], edges[1::2], strict=True))
    return [
        Span(span.start + start + len(part) - len(part.lstrip()), span.start + start + len(part.rstrip()))
        for start, part in parts
        if part.strip()
    ]


def shared_parts(value: str, shared: Mapping[str, int]) -> set[str]:
    """Return the parts of a number that retain rows have, too, if it has another long part that they have not."""
    long = {word.text for word in words(value) if _LONG.fullmatch(word.text) and not _CENTURY.match(word.text)}
    common = {word for word in long if not is_rare(word, shared)}
    return common if common < long else set()


def completions(
    tokenizer: Any, secrets: Iterable[str], needed: Sequence[int] = (), shared: Collection[str] = ()
) -> list[tuple[list[int], int]]:
    """Return the tokens to ban after others, for words whose first token cannot be banned.

    The first token of a number is often a single digit, so of a number the last token is banned, after all others.
    Those of `CENTURIES` are under no ban, since otherwise no year of that century could be said.

    The first token of a name may be a single letter (" H" of " Harkness"), another word (" to" of " toffees") or needed
    for one (" glass" of " glassblower"), so of a word the first token is banned with which it can be told from these,
    after those before it.

    Args:
        tokenizer: The model's tokenizer.
        secrets: The words.
        needed: Tokens of a text that must stay sayable.
        shared: Other words that must (`word_forms`).

    Returns:
        Pairs of the preceding tokens and the token to ban after them.
    """
    secrets = sorted(secrets)
    numbers = [form for word in secrets if word[0].isdigit() for form in dict.fromkeys([word, word.upper()])]
    tokens = (encode(tokenizer, form) for form in numbers if len(form) > 1 and form not in CENTURIES)
    found = [(ids[:-1], ids[-1]) for ids in tokens if len(ids) > 1]
    for ids, first in word_forms(tokenizer, (word for word in secrets if not word[0].isdigit()), shared):
        new = (place for place in range(first, len(ids)) if not _occurs(ids[: place + 1], needed))
        own = next((place for place in new if re.search(r"\w", tokenizer.decode([ids[place]]))), 0)
        if own:
            found.append((ids[:own], ids[own]))
    return found


def _occurs(ids: Sequence[int], text: Sequence[int]) -> bool:
    return any(list(text[start : start + len(ids)]) == list(ids) for start in range(len(text)))


def by_last(pairs: Iterable[tuple[list[int], int]]) -> dict[int, list[tuple[list[int], int]]]:
    """Group pairs of preceding tokens and a token by the last preceding one."""
    found: dict[int, list[tuple[list[int], int]]] = {}
    for before, token in pairs:
        found.setdefault(before[-1], []).append((before, token))
    return found


class WordEdges(NamedTuple):
    """Tokens that meet inside a word.

    Attributes:
        continuing: Tokens that begin inside a word: with a letter, digit or combining mark, and without a space, or in
            the middle of a character.
        open: Tokens that end with a letter or digit.
    """

    continuing: frozenset[int]
    open: frozenset[int]

    def inside(self, before: Sequence[int], token: int) -> bool:
        """Return whether a token continues the last word of the tokens before it."""
        return bool(before) and before[-1] in self.open and token in self.continuing


def word_edges(tokenizer: Any) -> WordEdges:
    """Find out by decoding which tokens continue a word, and which leave it open."""
    word, tokens = encode(tokenizer, "the"), sorted(set(tokenizer.get_vocab().values()))
    decoded = tokenizer.batch_decode([word, *([*word, token] for token in tokens)], clean_up_tokenization_spaces=False)
    texts = [text[len(decoded[0]) :] for text in decoded[1:]]

    def spaced(sign: str) -> bool:
        return sign.isalnum() and not unspaced(sign)

    def inside(sign: str) -> bool:
        return spaced(sign) or sign == PART or unicodedata.category(sign or " ").startswith("M")

    said = dict(zip(tokens, texts, strict=True))
    return WordEdges(
        frozenset(token for token, text in said.items() if inside(text[:1])),
        frozenset(token for token, text in said.items() if spaced(text[-1:])),
    )


def following(
    pairs: Mapping[int, Sequence[tuple[list[int], int]]], ids: Sequence[int], edges: WordEdges | None = None
) -> list[int]:
    """Return the tokens of pairs (`by_last`) whose preceding tokens are the last ones of a text.

    With ``edges``, the preceding tokens must begin a word there: the "Wed" of "TheWed" begins no "Wedding".
    """
    there = pairs.get(ids[-1], ()) if ids else ()
    last = ((before, token) for before, token in there if list(ids[-len(before) :]) == before)
    return sorted({t for before, t in last if not (edges and edges.inside(ids[: -len(before)], before[0]))})


def _is_latin(letter: str) -> bool:
    return unicodedata.name(letter, "").startswith("LATIN")


def first_tokens(tokenizer: Any, secrets: Iterable[str], shared: Collection[str] = ()) -> list[int]:
    """Return the first tokens of the words in each form (`token_forms`)."""
    return sorted({ids[0] for ids in token_forms(tokenizer, secrets, shared)})


def token_forms(tokenizer: Any, secrets: Iterable[str], shared: Collection[str] = ()) -> list[list[int]]:
    """Return the tokens of the words in all forms that their first token tells from other words (`word_forms`)."""
    return [ids for ids, first in word_forms(tokenizer, secrets, shared) if not first]


def word_forms(tokenizer: Any, secrets: Iterable[str], shared: Collection[str] = ()) -> list[tuple[list[int], int]]:
    """Return the tokens of the words in lower, title and upper case, with and without a leading space.

    An abbreviation has its capitals only. A word with a capital has a lower-case form only if that is no single token,
    which would be an ordinary word (" head" for the Head of a name).

    Each form comes with the number of tokens before the first one that tells it from other words: the tokens so far
    are no common word and none of ``shared``, and have enough letters. These are two after a space, else four, since a
    token without a leading space also occurs inside other words. Of a word that begins with a letter of another script
    than the Latin a single token is enough.
    """
    found: set[tuple[tuple[int, ...], int]] = set()
    for word in secrets:
        for form in dict.fromkeys(_spellings(word)):
            for text, least in ((form, max(2, min(4, len(form)))), (f" {form}", 2)):
                ids, least = encode(tokenizer, text), least if word.isascii() or _is_latin(word[0]) else 0
                if len(ids) == 1 and form.islower() and not word.islower():
                    continue
                begun = (tokenizer.decode(ids[: place + 1]).strip() for place in range(len(ids)))
                tells = (
                    place
                    for place, part in enumerate(begun)
                    if len(part) >= least and (place + 1 == len(ids) or not _are_words(part.lower(), shared))
                )
                first = next(tells, None)
                if first is not None:
                    found.add((tuple(ids), first))
    return [(list(ids), first) for ids, first in sorted(found)]


def _spellings(word: str) -> list[str]:
    return [word] if word.isupper() else [word.lower(), word if word[0].isupper() else word.capitalize(), word.upper()]


def _are_words(text: str, shared: Collection[str]) -> bool:
    """Return whether each part of a text is a common word or one of ``shared``, as those of "one-" and "hand-made"."""
    parts = re.findall(r"\w+", text)
    return all(part in shared or part in FUNCTION_WORDS or is_common_word(part) for part in parts)
