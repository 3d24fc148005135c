"""Time and memory of one training step: the package's methods in every form, and the same losses as usually written.

A step is forward, loss, backward and AdamW on one batch of forget and as many retain rows. The usual form runs forget
and retain rows through separate forwards, makes logits of every position before it masks them, keeps a second model
where the loss has a reference, and takes torch's default AdamW; the package's updates all weights in one kernel. All
variants train the same policy in one process and in turns, always from the same weights. The norm of the gradient,
logging and the data loader are left out of all alike.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from dipo_lightning.methods.altpo import AltPOModule
from dipo_lightning.methods.dipo.module import PAIR, DiPOModule
from dipo_lightning.methods.gradient_ascent import (
    CEUModule,
    GradAscentModule,
    GradDiffModule,
    KLModule,
    WGAModule,
)
from dipo_lightning.methods.pdu import PDUModule
from dipo_lightning.methods.preference import DPOModule, NPOModule, SimNPOModule
from dipo_lightning.methods.rmu import RMUModule
from dipo_lightning.methods.satimp import SatImpModule
from dipo_lightning.methods.selective.examples import PrivateExample
from dipo_lightning.methods.selective.module import TEMPLATES, SelectiveModule
from dipo_lightning.methods.undial import UNDIALModule
from dipo_lightning.methods.unlearning import UnlearningModule
from dipo_lightning.models.answers import Answers, TokenBatch, answer_hidden, collate, concatenate
from dipo_lightning.models.lora import LoRA, add_lora
from tools.benchmarks.measuring import (
    Measured,
    PeakMemory,
    Table,
    alternate,
    clock,
    medians,
    noted,
    precision,
    ratio,
    timed,
)

BETA, SIMNPO_BETA = 0.1, 4.5
NEVER = 10**9
Batch = dict[str, TokenBatch]
Module = type[UnlearningModule]


class OtherPair(DiPOModule):
    """DiPO with a pair of its own, which changes all logits: the generic path."""

    def make_pair(self, logits: Tensor, forget: Answers) -> tuple[Tensor, Tensor]:
        return (0.5 * logits).log_softmax(-1), (2 * logits).log_softmax(-1)


class PreparedSelective(SelectiveModule):
    """Selective unlearning on rows of random tokens, of which every eighth answer token is private.

    A step has half as many false variants and half as many leaks as forget rows (a run may have up to as many leaks as
    forget rows), and general answers.
    """

    def make_examples(self) -> None:
        """Prepare nothing: `take` makes the rows, without a search for private values or answers of the reference."""

    def take(self, part: TokenBatch) -> SimpleNamespace:
        """Take the rows of a batch, and return a stand-in for the data module as far as a step uses it."""
        self._general = Rows.examples(part)
        rows = []
        for row in self._general:
            private = [label != -100 and place % 8 == 0 for place, label in enumerate(row["labels"])]
            rows.append(PrivateExample(**row, private=private, visible=[1] * len(private)))
        self._wordings = [[row] * len(TEMPLATES) for row in rows]
        self._variants, self.leaks = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        banned = {row.index: [7] for row in rows}
        self._maker = SimpleNamespace(  # type: ignore[assignment]
            banned=banned, completing=lambda example: [[]] * len(example.flags)
        )
        return SimpleNamespace(seed=0, tokenizer=SimpleNamespace(pad_token_id=0), place=int)


FROZEN = {"freeze_projection": True}
ADAPTERS = {"lora": LoRA(rank=8)}
FORMS: dict[str, dict[str, Any]] = {"": {}, ", full logits": {"form": "logits"}}
LIKELIHOOD: dict[str, Module] = {
    "GradDiff": GradDiffModule,
    "GradAscent": GradAscentModule,
    "WGA": WGAModule,
    "CE-U": CEUModule,
    "KL": KLModule,
    "NPO": NPOModule,
    "SimNPO": SimNPOModule,
    "DPO": DPOModule,
    "AltPO": AltPOModule,
    "UNDIAL": UNDIALModule,
    "SatImp": SatImpModule,
    "PDU": PDUModule,
}
PACKAGE: dict[str, tuple[Module, dict[str, Any]]] = {
    "DiPO": (DiPOModule, {}),
    "DiPO, nll": (DiPOModule, {"retain_loss": "nll"}),
    "DiPO, live": (DiPOModule, {"reference": "live"}),
    "DiPO, live, full logits": (DiPOModule, {"reference": "live", "form": "logits"}),
    "DiPO, frozen projection": (DiPOModule, FROZEN),
    "DiPO, another pair": (OtherPair, {"reference": "live"}),
    "DiPO, LoRA": (DiPOModule, ADAPTERS),
    "DiPO, LoRA, adapters_off": (DiPOModule, ADAPTERS | {"reference": "adapters_off"}),
    "GradDiff, frozen projection": (GradDiffModule, FROZEN),
    "GradDiff, LoRA": (GradDiffModule, ADAPTERS),
    "NPO, LoRA": (NPOModule, ADAPTERS),
    "Selective": (PreparedSelective, {}),
    "Selective, LoRA": (PreparedSelective, ADAPTERS),
    **{name + form: (cls, options) for name, cls in LIKELIHOOD.items() for form, options in FORMS.items()},
    "RMU": (RMUModule, {}),
}
BARE = "model alone"  # the decoder's forward and backward without a head: the floor of every loss memory
BARE_FROZEN = "model alone, frozen projection"
BARE_ADAPTERS = "model alone, LoRA"
BARE_FORGET = "model alone, forget rows"
BARE_ALTERNATIVES = "model alone, with alternatives"
BARE_PARTS = {
    BARE: ("forget", "retain"),
    BARE_FORGET: ("forget",),
    BARE_ALTERNATIVES: ("forget", "retain", "alternative"),
}
FINE_TUNING = "fine-tuning"
USUAL = ("GradDiff, usual", "NPO, usual", "SimNPO, usual", "DiPO, usual")
NAMES = (BARE, BARE_FROZEN, BARE_ADAPTERS, BARE_FORGET, BARE_ALTERNATIVES, FINE_TUNING, *USUAL, *PACKAGE)
ESSENTIAL = (
    BARE,
    FINE_TUNING,
    *USUAL,
    "GradDiff",
    "NPO",
    "SimNPO",
    "DiPO",
    "DiPO, nll",
    "DiPO, live",
    "DiPO, frozen projection",
    "DiPO, LoRA",
    "Selective",
    "RMU",
    "UNDIAL",
)

PROMISES = (
    ("time", "DiPO", "GradDiff, usual", 0.85),
    ("time", "DiPO", "GradDiff", 0.85),
    *(("time", name, f"{name}, usual", 0.95) for name in ("GradDiff", "NPO", "SimNPO")),
    *(("loss", name, f"{name}, usual", 0.5) for name in ("GradDiff", "NPO", "SimNPO", "DiPO")),
)
"""Measured number, variant, the variant that it is compared with, and the largest ratio allowed."""


@dataclass
class Variant:
    """One way to make a step.

    Attributes:
        loss: Runs the forward and returns the loss.
        policy: The model that is trained.
        trained: Its parameters that get a gradient.
        resident: Bytes that it keeps beside the policy and the optimiser's states.
        module: The LightningModule around the policy, if there is one.
        floor: Variant without a head on the same rows, above whose memory the loss memory is counted.
    """

    loss: Callable[[], Tensor]
    policy: nn.Module
    trained: set[nn.Parameter]
    resident: int = 0
    module: nn.Module | None = None
    floor: str | None = BARE

    def to(self, device: torch.device) -> None:
        """Move the policy, and tell the module where it is."""
        (self.policy if self.module is None else self.module).to(device).train()


@dataclass(frozen=True)
class Size:
    """Number of rows to forget, and of rows to keep, whose lengths rise evenly.

    Attributes:
        rows: Number of rows.
        shortest: Tokens of the first row.
        longest: Tokens of the last row.
        beginning: Tokens with which all rows begin, as a chat template makes them.
    """

    rows: int
    shortest: int
    longest: int
    beginning: int = 0

    @classmethod
    def of(cls, text: str) -> Size:
        """Read ``8x80``, or ``8x30-80`` for rows of 30 to 80 tokens, or ``8x24+56`` for rows that share 24 of 80."""
        rows, length = text.split("x")
        shared, _, rest = length.rpartition("+")
        shortest, _, longest = rest.partition("-")
        beginning = int(shared or 0)
        return cls(int(rows), beginning + int(shortest), beginning + int(longest or shortest), beginning)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        last = max(1, self.rows - 1)
        return [self.shortest + (self.longest - self.shortest) * row // last for row in range(self.rows)]

    @property
    def prompts(self) -> list[int]:
        """Tokens of each prompt: the beginning, and a quarter of the rest of a short row or one token of a long one."""
        rests = [length - self.beginning for length in self.lengths]
        return [self.beginning + (rest // 4 if rest < 256 else 1) for rest in rests]


def make_batch(
    lengths: Sequence[int], prompts: Sequence[int], vocabulary: int, device: torch.device, shared: int = 0
) -> Batch:
    """Forget and retain rows of random tokens, given the lengths of rows, prompts and a shared beginning.

    The tokens after the prompts are supervised.
    """
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(vocabulary, (count,), generator=generator).tolist()

    beginning = tokens(shared)

    def part() -> TokenBatch:
        ids = [beginning + tokens(length - shared) for length in lengths]
        examples = [
            {"index": index, "input_ids": row, "labels": [-100] * prompt + row[prompt:]}
            for index, (row, prompt) in enumerate(zip(ids, prompts, strict=True))
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


def usual_grad_diff(policy: nn.Module, _: nn.Module, batch: Batch) -> Tensor:
    return -mean_nll(policy, batch["forget"]) + mean_nll(policy, batch["retain"])


def usual_npo(policy: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    forget = batch["forget"]
    nll = sequence_nlls(logits_of(policy, forget), forget["labels"])
    with torch.no_grad():
        start = sequence_nlls(logits_of(reference, forget), forget["labels"])
    loss = -2 / BETA * logsigmoid(BETA * (nll - start)).mean()
    return loss + mean_nll(policy, batch["retain"])


def usual_simnpo(policy: nn.Module, _: nn.Module, batch: Batch) -> Tensor:
    forget = batch["forget"]
    tokens = (forget["labels"][:, 1:] != -100).sum(-1)
    nll = sequence_nlls(logits_of(policy, forget), forget["labels"]) / tokens
    return 0.125 * -2 / SIMNPO_BETA * logsigmoid(SIMNPO_BETA * nll).mean() + mean_nll(policy, batch["retain"])


def usual_dipo(policy: nn.Module, reference: nn.Module, batch: Batch) -> Tensor:
    """The loss from both distributions and both models' log-probabilities, at every position."""
    forget = batch["forget"]
    policy_logits = logits_of(policy, forget)[:, :-1].float()
    with torch.no_grad():
        base = logits_of(reference, forget)[:, :-1].float()
        confident = base >= base.amax(-1, keepdim=True) + math.log(PAIR.rho)
        edge = base.masked_fill(confident, -math.inf).amax(-1, keepdim=True)
        vector = PAIR.alpha * (base - edge).masked_fill(~confident, 0)
        preferred, dispreferred = (base - vector).log_softmax(-1), (base + vector).log_softmax(-1)
        difference = preferred.exp() - dispreferred.exp()
    log_ratio = policy_logits.log_softmax(-1) - base.log_softmax(-1)
    margin = ((difference * log_ratio).sum(-1) * (forget["labels"][:, 1:] != -100)).sum(-1)
    return -2 / BETA * logsigmoid(BETA * margin).mean() + mean_nll(policy, batch["retain"])


class Rows(pl.LightningDataModule):
    """The rows of a batch as a data module, for the package to cache its reference from."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.forget_examples, self.retain_examples = (self.examples(batch[part]) for part in ("forget", "retain"))

    @staticmethod
    def examples(part: TokenBatch) -> list[dict[str, Any]]:
        cut = [slice(length) for length in part["attention_mask"].sum(1).tolist()]
        rows = zip(part["input_ids"].tolist(), part["labels"].tolist(), cut, strict=True)
        return [{"index": i, "input_ids": ids[own], "labels": labels[own]} for i, (ids, labels, own) in enumerate(rows)]

    def train_dataloader(self) -> list[int]:
        return [0]


def quiet_trainer(device: torch.device, dtype: str, **options: Any) -> pl.Trainer:
    """A Trainer on one device that writes and prints nothing, unless ``options`` say so."""
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "inference_mode")
    quiet: dict[str, Any] = dict.fromkeys(silent, False)
    quiet |= {"precision": "bf16-mixed" if dtype == "bfloat16" else "32-true"}
    return pl.Trainer(**quiet | {"accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1} | options)


def package_variant(name: str, policy: Any, reference: nn.Module, batch: Batch, cache: Path, dtype: str) -> Variant:
    """The training step of the package's module: its reference is made as ``fit`` makes it."""
    cls, options = PACKAGE[name]
    if "lora" in options:
        policy = copy.deepcopy(policy)  # adapters are put into the model itself
    if issubclass(cls, DiPOModule):
        options = options | {"beta": BETA}
    if cls is RMUModule:
        options = options | {"layer": min(7, policy.config.num_hidden_layers - 1)}  # 7: the default
    device = batch["forget"]["input_ids"].device
    module: Any = cls("shared", reference_cache=str(cache), **options)
    module.load = lambda dtype=torch.float32: policy if module.policy is None else reference
    policy.cpu().requires_grad_(True)
    reference.cpu()  # where a module finds what it loads
    quiet_trainer(device, dtype, max_steps=0).fit(module, Rows(batch))
    policy = module.policy
    trained = {parameter for parameter in policy.parameters() if parameter.requires_grad}
    module.log = module.log_dict = lambda *_, **__: None  # outside a loop there is nothing to log to
    # A step like any other: neither the first one nor one that is logged, which also measure both rewards.
    module._trainer = SimpleNamespace(global_step=1, log_every_n_steps=NEVER, global_rank=0, current_epoch=0)
    if isinstance(module, PreparedSelective):
        module._trainer.datamodule = module.take(batch["forget"])
    resident = 0
    if getattr(module.frozen_reference, "model", None) is reference:
        resident = bytes_of(reference.parameters())
    elif hasattr(module.frozen_reference, "head"):
        resident = bytes_of([module.frozen_reference.head.weight])
    if issubclass(cls, DPOModule):
        batch = with_alternatives(batch)
    floor = floor_of(name, module.parts(batch))
    return Variant(lambda: module.training_step(batch, 0), policy, trained, resident, module, floor)


def floor_of(name: str, parts: Sequence[str]) -> str | None:
    """Return the floor of a variant of the package; None for other rows (selective unlearning) or no head (RMU)."""
    if name.startswith(("Selective", "RMU")):
        return None
    if "frozen" in name or "LoRA" in name:
        return BARE_FROZEN if "frozen" in name else BARE_ADAPTERS
    return next(bare for bare, rows in BARE_PARTS.items() if rows == tuple(parts))


def with_alternatives(batch: Batch) -> Batch:
    """Return a batch whose alternative answers are its retain rows."""
    return batch | {"alternative": batch["retain"]}


def make_variant(name: str, policy: nn.Module, reference: nn.Module, batch: Batch, cache: Path, dtype: str) -> Variant:
    """Build the variant called ``name``, one of `NAMES`."""
    if name in PACKAGE:
        return package_variant(name, policy, reference, batch, cache, dtype)
    joined = concatenate([with_alternatives(batch)[part] for part in BARE_PARTS.get(name, batch)])
    if name == BARE_ADAPTERS:
        policy = add_lora(copy.deepcopy(policy), ADAPTERS["lora"])
        adapters = {parameter for parameter in policy.parameters() if parameter.requires_grad}
        return Variant(lambda: answer_hidden(policy, joined).float().square().mean(), policy, adapters, floor=None)
    everything = set(policy.parameters())
    if name in (*BARE_PARTS, BARE_FROZEN):
        head = policy.get_output_embeddings().weight  # type: ignore[operator]
        trained = everything - {head} if name == BARE_FROZEN else everything
        return Variant(lambda: answer_hidden(policy, joined).float().square().mean(), policy, trained, floor=None)
    if name == FINE_TUNING:
        return Variant(lambda: mean_nll(policy, joined), policy, everything)
    losses = dict(zip(USUAL, (usual_grad_diff, usual_npo, usual_simnpo, usual_dipo), strict=True))
    resident = bytes_of(reference.parameters()) if losses[name] in (usual_npo, usual_dipo) else 0
    return Variant(lambda: losses[name](policy, reference, batch), policy, everything, resident)


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def step(variant: Variant, start: dict[str, Tensor], device: torch.device, dtype: str) -> Measured:
    """Take one step from the weights ``start`` and measure it."""
    policy = variant.policy
    policy.load_state_dict(start)
    for parameter in policy.parameters():
        parameter.requires_grad_(parameter in variant.trained)
        parameter.grad = None
    weights = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    module: Any = variant.module
    optimizer = torch.optim.AdamW(weights) if module is None else module.configure_optimizers()
    counted_on = device if optimizer.param_groups[0]["fused"] else None
    for parameter in variant.trained:  # not the first step: the states are there
        zero, one = torch.zeros_like(parameter), torch.tensor(1.0, device=counted_on)
        optimizer.state[parameter] = {"step": one, "exp_avg": zero, "exp_avg_sq": zero.clone()}
    memory = PeakMemory(device)
    with timed(device) as found:
        with precision(device, dtype):
            loss = variant.loss()
        loss.backward()
        before_update = memory.rise()
        optimizer.step()
    resident = bytes_of(policy.parameters()) + 2 * bytes_of(variant.trained) + variant.resident
    return found | {"held": before_update, "peak": resident + memory.rise(), "value": float(loss.detach())}


def measure(
    policy: Any, size: Size, names: Sequence[str], rounds: int, device: torch.device, dtype: str
) -> dict[str, list[Measured]]:
    """Measure variants in turns."""
    batch = make_batch(size.lengths, size.prompts, policy.config.vocab_size, device, size.beginning)
    reference = copy.deepcopy(policy).requires_grad_(False).eval()
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for name in names:
            with noted(name):
                made[name] = make_variant(name, policy, reference, batch, Path(folder), dtype)
        starts: dict[nn.Module, dict[str, Tensor]] = {}  # variants without adapters share one policy
        for one in made.values():
            one.to(device)
            if one.policy not in starts:
                starts[one.policy] = {key: value.clone() for key, value in one.policy.state_dict().items()}
        reference.to(device)
        run = {name: lambda one=one: step(one, starts[one.policy], device, dtype) for name, one in made.items()}
        found = alternate(run, rounds)
    for parameter in policy.parameters():
        parameter.grad = None
    for name, measured in found.items():
        bare = found.get(made[name].floor or "")
        if bare is not None:
            for held, floor in zip(measured, bare, strict=True):
                held["loss"] = held["held"] - floor["held"]
    return found


def model_flops(policy: Any, size: Size) -> float:
    """Forward and backward of the policy on forget and retain rows: 6 per parameter and token, and attention."""
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    attention = 12 * policy.config.num_hidden_layers * policy.config.hidden_size
    return 2 * sum((6 * parameters + attention * length) * length for length in size.lengths)


def table(policy: Any, sizes: Sequence[str], names: Sequence[str], rounds: int, device: torch.device, dtype: str,
          peak_tflops: float) -> Iterator[Table]:  # fmt: skip
    """Measure every size, and give a table of each as soon as it is there."""
    for text in sizes:
        size = Size.of(text)
        found = measure(policy, size, names, rounds, device, dtype)
        flops, tokens = model_flops(policy, size), sum(size.lengths)
        supervised = 1 - sum(size.prompts) / tokens
        count = min(map(len, found.values()))
        unit = "CPU seconds" if clock(device) == "cpu" else "seconds"
        note = f"{supervised:.0%} of the tokens supervised, {dtype}; medians and ratios of {unit}, {count} rounds."
        made = Table(f"Step on {text.replace('x', ' x ')} tokens to forget and as many to keep", [], note)
        for name, rounds_of_it in found.items():
            made.rows.append(_row(name, rounds_of_it, found, device, flops, peak_tflops, 2 * tokens))
        for key, of, over, limit in PROMISES:
            if of in found and over in found and (key == "time" or "loss" in found[of][0]):
                what = "loss memory" if key == "loss" else key
                measured = clock(device) if key == "time" else key
                made.promise(f"{what}: {of} / {over}", ratio(found[of], found[over], measured), limit)
        yield made


def _row(name: str, measured: list[Measured], found: dict[str, list[Measured]], device: torch.device, flops: float,
         peak_tflops: float, tokens: int) -> dict[str, Any]:  # fmt: skip
    one = medians(measured)
    row: dict[str, Any] = {"variant": name, "seconds": one["seconds"], "CPU s": one["cpu"]}
    for base in (FINE_TUNING, "GradDiff", "NPO, usual"):
        if base in found:
            row[f"/ {base}"] = ratio(measured, found[base], clock(device))["ratio"]
    if FINE_TUNING in found:
        span = ratio(measured, found[FINE_TUNING], clock(device))
        row["interval"] = f"{span['low']:.2f} to {span['high']:.2f}"
    row |= {"tokens/s": tokens / one["seconds"], "peak MiB": one["peak"] / 2**20}
    if "loss" in one:
        row["loss MiB"] = one["loss"] / 2**20
    if device.type == "cuda":
        row["of peak FLOP/s"] = flops / one["seconds"] / peak_tflops / 1e12
    return row
