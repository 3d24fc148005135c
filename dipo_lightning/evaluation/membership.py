"""From rows to what membership attacks see: AUCs, and PrivLeak against the retain model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dipo_lightning.evaluation.columns import absent, column
from dipo_lightning.evaluation.logs.log import Rows, Sets
from dipo_lightning.metrics.functional.membership import ATTACKS, membership_auc
from dipo_lightning.metrics.functional.privleak import privleak, privleak_auc


def attack_scores(attack: str, forget: Rows, holdout: Rows) -> tuple[Tensor, Tensor]:
    """Scores of an attack for both samples, without the rows that have none.

    The loss attack takes the mean token NLL, `nll`; only where one of the samples has none does it take `loss`.

    Args:
        attack: One of `ATTACKS`.
        forget: Rows that were trained on.
        holdout: Rows that were not.

    Returns:
        Two 1-D float64 tensors; both empty where either would be.
    """
    for key in ("nll", "loss") if attack == "loss" else (attack,):
        samples = [values[~values.isnan()] for values in (column(forget, key), column(holdout, key))]
        if all(sample.numel() for sample in samples):
            return samples[0], samples[1]
    return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)


def membership_aggregates(forget: Rows, holdout: Rows) -> dict[str, float]:
    """AUC of every attack that both samples have scores for.

    Args:
        forget: Rows that were trained on.
        holdout: Rows that were not.

    Returns:
        `forget_<attack>_auc` between 0 and 1, 1 when every forget row is told from the holdout rows.
    """
    result = {}
    for attack in ATTACKS:
        members, others = attack_scores(attack, forget, holdout)
        if members.numel():
            result[f"forget_{attack}_auc"] = float(membership_auc(members, others))
    return result


def privleak_aggregates(
    sets: Sets,
    reference: Sets | None,
    auc_retrain: float | None = None,
    names: tuple[str, str] = ("forget", "holdout"),
) -> dict[str, Any]:
    """PrivLeak from Min-K scores.

    Args:
        sets: Rows by set name.
        reference: The same of the retain model; None where there is none.
        auc_retrain: The retain model's AUC, instead of a log of it.
        names: Of the set that was trained on and of the set that was not.

    Returns:
        `privleak` in percent with `privleak_auc` and `privleak_auc_retrain` (both 0 when memorised), or `privleak` as
        None with `privleak_absent`.

    Raises:
        InputError: `auc_retrain` is given and not in (0, 1].
    """
    mine = attack_scores("min_k", *(sets.get(name) or () for name in names))
    if not mine[0].numel():
        return absent("privleak", f"the log has no Min-K scores in both {names[0]} and {names[1]}")
    auc = float(privleak_auc(*mine))
    found = {"privleak_auc": auc}
    if auc_retrain is None:
        if reference is None:
            return absent("privleak", "neither a retain model's log nor its AUC was given to compare with") | found
        other = attack_scores("min_k", *(reference.get(name) or () for name in names))
        if not other[0].numel():
            return absent("privleak", f"the reference has no Min-K scores in both {names[0]} and {names[1]}") | found
        auc_retrain = float(privleak_auc(*other))
        if auc_retrain == 0:
            return absent("privleak", "the retain model's AUC is 0: there is nothing to divide by") | found
    return {"privleak": privleak(auc, auc_retrain), "privleak_auc_retrain": auc_retrain} | found
