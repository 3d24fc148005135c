"""Every path of the DiPO step against the plain one: two models, logits of all positions, every option of the loss.

The plain computation shares nothing with the paths but the definition of the pair (`make_pair`, which is tested
against it) and the form of the margin as sequence KL divergences. It runs in float64 on the same weights.
"""

from __future__ import annotations

import copy
import functools
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, logsigmoid

from dipo_lightning import DiPOModule
from dipo_lightning.methods.dipo.directions import directions
from dipo_lightning.methods.dipo.margins import DirectionsReference, choose_margins
from dipo_lightning.methods.dipo.pair import PairOptions
from dipo_lightning.models.answers import Answers, TokenBatch, answer_hidden, collate
from dipo_lightning.models.head import output_projection
from dipo_lightning.models.lora import LoRA, add_lora
from dipo_lightning.reference.references import (
    AdaptersOffReference,
    HiddenStatesReference,
    LiveReference,
)
from tests.helpers.plain_dipo import sequence_kl_margin
from tests.helpers.toys import VOCABULARY, toy_model

BETA, ALPHA = 0.05, 0.8
SELECTIONS: list[dict[str, Any]] = [
    {"selection": "top_k", "k": 7},
    {"selection": "top_p", "p": 0.6},
    {"selection": "relative", "rho": 0.2},
]
PAIRS = list(itertools.product(SELECTIONS, ["centered", "raw"]))
LINEAR, OTHER = ("llama", "qwen2", "gpt2"), ("gemma2", "phi")
FLOAT64 = {"gemma2": 1e-6}  # its norms compute in float32, whatever the dtype
CHUNK = 3  # several chunks, the last one not full
PATHS: dict[str, dict[str, Any]] = {
    "logits": {"form": "logits"},
    "one chunk": {"form": "hidden"},
    "chunks": {"form": "hidden", "chunk_size": CHUNK},
    "hidden_states": {"chunk_size": CHUNK},
    "hidden_states, one chunk": {},
    "directions": {"chunk_size": CHUNK, "freeze_projection": True},
}
LORA = LoRA(rank=2)


class InMemory:
    """A cache that rounds nothing to float32."""

    complete = True

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def read(self, index: Tensor) -> Tensor:
        return self.values


def make_batch() -> dict[str, TokenBatch]:
    """Rows of several lengths with prompts, one of them without an answer."""
    generator = torch.Generator().manual_seed(3)

    def part(lengths: list[tuple[int, int]]) -> TokenBatch:
        examples = []
        for index, (prompt, answer) in enumerate(lengths):
            ids = torch.randint(3, VOCABULARY, (prompt + answer,), generator=generator).tolist()
            examples.append({"index": index, "input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
        return collate(examples, pad_token_id=0)

    return {"forget": part([(4, 6), (2, 3), (5, 0)]), "retain": part([(3, 4), (1, 2)])}


BATCH = make_batch()


@functools.cache
def float32_models(family: str, frozen: bool, lora: bool) -> tuple[nn.Module, nn.Module]:
    reference = toy_model(family)
    policy: nn.Module = toy_model(family)
    if lora:
        policy = add_lora(policy, LORA)
    generator = torch.Generator().manual_seed(1)
    kept = output_projection(policy) if frozen or lora else None
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter is not kept and (parameter.requires_grad or not lora):
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return policy, reference


def models(family: str, dtype: torch.dtype, frozen: bool, lora: bool = False) -> tuple[nn.Module, nn.Module]:
    """A policy that has moved away from its reference, and the reference: the same weights in every dtype."""
    policy, reference = (copy.deepcopy(model).to(dtype) for model in float32_models(family, frozen, lora))
    return policy, reference


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `DiPOModule` from options of the module and of the pair side by side."""
    of_pair = {name: options[name] for name in options if name in PairOptions.__dataclass_fields__}
    of_module = {name: options[name] for name in options if name not in of_pair}
    # With its usual weight the retain term would be nearly all of the gradient, and hide an error of the forget term.
    return {"beta": BETA, "pair": PairOptions(alpha=ALPHA, **of_pair), "lambda_": 1.0, **of_module}


def ours(
    family: str,
    path: str,
    dtype: torch.dtype,
    options: dict[str, Any],
    lora: bool = False,
    logged: bool = False,
    first: bool = False,
    cls: type[DiPOModule] = DiPOModule,
) -> DiPOModule:
    """The package's module with a policy, and what stands for the reference."""
    chosen = PATHS[path] | nested(options)
    if lora:  # which freezes all but the adapters
        chosen |= {"lora": LORA, "freeze_projection": False}
    module = cls("toy", **chosen)
    module.keeps_dropout = True  # the policy has moved away from the reference before the first step
    policy, reference = models(family, dtype, module.freeze_projection, lora)
    trainer = SimpleNamespace(global_step=0 if first else 5, log_every_n_steps=1 if logged else 10**9, datamodule=None)
    module.policy, module._trainer, module.policy_is_pretrained = policy, trainer, True
    before_adapters: Any = policy
    module.inspect(before_adapters.get_base_model() if lora else policy)
    module.freeze_untrained(policy)
    module.log_terms = module.log = lambda *_, **__: None
    with torch.no_grad():
        hidden, weight = answer_hidden(reference, BATCH["forget"]), output_projection(reference).detach()
        caches: dict[str, Any] = {part: InMemory(answer_hidden(reference, batch)) for part, batch in BATCH.items()}
        if path.startswith("hidden_states"):
            module.frozen_reference = HiddenStatesReference(caches, weight)
        elif path == "directions":
            found = directions(hidden, weight, weight, module.pair, CHUNK)
            offsets = torch.stack([found.preferred_offset, found.dispreferred_offset], -1)
            values = torch.cat([found.preferred, found.dispreferred, offsets], -1)
            kept = HiddenStatesReference({"retain": caches["retain"]}, weight)
            module.frozen_reference = DirectionsReference(InMemory(values), kept)  # type: ignore[arg-type]
        elif lora:
            module.frozen_reference = AdaptersOffReference(policy)
        else:
            module.frozen_reference = LiveReference(reference)
    module.margins = choose_margins(module)
    return module


def plain_loss(policy: nn.Module, reference: nn.Module, options: DiPOModule) -> Tensor:
    """The loss from logits of all positions, forget and retain rows each in their own forward."""

    def logits(model: nn.Module, part: str) -> Tensor:
        return model(input_ids=BATCH[part]["input_ids"], attention_mask=BATCH[part]["attention_mask"]).logits[:, :-1]

    policy_logits, reference_logits = logits(policy, "forget"), logits(reference, "forget").detach()
    labels = BATCH["forget"]["labels"][:, 1:]
    rows, places = (labels != -100).nonzero(as_tuple=True)
    h, h_reference = policy_logits[rows, places], reference_logits[rows, places]
    answers = Answers(BATCH["forget"], positions=torch.arange(len(h)))
    pair = options.make_pair((h_reference if options.pair.source == "reference" else h).detach(), answers)
    margin = sequence_kl_margin(*pair, h, h_reference, rows, len(labels), options.reduction)
    scale = 2 / BETA if options.scale == "2/beta" else 1
    forget = -scale * logsigmoid(BETA * margin).mean()
    labels = BATCH["retain"]["labels"][:, 1:]
    now, before = logits(policy, "retain"), logits(reference, "retain").detach()
    if options.retain_loss_name == "nll":
        return forget + options.lambda_ * cross_entropy(now.transpose(1, 2), labels)
    there = labels != -100
    divergence = kl_div(now[there].log_softmax(-1), before[there].log_softmax(-1), log_target=True, reduction="none")
    return forget + options.lambda_ * divergence.sum() / there.sum()


@functools.cache
def expected(family: str, frozen: bool, lora: bool, options: tuple[tuple[str, Any], ...]) -> tuple[Tensor, Any]:
    """Loss and gradients of the plain computation in float64."""
    module = DiPOModule("toy", freeze_projection=frozen, **nested(dict(options)))
    policy, reference = models(family, torch.float64, frozen, lora)
    module.freeze_untrained(policy)
    loss = plain_loss(policy, reference, module)
    return loss.detach(), gradients(loss, policy)


def gradients(loss: Tensor, policy: nn.Module) -> dict[str, Tensor]:
    policy.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}


def compare(family: str, path: str, dtype: torch.dtype, options: dict[str, Any], **more: bool) -> None:
    module = ours(family, path, dtype, options, **more)
    loss = module.training_step(BATCH, 0)
    assert module.policy is not None
    found = gradients(loss, module.policy)
    lora = more.get("lora", False)
    right_loss, right = expected(family, module.freeze_projection, lora, tuple(sorted(options.items())))
    loss_limit, limit = (1e-5, 1e-4) if dtype == torch.float32 else (FLOAT64.get(family, 1e-10),) * 2
    assert abs(loss.detach() - right_loss) <= loss_limit * abs(right_loss)
    assert found.keys() == right.keys()
    largest = max(value.norm() for value in right.values())
    assert largest > 1e-2
    for name, value in right.items():
        # A gradient that is zero by symmetry (of a key's bias) is rounding noise: it's measured by the others' size.
        assert (found[name].double() - value).norm() <= limit * max(value.norm(), 1e-3 * largest), name


CASES = [
    (family, path, source)
    for family, path, source in itertools.product(LINEAR + OTHER, PATHS, ("reference", "policy"))
    if not (family in OTHER and path.startswith(("hidden_states", "directions")))
    if not (path == "directions" and source == "policy")
]


@pytest.mark.parametrize(("selection", "memory"), PAIRS)
@pytest.mark.parametrize(("family", "path", "source"), CASES)
def test_float32(family: str, path: str, source: str, selection: dict[str, Any], memory: str) -> None:
    compare(family, path, torch.float32, selection | {"source": source, "memory_vector": memory})


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "-".join(CASES[case]))
def test_float64(case: int) -> None:
    """Each path with one of the six ways to make the pair, another one each time."""
    family, path, source = CASES[case]
    selection, memory = PAIRS[case % len(PAIRS)]
    compare(family, path, torch.float64, selection | {"source": source, "memory_vector": memory})


@pytest.mark.slow
@pytest.mark.parametrize(("selection", "memory"), PAIRS)
@pytest.mark.parametrize(("family", "path", "source"), CASES)
def test_float64_in_every_combination(
    family: str, path: str, source: str, selection: dict[str, Any], memory: str
) -> None:
    compare(family, path, torch.float64, selection | {"source": source, "memory_vector": memory})


OTHERS: list[dict[str, Any]] = [{"reduction": "mean"}, {"scale": 1}, {"retain_loss": "nll"}, {"lambda_": None}]


@pytest.mark.parametrize("options", OTHERS, ids=str)
@pytest.mark.parametrize(("family", "path"), sorted({case[:2] for case in CASES}))
def test_other_options_of_the_loss(family: str, path: str, options: dict[str, Any]) -> None:
    compare(family, path, torch.float32, options)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("family", "path", "source"), CASES)
def test_the_step_that_is_logged_and_the_first(family: str, path: str, source: str, first: bool) -> None:
    compare(family, path, torch.float32, {"source": source}, logged=True, first=first)


@pytest.mark.parametrize("family", LINEAR + OTHER)
@pytest.mark.parametrize("path", ["logits", "chunks", "directions"])
def test_adapters(family: str, path: str) -> None:
    if not (family in OTHER and path == "directions"):
        compare(family, path, torch.float32, {}, lora=True)


@pytest.mark.parametrize("family", OTHER)
def test_heads_that_break_the_algebra_are_chunked_by_themselves(family: str) -> None:
    """No tensor of a step has more rows of vocabulary size than a chunk, whatever the batch."""
    from torch.utils._python_dispatch import TorchDispatchMode

    rows = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            nonlocal rows
            result = function(*arguments, **(keywords or {}))
            for value in result if isinstance(result, tuple | list) else [result]:
                weight = isinstance(value, Tensor) and value.shape == (32, VOCABULARY)  # the projection, transposed
                if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == VOCABULARY and not weight:
                    rows = max(rows, len(value))
            return result

    module = ours(family, "chunks", torch.float32, {"form": "auto"})
    module.retain_loss_name = "none"
    with Watch():
        module.training_step(BATCH, 0).backward()
    assert rows == CHUNK
