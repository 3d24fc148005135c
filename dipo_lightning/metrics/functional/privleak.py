"""PrivLeak (MUSE, Shi et al., 2024): what a membership attack still sees, against the retain model."""

from __future__ import annotations

from torch import Tensor

from dipo_lightning.errors import InputError
from dipo_lightning.metrics.functional.membership import rank_auc


def privleak_auc(forget: Tensor, holdout: Tensor) -> Tensor:
    """AUC as PrivLeak takes it: P(s_holdout < s_forget), ties counted half; 0 when the forget set is memorised.

    Args:
        forget: (n,) Min-K scores of the forget set.
        holdout: (m,) Min-K scores of texts that were never trained on.

    Returns:
        Scalar between 0 and 1; NaN where a sample is empty.
    """
    return rank_auc(forget, holdout)


def privleak(auc: float | Tensor, auc_retrain: float | Tensor) -> float:
    """100 (AUC - AUC_retrain) / AUC_retrain, in percent.

    Near 0 is good, very negative is under-unlearned, positive over-unlearned.

    Args:
        auc: `privleak_auc` of the model.
        auc_retrain: `privleak_auc` of the model trained without the forget set.

    Returns:
        PrivLeak in percent.

    Raises:
        InputError: `auc_retrain` is not in (0, 1]: there is nothing to divide by.
    """
    reference = float(auc_retrain)
    if not 0 < reference <= 1:
        raise InputError(
            f"PrivLeak divides by the AUC of the retain model, which must be in (0, 1]: got {reference}. "
            "Give the AUC of a model that was trained without the forget set (0.5 where none is known)."
        )
    return 100 * (float(auc) - reference) / reference
