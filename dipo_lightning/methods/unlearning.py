"""One unlearning step: ``loss = gamma * forget + lambda_ * retain``, for any method.

A method is a subclass that defines `UnlearningModule.forget_loss`; nothing has to be registered.
"""

import reprlib
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from dipo_lightning.data.unlearning import FineTuningDataModule
from dipo_lightning.errors import InputError, RunError, check_numbers
from dipo_lightning.methods.language_model import LanguageModelModule
from dipo_lightning.models.answers import Answers, TokenBatch, compute_answers, divergence
from dipo_lightning.models.head import Head, known_head
from dipo_lightning.models.lora import adapts_projection
from dipo_lightning.reference.references import (
    CachedReference,
    ModelReference,
    Reference,
    build_reference,
    choose_reference,
    without_rounding,
)


class UnlearningModule(LanguageModelModule):
    """Base class of unlearning methods: the policy and, for methods that need one, the frozen reference.

    The reference is kept outside the module tree: it is never trained, saved, clipped or counted.

    Args:
        pretrained: The model that must forget; also the reference.
        gamma: Weight of the forget term.
        lambda_: Weight of the retain term.
        retain_loss: ``nll`` (mean token NLL of the retain answers), ``kl`` (KL from the reference to the policy on
            them) or ``none``.
        reference: ``live`` (a frozen copy), ``adapters_off`` (the policy without its LoRA adapters), ``hidden_states``
            (the reference's last hidden states, cached on disk), ``directions`` (DiPO with a frozen output
            projection: cached dot-product directions) or ``auto``, the cheapest that is exact.
        reference_cache: Folder of the caches; each is keyed by data, tokenizer and weights.
        form: Input of the losses: ``logits`` of all answer positions, ``hidden`` states (chunk by chunk, without ever
            holding tokens x vocabulary values) or ``auto``: ``hidden`` if the model's head is known. Both are exact.
        chunk_size: Number of positions whose vocabulary-sized values are in memory at the same time, for ``hidden``.
        **options: Those of `LanguageModelModule`.
    """

    #: True if the forget loss uses the reference; otherwise none is loaded for it.
    needs_reference: ClassVar[bool] = True
    #: False if the reference always is a model that runs, and never a cache.
    caches_reference: ClassVar[bool] = True

    def __init__(
        self,
        pretrained: str,
        gamma: float = 1.0,
        lambda_: float = 1.0,
        retain_loss: Literal["nll", "kl", "none"] = "nll",
        reference: Literal["auto", "live", "adapters_off", "hidden_states", "directions"] = "auto",
        reference_cache: str = "runs/reference_cache",
        form: Literal["auto", "logits", "hidden"] = "auto",
        chunk_size: int = 1024,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, **options)
        check_numbers("model", {"gamma": gamma, "lambda_": lambda_}, least=0)
        check_numbers("model", {"chunk_size": chunk_size})
        if reference == "adapters_off" and self.lora is None:
            raise InputError("model.reference is adapters_off, but there are no adapters; set model.lora.rank.")
        if callable(getattr(type(self), "retain_loss", None)):
            raise InputError(f"{type(self).__name__}.retain_loss() is called retain_term() now; rename it.")
        self.gamma, self.lambda_, self.retain_loss_name, self.reference_name = gamma, lambda_, retain_loss, reference
        self.reference_cache, self.form, self.chunk_size = reference_cache, form, chunk_size
        self.frozen_reference: Reference | None = None
        self.head: Head | None = None
        self.from_hidden = False
        self._frozen: dict[str, Answers] = {}  # the reference's answers to the current batch, by part

    def setup(self, stage: str) -> None:
        """Refuse the data module of fine-tuning, whose batches have no forget rows, before the model is loaded."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        tunes = isinstance(data, FineTuningDataModule) and type(data).training_set is FineTuningDataModule.training_set
        if stage == TrainerFn.FITTING and tunes:
            raise InputError(
                f"{type(self).__name__} forgets the rows of data.forget, but {type(data).__name__} has data.train. Use "
                "an unlearning data module, such as --data UnlearningDataModule, or --model FineTuningModule."
            )

    def inspect(self, model: nn.Module) -> None:
        """Identify the output head before sharding, and choose the input of the losses: hidden states or logits."""
        super().inspect(model)
        self.head = None if self.lora is not None and adapts_projection(model, self.lora) else known_head(model)
        if self.form == "hidden" and self.head is None:
            raise InputError(
                "model.form is hidden, but the logits of this model cannot be computed from its hidden states alone. "
                "Use auto or logits."
            )
        self.from_hidden = self.form != "logits" and self.head is not None

    def configure_model(self) -> None:
        """Load the policy, and for a fit build the reference in its form."""
        super().configure_model()
        if hasattr(self, "reference"):
            raise InputError(f"{type(self).__name__}.reference is called frozen_reference now; rename it.")
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and isinstance(self.frozen_reference, CachedReference):
            self.frozen_reference = None  # its cache holds the rows of another fit
        if self.frozen_reference is None and fitting and self.reference_parts:
            with torch.device("cpu"):  # like the policy; the reference moves itself to the policy's device
                self.frozen_reference = self.make_reference()
            self.refuse_saved_reference()

    @property
    def needs_retain_rows(self) -> bool:
        """True if nothing but retain rows holds the model's other abilities."""
        return True

    @property
    def reference_parts(self) -> list[str]:
        """Parts of a batch for which some term of the loss uses the reference."""
        kept_near = self.retain_loss_name == "kl" and not self._skips("retain")
        return ["forget"] * self.needs_reference + ["retain"] * kept_near

    def make_reference(self) -> Reference:
        """Build the reference named by the option ``reference``, or the cheapest exact one, and report which."""
        name, why = choose_reference(self)
        rank_zero_info(f"reference: {name} ({why})")
        return build_reference(self, name)

    def refuse_saved_reference(self) -> None:
        """Raise an `InputError` if an overridden `make_reference` put the reference into the module tree.

        It would be trained, clipped and saved with the policy.
        """
        reference = self.frozen_reference
        model = reference if isinstance(reference, nn.Module) else getattr(reference, "model", None)
        if model is not self.policy and any(module is model for module in self.modules()):
            raise InputError(
                f"The reference of {type(self).__name__} is one of its submodules: every checkpoint would hold it and "
                "the optimiser would train it. Hold it in a LiveReference, and assign that to nothing but "
                "self.frozen_reference."
            )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return ``gamma * forget + lambda_ * retain`` over the global batch, logging every term."""
        assert self.policy is not None
        parts = {part: batch[part] for part in self.parts(batch)}
        self.read_reference(parts)
        terms = compute_answers(
            self.policy, parts, self.losses, batch.get("denominators"), self.from_hidden, self.chunk_size
        )  # fmt: skip
        loss = self.objective(terms)
        self.remember(loss, batch, terms)
        self.log_bar(loss, terms)
        return loss

    def objective(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the quantity to minimise, the weighted sum of the terms; override for other weights."""
        loss = self.gamma * terms["forget"]
        return loss + self.lambda_ * terms["retain"] if "retain" in terms else loss

    def log_bar(self, loss: Tensor, terms: dict[str, Tensor]) -> None:
        """Show the step's loss in the progress bar; override to show another number."""
        self.log("loss", loss.detach(), prog_bar=True, logger=False)

    def parts(self, batch: dict[str, Any]) -> list[str]:
        """Return the parts of ``batch`` that go through the policy, in order."""
        return [part for part in ("forget", "retain") if part in batch and not self._skips(part)]

    def read_reference(self, parts: dict[str, TokenBatch]) -> None:
        """Get the reference's answers before the policy's forward pass, in which the losses are computed."""
        self._frozen = {}
        if self.frozen_reference is not None:
            self._frozen = self.frozen_reference.answers(
                parts, from_hidden=self.from_hidden, chunk_size=self.chunk_size
            )

    def losses(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return the terms of the loss, ``forget`` and ``retain``, and further numbers to log."""
        terms = self.forget_terms(answers)
        if "retain" in answers and isinstance(terms, dict):
            terms["retain"] = self.retain_term(answers["retain"])
        check_terms(type(self), terms)
        return terms

    def forget_terms(self, answers: dict[str, Answers]) -> dict[str, Tensor]:
        """Return ``{"forget": loss}``; override to log more scalars or to use another part (``alternative``)."""
        return {"forget": self.forget_loss(answers["forget"])}

    def forget_loss(self, forget: Answers) -> Tensor:
        """Return the scalar forget loss; the only method that a subclass must define."""
        raise TypeError(f"{type(self).__name__} must define forget_loss(self, forget)")

    def retain_term(self, retain: Answers) -> Tensor:
        """Return the scalar retain loss named by the option ``retain_loss``."""
        if self.retain_loss_name == "nll":
            return retain.mean_nll
        return divergence(retain, self.reference_answers(retain)) / retain.token_denominator

    def reference_answers(self, answers: Answers) -> Answers:
        """Return the reference's answers at the same positions, without a gradient.

        Before the first step the answers from a cache are replaced by the policy's own, which they equal up to
        rounding, so that the log-ratio is exactly 0.

        Raises:
            RunError: There is no reference, it does not have this part of the batch, or a cache is of another policy.
        """
        if self.frozen_reference is None:
            remedy = {"forget": "Set needs_reference = True in the class.", "retain": "Set model.retain_loss: kl."}
            raise RunError(
                f"The loss of {type(self).__name__} asks for the reference's answers to this batch's {answers.part} "
                "part, but no reference was made, as nothing had announced that. "
                + remedy.get(answers.part, f"Add {answers.part} to reference_parts in the class.")
            )
        if answers.part not in self._frozen:
            raise RunError(
                f"The reference ({type(self.frozen_reference).__name__}) has no answers for this batch's "
                f"{answers.part} part; set model.reference: live."
            )
        frozen = self._frozen[answers.part]
        if not self.at_start or isinstance(self.frozen_reference, ModelReference):
            return frozen
        if frozen.hidden is None or answers.hidden is None:
            return replace(frozen, hidden=None, _logits=without_rounding(frozen.logits, answers.logits))
        return replace(frozen, hidden=without_rounding(frozen.hidden, answers.hidden))

    def reference_logits(self, answers: Answers) -> Tensor:
        """Return the reference's (N, V) logits at the positions of ``answers``, without a gradient."""
        return self.reference_answers(answers).logits

    @property
    def at_start(self) -> bool:
        """True if the policy still equals the reference: it was not trained, and no dropout changes it."""
        return self.policy_is_pretrained and self.trainer.global_step == 0 and not self.keeps_dropout

    @property
    def _has_retain_rows(self) -> bool:
        """False if the data module is known to have none."""
        return getattr(getattr(self._trainer, "datamodule", None), "retain_rows", self) is not None

    def _skips(self, part: str) -> bool:
        unused = self.retain_loss_name == "none" or self.lambda_ == 0 or not self._has_retain_rows
        return part == "retain" and unused


def check_terms(cls: type[UnlearningModule], terms: Any) -> None:
    """Raise an `InputError` that names class and method unless the terms of a loss are scalar tensors by name.

    The name ``loss`` is that of the step's loss, the weighted sum of the terms.
    """
    method = next(name for one in cls.__mro__ for name in ("forget_terms", "forget_loss") if name in vars(one))
    if not isinstance(terms, dict):
        raise InputError(
            f"{cls.__name__}.forget_terms() returns {_described(terms)}; it must return a dictionary of scalar "
            'tensors, such as {"forget": loss}.'
        )
    if "loss" in terms:
        raise InputError(
            f"{cls.__name__}.forget_terms() returns a term called loss, the name of the step's loss; rename it."
        )
    for name, value in terms.items():
        if not isinstance(value, Tensor) or value.dim():
            raise InputError(
                f"{cls.__name__}.{'retain_term' if name == 'retain' else method}() returns {_described(value)} as the "
                f"term {name}; it must be a scalar tensor, such as values.sum() / forget.token_denominator."
            )


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else reprlib.repr(value)
