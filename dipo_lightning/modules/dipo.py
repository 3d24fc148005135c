"""DiPO, Distribution Preference Optimization (arXiv 2510.04773), as a LightningModule.

A reconstruction: the paper's idea and its derivation are followed, its full text was not at hand, and none of its
numbers is claimed. What the paper states, what is derived and what was chosen stands in the README and in
`dipo_lightning.objectives.dipo`.
"""

from typing import Any, Literal

from torch import Tensor

from dipo_lightning.answers import Answers
from dipo_lightning.errors import InputError
from dipo_lightning.modules.unlearning import UnlearningModule
from dipo_lightning.objectives.dipo import dipo_loss, rewards
from dipo_lightning.objectives.options import PairOptions
from dipo_lightning.objectives.pair import pair_parts
from dipo_lightning.objectives.sequences import batch_mean, sequence_reduce


class DiPOModule(UnlearningModule):
    """Prefers, at every answer position, a distribution without the memory over one that promotes it.

    The pair is made from base logits by suppressing (preferred) or amplifying (dispreferred) their confident set; the
    margin ``u`` is the difference of two differences of sequence KL divergences, and the loss is
    ``-log sigmoid(beta * u)``.

    Args:
        pretrained: The model that must forget; also the reference.
        beta: Inverse scale of the preference; small values keep pushing longer before the sigmoid brakes.
        source: Whose logits the pair is made from: ``reference``, or ``policy`` (detached).
        selection: Which tokens are confident: ``top_k`` (the k likeliest), ``top_p`` (the likeliest with mass p) or
            ``relative`` (probability at least rho times the largest).
        k: Size of the set for ``top_k``.
        p: Mass of the set for ``top_p``, in (0, 1).
        rho: Fraction of the largest probability for ``relative``, in (0, 1].
        memory_vector: ``centered`` (logits of the set above the largest logit outside it) or ``raw`` (the logits).
        alpha: Strength of suppression and amplification; with ``centered``, 1 pulls the set down to the rest.
        reduction: ``sum`` (the sequence KL) or ``mean`` over the positions of a row; long rows want ``mean``.
        scale: Factor of the loss: ``2/beta`` (as NPO writes it) or ``1`` (as DPO writes it).
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        beta: float = 0.02,
        source: Literal["reference", "policy"] = "reference",
        selection: Literal["top_k", "top_p", "relative"] = "top_k",
        k: int = 10,
        p: float = 0.9,
        rho: float = 0.1,
        memory_vector: Literal["centered", "raw"] = "centered",
        alpha: float = 1.0,
        reduction: Literal["sum", "mean"] = "sum",
        scale: Literal["2/beta", "1"] = "2/beta",
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(pretrained, **options)
        self.save_hyperparameters(ignore=["optimizer"])
        if not beta > 0:
            raise InputError(f"model.beta is {beta}; it must be above 0.")
        self.beta, self.source, self.reduction, self.scale = beta, source, reduction, scale
        self.pair = PairOptions(selection=selection, k=k, p=p, rho=rho, memory_vector=memory_vector, alpha=alpha)

    def setup(self, stage: str) -> None:
        """Also refuse a confident set as large as the vocabulary, before the model is loaded."""
        super().setup(stage)
        tokenizer = getattr(getattr(self.trainer, "datamodule", None), "tokenizer", None)
        if tokenizer is not None:
            self.pair.check_vocabulary(len(tokenizer))

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the forget loss, the margin (of a row, and of a token), and the rewards of both distributions."""
        forget = answers["forget"]
        preferred, dispreferred = (
            sequence_reduce(reward, forget.rows, forget.count, self.reduction) for reward in self.token_rewards(forget)
        )
        margin = preferred - dispreferred
        loss = dipo_loss(margin, self.beta, self.scale)
        positions = len(forget.labels) / forget.count if self.reduction == "sum" else 1.0
        return {
            "forget": batch_mean(loss, forget.row_denominator),
            "margin": margin.detach().mean(),
            "margin_per_token": margin.detach().mean() / positions,
            "reward_preferred": self.beta * preferred.detach().mean(),
            "reward_dispreferred": self.beta * dispreferred.detach().mean(),
        }

    def token_rewards(self, forget: Answers) -> tuple[Tensor, Tensor]:
        """Return, for each position (N,), the rewards over beta of the preferred and the dispreferred distribution."""
        reference = self.reference_logits(forget)
        base = reference if self.source == "reference" else forget.logits.detach()
        parts = pair_parts(base, self.pair, None if self.source == "reference" else reference)
        return rewards(*parts, forget.logits, reference, beta=1.0)
