"""One unlearning step: ``loss = gamma * forget + lambda_ * retain``, for any method.

A method is a subclass that defines `UnlearningModule.forget_loss`; nothing has to be registered.
"""

from typing import Any, ClassVar, Literal

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.losses.likelihood import retain_kl
from dipo_lightning.methods.language_model import LanguageModelModule
from dipo_lightning.models.answers import Answers, compute_answers
from dipo_lightning.models.head import head_is_known, linear_head
from dipo_lightning.models.lora import adapts_projection
from dipo_lightning.reference.choice import build_reference, choose_reference
from dipo_lightning.reference.references import CachedReference, ModelReference, Reference, without_rounding


class UnlearningModule(LanguageModelModule):
    """Holds the policy and, for methods that need one, the frozen reference.

    The reference stands outside the module tree: it is never trained, saved, clipped or counted.

    Args:
        pretrained: The model that must forget; also the reference.
        gamma: Weight of the forget term.
        lambda_: Weight of the retain term.
        retain_loss: ``nll`` (mean token NLL of the retain answers), ``kl`` (KL from the reference to the policy on
            them) or ``none``.
        reference: ``live`` (a frozen copy), ``adapters_off`` (the policy without its LoRA adapters), ``hidden_states``
            (the reference's last hidden states of the forget rows, cached on disk), ``directions`` (DiPO with a frozen
            output projection: cached dot-product directions) or ``auto``, the cheapest that is exact.
        reference_cache: Folder of the caches; each is keyed by data, tokenizer and weights.
        **options: Those of `LanguageModelModule`.
    """

    #: Whether the forget loss asks for the reference; a method without one loads none.
    needs_reference: ClassVar[bool] = True

    def __init__(
        self,
        pretrained: str,
        gamma: float = 1.0,
        lambda_: float = 1.0,
        retain_loss: Literal["nll", "kl", "none"] = "nll",
        reference: Literal["auto", "live", "adapters_off", "hidden_states", "directions"] = "auto",
        reference_cache: str = "runs/reference_cache",
        **options: Any,
    ) -> None:
        super().__init__(pretrained, **options)
        self.save_hyperparameters(ignore=["optimizer"])
        for name, value in (("gamma", gamma), ("lambda_", lambda_)):
            if value < 0:
                raise InputError(f"model.{name} is {value}; the weight of a term must be 0 or more.")
        if reference == "adapters_off" and self.lora is None:
            raise InputError("model.reference is adapters_off, but there are no adapters; set model.lora.rank.")
        self.gamma, self.lambda_, self.retain_loss_name, self.reference_name = gamma, lambda_, retain_loss, reference
        self.reference_cache = reference_cache
        self.reference: Reference | None = None
        self.head_is_linear = self.head_is_known = False

    def inspect(self, model: nn.Module) -> None:
        """Find out, before sharding, what the head is."""
        super().inspect(model)
        adapted = self.lora is not None and adapts_projection(model, self.lora)
        self.head_is_linear = not adapted and linear_head(model) is not None
        self.head_is_known = self.head_is_linear or (not adapted and head_is_known(model))

    def configure_model(self) -> None:
        """Load the policy, and whatever stands for the reference."""
        super().configure_model()
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if self.reference is None and fitting and self.reference_halves:
            self.reference = self.make_reference()
            self.refuse_saved_reference()

    @property
    def reference_halves(self) -> list[str]:
        """The halves of a batch on which some term of the loss asks for the reference."""
        return ["forget"] * self.needs_reference + ["retain"] * (self.retain_loss_name == "kl")

    def make_reference(self) -> Reference:
        """Build the reference that ``reference`` names, or the cheapest exact one, and say which."""
        name, why = choose_reference(self)
        rank_zero_info(f"reference: {name} ({why})")
        return build_reference(self, name)

    def refuse_saved_reference(self) -> None:
        """Refuse a reference that an own `make_reference` has put into the module tree.

        Raises:
            InputError: It is there, and would be trained, clipped and saved with the policy.
        """
        model = self.reference if isinstance(self.reference, nn.Module) else getattr(self.reference, "model", None)
        if model is not self.policy and any(module is model for module in self.modules()):
            raise InputError(
                f"The reference of {type(self).__name__} is one of its submodules: every checkpoint would hold it and "
                "the optimiser would train it. Hold it in a LiveReference, and assign it to nothing but self.reference."
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return ``gamma * forget + lambda_ * retain`` over the global batch, logging every term."""
        assert self.policy is not None
        halves = {half: batch[half] for half in self.halves(batch)}
        if isinstance(self.reference, ModelReference):
            self.reference.expect(halves.values())
        self.read_reference(batch)
        terms = compute_answers(self.policy, halves, self.losses, batch.get("denominators"), self.from_hidden)
        loss = self.gamma * terms["forget"]
        if "retain" in terms:
            loss = loss + self.lambda_ * terms["retain"]
        self.remember(loss, batch, terms)
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    #: Whether `forget_loss` gets hidden states and the projection instead of logits (see `compute_answers`).
    from_hidden: bool = False

    def halves(self, batch: dict[str, Any]) -> list[str]:
        """Return the halves of ``batch`` that go through the policy, in order."""
        return [half for half in ("forget", "retain") if half in batch and not self._skips(half)]

    def read_reference(self, batch: dict[str, Any]) -> None:
        """Read what the forget loss needs of the reference before the policy runs; a place to override.

        Needed with ``from_hidden`` only, where the loss is computed inside the policy's forward.
        """

    def losses(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the terms of the loss, ``forget`` and ``retain``, and what else is worth logging."""
        terms = self.forget_terms(answers)
        if "retain" in answers:
            terms["retain"] = self.retain_loss(answers["retain"])
        return terms

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return ``{"forget": loss}``; override to log more or to use another half (``alternative``)."""
        return {"forget": self.forget_loss(answers["forget"])}

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the scalar forget loss; the one thing that a method must define."""
        raise TypeError(f"{type(self).__name__} must define forget_loss(self, forget)")

    def retain_loss(self, retain: Answers) -> Tensor:
        """Return the scalar retain loss that ``retain_loss`` names."""
        if self.retain_loss_name == "kl":
            return retain_kl(retain.logits, self.retain_logits(retain), denominator=retain.token_denominator)
        return retain.mean_nll

    def retain_logits(self, answers: Answers) -> Tensor:
        """Return the reference's (N, V) logits at the positions of ``answers``, without a gradient."""
        assert self.reference is not None
        if answers.half != "forget" and isinstance(self.reference, CachedReference):
            raise RunError(f"the cached reference knows the forget rows only, not {answers.half}; use reference: live")
        return self.without_rounding(self.reference.logits(answers.batch), answers.logits)

    def without_rounding(self, frozen: Tensor, own: Tensor, size: Tensor | None = None) -> Tensor:
        """Return the reference's values, or before the first step the policy's own where a cache holds them rounded.

        Args:
            frozen: The reference's values.
            own: The policy's in their place.
            size: See `dipo_lightning.reference.references.without_rounding`.
        """
        if self.trainer.global_step == 0 and isinstance(self.reference, CachedReference):
            return without_rounding(frozen, own, size)
        return frozen

    def _skips(self, half: str) -> bool:
        return half == "retain" and (self.retain_loss_name == "none" or self.lambda_ == 0)
