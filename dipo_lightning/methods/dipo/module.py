"""DiPO, Distribution Preference Optimization (arXiv 2510.04773), as a LightningModule.

This is a reconstruction: it follows the idea and derivation that the paper's abstract states, since the full text was
not available, and claims none of its numbers. The documentation (explanation/dipo) tells apart the parts that come from
the paper, those that are derived and those that were chosen here.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dipo_lightning.data.loader import Example, supervised_count
from dipo_lightning.errors import InputError, RunError, check_positive, options_of
from dipo_lightning.losses.chunking import global_mean, sequence_reduce
from dipo_lightning.methods.dipo.loss import TokenMargins, dipo_loss, scale_factor
from dipo_lightning.methods.dipo.margins import CachedMargins, Margins, cache_directions, choose_margins
from dipo_lightning.methods.dipo.pair import PairOptions, make_pair
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import IGNORED, Answers, TokenBatch
from dipo_lightning.reference.blind import blind_answers, check_blindness, forward_reference, without_question
from dipo_lightning.reference.references import Reference, obstacle_to_caching

PAIR = PairOptions()
RETAIN_WEIGHT = 40.0
"""Default of ``lambda_`` for a divergence (a mean per token) beside a sum over answers of some forty tokens."""


class DiPOModule(UnlearningModule):
    """DiPO: at every answer position, a distribution that suppresses the memory is preferred to one that amplifies it.

    The pair is made from base logits by suppressing (preferred) or amplifying (dispreferred) their confident set. The
    margin ``u`` compares the policy with the reference: it grows as the policy moves towards the preferred and away
    from the dispreferred distribution. The loss is ``-scale * log sigmoid(beta * u)``. Override `make_pair` for another
    pair.

    Args:
        pretrained: The model that must forget; also the reference.
        beta: Inverse temperature of the preference; the smaller it is, the later the sigmoid saturates.
        pair: Options of the pair (``pair.source``, ``pair.selection``, ``pair.k``, ``pair.alpha``, ...).
        reduction: ``sum`` (the sequence KL) or ``mean`` over the positions of a row; long rows need ``mean``.
        scale: Factor of the loss: ``2/beta`` (as NPO writes it) or ``1`` (as DPO writes it).
        lambda_: Weight of the retain term; by default 40 for ``kl`` with ``reduction: sum`` (a mean per token beside a
            sum over answers of some forty tokens), else 1.
        retain_loss: As in `UnlearningModule`; ``nll`` needs no reference for the retain rows.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        beta: float = 0.02,
        pair: PairOptions = PAIR,
        reduction: Literal["sum", "mean"] = "sum",
        scale: Literal["2/beta", 1] = "2/beta",
        lambda_: float | None = None,
        retain_loss: Literal["nll", "kl", "none"] = "kl",
        **options: Any,
    ) -> None:
        usual = RETAIN_WEIGHT if (retain_loss, reduction) == ("kl", "sum") else 1.0
        weight = usual if lambda_ is None else lambda_
        super().__init__(pretrained, lambda_=weight, retain_loss=retain_loss, **options)
        self.save_hyperparameters({"lambda_": weight})  # and not None
        check_positive("model", {"beta": beta})
        self.beta, self.reduction, self.scale = beta, reduction, scale
        self.pair = options_of("model.pair", PairOptions, pair)
        self.margins: Margins | None = None
        self._blind: Answers | None = None  # the reference's view of the current forget rows without their questions
        self._watched: dict[str, Tensor] = {}  # further numbers to log with the current loss

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the preferred and the dispreferred distribution; override for another pair.

        Called for a few positions at a time, for any output head, sharded or not. Inputs of a pair other than the base
        logits, such as a second model's logits, are computed in `read_reference`, before the policy's forward pass.

        Args:
            logits: (n, V) base logits without gradient, float32 or float64: the reference's, or the policy's with
                ``pair.source: policy``.
            forget: The answers at these positions: ``labels``, ``sequence_ids``, the whole ``batch``, and ``positions``
                (n,), their indices among the N supervised positions of the batch.

        Returns:
            Two (n, V) tensors in float32 or float64, whose exponentials sum to 1 at each position; -inf is allowed.
        """
        if (blind := self._blind) is None:
            return make_pair(logits, self.pair)
        here = slice(None) if forget.positions is None else forget.positions
        if blind.hidden is None or blind.head is None:
            return make_pair(logits, self.pair, blind.logits[here])
        return make_pair(logits, self.pair, blind.head(blind.hidden[here]))

    @property
    def has_own_pair(self) -> bool:
        """True if the pair is the package's own and uses one view, as the accelerated computations require."""
        return type(self).make_pair is DiPOModule.make_pair and not self.contrasts

    @property
    def contrasts(self) -> bool:
        """True if the pair compares the reference's two views, with and without the question."""
        return self.pair.memory_vector == "contrast"

    def inspect(self, model: nn.Module) -> None:
        """Check as well, for a pair of two views, that the question can be masked for this model."""
        super().inspect(model)
        if self.contrasts:
            check_blindness(model, "pair.memory_vector: contrast")

    def setup(self, stage: str) -> None:
        """Refuse a confident set as large as the vocabulary, and warn of a sum that saturates, before loading."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        tokenizer = getattr(datamodule, "tokenizer", None)
        if tokenizer is not None and self.has_own_pair:
            self.pair.check_vocabulary(len(tokenizer))
        if stage == TrainerFn.FITTING and self.reduction == "sum":
            warn_of_saturation(self.beta, getattr(datamodule, "forget_examples", ()))

    def configure_model(self) -> None:
        """Choose the computation of the margin as well, once head and reference are known."""
        super().configure_model()
        if self.frozen_reference is not None:
            self.margins = choose_margins(self)

    def make_reference(self) -> Reference:
        """Prefer cached directions if they are valid: they need no reference model and no vocabulary-sized work."""
        if self.contrasts:
            return forward_reference(self)
        possible = CachedMargins.holds(self)
        if self.reference_name == "directions" and not possible and obstacle_to_caching(self) is None:
            raise InputError(
                "model.reference is directions, which needs a frozen output projection (LoRA without it, or "
                "model.freeze_projection), the package's own pair, pair.source: reference, and model.form: auto or "
                "hidden. Use model.reference: auto."
            )
        if possible and self.reference_name in ("auto", "directions"):
            return cache_directions(self)
        return super().make_reference()

    def read_reference(self, parts: dict[str, TokenBatch]) -> None:
        """Read the further inputs of the margin as well, if it is computed."""
        super().read_reference(parts)
        if self.margins is None:  # a subclass needs no reference
            return
        self.margins.read(parts["forget"])
        if self.contrasts:
            assert self.frozen_reference is not None
            form: Any = {"from_hidden": self.from_hidden, "chunk_size": self.chunk_size}
            self._blind = blind_answers(self.frozen_reference, parts["forget"], self._sight(parts["forget"]), **form)

    def _sight(self, forget: TokenBatch) -> list[list[int]]:
        """Return for each row of the batch 0 at the tokens of its question and 1 at the others."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        seen = []
        for index, ids, labels in zip(forget["index"].tolist(), forget["input_ids"], forget["labels"], strict=True):
            row = data.trained_rows[data.place(index)]
            if "question" not in row:
                raise InputError("pair.memory_vector: contrast masks questions; for running text use centered.")
            end = int((labels != IGNORED).nonzero()[0])
            prompt = without_question(data.tokenizer, ids[:end].tolist(), row["question"])
            seen.append(prompt + [1] * (len(ids) - end))
        return seen

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the forget loss, its change since the start, the margin (per row and per token), and both rewards."""
        self._watched = {}
        return {"forget": self.forget_loss(answers["forget"]), **self._watched}

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean loss of the rows, and keep the margin and the rewards for the log."""
        found = self.token_margins(forget)

        def of_rows(values: Tensor) -> Tensor:
            return sequence_reduce(values, forget.sequence_ids, forget.batch_size, self.reduction)

        margin = of_rows(found.margin)
        total, rows = margin.detach().sum(), forget.sequence_denominator
        per_token = total / forget.token_denominator if self.reduction == "sum" else total / rows
        self._watched = {"margin": total / rows, "margin_per_token": per_token}
        for name, reward in zip(("preferred", "dispreferred"), found[1:], strict=True):
            if reward is not None:
                self._watched[f"reward_{name}"] = self.beta * of_rows(reward.detach()).sum() / rows
        losses = dipo_loss(margin, self.beta, self.scale)
        self._watched["forget_change"] = (losses.detach() - self.loss_at_start).sum() / rows
        return global_mean(losses, rows)

    def token_margins(self, forget: Answers) -> TokenMargins:
        """Return the margin of each position (N,), and both rewards over beta where they are due."""
        if self.margins is None:
            raise RunError(
                f"The loss of {type(self).__name__} asks for DiPO's margins, but no reference was made. Set "
                "needs_reference = True in the class."
            )
        return self.margins(forget)

    @property
    def loss_at_start(self) -> float:
        """Loss of a row if the policy is the reference."""
        return scale_factor(self.beta, self.scale) * math.log(2)

    def log_bar(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Show the loss minus its initial constant, which would hide its course, and the margin, if there is one."""
        if "margin" not in terms:  # a subclass has another forget loss
            super().log_bar(loss, terms)
            return
        self.log("loss", loss.detach() - self.gamma * self.loss_at_start, prog_bar=True, logger=False)
        self.log("margin", terms["margin"], prog_bar=True, logger=False)


EARLY = 0.1
"""Change in nats per token that is too small for forgetting, since memorised text is several nats more likely."""


def warn_of_saturation(beta: float, examples: Sequence[Example]) -> None:
    """Warn if a margin summed over long rows saturates the loss before each token has moved by `EARLY`.

    Args:
        beta: Inverse scale of the loss, whose gradient has halved when beta times the margin is ln 3.
        examples: The rows to forget, with their ``labels``.
    """
    some = examples[:: max(1, len(examples) // 1000)]  # a sample of a large set, whose rows are tokenised on demand
    lengths = sorted(supervised_count(example) for example in some)
    typical = lengths[len(lengths) // 2] if lengths else 0
    if beta * typical * EARLY > math.log(3):
        rank_zero_warn(
            f"model.reduction is sum and half of the forget rows have {typical} tokens or more: with beta {beta:g} the "
            f"loss pushes half as hard once a token has moved by {math.log(3) / beta / typical:.2g} nats, and stops "
            "before much is forgotten. Set model.reduction: mean (and beta: 1.0), or a smaller beta.",
            category=UserWarning,
        )
