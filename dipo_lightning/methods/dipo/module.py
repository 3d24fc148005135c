"""DiPO, Distribution Preference Optimization (arXiv 2510.04773), as a LightningModule.

A reconstruction: the paper's idea and its derivation are followed, its full text was not at hand, and none of its
numbers is claimed. What the paper states, what is derived and what was chosen stands in the README and in
`dipo_lightning.methods.dipo.loss`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from dipo_lightning.errors import InputError
from dipo_lightning.losses.chunking import in_chunks
from dipo_lightning.losses.reductions import batch_mean, sequence_reduce
from dipo_lightning.methods.dipo.directions import directions, margin_from_directions
from dipo_lightning.methods.dipo.factored import pair_parts
from dipo_lightning.methods.dipo.kernels import chunked_margin, chunked_margin_with_rewards
from dipo_lightning.methods.dipo.loss import dipo_loss, rewards
from dipo_lightning.methods.dipo.pair import PairOptions
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers
from dipo_lightning.models.head import output_projection
from dipo_lightning.models.token_batch import TokenBatch
from dipo_lightning.reference.cache import PositionCache
from dipo_lightning.reference.choice import obstacle_to_caching, open_cache
from dipo_lightning.reference.references import DirectionsReference, ModelReference, Reference, hidden_states, whole

PAIR = PairOptions()


class DiPOModule(UnlearningModule):
    """Prefers, at every answer position, a distribution without the memory over one that promotes it.

    The pair is made from base logits by suppressing (preferred) or amplifying (dispreferred) their confident set; the
    margin ``u`` is the difference of two differences of sequence KL divergences, and the loss is
    ``-log sigmoid(beta * u)``.

    Args:
        pretrained: The model that must forget; also the reference.
        beta: Inverse scale of the preference; small values keep pushing longer before the sigmoid brakes.
        pair: How the two distributions are made (``pair.source``, ``pair.selection``, ``pair.k``, ``pair.alpha``, ...).
        reduction: ``sum`` (the sequence KL) or ``mean`` over the positions of a row; long rows want ``mean``.
        scale: Factor of the loss: ``2/beta`` (as NPO writes it) or ``1`` (as DPO writes it).
        form: How the margin is computed: ``logits`` (plain), ``hidden`` (chunk by chunk from hidden states, in a memory
            without tokens x vocabulary; a head with a soft cap, a bias or a scale is run again for the gradient) or
            ``auto``: ``hidden`` where the model's head is known and ``retain_loss`` is not ``kl``. All are exact.
        chunk_size: Positions whose vocabulary-sized values may live at the same time, for ``hidden``.
        **options: Those of `UnlearningModule`.
    """

    def __init__(
        self,
        pretrained: str,
        beta: float = 0.02,
        pair: PairOptions = PAIR,
        reduction: Literal["sum", "mean"] = "sum",
        scale: Literal["2/beta", 1] = "2/beta",
        form: Literal["auto", "logits", "hidden"] = "auto",
        chunk_size: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, **options)
        self.save_hyperparameters(ignore=["optimizer"])
        if not beta > 0:
            raise InputError(f"model.beta is {beta}; it must be above 0.")
        self.beta, self.reduction, self.scale = beta, reduction, scale
        self.form, self.chunk_size = form, chunk_size
        self._frozen: Any = None  # the reference's side of the current batch's margin
        self._watched: dict[str, Tensor] = {}  # what the current loss logs beside itself
        if form == "hidden" and self.retain_loss_name == "kl":
            raise InputError(
                "model.form is hidden, but retain_loss: kl needs logits. Use form: auto, or retain_loss: nll."
            )
        if chunk_size < 1:
            raise InputError(f"model.chunk_size is {chunk_size}; it must be at least 1.")
        self.pair = PairOptions(**pair) if isinstance(pair, Mapping) else pair

    def setup(self, stage: str) -> None:
        """Also refuse a confident set as large as the vocabulary, and warn of a sum that saturates: before loading."""
        super().setup(stage)
        datamodule = getattr(self.trainer, "datamodule", None)
        tokenizer = getattr(datamodule, "tokenizer", None)
        if tokenizer is not None:
            self.pair.check_vocabulary(len(tokenizer))
        if stage == TrainerFn.FITTING and self.reduction == "sum":
            warn_of_saturation(self.beta, getattr(datamodule, "forget_examples", ()))

    def inspect(self, model: nn.Module) -> None:
        """Also settle the form of the margin, now that the head is known."""
        super().inspect(model)
        if self.form == "hidden" and not self.head_is_known:
            raise InputError(
                "model.form is hidden, but the model's head is none that can be computed from hidden states. "
                "Use auto or logits."
            )
        self.from_hidden = self.form != "logits" and self.head_is_known and self.retain_loss_name != "kl"

    def make_reference(self) -> Reference:
        """Prefer cached directions where the output projection is frozen: no reference and no vocabulary work."""
        assert self.policy is not None
        frozen = not output_projection(self.policy).requires_grad
        possible = frozen and self.pair.source == "reference" and self.from_hidden and obstacle_to_caching(self) is None
        if self.reference_name == "directions" and not possible:
            raise InputError(
                "model.reference is directions, which needs a frozen output projection (LoRA without it, or "
                "model.freeze_projection), pair.source: reference, and a model and data that can be cached. Use auto."
            )
        if not possible or self.reference_name not in ("auto", "directions"):
            return super().make_reference()
        rank_zero_info("reference: directions (the output projection is frozen)")
        return DirectionsReference(self.direction_cache())

    def direction_cache(self) -> PositionCache:
        """Open the cache of both directions and offsets of every forget position."""
        policy: Any = self.policy
        projection = whole(output_projection(policy)).to(self.trainer.strategy.root_device)

        def compute(batch: TokenBatch) -> Tensor:
            found = directions(hidden_states(policy, batch), projection, projection, self.pair, self.chunk_size)
            offsets = torch.stack([found.preferred_offset, found.dispreferred_offset], -1)
            return torch.cat([found.preferred, found.dispreferred, offsets], -1)

        return open_cache(self, 2 * projection.shape[1] + 2, compute, kind="directions", pair=asdict(self.pair))

    def read_reference(self, batch: dict[str, Any]) -> None:
        """Read the reference's side of the margin before the policy's forward begins."""
        if isinstance(self.reference, DirectionsReference):
            self._frozen = self.reference.directions(batch["forget"])
        elif self.from_hidden and not self.head_is_linear:
            assert isinstance(self.reference, ModelReference)
            self._frozen = self.reference.hidden(batch["forget"]), self.reference.head
        elif self.from_hidden:
            assert self.reference is not None
            assert self.policy is not None
            hidden = self.reference.hidden(batch["forget"])
            # A frozen projection is the reference's own: taken as the same tensor, the margin of equal states is 0.
            trained = output_projection(self.policy).requires_grad
            self._frozen = hidden, self.reference.projection if trained else None

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the forget loss, the margin (of a row, and of a token), and the rewards of both distributions."""
        self._watched = {}
        return {"forget": self.forget_loss(answers["forget"]), **self._watched}

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the mean loss of the rows, and keep the margin and the rewards for the log."""
        token_margin, token_rewards = self.token_margins(forget)

        def of_rows(values: Tensor) -> Tensor:
            return sequence_reduce(values, forget.rows, forget.count, self.reduction)

        margin = of_rows(token_margin)
        total, rows = margin.detach().sum(), forget.row_denominator
        per_token = total / forget.token_denominator if self.reduction == "sum" else total / rows
        self._watched = {"margin": total / rows, "margin_per_token": per_token}
        for name, reward in zip(("preferred", "dispreferred"), token_rewards, strict=False):
            self._watched[f"reward_{name}"] = self.beta * of_rows(reward.detach()).sum() / rows
        return batch_mean(dipo_loss(margin, self.beta, self.scale), forget.row_denominator)

    def retain_loss(self, retain: Answers) -> Tensor:
        """Return the retain loss, in chunks of the same size as the margin's."""
        retain.chunk_size = self.chunk_size
        return super().retain_loss(retain)

    def token_margins(self, forget: Answers) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the margin of each position (N,), and the rewards over beta of both distributions where they are due.

        Four exact ways: from cached directions, from hidden states chunk by chunk (in closed form where the head is a
        plain projection, else by running it again for the gradient), and from logits.
        """
        if isinstance(self.reference, DirectionsReference):
            assert forget.hidden is not None
            return self.direction_margins(forget.hidden)
        if self.from_hidden and not self.head_is_linear:
            assert forget.hidden is not None
            head, (hidden, frozen_head) = forget.head, self._frozen
            margin, *found = in_chunks(
                lambda x, y: self.plain_margins(head(x), frozen_head(y)),  # type: ignore[misc]
                self.chunk_size,
                forget.hidden,
                hidden,
            )
            return margin, tuple(found)
        if self.from_hidden:
            assert forget.head is not None
            weight, (hidden, projection) = forget.head.weight, self._frozen
            hidden = self.without_rounding(hidden, forget.hidden)  # type: ignore[arg-type]
            frozen = hidden, weight if projection is None else projection
            inputs = (forget.hidden, weight, *frozen, self.pair, self.chunk_size)
            first = self.trainer.global_step == 0  # the policy is the reference: the margin shall be 0, not rounding
            if not (first or self.logs_are_due):
                return chunked_margin(*inputs), ()  # type: ignore[arg-type]
            measured = chunked_margin_with_rewards(*inputs, compare=first)  # type: ignore[arg-type]
            return measured.margin, (measured.preferred, measured.dispreferred)
        margin, *found = self.plain_margins(forget.logits, self.retain_logits(forget))
        return margin, tuple(found)

    def direction_margins(self, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return margin and both rewards over beta (N,) of each position, from hidden states (N, H) and the cache."""
        found = []
        for vector, offset in zip(self._frozen[:2], self._frozen[2:], strict=True):
            reward = margin_from_directions(hidden, vector, torch.zeros_like(offset))
            size = torch.linalg.vector_norm(vector, dim=-1) * torch.linalg.vector_norm(hidden, dim=-1)
            found.append(reward - self.without_rounding(offset, reward, size))
        return found[0] - found[1], tuple(found)

    def plain_margins(self, policy_logits: Tensor, retain_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return margin and both rewards over beta (N,) of each position, from the logits (N, V) of both models."""
        from_reference = self.pair.source == "reference"
        base = retain_logits if from_reference else policy_logits.detach()
        parts = pair_parts(base, self.pair, None if from_reference else retain_logits)
        preferred, dispreferred = rewards(*parts, policy_logits, retain_logits, beta=1.0)
        return preferred - dispreferred, preferred, dispreferred


def warn_of_saturation(beta: float, examples: Sequence[dict[str, Any]], early: float = 0.1) -> None:
    """Say so where a margin summed over long rows brakes the loss while a token has hardly moved.

    Args:
        beta: Of the loss; half of its first push is gone where beta times the margin is ln 3.
        examples: The rows to forget, with their ``labels``.
        early: Nats a token that are hardly anything: what was learnt by heart lies several below.
    """
    lengths = sorted(sum(label != -100 for label in example["labels"][1:]) for example in examples)
    typical = lengths[len(lengths) // 2] if lengths else 0
    if beta * typical * early > math.log(3):
        rank_zero_warn(
            f"model.reduction is sum and half of the forget rows have {typical} tokens or more: with beta {beta:g} the "
            f"loss pushes half as hard once a token has moved by {math.log(3) / beta / typical:.2g} nats, and stops "
            "before much is forgotten. Set model.reduction: mean (and beta: 1.0), or a smaller beta.",
            category=UserWarning,
        )
