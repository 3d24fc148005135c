"""The lm-evaluation-harness with a model in memory: its tasks, its `HFLM`, and its documents as evaluated rows."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dipo_lightning.benchmarks.lm_eval.metrics import MEAN, MEAN_OF_TASKS
from dipo_lightning.errors import InputError, RunError, check_numbers
from dipo_lightning.evaluation.provenance import plain
from dipo_lightning.models.distributed import gather, rank_and_world, unsharded
from dipo_lightning.models.head import causal_lm
from dipo_lightning.safety.network import bounded_hub, hub_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_FILTER = "none"


@dataclass(frozen=True)
class Options:
    """Options of the harness; see `LMEvalEvaluation`."""

    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    chat_template: bool = False
    include_path: str | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_numbers("lm_eval", {"limit": self.limit, "batch_size": self.batch_size})
        check_numbers("lm_eval", {"num_fewshot": self.num_fewshot}, least=0)


class Model:
    """Adapter of a policy for `HFLM`, for forward passes and generation only, so that the harness cannot change it.

    Args:
        policy: A ``transformers`` causal LM, or a peft model around one, sharded or not.
        device: Device of the inputs.
    """

    def __init__(self, policy: nn.Module, device: torch.device) -> None:
        self.policy, self.device, self.config = policy, device, causal_lm(policy).config

    def __call__(self, input_ids: torch.Tensor) -> Any:
        """Return the output, whose logits are (batch, length, vocabulary)."""
        return self.policy(input_ids=input_ids)

    def generate(self, **options: Any) -> Any:
        """Generate by the policy's own method."""
        return self.policy.generate(**options)  # type: ignore[operator]


def load_tasks(names: Sequence[str], options: Options) -> dict[str, Any]:
    """Load tasks and their data sets, before any model is loaded.

    Returns:
        The harness's own mapping: ``tasks`` and ``groups`` by name.

    Raises:
        InputError: The harness is not installed, a task is unknown or runs generated code, or its data cannot be
            loaded.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("Tasks of the lm-evaluation-harness need its package: pip install 'dipo-lightning[lm-eval]'")
    if not names:
        raise InputError("tasks is empty; name at least one, such as mmlu or wmdp_bio.")
    with quiet(), bounded_hub():
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=options.include_path)
        for name in names:
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, n=3)
                hint = f" Did you mean {', '.join(near)}?" if near else ""
                raise InputError(f"The lm-evaluation-harness has no task {name!r}.{hint}")
        try:
            loaded: dict[str, Any] = manager.load(list(names))
        except hub_errors(ValueError, KeyError, ImportError) as error:
            raise InputError(f"The tasks {', '.join(names)} could not be loaded: {error} Check the network.") from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(
                f"The task {name} executes code that the model writes, which is refused here; leave it out."
            )
        if options.num_fewshot is not None and task.get_config("num_fewshot") != 0:  # a task that sets 0 keeps it
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # the harness's own
    return loaded


def settings_of(names: Sequence[str], loaded: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return the settings of a log as plain values: everything that changes a result or is needed for its metrics."""
    return {
        "asked": list(names),
        "harness": version("lm_eval"),
        "versions": {name: str(task.VERSION) for name, task in loaded["tasks"].items()},
        "num_fewshot": {name: task.get_config("num_fewshot") for name, task in loaded["tasks"].items()},
        "limit": options.limit,
        "chat_template": options.chat_template,
        "numbers": numbers_of(names, loaded),
    }


def numbers_of(names: Sequence[str], loaded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each `HarnessNumber` by name: of groups with an aggregate, and of all other tasks."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    found: dict[str, dict[str, Any]] = {}

    def add(owner: str, tasks: Sequence[str], metric: str, filters: Sequence[str], aggregation: str) -> None:
        """Add the number of a metric under each filter."""
        for one in filters:
            field = _field(metric, one)
            higher = loaded["tasks"][tasks[0]].higher_is_better().get(metric)
            found[re.sub(r"\W", "_", f"{owner}_{field}")] = {
                "tasks": list(tasks),
                "field": field,
                "aggregation": aggregation,
                "higher_is_better": higher,
                "label": f"{owner}: {field}",
            }

    inside: set[str] = set()
    for name in names:
        group = loaded["groups"].get(name)
        if group is None or not group.has_aggregation:
            continue
        members = [task.task_name for task in group.get_all_tasks()]
        inside.update(members)
        for one in group.aggregate_metric_list:
            tasks = [task for task in members if one.metric in loaded["tasks"][task].aggregation()]
            if tasks:
                filters = one.filter_list or _filters(loaded["tasks"][tasks[0]])
                add(name, tasks, one.metric, filters, MEAN if one.weight_by_size else MEAN_OF_TASKS)
    known = {id(function): name for name, function in AGGREGATION_REGISTRY.items()}
    for name, task in loaded["tasks"].items():
        if name not in inside:
            for metric, function in task.aggregation().items():
                kind = function if isinstance(function, str) else known.get(id(function), "a function of its own")
                add(name, [name], metric, _filters(task), kind)
    return found


def measure_tasks(
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    loaded: Mapping[str, Any],
    options: Options,
) -> dict[str, list[dict[str, Any]]]:
    """Run the tasks with their documents divided over the processes; collective.

    The policy must be in evaluation mode. A sharded one is gathered for the whole call, which needs memory for all of
    it. ``loaded`` is from `load_tasks`.

    Returns:
        The documents of each task in order, with ``index``, ``prompt``, ``answer``, ``generation`` if there is one, and
        the harness's numbers.

    Raises:
        RunError: The harness fails on a task.
    """
    with quiet(), unsharded(policy):
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        model: Any = Model(policy, device)
        harness = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size)
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(harness, name, functools.partial(shared_requests, getattr(harness, name)))
        try:
            results = evaluate(
                lm=harness,
                task_dict=dict(loaded),
                limit=options.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=options.chat_template,
            )
        except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
            raise RunError(f"The lm-evaluation-harness failed: {type(error).__name__}: {error}") from error
    return {name: rows_of(results["samples"][name]) for name in loaded["tasks"]}


def shared_requests(answer: Callable[..., Sequence[Any]], requests: Sequence[Any], **options: Any) -> list[Any]:
    """Answer the requests for this process's documents, and return the answers to all; collective.

    Every process builds all requests, so that the few-shot examples are those of a single process; `HFLM` by itself
    would let each process build only its own.

    Args:
        answer: A method of `HFLM`.
        requests: Requests of the harness, in the same order on every process.
        **options: Options of the method.

    Returns:
        The answers in the order of the requests.
    """
    rank, world = rank_and_world()
    own = [place for place, request in enumerate(requests) if request.doc_id % world == rank]
    found = answer([requests[place] for place in own], **options) if own else []
    answers = gather(dict(zip(own, found, strict=True)))
    return [answers[place] for place in range(len(requests))]


def rows_of(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a task's documents as rows, each with the numbers of all filters."""
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        row = rows.setdefault(int(sample["doc_id"]), {"index": int(sample["doc_id"])})
        prompt, *rest = sample["arguments"][0]
        row |= {"prompt": str(prompt), "answer": str(sample["target"])}
        said = sample["filtered_resps"][0]
        if rest and isinstance(rest[0], dict) and isinstance(said, str):
            row.setdefault("generation", said)
        row |= {_field(metric, sample["filter"]): _number(sample[metric]) for metric in sample["metrics"]}
    return [rows[index] for index in sorted(rows)]


def _number(value: Any) -> Any:
    """Return a document's number, or pair of numbers, as plain values."""
    if isinstance(value, list | tuple):
        return [_number(one) for one in value]
    return plain(value.item() if hasattr(value, "item") else value)


def _field(metric: str, filter_name: str) -> str:
    return metric if filter_name == NO_FILTER else f"{metric}_{filter_name}"


def _filters(task: Any) -> list[str]:
    return [one.name for one in task._filters]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the harness's messages; its progress bars are shown in a terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    shown = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with shown:
            yield
    finally:
        logger.setLevel(level)
