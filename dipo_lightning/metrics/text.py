"""Metrics of generated texts: fluency, perplexity, and ROUGE against paraphrased and wrong answers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dipo_lightning.metrics.base import Row, RowMean, RowSet, RowValues
from dipo_lightning.metrics.functional.text import ngram_entropy, perplexity, rouge_l


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
        return None if text is None else ngram_entropy(str(text))


class Perplexity(RowValues):
    """Perplexity of the model's own answers: the exponential of the mean NLL of all generated tokens."""

    columns = ("nll", "tokens")
    label = "perplexity of its own answers"
    meaning = (
        "How many tokens the model wavers between while it answers. 1 is certain; far above what it was, the words do "
        "not belong together."
    )
    higher_is_better = False
    names_set = True

    def values(self, row: Row, of: RowSet) -> Sequence[float | None]:
        """Return mean NLL in nats and number of tokens of the generated answer; None if there is none."""
        return row.get("generation_nll"), row.get("generation_tokens")

    def compute(self) -> Tensor:
        """Perplexity, 1 or more; NaN if nothing was generated."""
        table = self.scored()
        return perplexity(table["nll"], table["tokens"])


class ParaphraseROUGE(RowMean):
    """Mean ROUGE-L recall of the model's own answers against paraphrases of the true ones."""

    field = "paraphrased_rouge"
    label = "ROUGE-L recall of the paraphrase"
    meaning = (
        "Share of the words of the true answer, said in other words, that the model's own answer holds in their order. "
        "Far below the ROUGE of the true answer: the model recites."
    )
    remembers = 1

    def measured(self, row: Row, source: Row) -> dict[str, float | None]:
        """Compare a row's `generation` with its `paraphrased_answer`."""
        return {self.field: _recall(row.get("generation"), [source.get("paraphrased_answer")])}


class PerturbedROUGE(RowMean):
    """Mean ROUGE-L recall of the model's own answers against the wrong ones, over all wrong answers of a row."""

    field = "perturbed_rouge"
    label = "ROUGE-L recall of the wrong answers"
    meaning = (
        "Share of a wrong answer's words that the model's own answer holds in their order, mean over the wrong "
        "answers. They share their form with the true one: what the true answer has above this is knowledge."
    )

    def measured(self, row: Row, source: Row) -> dict[str, float | None]:
        """Compare a row's `generation` with its `perturbed_answer`, the wrong ones."""
        return {self.field: _recall(row.get("generation"), source.get("perturbed_answer") or ())}


def _recall(text: str | None, answers: Sequence[str | None]) -> float | None:
    """Mean ROUGE-L recall of a text against answers; None without a text or an answer."""
    wanted = [answer for answer in answers if answer is not None]
    return None if text is None or not wanted else rouge_l([text] * len(wanted), wanted).recall.mean().item()
