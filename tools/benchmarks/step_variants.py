"""What the step benchmark compares: the package's own modules, and the same losses as they are usually written.

The usual form keeps two models, runs forget and retain rows through separate forwards, and makes logits of every
position before it masks them. All variants train one shared policy on one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from dipo_lightning.methods.dipo.module import DiPOModule
from dipo_lightning.methods.dipo.pair import PairOptions
from dipo_lightning.methods.gradient_ascent import GradDiffModule, WGAModule
from dipo_lightning.methods.preference import DPOModule, NPOModule, SimNPOModule
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, answer_hidden
from dipo_lightning.models.token_batch import TokenBatch, collate, concatenate

BETA, K = 0.1, 10
NEVER = 10**9
Batch = dict[str, TokenBatch]

FORMS: dict[str, dict[str, Any]] = {"": {}, ", full logits": {"form": "logits"}}
LIKELIHOOD: dict[str, type[UnlearningModule]] = {
    "npo": NPOModule,
    "simnpo": SimNPOModule,
    "dpo": DPOModule,
    "grad_diff": GradDiffModule,
    "wga": WGAModule,
}


class OtherPair(DiPOModule):
    """DiPO with a pair of its own, which changes all logits: the generic path."""

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        return (0.5 * logits).log_softmax(-1), (2 * logits).log_softmax(-1)


PACKAGE: dict[str, tuple[type[UnlearningModule], dict[str, Any]]] = {
    "dipo live, full logits": (DiPOModule, {"reference": "live", "form": "logits"}),
    "dipo live, chunked": (DiPOModule, {"reference": "live"}),
    "dipo hidden_states": (DiPOModule, {"reference": "hidden_states"}),
    "dipo directions": (DiPOModule, {"reference": "directions", "freeze_projection": True}),
    "dipo, another pair": (OtherPair, {"reference": "live"}),
    "grad_diff frozen": (GradDiffModule, {"freeze_projection": True}),
    **{name + form: (cls, options) for name, cls in LIKELIHOOD.items() for form, options in FORMS.items()},
}
USUAL = ("dipo usual", "npo usual", "fine-tuning")
BARE = "model alone"  # the decoder's forward and backward without any head: what the memory of a loss stands on
BARE_FROZEN = "model alone, frozen"
NAMES = (BARE, BARE_FROZEN, *USUAL, *PACKAGE)
USUAL_NAMES = (
    BARE,
    BARE_FROZEN,
    "fine-tuning",
    "grad_diff",
    "grad_diff frozen",
    "npo usual",
    "dipo usual",
    *list(PACKAGE)[:4],
)


@dataclass
class Variant:
    """One way to make a step.

    Attributes:
        loss: Runs the forward and returns the loss.
        frozen: Whether the output projection is not trained.
        resident: Bytes that it keeps beside the policy and the optimiser's states.
    """

    loss: Callable[[], Tensor]
    frozen: bool = False
    resident: int = 0


def make_batch(rows: int, length: int, prompt: int, vocabulary: int, device: torch.device) -> Batch:
    """Forget and retain rows of random tokens, all of one length; all tokens after the prompt are supervised."""
    generator = torch.Generator().manual_seed(0)

    def part() -> TokenBatch:
        ids = torch.randint(vocabulary, (rows, length), generator=generator).tolist()
        examples = [
            {"index": index, "input_ids": row, "labels": [-100] * prompt + row[prompt:]}
            for index, row in enumerate(ids)
        ]
        return {name: value.to(device) for name, value in collate(examples, 0).items()}

    return {"forget": part(), "retain": part()}


def sequence_nlls(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) summed NLL of each row, from logits of all positions."""
    shifted = logits[:, :-1].float().transpose(1, 2)
    return cross_entropy(shifted, labels[:, 1:], ignore_index=-100, reduction="none").sum(-1)


def logits_of(model: Any, part: TokenBatch) -> Tensor:
    return model(input_ids=part["input_ids"], attention_mask=part["attention_mask"], use_cache=False).logits


def mean_nll(model: Any, part: TokenBatch) -> Tensor:
    """The loss that ``transformers`` itself computes, over logits of all positions."""
    inputs = {name: part[name] for name in ("input_ids", "attention_mask", "labels")}
    return model(**inputs, use_cache=False).loss


def usual_npo(policy: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    forget = batch["forget"]
    nll = sequence_nlls(logits_of(policy, forget), forget["labels"])
    with torch.no_grad():
        start = sequence_nlls(logits_of(reference, forget), forget["labels"])
    loss = -2 / BETA * logsigmoid(BETA * (nll - start)).mean()
    return loss + mean_nll(policy, batch["retain"])


def usual_dipo(policy: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    """The loss from both distributions and both models' log-probabilities, at every position."""
    forget = batch["forget"]
    policy_logits = logits_of(policy, forget)[:, :-1].float()
    with torch.no_grad():
        base = logits_of(reference, forget)[:, :-1].float()
        values, places = base.topk(K + 1)
        vector = torch.zeros_like(base).scatter(-1, places[..., :K], (values - values[..., K:])[..., :K])
        preferred, dispreferred = (base - vector).log_softmax(-1), (base + vector).log_softmax(-1)
        difference = preferred.exp() - dispreferred.exp()
    ratio = policy_logits.log_softmax(-1) - base.log_softmax(-1)
    margin = ((difference * ratio).sum(-1) * (forget["labels"][:, 1:] != -100)).sum(-1)
    return -2 / BETA * logsigmoid(BETA * margin).mean() + mean_nll(policy, batch["retain"])


class Rows(pl.LightningDataModule):
    """The forget rows of a batch as a data module, for the package to cache its reference from."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        names = ("input_ids", "labels")
        columns = {name: batch["forget"][name].tolist() for name in names}
        self.forget_examples = [
            {"index": index, **{name: columns[name][index] for name in names}}
            for index in range(len(columns["labels"]))
        ]

    def train_dataloader(self) -> list[int]:
        return [0]


def package_variant(name: str, policy: nn.Module, reference: nn.Module, batch: Batch, cache: Path) -> Variant:
    """The training step of the package's module: its reference is made as ``fit`` makes it."""
    cls, options = PACKAGE[name]
    if issubclass(cls, DiPOModule):
        options = options | {"beta": BETA, "pair": PairOptions(k=K)}
    device = batch["forget"]["input_ids"].device
    module: Any = cls("shared", reference_cache=str(cache), **options)
    module.load = lambda dtype=torch.float32: policy if module.policy is None else reference
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode")
    quiet: dict[str, Any] = dict.fromkeys(silent, False)
    pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        max_steps=0,
        **quiet,
    ).fit(module, Rows(batch))
    module.log = module.log_dict = lambda *_, **__: None  # outside a loop there is nothing to log to
    # A step like any other: neither the first one nor one that is logged, which also measure both rewards.
    module._trainer = SimpleNamespace(global_step=1, log_every_n_steps=NEVER)
    resident = 0
    if getattr(module.reference, "model", None) is reference:
        resident = bytes_of(reference.parameters())
    elif name == "dipo hidden_states":
        resident = bytes_of([module.reference.head.weight])
    if issubclass(cls, DPOModule):
        batch = batch | {"alternative": batch["retain"]}
    return Variant(lambda: module.training_step(batch, 0), bool(options.get("freeze_projection")), resident)


def make_variant(name: str, policy: nn.Module, reference: nn.Module, batch: Batch, cache: Path) -> Variant:
    """Build the variant called ``name``, one of `NAMES`."""
    if name in PACKAGE:
        return package_variant(name, policy, reference, batch, cache)
    joined = concatenate(list(batch.values()))
    if name in (BARE, BARE_FROZEN):
        return Variant(lambda: answer_hidden(policy, joined).float().square().mean(), frozen=name == BARE_FROZEN)
    if name == "fine-tuning":
        return Variant(lambda: mean_nll(policy, joined))
    usual = {"npo usual": usual_npo, "dipo usual": usual_dipo}[name]
    return Variant(lambda: usual(policy, reference, batch), resident=bytes_of(reference.parameters()))


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
