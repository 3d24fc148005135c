"""Words of a text in any script, ROUGE-L over them (Lin, 2004), and the fluency of a model's own answers."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import regex
import torch
from torch import Tensor

# Scripts that write no space between words; there a character with its marks is a word. The long vowel signs of
# Japanese belong to no script of their own.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Yi}\p{Tangut}\p{Nushu}\p{Thai}\p{Lao}\p{Khmer}" + (
    r"\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}\p{Ahom}\p{Javanese}\p{Balinese}ーｰ]"
)
_CHARACTER = rf"[{_UNSPACED}&&[\p{{L}}\p{{N}}]]\p{{M}}*"
_WORD = regex.compile(rf"{_CHARACTER}|[[\p{{L}}\p{{N}}]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]*", regex.V1)
_CHUNK = regex.compile(rf"{_CHARACTER}|[^{_UNSPACED}]+|.", regex.V1)
# Joiners, direction marks and the like are invisible and removed; the zero-width space stays, as it separates words.
_INVISIBLE = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200b]", regex.V1)


def words(text: str, stemmer: bool = False) -> list[str]:
    """Words of a text without case and punctuation, as ROUGE compares them.

    For ASCII these are the tokens of the `rouge-score` package: runs of letters and digits. Beyond ASCII, letters,
    digits and combining marks of any script count, composed and decomposed forms are equal, and in scripts without
    spaces between words (Chinese, Japanese, Thai, Khmer, ...) each character with its marks is a word.

    Args:
        text: Any text.
        stemmer: Replace words of more than three characters by their Porter stem.

    Returns:
        The words in order.
    """
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    found = _WORD.findall(unicodedata.normalize("NFKC", plain))
    return [stem(word) if len(word) > 3 else word for word in found] if stemmer else found


def chunks(text: str) -> list[str]:
    """Split a text at white space, and into characters in scripts without spaces; punctuation and case are kept."""
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


_BLOCK = 4096  # words of one text that are compared at a time: 512 bytes of bits per distinct word


class RougeL(NamedTuple):
    """ROUGE-L of each row: `recall` and `f1`, (B,) float64 between 0 and 1."""

    recall: Tensor
    f1: Tensor


def rouge_l(predictions: Sequence[str], targets: Sequence[str], stemmer: bool = True) -> RougeL:
    """ROUGE-L recall and F1 of each prediction against its target, over the words that `words` finds.

    Args:
        predictions: B texts.
        targets: B texts to find in them.
        stemmer: Compare Porter stems (TOFU does, MUSE does not).

    Returns:
        Recall and F1, each (B,) float64; 0 where either text has no letter or digit.

    Raises:
        ValueError: The numbers of predictions and targets differ, or a single text was given instead of a list.
    """
    if isinstance(predictions, str) or isinstance(targets, str):
        raise ValueError("rouge_l compares lists of texts, got one text")
    if len(predictions) != len(targets):
        raise ValueError(f"as many predictions as targets are needed, got {len(predictions)} and {len(targets)}")
    recall, f1 = [], []
    for prediction, target in zip(predictions, targets, strict=True):
        said, wanted = words(prediction, stemmer), words(target, stemmer)
        common = common_length(said, wanted)
        recall.append(common / len(wanted) if wanted else 0.0)
        f1.append(2 * common / (len(said) + len(wanted)) if common else 0.0)
    return RougeL(torch.tensor(recall, dtype=torch.float64), torch.tensor(f1, dtype=torch.float64))


def common_length(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, in memory linear in both lengths.

    Bit-parallel (Hyyrö, 2004, "Bit-parallel LCS-length computation revisited"): a zero bit of `row` stands for a word
    of `first` at which the length grows. Blocks of `first` pass the carry of each addition on to the next.

    It takes about n m / 64 processor steps for texts of n and m words.
    """
    carries = bytearray(len(second))
    length = 0
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        places: dict[Hashable, int] = {}
        for place, word in enumerate(block):
            places[word] = places.get(word, 0) | 1 << place
        row = ones = (1 << len(block)) - 1
        for number, word in enumerate(second):
            found = row & places.get(word, 0)
            total = row + found + carries[number]
            carries[number] = total >> len(block)
            row = (total | (row - found)) & ones
        length += len(block) - row.bit_count()
    return length


NGRAM_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Sizes of the n-grams and the weight of each entropy (Meng et al., 2022, arXiv 2202.05262, section 3.3)."""


def ngram_entropy(text: str) -> float:
    """Fluency of a text: the weighted mean of the entropies of its bigrams and trigrams of words.

    From Zhang et al. (2018, arXiv 1809.05972), weighted as Meng et al. (2022) do. Words are separated by white space;
    in scripts without spaces, characters count. It grows with the length (a text of m distinct words has log2(m - 1)
    bits of bigrams), so compare the answers of two models to the same questions.

    Returns:
        Bits, 0 or more; 0 for a text of fewer than three words, or one that repeats a single word.
    """
    words, total = chunks(text), 0.0
    for size, weight in NGRAM_WEIGHTS.items():
        counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
        frequency = torch.tensor(list(counts.values()), dtype=torch.float64)
        frequency = frequency / frequency.sum()
        total += weight * float(torch.special.entr(frequency).sum() / torch.log(torch.tensor(2.0, dtype=torch.float64)))
    return total / len(NGRAM_WEIGHTS)


def perplexity(nll: Tensor, tokens: Tensor) -> Tensor:
    """Perplexity of several texts together: the exponential of their mean NLL per token.

    Args:
        nll: (B,) mean token NLL of each text in nats.
        tokens: (B,) number of tokens of each, 0 or more; a text without tokens is ignored, whatever its NLL.

    Returns:
        Scalar of the dtype of `nll`, 1 or more; NaN without tokens.
    """
    said = tokens > 0
    total = (nll[said] * tokens[said]).sum()
    return torch.exp(total / tokens[said].sum())
