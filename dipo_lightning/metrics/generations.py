"""From rows to what a model's own answers are like as language: fluency and perplexity."""

from __future__ import annotations

from dipo_lightning.metrics.columns import column
from dipo_lightning.metrics.functional.fluency import ngram_entropy, perplexity
from dipo_lightning.metrics.logs.log import Rows


def generation_aggregates(rows: Rows) -> dict[str, float]:
    """Fluency and perplexity of what was said to the questions of a set.

    Args:
        rows: With `generation`, and for the perplexity `generation_nll` and `generation_tokens`, which logs of other
            packages don't have.

    Returns:
        `fluency` (bits, the mean over the rows that were answered) and `perplexity` (over all tokens said; 1 or more),
        each where rows have it.
    """
    result = {}
    texts = [str(row["generation"]) for row in rows if row.get("generation") is not None]
    if texts:
        result["fluency"] = float(ngram_entropy(texts).mean())
    nll, tokens = column(rows, "generation_nll"), column(rows, "generation_tokens")
    said = ~nll.isnan()
    if said.any():
        result["perplexity"] = float(perplexity(nll[said], tokens[said]))
    return result
