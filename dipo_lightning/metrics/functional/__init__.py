"""The mathematics of the measurements: pure functions, a topic per file."""

from dipo_lightning.metrics.functional.fluency import ngram_entropy, perplexity
from dipo_lightning.metrics.functional.forget_quality import ForgetQualityResult, forget_quality
from dipo_lightning.metrics.functional.membership import (
    membership_auc,
    rank_auc,
    zlib_score,
)
from dipo_lightning.metrics.functional.memorization import exact_memorization, extraction_strength, tokens_correct
from dipo_lightning.metrics.functional.min_k import min_k, min_k_plus_plus, standardized_logprobs
from dipo_lightning.metrics.functional.model_utility import harmonic_mean
from dipo_lightning.metrics.functional.privleak import privleak, privleak_auc
from dipo_lightning.metrics.functional.probability import answer_probability, normalized_probability
from dipo_lightning.metrics.functional.rouge import RougeL, rouge_l
from dipo_lightning.metrics.functional.truth_ratio import (
    TRUTH_RATIO_VARIANTS,
    TruthRatioVariant,
    forget_truth_ratio,
    log_truth_ratio,
    truth_probability,
    utility_truth_ratio,
)

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
    "min_k_plus_plus",
    "ngram_entropy",
    "normalized_probability",
    "perplexity",
    "privleak",
    "privleak_auc",
    "rank_auc",
    "rouge_l",
    "standardized_logprobs",
    "tokens_correct",
    "truth_probability",
    "utility_truth_ratio",
    "zlib_score",
]
