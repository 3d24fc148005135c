"""Every benchmark of the package as one table: steps, evaluation, fits, checkpoints, start-up, long and large inputs.

    python tools/benchmarks/all.py --model FOLDER --output results.json
    python tools/benchmarks/all.py --model random --device cuda --dtype bfloat16 --quick --output results.json

``--model`` is a folder as ``model.pretrained`` takes it, or ``random``: SmolLM2-135M's shape with random weights and a
tokenizer of its own. The JSON file holds all tables; they are also written beside it as Markdown, and printed. Run it
on a machine that does nothing else, or compare only the CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from dipo_lightning.benchmarks.tofu.data import load_tofu
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.models.loading import load_policy, load_tokenizer
from dipo_lightning.quickstart.authors import write_fictitious
from dipo_lightning.quickstart.model import train_tokenizer
from tools.benchmarks import evaluation, measuring, runs, steps
from tools.benchmarks.measuring import Table, machine

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
CERTAINTY = 5.0
"""Scale of the random model's logits: a few tokens get most of the probability, as a trained model gives it."""
PARTS = ("steps", "evaluation", "processes", "fits", "startup", "long", "large")
QUICK = ("steps", "evaluation", "fits")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, or random")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help=f"all; with --quick {' '.join(QUICK)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rows and parts: two minutes on a GPU")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks.json"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further round after so many")
    parser.add_argument("--rounds", type=int, help="of every measurement after the warm-up; 5, or 3 with --quick")
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["8x80", "8x24+56", "2x2048"],
        help="rows x tokens, of forget and of retain; 8x30-80 for rows of 30 to 80 tokens, 8x24+56 for rows that share "
        "the first 24, as with a chat template",
    )
    parser.add_argument("--variants", nargs="+", choices=steps.NAMES, metavar="NAME", help=f"of {steps.NAMES}")
    parser.add_argument("--layers", type=int, help="only the first so many of the model")
    parser.add_argument("--data", help="folder with TOFU's files; made-up rows of its schema without it")
    parser.add_argument("--split", default="forget10")
    parser.add_argument("--rows", type=int, help="evaluated rows of each set; 20, or 10 with --quick")
    parser.add_argument("--batch-size", type=int, default=32, help="of the straightforward evaluation")
    parser.add_argument("--max-new-tokens", type=int, default=50)
    parser.add_argument("--tuned", action="store_true", help="the model was fine-tuned on the evaluated rows")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU in dense bfloat16; 989: H100 SXM")
    parser.add_argument("--large", type=int, nargs=2, default=[100_000, 1_000_000], help="rows to forget and to keep")
    options = parser.parse_args()
    options.parts = options.parts or (QUICK if options.quick else PARTS)
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.rows = options.rows or (10 if options.quick else 20)
    options.variants = options.variants or (steps.ESSENTIAL if options.quick else steps.NAMES)
    return options


class Bench:
    """The model, the tokenizer and the data that the parts share."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder, self.device = options, folder, torch.device(options.device)
        self.data = options.data or str(write_fictitious(folder / "authors"))
        self.tokenizer_folder = options.model
        if options.model == "random":
            self.tokenizer_folder = str(folder / "tokenizer")
            train_tokenizer(_lines(Path(self.data)), 8192).save_pretrained(self.tokenizer_folder)
        self.prompt = "plain"
        self.tokenizer = load_tokenizer(self.tokenizer_folder)
        if self.tokenizer.chat_template:
            self.prompt = "chat"

    def model(self) -> Any:
        """A copy of the model on the CPU, float32."""
        if self.options.model != "random":
            model: Any = load_policy(self.options.model)
        else:
            from transformers import LlamaConfig, LlamaForCausalLM

            torch.manual_seed(0)
            model = LlamaForCausalLM(LlamaConfig(**SMOLLM2)).eval()
            model.model.norm.weight.data *= CERTAINTY
        if self.options.layers:
            del model.model.layers[self.options.layers :]
            model.config.num_hidden_layers = self.options.layers
        return model

    def steps(self) -> Iterable[Table]:
        o = self.options
        return steps.table(self.model(), o.sizes, o.variants, o.rounds, self.device, o.dtype, o.peak_tflops)

    def rows(self, count: int) -> tuple[Any, Any]:
        """The prompt style, and the first rows of TOFU's sets."""
        sets: Any = dict(load_tofu(self.data, self.options.split).first(count).sets)
        sets.pop("holdout", None)
        return prompt_style(self.prompt, self.tokenizer), sets

    def evaluation(self) -> list[Table]:
        o = self.options
        style, sets = self.rows(o.rows)
        model = self.model().to(self.device)
        limit, rounds = o.max_new_tokens, 1 if o.quick else min(o.rounds, 3)
        return [evaluation.table(model, style, sets, limit, o.batch_size, rounds, o.dtype, o.tuned)]

    def processes(self) -> list[Table]:
        o = self.options
        style, sets = self.rows(5 * o.rows)
        rounds = min(o.rounds, 3)
        return [evaluation.processes_table(self.model, style, sets, o.max_new_tokens, self.folder, rounds)]

    def fits(self) -> Iterable[Table]:
        saves = 1 if self.options.quick else 3
        where = self.tokenizer_folder, self.data, self.prompt, self.folder
        return runs.fits(self.model(), *where, self.device, self.options.dtype, self.options.rounds, saves)

    def startup(self) -> list[Table]:
        return [runs.startup(self.folder, self.options.rounds)]

    def long(self) -> list[Table]:
        return [runs.long_answers(self.device, self.options.dtype, self.options.quick)]

    def large(self) -> list[Table]:
        return [runs.large_sets(self.folder, *self.options.large)]


def _lines(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.json")) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # weights of saturated losses may be subnormal numbers, which a CPU computes slowly
    measuring.DEADLINE[0] = time.perf_counter() + options.seconds
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    document: dict[str, Any] = {"machine": machine(torch.device(options.device)), "tables": []}
    document["options"] = {name: str(value) for name, value in vars(options).items()}
    print(json.dumps(document["machine"]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.parts:
            print(f"{part} ...", flush=True)
            began = time.perf_counter()
            make: Callable[[], Iterable[Table]] = getattr(bench, part)
            with measuring.noted(part):
                for table in make():
                    document["tables"].append(asdict(table))
                    write(options.output, document)
                    print(table.markdown(), flush=True)
            document.setdefault("seconds", {})[part] = round(time.perf_counter() - began, 1)
            write(options.output, document)
    sys.exit(1 if measuring.FAILED else 0)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write what there is so far as JSON and Markdown."""
    document["failed"] = measuring.FAILED
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    about = ", ".join(f"{name} {value}" for name, value in document["machine"].items())
    texts = [Table(**table).markdown() for table in document["tables"]]
    path.with_suffix(".md").write_text("\n".join([f"# Benchmarks\n\n{about}\n", *texts]), encoding="utf-8")


if __name__ == "__main__":
    main()
