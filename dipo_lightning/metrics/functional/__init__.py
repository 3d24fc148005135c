"""Formulas of the metrics: pure functions, one topic per file."""

from dipo_lightning.metrics.functional.answers import (
    TRUTH_RATIO_VARIANTS,
    ForgetQualityResult,
    TruthRatioVariant,
    answer_probability,
    forget_quality,
    forget_truth_ratio,
    harmonic_mean,
    log_truth_ratio,
    normalized_probability,
    truth_probability,
    utility_truth_ratio,
)
from dipo_lightning.metrics.functional.membership import (
    exact_memorization,
    extraction_strength,
    membership_auc,
    min_k,
    privleak,
    privleak_auc,
    rank_auc,
    standardized_logprobs,
    zlib_score,
)
from dipo_lightning.metrics.functional.text import RougeL, ngram_entropy, perplexity, rouge_l

__all__ = [
    "TRUTH_RATIO_VARIANTS",
    "ForgetQualityResult",
    "RougeL",
    "TruthRatioVariant",
    "answer_probability",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "forget_truth_ratio",
    "harmonic_mean",
    "log_truth_ratio",
    "membership_auc",
    "min_k",
    "ngram_entropy",
    "normalized_probability",
    "perplexity",
    "privleak",
    "privleak_auc",
    "rank_auc",
    "rouge_l",
    "standardized_logprobs",
    "truth_probability",
    "utility_truth_ratio",
    "zlib_score",
]
