"""Methods that lower the likelihood of the answer itself: GradAscent, GradDiff, KL, WGA and CE-U."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar, Literal

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from dipo_lightning.data.loader import Example, supervised_count
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.losses.chunking import global_mean, sequence_places, working_dtype
from dipo_lightning.losses.likelihood import weighted_ascent
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, over_logits


def ce_u(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the policy with its own distribution without the label. Source: CE-U, arXiv 2503.01224.

    Returns (N,) nats for (N, V) logits and (N,) labels; the target distribution gets no gradient.
    """
    logits = logits.to(working_dtype(logits))
    target = logits.detach().scatter(-1, labels.unsqueeze(-1), -math.inf).softmax(-1)
    return -(target * logits.log_softmax(-1)).sum(-1)


class GradDiffModule(UnlearningModule):
    """Gradient ascent on the forget answers and descent on the retain answers. Source: TOFU, arXiv 2401.06121.

    The forget loss is unbounded below.
    """

    needs_reference: ClassVar[bool] = False

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return minus the mean token NLL."""
        return -forget.mean_nll


class GradAscentModule(GradDiffModule):
    """Gradient ascent alone, without a retain term. Source: TOFU, arXiv 2401.06121.

    Options are those of `UnlearningModule`; with a retain loss it is no longer this method.
    """

    def __init__(self, pretrained: str, retain_loss: Literal["nll", "kl", "none"] = "none", **options: Any) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, **options)


class KLModule(GradDiffModule):
    """Gradient ascent, held by KL(reference || policy) on the retain answers. Source: TOFU, arXiv 2401.06121.

    The divergence is a mean over the tokens of the retain answers. TOFU's published code averages it over prompts and
    padding as well, so that its weight changes with the questions and with the batch's longest row; here it does not.

    Options are those of `UnlearningModule`; with another retain loss it is no longer this method.
    """

    def __init__(self, pretrained: str, retain_loss: Literal["nll", "kl", "none"] = "kl", **options: Any) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, **options)


class WGAModule(UnlearningModule):
    """Gradient ascent weighted by each token's probability. Source: arXiv 2502.19301.

    Args:
        pretrained: The model that must forget.
        beta: Exponent of the weight ``p ** beta``.
        **options: Those of `UnlearningModule`.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(self, pretrained: str, beta: float = 1.0, **options: Any) -> None:
        super().__init__(pretrained, **options)
        check_numbers("model", {"beta": beta}, least=0)
        self.beta = beta

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return minus the weighted mean token NLL."""
        return weighted_ascent(forget.nll, self.beta, denominator=forget.token_denominator)


class CEUModule(UnlearningModule):
    """Cross-entropy to the policy's own distribution with the answer's token taken out. Source: arXiv 2503.01224.

    As in the source, the loss has no retain term and skips the first token of each answer.

    Args:
        pretrained: The model that must forget.
        skip_tokens: Tokens at the beginning of each forget answer that are not trained on.
        retain_loss: ``none``, or a retain term as in `UnlearningModule`.
        **options: Those of `UnlearningModule`.
    """

    needs_reference: ClassVar[bool] = False

    def __init__(
        self,
        pretrained: str,
        skip_tokens: int = 1,
        retain_loss: Literal["nll", "kl", "none"] = "none",
        **options: Any,
    ) -> None:
        super().__init__(pretrained, retain_loss=retain_loss, **options)
        check_numbers("model", {"skip_tokens": skip_tokens}, least=0)
        self.skip_tokens = skip_tokens

    def setup(self, stage: str) -> None:
        """Refuse forget rows with no more answer tokens than are skipped; those of a large set when they are used."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None) if stage == TrainerFn.FITTING else None
        examples = getattr(data, "forget_examples", ()) if self.skip_tokens else ()
        check = partial(_check_length, skipped=self.skip_tokens)
        if hasattr(examples, "check_each"):  # tokenised on demand
            examples.check_each(check, "method")
        else:
            for example in examples:
                check(example)

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean cross-entropy over the tokens after the skipped ones."""
        (losses,) = over_logits(lambda positions, logits: (ce_u(logits, forget.labels[positions]),), forget)
        behind = sequence_places(forget.sequence_ids, forget.batch_size) >= self.skip_tokens
        # Every answer is longer than the skipped part, so the global count of the remaining tokens is known too.
        skipped = self.skip_tokens * forget.sequence_denominator
        count = forget.token_denominator - skipped if forget.denominators else behind.sum().clamp(min=1)
        return global_mean(losses * behind, count)


def _check_length(example: Example, skipped: int) -> None:
    """Refuse an answer that is skipped whole: the loss divides by a count that is right only if there is none."""
    if (count := supervised_count(example)) <= skipped:
        raise InputError(
            f"model.skip_tokens is {skipped}, but forget row {example['index']} has {count} answer "
            f"token{'s' * (count != 1)} to train on: nothing would be left. Give a smaller number, or leave the row "
            "out."
        )
