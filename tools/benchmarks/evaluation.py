"""TOFU's evaluation compared with a straightforward one on the same model and rows: time of both, and their results.

The straightforward one takes one metric at a time and the rows in their order, in batches of one size: every metric
runs its own forward passes over all positions, and a generation batch runs until its last row ends.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.evaluation import questions
from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.evaluation.shared_prompts import Example
from dipo_lightning.metrics.functional.text import rouge_l
from tools.benchmarks.measuring import Measured, Table, alternate, clock, medians, precision, ratio, timed

Rows = Sequence[dict[str, Any]]
PerToken = Callable[[Tensor, Tensor], float]
PARTS = {
    "scoring and generation together": ("score_and_answer",),
    "scoring": ("score",),
    "generation": ("generate",),
    "tokenising": ("_plan",),
    "metrics": ("_row",),
}
"""Functions of `questions` whose times add up to each part of the package's evaluation."""


class Parts:
    """Seconds and CPU seconds of the parts of an evaluation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.found: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with timed(self.device) as one:
                result = function(*args, **kwargs)
            for key in ("seconds", "cpu"):
                self.found[f"{name} {key}"] = self.found.get(f"{name} {key}", 0.0) + one[key]
            return result

        return run

    @contextmanager
    def of_package(self) -> Iterator[None]:
        """Time the package's own functions while a block runs."""
        named = {function: name for name, functions in PARTS.items() for function in functions}
        watched: dict[str, Any] = {
            f: self.timed(name, getattr(questions, f)) for f, name in named.items() if hasattr(questions, f)
        }
        with patch.multiple(questions, **watched):
            yield


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    yield from (items[i : i + size] for i in range(0, len(items), size))


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


class Straightforward:
    """Everything `evaluate_rows` measures, metric by metric.

    Args:
        model: The policy.
        style: Prompt style.
        size: Rows per batch.
        limit: Maximum number of new tokens of an answer.
        parts: Timer of the parts.
    """

    def __init__(self, model: Any, style: PromptStyle, size: int, limit: int, parts: Parts) -> None:
        self.model, self.style, self.size, self.limit = model, style, size, limit
        self.device = next(model.parameters()).device
        self.scored = parts.timed("scoring", self._log_probabilities)
        self.said = parts.timed("generation", self._generations)
        self.tokenised = parts.timed("tokenising", lambda run: run())
        self.measured = parts.timed("metrics", lambda run: run())

    def _log_probabilities(self, batch: Sequence[Example]) -> Tensor:
        length = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in batch], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in batch], device=self.device)
        return self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(-1)

    def metric(self, examples: Sequence[Example], f: PerToken) -> list[float]:
        """One metric, ``f(log-probabilities (n, V), labels (n,))``, from all logits of batches in the given order."""
        values: list[float] = []
        for batch in batches(examples, self.size):
            logp = self.scored(batch)
            values += self.measured(partial(_per_row, f, logp, batch))
        return values

    def _generations(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        answers, stop = [], self.style.stop_ids
        for batch in batches(prompts, self.size):
            length = max(map(len, batch))
            ids = torch.tensor([[0] * (length - len(row)) + row for row in batch], device=self.device)
            mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in batch], device=self.device)
            said = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.limit,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=stop[0],
            )
            for new in said[:, length:].tolist():
                end = next((i for i, token in enumerate(new) if token in stop), len(new))
                answers.append(new[:end])
        return answers

    @torch.no_grad()
    def evaluate(self, sets: dict[str, Rows]) -> dict[str, list[dict]]:
        """Measure every row of every set."""
        return {name: self._set(name, rows) for name, rows in sets.items()}

    def _set(self, name: str, rows: Rows) -> list[dict]:
        def examples(answer: Callable[[dict[str, Any]], str]) -> list[Example]:
            return self.tokenised(lambda: [self.style.example(row["question"], answer(row)) for row in rows])

        answers = examples(lambda row: row["answer"])
        correct = examples(lambda row: row.get("paraphrased_answer", row["answer"]))
        made: list[dict] = [
            {"index": row["index"], "nll": one, "correct_nll": other}
            for row, one, other in zip(rows, self.metric(answers, nll), self.metric(correct, nll), strict=True)
        ]
        for _ in range(2 if "paraphrased_answer" not in rows[0] else 1):  # probability over options, then truth ratio
            wrong = [
                self.metric(examples(partial(_perturbed, k)), nll) for k in range(len(rows[0]["perturbed_answer"]))
            ]
            for row, values in zip(made, zip(*wrong, strict=True), strict=True):
                row["wrong_nll"] = list(values)
        spoken = [self._without_end(example) for example in answers]  # open-unlearning's memorisation leaves it out
        for key, f in DETAILS.items() if name == "forget" else ():
            for row, value in zip(made, self.metric(answers if f is nll else spoken, f), strict=True):
                row[key] = value
        prompts = self.tokenised(lambda: [self.style.prompt(row["question"]) for row in rows])
        said = self.said(prompts)
        for row, source, ids in zip(made, rows, said, strict=True):
            text = row["generation"] = str(self.style.tokenizer.decode(ids, skip_special_tokens=True)).strip()
            recall = self.measured(lambda text=text, source=source: rouge_l([text], [source["answer"]]).recall.item())
            row["rouge_l_recall"] = recall
        if name == "forget":
            own = [(prompt + ids, [-100] * len(prompt) + ids) for prompt, ids in zip(prompts, said, strict=True)]
            for row, ids, value in zip(made, said, self.metric(own, nll), strict=True):
                row |= {"generation_nll": value, "generation_tokens": len(ids)}
        return made

    def _without_end(self, example: Example) -> Example:
        ids, labels = example
        return (ids[:-1], labels[:-1]) if labels[-1] in self.style.stop_ids else example


def _perturbed(k: int, row: dict[str, Any]) -> str:
    return row["perturbed_answer"][k]


def _per_row(f: PerToken, logp: Tensor, batch: Sequence[Example]) -> list[float]:
    return list(map(f, *_answers(logp, batch)))


def _answers(logp: Tensor, batch: Sequence[Example]) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and labels at the supervised positions of each row."""
    values, labels = [], []
    for row, (_, own) in zip(logp, batch, strict=True):
        shifted = torch.tensor(own[1:], device=logp.device)
        kept = (shifted != -100).nonzero().squeeze(1)
        values.append(row[kept])
        labels.append(shifted[kept])
    return values, labels


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
    return dict(sorted(worst.items()))


def table(model: Any, style: PromptStyle, sets: dict[str, Rows], limit: int, batch: int, rounds: int, dtype: str,
          tuned: bool) -> Table:  # fmt: skip
    """Measure both evaluations in turns, and compare their results."""
    model.eval()
    device = next(model.parameters()).device
    said: dict[str, Any] = {}

    def ours() -> Measured:
        parts = Parts(device)
        with precision(device, dtype), timed(device) as whole, parts.of_package():
            said["ours"] = questions.evaluate_rows(model, style, sets, Measuring(max_new_tokens=limit)).sets
        return _with_rest(whole, parts)

    def plain() -> Measured:
        parts = Parts(device)
        with precision(device, dtype), timed(device) as whole:
            said["plain"] = Straightforward(model, style, batch, limit, parts).evaluate(sets)
        return _with_rest(whole, parts)

    found = alternate({"ours": ours, "straightforward": plain}, rounds)
    rows = sum(map(len, sets.values()))
    kind = "tuned" if tuned else "untuned"
    made = Table(
        f"Evaluation of {rows} rows of TOFU's schema ({kind} model)",
        [],
        f"At most {limit} new tokens, straightforward batches of {batch} rows, {dtype}; medians of "
        f"{len(found['ours'])} "
        "alternating rounds; CPU seconds of each part (seconds of the device on a GPU).",
    )
    key = clock(device)
    for name, measured in found.items():
        one = medians(measured)
        row: dict[str, Any] = {"evaluation": name, "seconds": one["seconds"], "CPU s": one["cpu"]}
        row |= {part: one.get(f"{part} {key}") for part in PARTS} | {"rest": one[f"rest {key}"]}
        made.rows.append(row)
    made.promise("straightforward / ours", ratio(found["straightforward"], found["ours"], key), 4 if tuned else 3, True)
    made.rows += [{"evaluation": f"difference: {name}", "seconds": gap}
                  for name, gap in differences(said["plain"], said["ours"]).items()]  # fmt: skip
    return made


def processes_table(make: Callable[[], Any], style: PromptStyle, sets: dict[str, Rows], limit: int, folder: Path,
                    rounds: int) -> Table:  # fmt: skip
    """Measure the package's evaluation in one process and in two, each on one thread of the CPU.

    Args:
        make: Function that makes the model, called in every process; can be pickled.
        style: Prompt style.
        sets: The rows, enough for several batches.
        limit: Maximum number of new tokens of an answer.
        folder: Folder through which the processes communicate.
        rounds: Number of rounds, without a warm-up, since each begins with new processes.
    """
    how = make, style, sets, limit, str(folder)
    found = alternate({f"{n} process(es)": partial(_run_processes, n, *how) for n in (1, 2)}, rounds, warmup=0)
    rows = [{"evaluation": name, "seconds": medians(one)["wall"]} for name, one in found.items()]
    count = sum(map(len, sets.values()))
    note = f"At most {limit} new tokens, without start-up; one thread a process; medians of {rounds} rounds."
    made = Table(f"Evaluation of {count} rows by one process and by two", rows, note)
    one, two = found.values()
    made.promise("one process / two", ratio(one, two, "wall"), 1.7, True)
    return made


def _run_processes(world: int, *how: Any) -> Measured:
    folder = Path(how[-1]) / f"processes-{time.monotonic_ns()}"
    folder.mkdir()
    spawn(_one_process, (world, folder, *how[:-1]), nprocs=world)
    return json.loads((folder / "seconds.json").read_text())


def _one_process(rank: int, world: int, folder: Path, make: Callable[[], Any], style: PromptStyle,
                 sets: dict[str, Rows], limit: int) -> None:  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    model = make().eval()
    few = {name: rows[:1] for name, rows in sets.items()}
    questions.evaluate_rows(model, style, few, Measuring(max_new_tokens=2))  # a warm-up
    torch.distributed.barrier()
    with timed(torch.device("cpu")) as found:
        questions.evaluate_rows(model, style, sets, Measuring(max_new_tokens=limit))
        torch.distributed.barrier()
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def _with_rest(whole: Measured, parts: Parts) -> Measured:
    rest = {f"rest {key}": whole[key] - sum(value for name, value in parts.found.items() if name.endswith(f" {key}"))
            for key in ("seconds", "cpu")}  # fmt: skip
    return whole | parts.found | rest
