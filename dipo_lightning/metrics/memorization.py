"""Metrics of memorisation: the share of the answers that the model still produces, token by token."""

from dipo_lightning.metrics.rows import RowMean


class ExactMemorization(RowMean):
    """Mean share of answer tokens whose most probable prediction is right."""

    field = "exact_memorization"
    label = "exact memorisation"
    meaning = "Share of the answer's tokens that are the model's first choice, given those before."
    remembers = 1


class ExtractionStrength(RowMean):
    """Mean of 1 - k/n, k the shortest prefix after which the model continues an answer by itself."""

    field = "extraction_strength"
    label = "extraction strength"
    meaning = (
        "Share of the answer that the model completes without a fault once it is given the rest. 0: nothing can be "
        "drawn out; 1: all of it, from the question alone."
    )
    remembers = 1


class MinK(RowMean):
    """Mean Min-K score: minus the mean of the least likely tokens' log-probabilities."""

    field = "min_k"
    label = "Min-K"
    meaning = "Mean surprise at the least expected tokens of the answer. Low for a text that was learnt."
    unit = "nats"
    remembers = -1


class MinKPlusPlus(RowMean):
    """Mean Min-K++ score: Min-K of log-probabilities standardised over the vocabulary."""

    field = "min_k_plus_plus"
    label = "Min-K++"
    meaning = "Min-K, measured against how surprised the model usually is there. Low for a text that was learnt."
    remembers = -1
