"""Whether a run fits its GPUs, part by part; the formulas stand in `dipo_lightning.planning_memory`."""

from dataclasses import dataclass, field
from typing import Literal

from dipo_lightning.planning_memory import SHAPES, Counts, Run, activations, configuration, count, memory

RESERVE = 0.1
"""Share of a GPU's memory that a plan leaves free."""

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """Bytes on each GPU by what takes them.

    Attributes:
        model: Name of the model.
        run: What was planned for.
        counts: Numbers of parameters.
        parts: Bytes of each part.
    """

    model: str
    run: Run
    counts: Counts
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes of all parts together: an upper bound, since not all peak at the same time."""
        return sum(self.parts.values())

    @property
    def host(self) -> float:
        """Bytes of host memory of each process while it loads: the whole model in float32, before it is split."""
        return 4.0 * self.counts.total

    @property
    def fits(self) -> bool:
        """Whether it fits a GPU with `RESERVE` left free."""
        return self.total <= (1 - RESERVE) * self.run.memory_gb * GB

    def __str__(self) -> str:
        """Write the plan as a table."""
        run, counts = self.run, self.counts
        rows = [f"  {name:<13}{value / GB:9.2f} GB" for name, value in {**self.parts, "total": self.total}.items()]
        room = f"{(1 - RESERVE) * run.memory_gb:.0f} of {run.memory_gb:.0f} GB"
        return "\n".join(
            [
                f"{self.model}: {counts.total / 1e9:.3f} B parameters, {counts.trainable / 1e9:.4f} B trained, on "
                f"{run.gpus} GPU(s) of {run.memory_gb:.0f} GB ({run.strategy}, {run.compute_dtype})",
                f"a micro-batch of {run.batch_size} forget and {run.batch_size} retain rows of {run.length} tokens, "
                f"{run.answer_length} of them answer; reference: {run.reference}; activation_checkpointing: "
                f"{str(run.activation_checkpointing).lower()}",
                *rows,
                f"{'fits' if self.fits else 'does NOT fit'}: {room} may be used; computed, not measured.",
                f"Each process loads the whole model first: {self.host / GB:.0f} GB of host memory a process.",
            ]
        )


def plan(
    pretrained: str,
    gpus: int = 1,
    memory_gb: float = 80.0,
    batch_size: int = 8,
    length: int = 512,
    answer_length: int = 64,
    trainable: Literal["full", "lora"] = "full",
    lora_rank: int = 8,
    reference: Literal["live", "hidden_states", "adapters_off", "directions", "none"] = "live",
    strategy: Literal["fsdp2", "ddp"] = "fsdp2",
    activation_checkpointing: bool = False,
    form: Literal["hidden", "logits"] = "hidden",
    chunk_size: int = 1024,
    compute_dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> Plan:
    """Print the memory that a run takes on each GPU, and whether it fits; no weights are loaded.

    Args:
        pretrained: Hub name, folder or GGUF file, of which the configuration is read; or a shape by name:
            llama-3.2-1b, llama-3.1-8b, llama-2-13b, llama-3.1-70b.
        gpus: Number of GPUs, all nodes together.
        memory_gb: Memory of one GPU, in 10^9 bytes.
        batch_size: Forget rows of a micro-batch on one GPU, with as many retain rows.
        length: Tokens of the longest row, padding included.
        answer_length: Supervised tokens of a row.
        trainable: All weights, or LoRA adapters on every linear module of the blocks.
        lora_rank: Rank of the adapters.
        reference: As model.reference; none for methods without one.
        strategy: As trainer.strategy.
        activation_checkpointing: As model.activation_checkpointing.
        form: hidden computes the loss chunk by chunk from hidden states (DiPO's default); logits keeps all logits of
            the supervised positions (every other method).
        chunk_size: Positions of a chunk.
        compute_dtype: Dtype of the computation.

    Returns:
        The plan.
    """
    run = Run(
        gpus, memory_gb, batch_size, length, answer_length, trainable, lora_rank, reference, strategy,
        activation_checkpointing, form, chunk_size, compute_dtype,
    )  # fmt: skip
    made = make_plan(pretrained, run)
    print(made)
    return made


def make_plan(pretrained: str, run: Run) -> Plan:
    """Return the plan of ``run`` for a model."""
    config = configuration(pretrained)
    counts = count(config, run)
    return Plan(pretrained, run, counts, memory(counts, run) | {"activations": activations(config, counts, run)})


def markdown_table(models: tuple[str, ...] = tuple(SHAPES), worlds: tuple[int, ...] = (1, 8, 64)) -> str:
    """Return the README's table: GB on each GPU of 80 GB, full fine-tuning and LoRA, with checkpointing."""
    ways = {
        "full, live reference": {"reference": "live"},
        "full, hidden_states": {"reference": "hidden_states"},
        "LoRA, adapters_off": {"trainable": "lora", "reference": "adapters_off"},
    }
    lines = ["| model | training | " + " | ".join(f"{world} GPU{'s' * (world > 1)}" for world in worlds) + " |"]
    lines.append("|---|---|" + "---:|" * len(worlds))
    for model in models:
        for way, options in ways.items():
            plans = [make_plan(model, Run(gpus=n, activation_checkpointing=True, **options)) for n in worlds]  # type: ignore[arg-type]
            cells = [f"{made.total / GB:.1f}" if made.fits else f"~~{made.total / GB:.1f}~~" for made in plans]
            lines.append(f"| {model} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
