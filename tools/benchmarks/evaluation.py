"""How much faster TOFU's evaluation is than a straightforward one, on the same model and rows, with the same results.

The straightforward one takes one metric at a time and the rows in their order, in batches of one size: every metric
runs its own forwards over all positions, and a generation batch runs until its last row ends. Run by hand:

    python -m tools.benchmarks.evaluation --model FOLDER --data TOFU_FOLDER --rows 20
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dipo_lightning.benchmarks.tofu import TOFU
from dipo_lightning.benchmarks.tofu.data import load_tofu
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.prompts import prompt_style
from dipo_lightning.evaluation.aggregates import log_aggregates
from dipo_lightning.evaluation.questions import evaluate_rows
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.rouge import rouge_l

Rows = Sequence[dict[str, Any]]
PerToken = Callable[[Tensor, Tensor], float]


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    yield from (items[i : i + size] for i in range(0, len(items), size))


@torch.no_grad()
def plain_metric(model: Any, examples: Sequence[Example], size: int, f: PerToken) -> list[float]:
    """One metric: right-padded batches in the given order, all logits, ``f(log-probabilities (n, V), labels (n,))``."""
    values = []
    for batch in batches(examples, size):
        length = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in batch])
        logp = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)
        for row, (_, labels) in zip(logp, batch, strict=True):
            shifted = torch.tensor(labels[1:])
            kept = (shifted != -100).nonzero().squeeze(1)
            values.append(f(row[kept], shifted[kept]))
    return values


def token_logp(logp: Tensor, labels: Tensor) -> Tensor:
    return logp.gather(-1, labels[:, None]).squeeze(-1)


def nll(logp: Tensor, labels: Tensor) -> float:
    return -token_logp(logp, labels).double().mean().item()


def lowest(values: Tensor) -> float:
    return -values.sort().values[: max(1, int(0.4 * len(values)))].mean().item()


def standardized(logp: Tensor, labels: Tensor) -> Tensor:
    mean = (logp.exp() * logp).sum(-1)
    variance = (logp.exp() * (logp - mean[:, None]).square()).sum(-1)
    return (token_logp(logp, labels) - mean) / variance.clamp(min=1e-6).sqrt()


def strength(logp: Tensor, labels: Tensor) -> float:
    wrong = (logp.argmax(-1) != labels).nonzero()
    return 1 - (wrong.max().item() + 1 if len(wrong) else 0) / len(labels)


DETAILS: dict[str, PerToken] = {
    "exact_memorization": lambda logp, labels: (logp.argmax(-1) == labels).float().mean().item(),
    "extraction_strength": strength,
    "min_k": lambda logp, labels: lowest(token_logp(logp, labels)),
    "min_k_plus_plus": lambda logp, labels: lowest(standardized(logp, labels)),
    "zlib": nll,  # divided by the compressed size afterwards, which costs nothing
    "loss": nll,
}


def plain_generations(model: Any, style: PromptStyle, rows: Rows, size: int, limit: int) -> list[list[int]]:
    answers = []
    for batch in batches([style.prompt(row["question"]) for row in rows], size):
        length = max(map(len, batch))
        ids = torch.tensor([[0] * (length - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in batch])
        stop = style.stop_ids
        said = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
        for new in said[:, length:].tolist():
            end = next((i for i, token in enumerate(new) if token in stop), len(new))
            answers.append(new[:end])
    return answers


def plain_evaluation(
    model: Any, style: PromptStyle, sets: dict[str, Rows], size: int, limit: int
) -> dict[str, list[dict]]:
    """Everything `evaluate_rows` measures, metric by metric."""
    done = {}
    for name, rows in sets.items():
        answers = [style.example(row["question"], row["answer"]) for row in rows]
        correct = [style.example(row["question"], row.get("paraphrased_answer", row["answer"])) for row in rows]
        made = [
            {"index": row["index"], "nll": v}
            for row, v in zip(rows, plain_metric(model, answers, size, nll), strict=True)
        ]
        for row, value in zip(made, plain_metric(model, correct, size, nll), strict=True):
            row["correct_nll"], row["wrong_nll"] = value, []
        for _ in range(2 if "paraphrased_answer" not in rows[0] else 1):  # probability over options, then truth ratio
            for row in made:
                row["wrong_nll"] = []
            for k in range(len(rows[0]["perturbed_answer"])):
                wrong = [style.example(row["question"], row["perturbed_answer"][k]) for row in rows]
                for row, value in zip(made, plain_metric(model, wrong, size, nll), strict=True):
                    row["wrong_nll"].append(value)
        for key, f in DETAILS.items() if name == "forget" else ():
            for row, value in zip(made, plain_metric(model, answers, size, f), strict=True):
                row[key] = value
        said = plain_generations(model, style, rows, size, limit)
        for row, source, ids in zip(made, rows, said, strict=True):
            text = row["generation"] = style.tokenizer.decode(ids, skip_special_tokens=True).strip()
            row["rouge_l_recall"] = rouge_l([text], [source["answer"]]).recall.item()
        if name == "forget":
            prompts = [style.prompt(row["question"]) for row in rows]
            own = [(prompt + ids, [-100] * len(prompt) + ids) for prompt, ids in zip(prompts, said, strict=True)]
            for row, ids, value in zip(made, said, plain_metric(model, own, size, nll), strict=True):
                row |= {"generation_nll": value, "generation_tokens": len(ids)}
        done[name] = made
    return done


def differences(plain: dict[str, list[dict]], ours: dict[str, list[dict]]) -> dict[str, float]:
    """The largest difference of each number over all rows, and the share of generations that differ."""
    worst: dict[str, float] = {}
    pairs = [pair for name in plain for pair in zip(plain[name], ours[name], strict=True)]
    for one, other in pairs:
        for key in one.keys() - {"index", "generation", "wrong_nll", "zlib"}:
            worst[key] = max(worst.get(key, 0.0), abs(one[key] - other[key]))
        gaps = [abs(a - b) for a, b in zip(one["wrong_nll"], other["wrong_nll"], strict=True)]
        worst["wrong_nll"] = max([worst.get("wrong_nll", 0.0), *gaps])
    worst["generations that differ"] = sum(a["generation"] != b["generation"] for a, b in pairs) / len(pairs)
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face folder, such as SmolLM2-135M's")
    parser.add_argument("--data", required=True, help="folder with TOFU's files")
    parser.add_argument("--split", default="forget10")
    parser.add_argument("--rows", type=int, default=20, help="rows of each set")
    parser.add_argument("--prompt", default="chat")
    parser.add_argument("--batch-size", type=int, default=32, help="of the straightforward evaluation")
    parser.add_argument("--max-new-tokens", type=int, default=200)
    parser.add_argument(
        "--layers", type=int, default=None, help="only the first so many layers: a quicker, worse model"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more = {} if options.layers is None else {"num_hidden_layers": options.layers}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, **more).eval()
    style = prompt_style(options.prompt, AutoTokenizer.from_pretrained(options.model))
    sets = load_tofu(options.data, options.split, first=options.rows).sets
    sets.pop("holdout", None)
    parts: dict[str, float] = {}
    clock = time.process_time  # CPU seconds: other programs on the machine don't count

    def timed(name: str, run: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), clock()
        result = run()
        parts[name] = clock() - cpu
        print(f"{name:<40}{parts[name]:9.1f} s CPU{time.perf_counter() - wall:9.1f} s wall", flush=True)
        return result

    limit = options.max_new_tokens
    timed("ours, scores alone", lambda: evaluate_rows(model, style, sets, Measuring(generate=False)))
    ours = timed("ours", lambda: evaluate_rows(model, style, sets, Measuring(max_new_tokens=limit)))
    plain = timed("straightforward", lambda: plain_evaluation(model, style, sets, options.batch_size, limit))
    print(f"ratio {parts['straightforward'] / parts['ours']:.2f}")
    for name, value in differences(plain, ours.sets).items():
        print(f"  {name:<30}{value:.2e}")
    ours_numbers, plain_numbers = (log_aggregates(TOFU(), rows, {}) for rows in (ours.sets, plain))
    for name, value in plain_numbers.items():
        if isinstance(value, float) and name in ours_numbers:
            print(
                f"  {name:<36}{value:.8f}  {ours_numbers[name]:.8f}  "
                f"{math.isclose(value, ours_numbers[name], rel_tol=1e-4)}"
            )


if __name__ == "__main__":
    main()
