"""Properties of a causal language model that its configuration does not state, found by running it.

In some families a row's result changes with its surroundings: padding before it, other answers beside it, positions
beyond the table's end. A list of families would go out of date, so rows in a layout are compared with single rows.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from dipo_lightning.errors import InputError
from dipo_lightning.models.head import causal_lm

_tried: WeakKeyDictionary[nn.Module, dict[str, tuple[float, float]]] = WeakKeyDictionary()
"""By layout, the lengths of the longest row that passed and the shortest one that failed."""


def leaves_rows_alone(model: nn.Module, layout: str, length: int, try_out: Callable[[], bool]) -> bool:
    """Return whether a layout of several rows in a batch leaves each row's logits unchanged.

    The result is remembered per model and layout: a shorter row than one that passed passes, and a longer one than one
    that failed fails. Collective if the model is sharded.

    Args:
        model: The model.
        layout: Name of the layout.
        length: Length of the rows.
        try_out: Test that compares a row of this length in the layout with the row alone.
    """
    known = _tried.setdefault(causal_lm(model), {})
    layout = f"{layout} {attention_implementation(model)}"
    passed, failed = known.get(layout, (0, math.inf))
    if passed < length < failed:
        passed, failed = (length, failed) if try_out() else (passed, length)
        known[layout] = passed, failed
    return length <= passed


def same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Return whether (..., V) logits agree up to rounding, relative to their standard deviation over V.

    The tolerance is tight for float64 and exact float32 products, and wide for other dtypes or if
    `torch.set_float32_matmul_precision` allows TF32 or bfloat16 products.
    """
    gap = (logits.float() - expected.float()).abs() / expected.float().std(-1, keepdim=True).clamp_min(1e-6)
    single = logits.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    exact = single or logits.dtype == torch.float64
    return bool(gap.max() < 1e-3 if exact else gap.mean() < 0.1)


def attention_implementation(model: nn.Module) -> str:
    """Return the name of the model's attention in ``transformers``, such as ``sdpa``."""
    return str(getattr(causal_lm(model).config.get_text_config(decoder=True), "_attn_implementation", ""))


@torch.no_grad()
def check_causal(model: nn.Module, name: object) -> None:
    """Test a model, before it is sharded: no token may see a later one, as it would in an encoder.

    Raises:
        InputError: A token's logits depend on the token after it, or are not finite; names the model.
    """
    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 0]], device=next(model.parameters()).device)
    ids %= model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1]
    if not logits.isfinite().all():
        raise InputError(
            f"{name} gives logits that are not finite: its weights hold NaN or infinity, or are too large for "
            f"{logits.dtype}. Take an undamaged copy."
        )
    if not same_logits(logits[0], logits[1]):
        raise InputError(
            f"{name} is not a causal language model: its tokens see the tokens after them. Only models that predict "
            "from left to right can be unlearned here (an encoder such as BERT needs is_decoder: true in "
            "config.json, and weights that were trained so)."
        )


def check_rows(data: Any, model: nn.Module) -> None:
    """Check, before the first step, that the family can be trained, and compare the training rows with the model.

    Raises:
        InputError: The family cannot be trained, or see `compare_rows`.
    """
    if getattr(data, "_training", None) is None:
        return
    check_training(model, getattr(data, "longest", 0))
    compare_rows(data, model)


def compare_rows(data: Any, model: nn.Module) -> None:
    """Check that the model, which may be sharded already, has embeddings and positions for the training rows.

    Raises:
        InputError: A row holds an id without an embedding, or is longer than a table.
    """
    if getattr(data, "_training", None) is None:
        return
    rows = vocabulary_size(model)
    odd = {index: token for token, index in data.tokenizer.get_vocab().items() if index >= rows}
    limit, context = position_limit(model), context_length(model)
    longest = getattr(data, "longest", 0)
    for name in ("forget", "retain", "alternative", "rows"):
        examples = getattr(data._training, name, None) or ()
        check = partial(_check_row, name="training" if name == "rows" else name, odd=odd, rows=rows, limit=limit)
        if hasattr(examples, "check_each"):  # tokenised on demand
            examples.check_each(check)
        elif odd or (limit is not None and longest > limit):
            for example in examples:
                check(example)
    if limit is None and context is not None and longest > context:
        rank_zero_warn(
            f"The longest training row has {longest} tokens, more than the {context} that the model was made for "
            f"(max_position_embeddings). It may handle such rows badly; data.max_length: {context} cuts them."
        )


@torch.no_grad()
def check_training(model: nn.Module, longest: int = 0) -> None:
    """Run a padded batch of two short rows, as training does, through a model that is not sharded yet.

    A family that attends to a selection of keys (DeepSeek-V3.2) breaks ties among them by the length of the batch, but
    only in rows with more tokens than it selects. If ``longest``, the number of tokens of the longest training row, is
    larger, the test rows are too.

    Raises:
        InputError: The family cannot be trained on rows of any length.
    """
    device = next(model.parameters()).device
    selected = getattr(causal_lm(model).config.get_text_config(decoder=True), "index_topk", None) or 0
    length = 9 + (selected if longest > selected else 0)
    ids = torch.arange(2 * length, device=device).view(2, length) % vocabulary_size(model)
    mask = torch.ones_like(ids)
    mask[1, -4:] = 0
    training = model.training
    try:
        with torch.random.fork_rng(devices=[]):  # dropout draws
            model.train()(input_ids=ids, attention_mask=mask, use_cache=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"This {causal_lm(model).config.model_type} model fails on a padded batch of two rows, and so cannot be "
            f"trained here: {error}"
        ) from error
    finally:
        model.train(training)
    padded = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[1, :-4]
    if not same_logits(padded, model(input_ids=ids[1:, :-4], use_cache=False).logits[0]):
        rank_zero_warn(
            "Padding behind a row changes what this model computes for it, so its loss depends on the rows beside it. "
            "Evaluations are exact: they batch such rows by length."
        )


def check_ids(model: nn.Module, texts: Sequence[Sequence[int]]) -> None:
    """Raise an `InputError` if a text, given as token ids, holds an id without an embedding."""
    rows = vocabulary_size(model)
    for number, ids in enumerate(texts):
        if max(ids, default=0) >= rows:
            raise InputError(
                f"Text {number} of {len(texts)} holds the token id {max(ids)}, but the model has only {rows} "
                "embeddings: change the row, or use the model's own tokenizer."
            )


def _check_row(example: Any, name: str, odd: Mapping[int, str], rows: int, limit: int | None) -> None:
    """Refuse a training example with an id or a position without an embedding."""
    ids = example["input_ids"]
    if found := sorted(odd.keys() & set(ids)):
        raise InputError(
            f"{name} row {example['index']} holds {odd[found[0]]!r}, id {found[0]}, but the model has only {rows} "
            "embeddings: change the row, or use the model's own tokenizer."
        )
    if limit is not None and len(ids) > limit:
        raise InputError(
            f"{name} row {example['index']} has {len(ids)} tokens, but the model has positions for {limit} only: set "
            f"data.max_length to {limit} or less."
        )


def vocabulary_size(model: nn.Module) -> int:
    """Return the number of token ids with an embedding."""
    return int(causal_lm(model).get_input_embeddings().num_embeddings)


def batch_memory(device: torch.device) -> int:
    """Return the bytes that the batches of an evaluation may take on a GPU: an eighth of all its memory.

    What else is there does not matter, so that a repeated run has the same batches.
    """
    return torch.cuda.get_device_properties(device).total_memory // 8


def position_limit(model: nn.Module) -> int | None:
    """Return the maximum length of a row if positions are looked up in a table (GPT-2, OPT, CTRL, GPT-J), else None.

    A table is a matrix named after positions with as many rows as the configuration has positions, or up to eight more.
    With a padding index, positions are counted from after it (RoBERTa). Rotary embeddings, ALiBi and tables that grow
    can represent any position. Dynamic rotary embeddings count as a table: beyond their length `transformers` uses
    frequencies that depend on the longest row seen so far.
    """
    positions = context_length(model)
    if positions is None or "dynamic" in rope_types(model):
        return positions
    for name, module in causal_lm(model).named_modules():
        if hasattr(module, "make_weights"):  # grows
            continue
        for key, table in {**vars(module), **module._buffers, **module._parameters}.items():
            named = re.search(r"pos|wpe", f"{name.rpartition('.')[2]}.{key}")
            if named and isinstance(table, Tensor) and table.dim() == 2 and positions <= len(table) <= positions + 8:
                before = getattr(module, "padding_idx", None)
                return min(positions, len(table) - (0 if before is None else before + 1))
    return None


def rope_types(model: nn.Module) -> set[str]:
    """Return the kinds of rotary embeddings in the configuration, of any layer."""
    found = getattr(causal_lm(model).config.get_text_config(decoder=True), "rope_parameters", None) or {}
    layers = [found, *(value for value in found.values() if isinstance(value, Mapping))]
    return {str(layer["rope_type"]) for layer in layers if layer.get("rope_type")}


def context_length(model: nn.Module) -> int | None:
    """Return ``max_position_embeddings`` of the configuration; None if it has none."""
    config = causal_lm(model).config.get_text_config(decoder=True)
    length = getattr(config, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


_OF_OTHER_HEADS = ("classifier", "summary")
_JITTER = re.compile("jitter")
_NOISE = re.compile(f"drop|{_JITTER.pattern}")


def dropout_rates(model: nn.Module, switch_off: bool = False) -> dict[str, float]:
    """Find every rate of dropout and jitter above 0, by name: those of dropout modules, and those read as numbers.

    With ``switch_off`` the rates of dropout become 0, in place. The causal LM's configuration, which an export writes,
    stays unchanged; the modules inside the model get a changed copy, since some families read the rates from it in
    every forward pass. A router with jitter (Phi-MoE) samples its experts in training, but uses the same number in
    evaluation too: the number stays, and with ``switch_off`` the router stays in evaluation mode.
    """
    root = causal_lm(model)
    found = rates(root.config)
    without = copy.deepcopy(root.config)
    for name in found:
        if not _JITTER.search(name):
            setattr(without, name, 0.0)
    for path, module in root.named_modules():
        for name, value in rates(module).items():
            found[path.rpartition(".")[2] if name == "p" else name] = value
            if switch_off and _JITTER.search(name):
                module.train = MethodType(_stay_in_evaluation, module)
                module.train()
            elif switch_off:
                setattr(module, name, 0.0)
        if switch_off and found and module is not root and getattr(module, "config", None) is root.config:
            module.config = without
    return {name: value for name, value in found.items() if not name.startswith(_OF_OTHER_HEADS)}


def _stay_in_evaluation(module: nn.Module, mode: bool = True) -> nn.Module:
    """Replacement of ``module.train`` that always selects evaluation mode."""
    return nn.Module.train(module, False)


def rates(owner: Any) -> dict[str, float]:
    """Return the rates above 0 among the attributes of a configuration or a module."""
    known = isinstance(owner, nn.modules.dropout._DropoutNd)
    return {
        name: value
        for name, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and (_NOISE.search(name) or (known and name == "p"))
    }
