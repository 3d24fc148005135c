"""Memory of each part of a run on one GPU, computed from the model's configuration without loading weights.

With P parameters in total, T of them trainable, P_root outside the blocks (embedding, projection, last norm) and
P_block in one block, W GPUs, and c bytes per number in the compute dtype (2 for bfloat16), one GPU holds

    weights       4 P / W                 float32
    gradients     4 T / W                 float32
    optimizer     8 T / W                 AdamW's two moments, float32
    reference     live: c P / W; hidden_states, directions and live with a trained projection: + c V H, whole on
                  every GPU; adapters_off: 0
    gathered      c (P_root + 2 P_block)  root and two blocks, which FSDP2 holds whole; twice with a live reference
    reductions    (c + 4) max(T_root, T_block)   a whole gradient, and its float32 copy on the way to its shards
    activations   tensors that autograd saves in a forward pass of a micro-batch: traced on a model without storage
    loss          vocabulary-sized values of the loss

with W = 1 for everything that ``strategy: ddp`` does not split. With ``trainable: qlora`` the linear layers of the
blocks take 0.516 bytes per weight (NF4), embedding and projection c, and one layer at a time is unpacked. P and T are
counted, activations are traced; the rest follows from the formulas. Fragmentation, the CUDA context and NCCL are not
counted; `RESERVE` is kept free for them.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from dipo_lightning.errors import InputError, check_numbers, check_positive
from dipo_lightning.models.lora import BYTES

LONGEST = 1_000_000
"""Maximum length of a row in tokens; the sizes of much longer ones overflow."""
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
                     "tie_word_embeddings": True},
    "llama-3.1-8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "llama-2-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
                    "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000},
    "llama-3.1-70b": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                      "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
"""Models that can be planned for by name, without a network."""


@dataclass(frozen=True)
class Run:
    """Planned run.

    Attributes:
        gpus: Number of GPUs on all nodes.
        memory_gb: Memory of one GPU in 10^9 bytes.
        batch_size: Forget rows per micro-batch and GPU; there are as many retain rows.
        length: Length of the longest row in tokens.
        answer_length: Supervised tokens per row.
        trainable: full trains all weights, lora adapters on every linear module of the blocks, qlora the same over a
            4-bit base.
        lora_rank: Rank of the adapters.
        reference: The option model.reference; none for methods without a reference model.
        strategy: The option trainer.strategy.
        activation_checkpointing: The option model.activation_checkpointing.
        form: hidden computes the loss chunk by chunk from hidden states (the default if the head is known); logits
            keeps all logits of the supervised positions.
        chunk_size: Positions per chunk.
        compute_dtype: Dtype of the computation.
    """

    gpus: int = 1
    memory_gb: float = 80.0
    batch_size: int = 8
    length: int = 512
    answer_length: int = 64
    trainable: Literal["full", "lora", "qlora"] = "full"
    lora_rank: int = 8
    reference: Literal["live", "hidden_states", "adapters_off", "directions", "none"] = "live"
    strategy: Literal["fsdp2", "ddp"] = "fsdp2"
    activation_checkpointing: bool = False
    form: Literal["hidden", "logits"] = "hidden"
    chunk_size: int = 1024
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        """Refuse options that cannot be combined or are out of range."""
        sizes = ("gpus", "batch_size", "length", "answer_length", "lora_rank", "chunk_size")
        check_numbers("", {name: getattr(self, name) for name in sizes})
        check_positive("", {"memory_gb": self.memory_gb})
        if self.length > LONGEST:
            raise InputError(f"length is {self.length}; it can be {LONGEST} tokens at most.")
        if self.answer_length > self.length:
            raise InputError(
                f"answer_length is {self.answer_length}, more than the {self.length} tokens of a row (length)."
            )
        if self.trainable == "full" and self.reference in ("adapters_off", "directions"):
            raise InputError(f"reference is {self.reference}, which needs trainable: lora here.")
        if self.trainable == "qlora" and (self.strategy, self.compute_dtype) != ("ddp", "bfloat16"):
            raise InputError(
                "trainable is qlora, which needs strategy: ddp (on one GPU too) and compute_dtype: bfloat16."
            )
        if self.trainable == "qlora" and self.reference == "live":
            raise InputError(
                "reference is live, which trainable: qlora excludes; use adapters_off, hidden_states or directions."
            )

    @property
    def bytes(self) -> int:
        """Bytes per number of the computation."""
        return 2 if self.compute_dtype == "bfloat16" else 4

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the computation."""
        return getattr(torch, self.compute_dtype)


@dataclass(frozen=True)
class Counts:
    """Numbers of parameters in total, outside the blocks (root) and in the largest block; all, and trainable ones only.

    ``packed`` counts the frozen parameters of the blocks' linear layers, ``largest`` those of the largest such layer;
    ``linear_head`` says whether the logits are nothing but the product of hidden states and projection.
    """

    total: int
    root: int
    block: int
    trainable: int
    trainable_root: int
    trainable_block: int
    vocabulary: int
    width: int
    layers: int
    packed: int = 0
    largest: int = 0
    linear_head: bool = True


def configuration(pretrained: str) -> Any:
    """Return the ``transformers`` configuration of a model, or of a name in `SHAPES`."""
    from transformers import AutoConfig

    from dipo_lightning.models.loading import check_kind, find_source, load_config

    if pretrained.lower() in SHAPES:
        return AutoConfig.for_model("llama", max_position_embeddings=131072, **SHAPES[pretrained.lower()])
    config = load_config(source := find_source(pretrained))
    check_kind(config, source)
    return config


def count(config: Any, run: Run) -> Counts:
    """Count the parameters of the model on the meta device; a tied weight counts once."""
    from dipo_lightning.models.distributed import transformer_blocks
    from dipo_lightning.models.head import output_head, output_projection

    model = empty_model(config, run, torch.float32)
    blocks = transformer_blocks(model)
    inside = {id(parameter) for block in blocks for parameter in block.parameters()}
    root = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    vocabulary, width = output_projection(model).shape
    linear = [
        module.weight.numel()
        for block in blocks
        for module in block.modules()
        if type(module) is nn.Linear and not module.weight.requires_grad
    ]
    return Counts(
        total=_size(list(model.parameters())),
        root=_size(root),
        block=max((_size(list(block.parameters())) for block in blocks), default=0),
        trainable=_size(list(model.parameters()), trained=True),
        trainable_root=_size(root, trained=True),
        trainable_block=max((_size(list(block.parameters()), trained=True) for block in blocks), default=0),
        vocabulary=vocabulary,
        width=width,
        layers=len(blocks),
        packed=sum(linear),
        largest=max(linear, default=0),
        linear_head=output_head(model).linear,
    )


def memory(counts: Counts, run: Run) -> dict[str, float]:
    """Return the bytes of every part except the activations, by the formulas above."""
    sharded = run.strategy == "fsdp2"
    shards, c = run.gpus if sharded else 1, run.bytes
    trained_projection = counts.trainable_root > 0
    head = c * counts.vocabulary * counts.width
    live = run.reference == "live"
    stored = c if sharded else 4
    reference = stored * counts.total / shards if live else 0.0
    if run.reference in ("hidden_states", "directions") or (live and trained_projection and sharded):
        reference += head
    if sharded:
        gathered = c * (counts.root + 2 * counts.block) * (2 if live else 1)
        reductions = (c + 4) * max(counts.trainable_root, counts.trainable_block)
    else:  # autocast keeps its casts of the weights until the backward pass is over; DDP keeps buckets of gradients
        gathered = c * counts.total if c < 4 else 0
        reductions = 4 * counts.trainable if run.gpus > 1 else 0
    weights = 4 * counts.total / shards
    if run.trainable == "qlora":  # embedding and projection in bfloat16, the packed layers, adapters in float32
        frozen = counts.total - counts.trainable - counts.packed
        weights = BYTES * counts.packed + c * frozen + 4 * counts.trainable
        gathered = c * counts.largest
    return {
        "weights": weights,
        "gradients": 4 * counts.trainable / shards,
        "optimizer": 8 * counts.trainable / shards,
        "reference": reference,
        "gathered": gathered,
        "reductions": reductions,
        "loss": loss_memory(counts, run),
    }


def loss_memory(counts: Counts, run: Run) -> float:
    """Return the bytes of the vocabulary-sized values of the loss.

    From hidden states: six float32 buffers of a chunk (logits and log-softmax of both models, their divergence, and a
    gradient). From logits: the policy's logits and their gradient at forget and retain positions, the reference's
    logits, and float32 vectors: six at each forget position (two differences, probabilities, their log), four at each
    retain position.
    """
    positions = run.batch_size * run.answer_length  # of the forget rows, and as many of the retain rows
    if run.form == "hidden":
        return 6 * 4 * counts.vocabulary * min(positions, run.chunk_size)
    reference = 0 if run.reference in ("none", "directions") else run.bytes * 2 * positions
    return counts.vocabulary * (2 * run.bytes * 2 * positions + reference + 4 * (6 + 4) * positions)


def activations(config: Any, counts: Counts, run: Run) -> float:
    """Return the bytes of activations that a micro-batch keeps for the backward pass.

    They are traced in a forward pass that allocates nothing. With checkpointing each block keeps its input, and the
    largest block is recomputed.
    """
    rest, blocks = saved_bytes(config, run)
    if not run.activation_checkpointing:
        return rest + sum(blocks)
    inputs = run.bytes * 2 * run.batch_size * run.length * counts.width
    return rest + counts.layers * inputs + max(blocks, default=0.0)


def saved_bytes(config: Any, run: Run) -> tuple[float, list[float]]:
    """Return the bytes that autograd saves in a forward pass, without weights: outside the blocks, and in each block.

    Of several blocks of one class and size only the first is computed.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dipo_lightning.models.distributed import transformer_blocks
    from dipo_lightning.models.head import decoder

    saved: set[torch.UntypedStorage] = set()  # a storage is one object, whatever tensors are views of it

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.add(tensor.untyped_storage())
        return tensor

    model = empty_model(config, run, run.dtype).train()
    with FakeTensorMode():
        for module in model.modules():  # from the meta device, which has no kernels of its own, to one that has
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty(parameter.shape, dtype=run.dtype)
                module.register_parameter(name, nn.Parameter(empty, parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
        weights = {parameter.untyped_storage() for parameter in model.parameters()}

        def size() -> float:
            return float(sum(storage.nbytes() for storage in saved - weights))

        blocks = transformer_blocks(model)
        kinds = [(type(block), *(parameter.shape for parameter in block.parameters())) for block in blocks]
        outputs: dict[Any, tuple[Any, float]] = {}
        for block, kind in zip(blocks, kinds, strict=True):
            block.forward = functools.partial(_first_of_kind, block.forward, kind, outputs, size)
        tokens = torch.zeros(2 * run.batch_size, run.length, dtype=torch.long)
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                decoder(model)(input_ids=tokens, use_cache=False)
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"The activations of a {config.model_type} model cannot be computed in advance, since its code needs "
                f"real values ({error}). Measure a step of a run instead."
            ) from error
        rest = size() - sum(kept for _, kept in outputs.values())
        return rest, [outputs[kind][1] for kind in kinds]


def _first_of_kind(
    forward: Any, kind: Any, outputs: dict[Any, tuple[Any, float]], size: Callable[[], float], *args: Any, **kwargs: Any
) -> Any:
    """Run a block if it is the first of its kind, and record the bytes it saves; else return the first one's output."""
    if kind not in outputs:
        before = size()
        output = forward(*args, **kwargs)
        outputs[kind] = output, size() - before
    return outputs[kind][0]


def empty_model(config: Any, run: Run, dtype: torch.dtype) -> nn.Module:
    """Build the model of ``config`` on the meta device, with adapters where the run has them."""
    from transformers import AutoModelForCausalLM

    from dipo_lightning.models.lora import LoRA, add_lora

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return model if run.trainable == "full" else add_lora(model, LoRA(rank=run.lora_rank))


def _size(parameters: list[nn.Parameter], trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad or not trained)


RESERVE = 0.1
"""Share of a GPU's memory that a plan leaves free."""

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Memory plan of a run; ``parts`` are the bytes of each part on one GPU."""

    model: str
    run: Run
    counts: Counts
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes of all parts together, an upper bound since they do not peak at the same time."""
        return sum(self.parts.values())

    @property
    def host(self) -> float:
        """Bytes of host memory per process during loading: the whole model in float32, before it is split."""
        return 4.0 * self.counts.total

    @property
    def fits(self) -> bool:
        """True if the plan leaves `RESERVE` of a GPU free."""
        return self.total <= (1 - RESERVE) * self.run.memory_gb * GB

    def __str__(self) -> str:
        """Return the plan as a table."""
        run, counts = self.run, self.counts
        rows = [f"  {name:<13}{value / GB:9.2f} GB" for name, value in {**self.parts, "total": self.total}.items()]
        room = f"{round((1 - RESERVE) * run.memory_gb, 1):g} of {round(run.memory_gb, 1):g} GB"
        return "\n".join(
            [
                f"{self.model}: {counts.total / 1e9:.3f} B parameters, {counts.trainable / 1e9:.4f} B trained, on "
                f"{run.gpus} GPU(s) of {round(run.memory_gb, 1):g} GB ({run.strategy}, {run.compute_dtype})",
                f"a micro-batch of {run.batch_size} forget and {run.batch_size} retain rows of {run.length} tokens, "
                f"{run.answer_length} of them answer; reference: {run.reference}; activation_checkpointing: "
                f"{str(run.activation_checkpointing).lower()}",
                *rows,
                f"{'fits' if self.fits else 'does NOT fit'}: {room} may be used; computed, not measured.",
                f"Each process loads the whole model first: {self.host / GB:.0f} GB of host memory per process.",
            ]
        )


def plan(pretrained: str, **options: Any) -> Plan:
    """Print the memory that a run needs on each GPU, and whether it fits; no weights are loaded.

    Args:
        pretrained: Hub name, folder or GGUF file, of which only the configuration is read; or one of llama-3.2-1b,
            llama-3.1-8b, llama-2-13b and llama-3.1-70b.
        **options: Those of `Run`.

    Returns:
        The plan.
    """
    run = Run(**options)
    made = make_plan(pretrained, run)
    print(made)
    if not made.fits:
        found = cheapest_fit(pretrained, run)
        if found is None:
            print("No change of these options makes it fit; take a smaller model.")
        else:
            changes = ", ".join(f"{name}: {str(value).lower()}" for name, value in found[0].items())
            print(f"The cheapest change that fits: {changes} ({found[1].total / GB:.1f} GB).")
    return made


def cheapest_fit(pretrained: str, run: Run) -> tuple[dict[str, Any], Plan] | None:
    """Find the cheapest change of options with which a run fits: a single one, or several together.

    Changes that only cost time are tried first, then those that change the training, then more GPUs.

    Returns:
        The options to change, and the plan with them; None if none fits.
    """
    steps: list[dict[str, Any]] = [{"form": "hidden"}] if run.form == "logits" else []
    steps += [] if run.activation_checkpointing else [{"activation_checkpointing": True}]
    steps += [{"reference": "hidden_states"}] if run.reference == "live" else []
    sizes = [size for size in (run.batch_size // 2, run.batch_size // 4, 1) if 0 < size < run.batch_size]
    steps += [{"batch_size": size} for size in dict.fromkeys(sizes)]
    steps += [{"trainable": "lora", "reference": "adapters_off"}] if run.trainable == "full" else []
    packed = {"trainable": "qlora", "reference": "adapters_off", "strategy": "ddp", "compute_dtype": "bfloat16"}
    more = [{"gpus": run.gpus * times, "strategy": "fsdp2"} for times in (2, 4, 8, 16)]
    fewer, more = ([packed], more) if run.trainable != "qlora" else ([], [])
    together: dict[str, Any] = {}
    tried = [*steps, *fewer, *more]
    for step in steps:
        together = together | step
        tried.append(together)
    tried += [together | step for step in fewer]
    for step in more:
        together = together | step
        tried.append(together)
    for changes in tried:
        with contextlib.suppress(InputError):  # what this model cannot do
            made = make_plan(pretrained, replace(run, **changes))
            if made.fits:
                return changes, made
    return None


def make_plan(pretrained: str, run: Run) -> Plan:
    """Return the plan of ``run`` for a model.

    Raises:
        InputError: The model cannot be trained so.
    """
    config = configuration(pretrained)
    counts = count(config, run)
    if run.reference in ("hidden_states", "directions") and not counts.linear_head:
        raise InputError(
            f"reference is {run.reference}, but the logits of a {config.model_type} model are more than the product of "
            "its hidden states and the projection (a bias, a scale or a cap): use live, or adapters_off with adapters."
        )
    if run.trainable == "qlora" and not counts.packed:
        raise InputError(
            f"trainable is qlora, which packs linear layers; the blocks of this {config.model_type} model have none "
            "(their weights are of another kind). Use lora."
        )
    return Plan(pretrained, run, counts, memory(counts, run) | {"activations": activations(config, counts, run)})
