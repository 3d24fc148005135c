"""Metrics of generated texts: fluency and perplexity of answers, VerbMem and KnowMem (MUSE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dipo_lightning.metrics.functional.fluency import ngram_entropy, perplexity
from dipo_lightning.metrics.functional.muse import muse_scale
from dipo_lightning.metrics.rows import Row, RowMean, RowSet, RowValues


class Fluency(RowMean):
    """Mean n-gram entropy of the model's own answers, in bits (`functional.ngram_entropy`)."""

    label = "fluency"
    meaning = (
        "How varied the words of the model's own answers are: the entropy of their word pairs and triples. Far below "
        "what it was, the model repeats itself. Longer answers have more."
    )
    unit = "bits"
    higher_is_better = True

    def value(self, row: Row) -> float | None:
        """Return the entropy of a row's `generation`."""
        text = row.get("generation")
        return None if text is None else ngram_entropy([str(text)]).item()


class Perplexity(RowValues):
    """Perplexity of the model's own answers: the exponential of the mean NLL of all tokens it said."""

    columns = ("nll", "tokens")
    label = "perplexity of its own answers"
    meaning = (
        "How many tokens the model wavers between while it answers. 1 is certain; far above what it was, the words do "
        "not belong together."
    )
    higher_is_better = False
    names_set = True

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return mean NLL in nats and number of tokens of what was said; none where nothing was."""
        return row.get("generation_nll"), row.get("generation_tokens")

    def compute(self) -> Tensor:
        """Perplexity, 1 or more; NaN where nothing was said."""
        table = self.scored()
        return perplexity(table["nll"], table["tokens"])


class _MUSERouge(RowMean):
    """Mean ROUGE-L F1 in MUSE's or open-unlearning's manner.

    Args:
        *sets: The sets whose rows count; their `rouge` is F1 between 0 and 1.
        variant: ``muse`` reports it in percent, ``open_unlearning`` between 0 and 1.
        **kwargs: See `RowValues`.

    Raises:
        InputError: The variant is unknown.
    """

    field = "rouge"
    remembers = 1
    names_set = False

    def __init__(self, *sets: RowSet | str, variant: str = "muse", **kwargs: Any) -> None:
        super().__init__(*sets, **kwargs)
        self.scale = muse_scale(variant)
        self.unit = "%" if variant == "muse" else ""

    def compute(self) -> Tensor:
        """Mean F1, in percent or between 0 and 1; NaN without rows."""
        return self.scale * super().compute()


class VerbMem(_MUSERouge):
    """Verbatim memorisation: the greedy continuation of a prompt against the true one, ROUGE-L F1."""

    label = "VerbMem"
    meaning = "ROUGE-L F1 between the text to forget and the model's continuation of its beginning."


class KnowMem(_MUSERouge):
    """Knowledge memorisation: the greedy answer to a question against the true one, ROUGE-L F1."""

    label = "KnowMem"
    meaning = "ROUGE-L F1 of the model's answers to questions about the text."
    names_set = True
