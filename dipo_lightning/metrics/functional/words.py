"""Words of a text in any script: the units of ROUGE and of fluency."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from typing import Any

import regex

# Scripts that write no space between words; there a character with its marks is a word. The long vowel signs of
# Japanese belong to no script of their own.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tangut}\p{Nushu}\p{Thai}\p{Lao}\p{Khmer}" + (
    r"\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}\p{Javanese}\p{Balinese}ーｰ]"
)
_CHARACTER = rf"[{_UNSPACED}&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_WORD = regex.compile(rf"{_CHARACTER}|[[\p{{L}}\p{{N}}]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]*", regex.V1)
_CHUNK = regex.compile(rf"{_CHARACTER}|[^{_UNSPACED}]+|.", regex.V1)
# Joiners, direction marks and the like show nothing; the zero-width space parts words.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200b]", regex.V1)


def words(text: str, stemmer: bool = False) -> list[str]:
    """Words of a text without case and punctuation, as ROUGE compares them.

    For ASCII these are the tokens of the `rouge-score` package: runs of letters and digits. Elsewhere letters, digits
    and combining marks of any script count, composed and decomposed forms are the same, and where a script writes no
    spaces between words (Chinese, Japanese, Thai, Khmer, ...) each character with its marks is a word.

    Args:
        text: Any text.
        stemmer: Take the Porter stem of words of more than three characters.

    Returns:
        The words in order.
    """
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    found = _WORD.findall(unicodedata.normalize("NFKC", plain))
    return [stem(word) if len(word) > 3 else word for word in found] if stemmer else found


def chunks(text: str) -> list[str]:
    """Pieces of a text that white space separates, cut into characters where a script writes no spaces.

    Args:
        text: Any text.

    Returns:
        The pieces in order, punctuation and case kept.
    """
    return [piece for part in text.split() for piece in _CHUNK.findall(part)]


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """Return the Porter stem of an English word."""
    return str(_porter().stem(word))


@cache
def _porter() -> Any:
    # Imported here: nltk is slow to import, and only ROUGE with stems needs it.
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()
