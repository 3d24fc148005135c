"""Negative log-likelihood of the supervised tokens: what every method beside DiPO is made of.

Retain losses: what keeps the model able while it forgets. Both are means over answer tokens only.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from dipo_lightning.losses.reductions import sequence_reduce, token_mean, working_dtype


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of each supervised token.

    Args:
        logits: (N, V) logits at the positions that predict the tokens; bfloat16 and float16 are raised to float32.
        labels: (N,) int64 the tokens, all in [0, V): positions without supervision are not selected in the first place.

    Returns:
        (N,) nats, float32 (float64 for float64 logits).
    """
    # -1 can never be a label, so a stray -100 fails as an index instead of vanishing from a mean
    return cross_entropy(logits.to(working_dtype(logits)), labels, reduction="none", ignore_index=-1)


def sequence_nll(logits: Tensor, labels: Tensor, rows: Tensor, count: int, reduction: str = "sum") -> Tensor:
    """Compute the negative log-likelihood of each answer.

    Args:
        logits: (N, V) logits at the selected positions.
        labels: (N,) int64 tokens.
        rows: (N,) int64 row of each position.
        count: number of rows of the batch.
        reduction: `sum` (the answer's NLL) or `mean` (per token).

    Returns:
        (count,) nats; 0 for a row without positions.

    Raises:
        InputError: when `reduction` is unknown.
    """
    return sequence_reduce(token_nll(logits, labels), rows, count, reduction)


def retain_nll(nll: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean token NLL on the retain answers.

    Args:
        nll: (N,) token NLL (`token_nll` or `chunked_nll`).
        denominator: global token count; None uses N.

    Returns:
        Scalar.
    """
    return token_mean(nll, denominator)


def retain_kl(policy_logits: Tensor, retain_logits: Tensor, denominator: float | Tensor | None = None) -> Tensor:
    """Compute the mean KL(reference || policy) over the supervised positions of the retain answers.

    Args:
        policy_logits: (N, V) policy logits.
        retain_logits: (N, V) logits of the frozen reference at the same positions.
        denominator: global token count; None uses N.

    Returns:
        Scalar in nats; its gradient on the policy logits is (policy - reference) / denominator.
    """
    dtype = working_dtype(policy_logits, retain_logits)
    policy = policy_logits.to(dtype).log_softmax(-1)
    reference = retain_logits.detach().to(dtype).log_softmax(-1)
    return token_mean(kl_div(policy, reference, reduction="none", log_target=True).sum(-1), denominator)
