"""The LightningModule that holds a causal language model: loading, adapters, sharding, optimiser, logging."""

import inspect
import io
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import PurePath
from types import FrameType
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.data import AttributeDict
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.parsing import collect_init_args
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dipo_lightning.errors import InputError, RunError, check_arguments, check_numbers, options_of, refuse_unknown
from dipo_lightning.models.distributed import (
    check_strategy,
    checkpoint_activations,
    gather,
    is_sharded,
    shard,
    transformer_blocks,
)
from dipo_lightning.models.fingerprint import model_fingerprint
from dipo_lightning.models.grouping import run_whole
from dipo_lightning.models.head import output_projection
from dipo_lightning.models.hooks import CompleteHooks
from dipo_lightning.models.inspection import check_rows, compare_rows, dropout_rates
from dipo_lightning.models.loading import load_policy
from dipo_lightning.models.lora import NF4, LoRA, add_lora, check_quantized, quantize_base
from dipo_lightning.safety.redaction import without_home, without_secrets


class MicroBatch(NamedTuple):
    """Loss terms and rows of a micro-batch, kept without a gradient until the optimiser steps.

    Attributes:
        rows: (B,) int64 by part of the batch: the positions of its rows in their data set.
        terms: Scalars, the terms of the loss by name.
        loss: Scalar.
    """

    rows: dict[str, Tensor]
    terms: dict[str, Tensor]
    loss: Tensor

    @classmethod
    def of(cls, loss: Tensor, batch: dict[str, Any], terms: dict[str, Tensor]) -> "MicroBatch":
        """Make one from a training batch, its loss and the terms of the loss."""
        rows = {name: part["index"] for name, part in batch.items() if isinstance(part, dict) and "index" in part}
        return cls(rows, {name: value.detach() for name, value in terms.items()}, loss.detach())


class LanguageModelModule(CompleteHooks, pl.LightningModule):
    """A policy (any ``transformers`` causal LM) under Lightning, on one device or sharded over many.

    Hyper-parameters are plain values, so every checkpoint can be loaded with ``weights_only``.

    Args:
        pretrained: Hub name, folder, GGUF file, or ``package:NAME`` for a model inside an installed Python package.
        optimizer: Optimiser class and its arguments; it receives the trainable parameters.
        schedule: Learning rate over the run after the warm-up: ``constant``, ``linear`` (to 0) or ``cosine`` (to 0).
        warmup_steps: Optimiser steps over which the learning rate rises from 0.
        lora: LoRA adapters (``lora.rank``, ``lora.alpha``, ``lora.dropout``, ``lora.targets``, and ``lora.base: nf4``
            for a base in 4 bits); None trains all weights.
        dropout: ``off``, or ``keep`` for the rates of the model's own configuration (0.1 in GPT-2, OPT and Phi-2), with
            which the policy differs from the reference before the first step.
        activation_checkpointing: Recompute activations in the backward pass instead of storing them.
        compile_blocks: Compile each transformer block with ``torch.compile``.
        freeze_projection: Train everything but the output projection (and the embedding tied to it).
        cpu_offload: Under ``fsdp2``, keep weights and optimiser states in host memory between uses.
        compute_dtype: Under ``fsdp2``, the dtype of the forward and backward pass; ``auto`` is bfloat16 on a GPU and
            float32 on a CPU. Weights stay in float32. On one device or with DDP use the Trainer's ``bf16-mixed``.
        revision: Version of a hub model.
        trust_remote_code: Allow a hub model or folder to run its own code on this machine. Off by default.
    """

    def __init__(
        self,
        pretrained: str,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01),
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: int = 0,
        lora: LoRA | None = None,
        dropout: Literal["off", "keep"] = "off",
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
        freeze_projection: bool = False,
        cpu_offload: bool = False,
        compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(type(self).__name__, unknown)
        check_arguments(self)
        if not callable(optimizer):
            raise InputError(
                f"model.optimizer is {optimizer!r}; give a function of the parameters to train, such as "
                "lambda parameters: torch.optim.AdamW(parameters, lr=1e-5)."
            )
        self.save_hyperparameters(ignore=["optimizer"])
        self._arguments = names_of_arguments(inspect.currentframe(), type(self))
        self.policy: nn.Module | None = None
        self.weights_fingerprint = ""
        self.trained_for = (0, 0)  # epochs and optimiser steps behind the policy's weights
        self.policy_is_pretrained = False  # loaded, not trained since, and no checkpoint restored into it
        self._optimizer_before: dict[str, Any] = {}  # of the checkpoint that `load_from_checkpoint` read
        self._random_states: dict[int, dict[str, Any]] = {}
        self._batches: list[MicroBatch] = []  # of the optimiser step
        self._stepped = False
        self.pretrained, self.optimizer = str(pretrained), optimizer
        self.schedule, self.warmup_steps = schedule, warmup_steps
        check_numbers("model", {"warmup_steps": warmup_steps}, least=0)
        self.lora = None if lora is None else options_of("model.lora", LoRA, lora)
        self.dropout, self.keeps_dropout = dropout, False
        self.activation_checkpointing, self.compile_blocks = activation_checkpointing, compile_blocks
        self.freeze_projection, self.cpu_offload, self.compute_dtype = freeze_projection, cpu_offload, compute_dtype
        self.revision, self.trust_remote_code = revision, trust_remote_code

    @property
    def hparams_initial(self) -> Any:
        """The hyper-parameters as loggers write them: without secrets, this user's home and Lightning's own entries."""
        given = {name: value for name, value in super().hparams_initial.items() if not name.startswith("_")}
        return AttributeDict(without_secrets(without_home(plain(given))))

    def setup(self, stage: str) -> None:
        """Refuse combinations of options that cannot be right, before the model is loaded."""
        if stage == TrainerFn.FITTING and self.trainer.checkpoint_callbacks:
            self.refuse_what_no_checkpoint_holds()
        strategy, precision = self.trainer.strategy, str(self.trainer.precision)
        check_strategy(strategy)
        if self.lora is not None and self.lora.base == NF4:
            check_quantized(self.trainer, self)
        if any(isinstance(callback, StochasticWeightAveraging) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise InputError(
                "StochasticWeightAveraging copies the module before its model is loaded, so it would average nothing. "
                "Use lightning.pytorch.callbacks.EMAWeightAveraging or WeightAveraging."
            )
        if precision not in ("32-true", "bf16-mixed"):
            raise InputError(
                f"trainer.precision is {precision}; a policy and a reference stored in it would not agree at step 0. "
                "Use 32-true (with model.compute_dtype under fsdp2) or bf16-mixed."
            )
        if not isinstance(strategy, ModelParallelStrategy):
            if self.cpu_offload or self.compute_dtype != "auto":
                rank_zero_warn("model.cpu_offload and model.compute_dtype do nothing without trainer.strategy: fsdp2.")
        else:
            if precision != "32-true":
                raise InputError(
                    f"trainer.precision is {precision} with fsdp2; write precision: 32-true and choose the dtype of "
                    "the computation with model.compute_dtype."
                )
            if self.trainer.validate_loop.inference_mode:
                raise InputError(
                    "trainer.inference_mode is true with fsdp2: the step after an evaluation would fail. "
                    "Write inference_mode: false."
                )

    def refuse_what_no_checkpoint_holds(self) -> None:
        """Raise an `InputError` for an argument with which a checkpoint could not be loaded with ``weights_only``."""
        for name, value in self.hparams.items():
            if not is_loadable(plain(value)):
                cls = type(self).__name__
                raise InputError(
                    f"The argument {name} of {cls} is of the type {type(value).__name__}, and checkpoints hold plain "
                    "values only (numbers, texts, lists, dictionaries). Take such a value, or end __init__ with "
                    f"self.save_hyperparameters(ignore=[{name!r}, 'optimizer']) and give {name} to "
                    "load_from_checkpoint again."
                )

    def configure_model(self) -> None:
        """Load the policy, and shard it if the strategy has a mesh; the second time, only compare it with the rows."""
        with torch.device("cpu"):  # Lightning makes the accelerator the default here, and moves the policy later
            if self.policy is None:
                model = self.load()
                self.inspect(model)
                self.settle_dropout(model)
                self.policy = self.prepare(model, self.lora).train()
                self.policy_is_pretrained = True
            elif (data := self._tokenized_data) is not None:
                compare_rows(data, self.policy)

    def inspect(self, model: nn.Module) -> None:
        """Check the pretrained model before adapters and sharding change it, and record its fingerprint.

        Meant to be overridden.
        """
        if (data := self._tokenized_data) is not None:
            check_rows(data, model)
        self.weights_fingerprint = model_fingerprint(model)  # results and caches will say whose they are

    @property
    def _tokenized_data(self) -> Any:
        """The Trainer's data module, if it has a tokenizer."""
        data = getattr(self._trainer, "datamodule", None)
        return None if getattr(data, "tokenizer", None) is None else data

    def settle_dropout(self, model: nn.Module) -> None:
        """Switch off the dropout of the model's own configuration, or keep it, and report any."""
        rates = dropout_rates(model, switch_off=self.dropout == "off")
        found = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
        self.keeps_dropout = self.dropout == "keep" and bool(found)
        if self.keeps_dropout:
            rank_zero_info(f"dropout: kept ({found}); the policy differs from the reference before the first step")
        elif found:
            rank_zero_info(f"dropout: switched off ({found}); model.dropout: keep trains with it")

    def load(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Load the pretrained model onto the CPU; training needs float32."""
        return load_policy(
            self.pretrained, dtype=dtype, revision=self.revision, trust_remote_code=self.trust_remote_code
        )

    def prepare(self, model: nn.Module, lora: LoRA | None = None, trainable: bool = True) -> nn.Module:
        """Add adapters, checkpointing, compilation and sharding, in the order in which they compose."""
        if lora is not None:
            model = add_lora(model, lora)
            if lora.base == NF4:
                model = quantize_base(model, self.trainer.strategy.root_device)
                # Constant, and the same on every process: DDP would send them in every forward.
                self._ddp_params_and_buffers_to_ignore = [f"policy.{name}" for name, _ in model.named_buffers()]
        self.freeze_untrained(model)
        if trainable and self.activation_checkpointing:
            checkpoint_activations(model)
        if self.compile_blocks:
            for block in transformer_blocks(model):
                block.compile()
        if self.activation_checkpointing or self.compile_blocks or self.keeps_dropout:
            run_whole(model)  # the reference too, so that before the first step both are equal to the last bit
        strategy = self.trainer.strategy if self._trainer is not None else None
        if isinstance(strategy, ModelParallelStrategy):
            assert self.device_mesh is not None
            model = shard(model, self.device_mesh["data_parallel"], self.forward_dtype, self.cpu_offload, trainable)
        return model

    def freeze_untrained(self, model: nn.Module) -> None:
        """Freeze the weights that are not trained, before sharding; meant to be overridden."""
        if self.freeze_projection:
            output_projection(model).requires_grad_(False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimiser over the trainable parameters, and the schedule if one is set.

        Raises:
            InputError: The optimiser refuses its options, or the schedule needs a number of steps that is not known.
        """
        try:
            optimizer = self.optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        except ValueError as error:  # torch's refusal of a number
            raise InputError(f"model.optimizer cannot be built from its options: {error}.") from error
        numbers = numbers_of(optimizer.param_groups)
        check_numbers("model.optimizer", {"lr": numbers.get("lr")}, least=0)
        fuse(optimizer)
        warn_of_another_optimizer(self._optimizer_before, numbers)
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        from transformers import get_scheduler

        name = "constant_with_warmup" if self.schedule == "constant" else self.schedule
        steps = self.trainer.estimated_stepping_batches
        known = int(steps) if math.isfinite(steps) else None
        if known is None and self.schedule != "constant":
            raise InputError(
                f"model.schedule is {self.schedule}, but the number of steps of this run is not known: it has no "
                "trainer.max_steps, and no trainer.max_epochs over data of known length. Set one of them, or "
                "model.schedule: constant."
            )
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=self.warmup_steps, num_training_steps=known)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: evaluation is the callbacks' work."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Do nothing: evaluation is the callbacks' work."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add every process's random states and the fingerprint of the weights before training; collective."""
        self.refuse_what_no_checkpoint_holds()
        settings = without_secrets(plain(self.hparams))
        checkpoint["settings"] = settings
        if self._arguments is not None and "_instantiator" not in settings:  # the command line's are as it needs them
            # `load_from_checkpoint` calls the class with these; the others are what the class passes to its bases.
            settings = {name: value for name, value in settings.items() if name in self._arguments}
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = settings
        # While a resumed run repeats an evaluation, a new checkpoint must keep the states that are not restored yet.
        checkpoint["random_states"] = self._random_states or gather({self.global_rank: random_states()})
        checkpoint["weights_fingerprint"] = self.weights_fingerprint
        checkpoint["policy_is_pretrained"] = self.policy_is_pretrained
        checkpoint["trained_for"] = list(self.trained_for)
        checkpoint["tokenizer"] = getattr(getattr(self.trainer, "datamodule", None), "tokenizer_source", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another model's checkpoint; keep its random states for the first batch, since others draw before."""
        self.refuse_another_model(checkpoint)
        self.policy_is_pretrained = checkpoint.get("policy_is_pretrained", False)
        epochs, steps = checkpoint.get("trained_for") or (checkpoint.get("epoch", 0), checkpoint.get("global_step", 0))
        self.trained_for = epochs, steps
        self._random_states = checkpoint.get("random_states", {})
        if self._trainer is None:  # this is `load_from_checkpoint`; a Trainer would restore the optimiser
            for state in checkpoint.get("optimizer_states", ())[:1]:
                self._optimizer_before = numbers_of(state["param_groups"])

    def refuse_another_model(self, checkpoint: dict[str, Any]) -> None:
        """Raise an `InputError` for a checkpoint with other parameters, or from a run that began with another model."""
        kept = {name: tuple(value.shape) for name, value in checkpoint.get("state_dict", {}).items()}
        own = {name: tuple(value.shape) for name, value in self.state_dict().items()}
        odd = sorted(name for name in kept.keys() | own.keys() if kept.get(name) != own.get(name))
        before = checkpoint.get("weights_fingerprint")
        if kept and odd:
            there, here = (shapes.get(odd[0], "absent") for shapes in (kept, own))
            reason = f"{len(odd)} parameters differ; {odd[0]} is {there} there and {here} here"
        elif before and self.weights_fingerprint and before != self.weights_fingerprint:
            reason = "it began with other weights or another config.json"
        else:
            return
        raise InputError(
            f"The checkpoint is not of this run's model {self.pretrained} ({reason}). Give the model and the LoRA "
            "options that it was made with, or another folder to --run."
        )

    def on_train_start(self) -> None:
        """Accumulate as in the interrupted epoch: Lightning asks its scheduler only where an epoch begins."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                number = callback.get_accumulate_grad_batches(self.trainer.current_epoch)
                self.trainer.accumulate_grad_batches = number

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Before the first batch after a resume, put this process's random states back."""
        states, self._random_states = self._random_states, {}
        if self.global_rank in states and len(states) == self.trainer.world_size:
            set_random_states(states[self.global_rank])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the step's terms and its gradient's norm before clipping, at the steps that are logged.

        A norm or a loss that is not finite ends the run. This costs one synchronisation with the device per optimiser
        step, and happens on all processes alike: after a backward pass that none of them skipped.
        """
        if self._stepped:  # `training_step` is overridden, and has remembered nothing of this step
            self._batches = []
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        numbers = torch.stack([norm, *(loss.to(norm) for _, _, loss in self._batches)])
        if not bool(torch.isfinite(numbers).all()):
            raise RunError(self.situation(*what_is_not_finite(numbers.tolist(), self._batches)))
        self._stepped, self.policy_is_pretrained = True, False
        self.trained_for = self.trainer.current_epoch, self.trainer.global_step + 1
        if self.logs_are_due:
            self.log("train/gradient_norm", norm)
            self.log_terms(mean_terms(self._batches, self.trainer.accumulate_grad_batches))

    def on_train_epoch_end(self) -> None:
        """Count the epoch among those behind the policy's weights."""
        self.trained_for = self.trainer.current_epoch + 1, self.trainer.global_step

    @property
    def logs_are_due(self) -> bool:
        """True if this optimiser step is logged (``Trainer(log_every_n_steps=...)``)."""
        return (self.trainer.global_step + 1) % max(1, getattr(self.trainer, "log_every_n_steps", 1)) == 0

    def log_terms(self, terms: dict[str, Tensor]) -> None:
        """Log scalars as ``train/...``, averaged over ranks in one reduction, at the steps that are logged."""
        if not self.logs_are_due or not terms:
            return
        values = torch.stack([value.detach().float() for value in terms.values()])
        if self.trainer.world_size > 1:
            values = self.trainer.strategy.reduce(values, reduce_op="mean")
        self.log_dict(dict(zip((f"train/{name}" for name in terms), values.unbind(), strict=True)))

    def remember(self, loss: Tensor, batch: dict[str, Any], terms: dict[str, Tensor]) -> None:
        """Keep a micro-batch's rows, terms and loss until the optimiser steps.

        They are then logged, or named in the error if the step fails. A term is a sum divided by the denominator of its
        `Answers`, so its mean over the micro-batches and ranks is the mean over the global batch.
        """
        if self._stepped:
            self._batches, self._stepped = [], False
        self._batches.append(MicroBatch.of(loss, batch, terms))

    def situation(self, what: str, batches: list[MicroBatch] | None = None) -> str:
        """Describe the state of the run when ``what`` happened in ``batches``, by default all of the optimiser step."""
        return describe(what, self._batches if batches is None else batches, self.trainer)

    @property
    def forward_dtype(self) -> torch.dtype:
        """The dtype that a sharded model computes in."""
        if self.compute_dtype == "auto":
            return torch.bfloat16 if self.trainer.strategy.root_device.type == "cuda" else torch.float32
        return getattr(torch, self.compute_dtype)

    @property
    def sharded(self) -> bool:
        """True if the policy is sharded over processes."""
        return self.policy is not None and is_sharded(self.policy)


def fuse(optimizer: torch.optim.Optimizer) -> None:
    """Let Adam and AdamW update all weights in one kernel, unless ``fused`` or ``foreach`` was chosen.

    The option is set in the parameter groups, where a step reads it: as an argument of the constructor it would make
    Lightning refuse to clip gradients under mixed precision.
    """
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        return
    for group in optimizer.param_groups:
        chosen = any(group[name] is not None for name in ("fused", "foreach")) or group["differentiable"]
        if not chosen and all(parameter.device.type in ("cpu", "cuda") for parameter in group["params"]):
            group["fused"] = True


def numbers_of(param_groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers that an optimiser was made with: those of its first parameters, before any schedule."""
    group = dict(param_groups[0])
    group["lr"] = group.pop("initial_lr", group.get("lr"))
    return {name: value for name, value in group.items() if type(value) in (int, float)}


def warn_of_another_optimizer(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn if training continues after `load_from_checkpoint` with optimiser options unlike the checkpoint's."""
    odd = [
        f"{name} {before[name]:g} there, {now.get(name, 'none')} here"
        for name in before
        if before[name] != now.get(name)
    ]
    if odd:
        rank_zero_warn(
            f"Checkpoints do not hold model.optimizer, and this one is not the loaded checkpoint's ({'; '.join(odd)}). "
            "Give load_from_checkpoint the optimizer of that run, or resume it with Trainer.fit(..., ckpt_path=...).",
            category=UserWarning,
        )


def names_of_arguments(frame: FrameType | None, cls: type) -> set[str] | None:
    """Return the names of the arguments that a class was called with, read in the frame of a base's constructor.

    None if the class has ``*args``, which take the names of its bases' arguments.
    """
    if frame is None or any(one.kind == one.VAR_POSITIONAL for one in inspect.signature(cls).parameters.values()):
        return None
    return set(collect_init_args(frame, [], classes=(cls,))[-1])


def plain(value: Any) -> Any:
    """Return a hyper-parameter as a checkpoint can hold it: a dataclass as a dictionary, a path as text, and so on.

    An object without a plain form is returned as it is.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def is_loadable(value: Any) -> bool:
    """Return whether a checkpoint with this value can be saved, and loaded with ``weights_only``."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # of pickle, or of the object itself
        return False
    return True


def mean_terms(batches: Sequence[MicroBatch], accumulate: int) -> dict[str, Tensor]:
    """Return the loss and every term of an optimiser step, on this rank; nothing without micro-batches.

    The last step of an epoch may have fewer micro-batches than `accumulate`, by which all of them are scaled.
    """
    parts = [{**batch.terms, "loss": batch.loss} for batch in batches]
    return {name: torch.stack([part[name] for part in parts]).sum() / accumulate for name in parts[0]} if parts else {}


def what_is_not_finite(numbers: Sequence[float], batches: list[MicroBatch]) -> tuple[str, list[MicroBatch]]:
    """Find the number that is not finite: the loss of a micro-batch, or else the norm of the gradient.

    Args:
        numbers: Norm of the gradient, then the loss of each micro-batch.
        batches: Micro-batches of the step.

    Returns:
        The beginning of a message, and the micro-batches that it is about: the one with the loss, or all.
    """
    norm, *losses = numbers
    for loss, batch in zip(losses, batches, strict=True):
        if not math.isfinite(loss):
            return f"The loss is {loss}", [batch]
    return f"The gradient's norm is {norm}", batches


def describe(what: str, batches: list[MicroBatch], trainer: pl.Trainer) -> str:
    """Describe the state of the run after ``what``, the beginning of the message, and suggest what to do."""
    rows: dict[str, list[int]] = {}
    for parts, _, _ in batches:
        for part, index in parts.items():
            rows.setdefault(part, []).extend(index.tolist())
    terms = [{name: float(value) for name, value in values.items()} for _, values, _ in batches]
    good = last_good_checkpoint(trainer)
    return (
        f"{what} at step {trainer.global_step}. "
        f"Terms: {', '.join(map(str, terms)) or 'none'}. Rows of the batch: {rows}. "
        + (f"The last good checkpoint is {good}. " if good else "There is no checkpoint before it. ")
        + "Lower the learning rate, clip gradients (trainer.gradient_clip_val), or look at these rows."
    )


def last_good_checkpoint(trainer: pl.Trainer) -> str | None:
    """Return the checkpoint written last, by this package's callback or by Lightning's."""
    for callback in trainer.checkpoint_callbacks:
        for name in ("last_good", "last_model_path", "best_model_path"):
            if path := getattr(callback, name, None):
                return str(path)
    return None


def random_states() -> dict[str, Any]:
    """Return the states of Python's, NumPy's, torch's and this process's GPU's generators: tensors and plain values.

    A checkpoint that is loaded with ``weights_only`` can hold nothing else.
    """
    version, words, normal = random.getstate()
    state: Any = np.random.get_state()
    name, keys, position, has_normal, cached = state
    return {
        "python": [version, torch.tensor(words), normal],
        "numpy": [str(name), torch.tensor(keys.astype(np.int64)), int(position), int(has_normal), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_states(states: dict[str, Any]) -> None:
    """Put every generator of this process into the states that `random_states` returned."""
    version, words, normal = states["python"]
    random.setstate((version, tuple(words.tolist()), normal))
    name, keys, position, has_normal, cached = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_normal, cached))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
