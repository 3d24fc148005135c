"""Time and memory of one training step of DiPO's paths, of what they are compared with, and of plain fine-tuning.

A step is forward, loss, backward and AdamW on one batch of forget and as many retain rows. All variants train the same
policy in one process, one after the other in each round, so that whatever else the machine does meets all of them.
Run by hand, on a machine that does nothing else:

    python -m tools.benchmarks.step --model tiny
    python -m tools.benchmarks.step --model FOLDER --sizes 8x80 2x2048 --repeats 5 --json step.json

``step``: median wall time; ``peak``: weights, optimiser and reference, and the most that a step holds beside them;
``loss``: the most that forward, loss and backward hold, above what the decoder's forward and backward alone hold. How
memory is measured stands in ``peak_memory``. The norm of the gradient, logging and the data loader are left out of all
variants alike.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipo_lightning.models.head import output_projection
from tools.benchmarks.peak_memory import PeakMemory
from tools.benchmarks.step_variants import (
    BARE,
    BARE_FROZEN,
    NAMES,
    USUAL_NAMES,
    Variant,
    bytes_of,
    make_batch,
    make_variant,
)

TARGETS = (
    ("step", "dipo hidden_states", "grad_diff", 1.05),
    ("step", "dipo directions", "grad_diff frozen", 0.95),
    ("step", "dipo directions", "npo usual", 0.75),
    ("loss", "dipo hidden_states", "dipo usual", 0.25),
)
"""What is measured, of which variant, over which other one, and what it shall be at most (SmolLM2-135M, 2 cores)."""

Measured = dict[str, float]


def load(model: str, layers: int | None) -> Any:
    if model == "tiny":
        from tests.helpers.toys import toy_model

        return toy_model(
            "llama", **({} if layers is None else {"num_hidden_layers": layers}), max_position_embeddings=2048
        )
    from transformers import AutoModelForCausalLM

    more = {} if layers is None else {"num_hidden_layers": layers}
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, **more)


def step(variant: Variant, policy: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> Measured:
    """Take one step and measure it."""
    output_projection(policy).requires_grad_(not variant.frozen)
    optimizer.zero_grad(set_to_none=True)
    memory = PeakMemory(device)
    gpu = device.type == "cuda"
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.autocast("cuda", torch.bfloat16) if gpu else nullcontext():
        loss = variant.loss()
    loss.backward()
    before_update = memory.rise()
    optimizer.step()
    if gpu:
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    trained = bytes_of(parameter for parameter in policy.parameters() if parameter.requires_grad)
    resident = bytes_of(policy.parameters()) + 2 * trained + variant.resident
    return {
        "step": wall,
        "cpu": cpu,
        "held": before_update,
        "peak": resident + memory.rise(),
        "value": float(loss.detach()),
    }


def measure(
    policy: Any, size: tuple[int, int], prompt: int, names: Sequence[str], options: argparse.Namespace
) -> dict[str, Measured]:
    """Warm up, measure all variants in turns, and return medians."""
    device = torch.device(options.device)
    batch = make_batch(*size, prompt, policy.config.vocab_size, device)
    reference = copy.deepcopy(policy).requires_grad_(False).eval().to(device)
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    rounds: dict[str, list[Measured]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        variants = {name: make_variant(name, policy, reference, batch, Path(folder)) for name in names}
        policy.to(device).train().requires_grad_(True)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
        for number in range(options.warmup + options.repeats):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                policy.load_state_dict(start)  # every step is the first one: no variant trains for another
                found = step(variants[name], policy, optimizer, device)
                if number >= options.warmup:
                    rounds[name].append(found)
                print(f"  {number + 1} {name:<26}{found['step']:9.3f} s", flush=True)
    medians = {
        name: {key: statistics.median(found[key] for found in all_found) for key in all_found[0]}
        for name, all_found in rounds.items()
    }
    for name, found in medians.items():
        bare = medians.get(BARE_FROZEN if variants[name].frozen else BARE)
        if bare is not None:
            found["loss"] = found["held"] - bare["held"]
    return medians


def ratios(medians: dict[str, Measured]) -> list[dict[str, Any]]:
    """The targets that can be told from what was measured."""
    return [
        {"of": of, "over": over, "what": what, "ratio": medians[of][what] / medians[over][what], "at_most": limit}
        for what, of, over, limit in TARGETS
        if what in medians.get(of, {}) and medians.get(over, {}).get(what)
    ]


def model_flops(config: Any, parameters: int, rows: int, length: int) -> float:
    """Forward and backward of the policy on forget and retain rows: 6 a parameter and token, and attention."""
    attention = 12 * config.num_hidden_layers * config.hidden_size * length
    return (6 * parameters + attention) * 2 * rows * length


def show(title: str, medians: dict[str, Measured], tokens: int, share: float | None) -> None:
    """Print the table of one size and its ratios.

    Args:
        share: FLOPs of a step over the peak FLOP/s of the device, in seconds; None leaves the column out.
    """
    print(f"\n{title}")
    print(f"{'':<26}{'step s':>9}{'cpu s':>9}{'/ floor':>9}{'tokens/s':>10}{'peak MiB':>10}{'loss MiB':>10}", end="")
    print(f"{'of peak':>9}" if share else "")
    floor = medians.get("fine-tuning", {}).get("step")
    for name, found in medians.items():
        line = f"{name:<26}{found['step']:9.3f}{found['cpu']:9.3f}"
        line += f"{found['step'] / floor:9.2f}" if floor else f"{'':>9}"
        line += f"{tokens / found['step']:10.0f}{found['peak'] / 2**20:10.0f}"
        line += f"{found['loss'] / 2**20:10.0f}" if "loss" in found else f"{'':>10}"
        print(line + (f"{share / found['step']:9.1%}" if share else ""))
    for ratio in ratios(medians):
        good = "holds" if ratio["ratio"] <= ratio["at_most"] else "missed"
        what = f"{ratio['what']}: {ratio['of']} / {ratio['over']}"
        print(f"  {what:<52}{ratio['ratio']:7.3f}  (at most {ratio['at_most']}: {good})")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, or a Hugging Face folder such as SmolLM2-135M's")
    parser.add_argument("--sizes", nargs="+", default=["8x80", "2x2048"], help="rows x tokens, of forget and of retain")
    parser.add_argument(
        "--prompt", type=int, help="tokens of a row that are not supervised; a quarter below 256, else 0"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=NAMES, default=list(USUAL_NAMES), metavar="NAME", help=str(NAMES)
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, help="only the first so many: the memory of a loss does not ask for more")
    parser.add_argument("--device", default="cpu", help="cpu (float32) or cuda (bfloat16 autocast)")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU in dense bfloat16; 989: H100 SXM")
    parser.add_argument("--json", type=Path, help="also write everything here")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    policy = load(options.model, options.layers)
    document: dict[str, Any] = {"torch": torch.__version__, "options": {k: str(v) for k, v in vars(options).items()}}
    for size in options.sizes:
        rows, length = map(int, size.split("x"))
        prompt = options.prompt if options.prompt is not None else (length // 4 if length < 256 else 0)
        medians = measure(policy, (rows, length), prompt, options.variants, options)
        flops = model_flops(policy.config, sum(p.numel() for p in policy.parameters()), rows, length)
        supervised = (length - max(prompt, 1)) / length
        title = (
            f"{options.model}, {rows} x {length} forget and as many retain tokens, {supervised:.0%} supervised; "
            f"{options.device}, {options.threads} threads, median of {options.repeats}"
        )
        show(
            title, medians, 2 * rows * length, flops / options.peak_tflops / 1e12 if options.device == "cuda" else None
        )
        document[size] = {"supervised": supervised, "variants": medians, "ratios": ratios(medians)}
        if options.json:
            options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
