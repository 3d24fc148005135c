"""Preference losses over whole answers: NPO, SimNPO and DPO with an "I don't know" answer.

They take sequence NLLs (`sequence_nll`, or `chunked_nll` summed over rows), never raw logits, and return one loss a
sequence. beta is a positive number throughout.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from dipo_lightning.errors import InputError


def _preference(gap: Tensor, beta: float) -> Tensor:
    """Compute -(2 / beta) log sigmoid(beta * gap)."""
    if not beta > 0:
        raise InputError(f"beta is {beta!r}; use a number > 0")
    return -(2.0 / beta) * logsigmoid(beta * gap)


def npo(nll: Tensor, reference_nll: Tensor, beta: float = 0.1) -> Tensor:
    """Negative preference optimization. Source: arXiv 2404.05868.

    -(2 / beta) log sigmoid(beta (l - l_ref)), with l the answer's summed NLL. As beta -> 0 its gradient becomes that of
    gradient ascent on l.

    Args:
        nll: (count,) summed NLL of the forget answers under the policy.
        reference_nll: (count,) the same under the frozen reference.
        beta: inverse temperature.

    Returns:
        (count,) losses.

    Raises:
        InputError: when beta is not positive.
    """
    return _preference(nll - reference_nll.detach(), beta)


def simnpo(nll: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """NPO without a reference, normalised by length. Source: arXiv 2410.07163.

    -(2 / beta) log sigmoid(beta (l - delta)), with l the answer's mean token NLL.

    Args:
        nll: (count,) mean token NLL of the forget answers under the policy.
        beta: inverse temperature.
        delta: reward margin in nats a token.

    Returns:
        (count,) losses.

    Raises:
        InputError: when beta is not positive.
    """
    return _preference(nll - delta, beta)


def dpo(
    preferred_nll: Tensor,
    preferred_reference_nll: Tensor,
    dispreferred_nll: Tensor,
    dispreferred_reference_nll: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """Direct preference optimization between two answers, as TOFU's IdkDPO uses it. Source: arXiv 2401.06121.

    -(2 / beta) log sigmoid(beta [(l_ref,w - l_w) - (l_ref,l - l_l)]), summed NLLs.

    Args:
        preferred_nll: (count,) summed NLL of the preferred answer (an "I don't know" line) under the policy.
        preferred_reference_nll: (count,) the same under the reference.
        dispreferred_nll: (count,) summed NLL of the answer to forget under the policy.
        dispreferred_reference_nll: (count,) the same under the reference.
        beta: inverse temperature.

    Returns:
        (count,) losses.

    Raises:
        InputError: when beta is not positive.
    """
    gain = preferred_reference_nll.detach() - preferred_nll
    loss = dispreferred_reference_nll.detach() - dispreferred_nll
    return _preference(gain - loss, beta)
