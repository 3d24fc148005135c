"""Make a language model forget with Distribution Preference Optimization, and measure what it forgot and kept.

The public names are loaded on first use, so that ``import dipo_lightning`` is quick.
"""

import importlib
import re
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_FOUND = {
    "methods/**/*.py": "Module",
    "benchmarks/*/data.py": "DataModule",
    "benchmarks/*/callback.py": "Evaluation",
}
"""Files of the package whose classes are public, with the ending of their names."""

_LISTED = {
    "UnlearningDataModule": "dipo_lightning.data.unlearning",
    "FineTuningDataModule": "dipo_lightning.data.unlearning",
    "Measuring": "dipo_lightning.evaluation.rows",
    "Schedule": "dipo_lightning.evaluation.schedule",
    "StopAtThreshold": "dipo_lightning.callbacks.stopping",
    "StopOnCollapse": "dipo_lightning.callbacks.stopping",
    "ExportModel": "dipo_lightning.callbacks.results",
    "Best": "dipo_lightning.callbacks.results",
    "ResultsPage": "dipo_lightning.callbacks.results",
    "TrackioLogger": "dipo_lightning.evaluation.trackers",
    "FSDP2Strategy": "dipo_lightning.models.distributed",
    "InputError": "dipo_lightning.errors",
    "RunError": "dipo_lightning.errors",
}


def public_classes() -> dict[str, str]:
    """Return the modules of the public classes by name: ``{"NPOModule": "dipo_lightning.methods.preference", ...}``.

    Those of methods and benchmarks are found by reading their files, without importing them.
    """
    folder, found = Path(__file__).parent, dict(_LISTED)
    for pattern, ending in _FOUND.items():
        for path in sorted(folder.glob(pattern)):
            module = ".".join((__name__, *path.relative_to(folder).with_suffix("").parts))
            text = path.read_text(encoding="utf-8")
            found |= dict.fromkeys(re.findall(rf"^class ([A-Z]\w*{ending})\(", text, re.MULTILINE), module)
    return found


_PUBLIC = public_classes()

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
