"""Import of Lightning without libraries of which it needs only a name or a version.

`import lightning.pytorch` takes 5 CPU seconds. More than half of that goes to torch's compiler, for one class in an
``isinstance`` check, and to the image, audio and text functions of torchmetrics, for one base class and a version. Here
both are loaded only when more of them is used.
"""

import importlib
import sys
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

COMPILER, METRICS = "torch._dynamo", "torchmetrics"

_OF_METRICS = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
"""Names of torchmetrics that need nothing else of it, and their modules."""


def import_lightning() -> None:
    """Import ``lightning.pytorch``; modules that are loaded already are left alone."""
    if METRICS not in sys.modules:
        sys.modules[METRICS] = deferred_metrics()
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = stand_in = StandInCompiler(COMPILER)
        try:
            import lightning.pytorch
        except ImportError:  # another version asks for more of the compiler
            pass
        finally:
            if sys.modules.get(COMPILER) is stand_in:
                del sys.modules[COMPILER]
    import lightning.pytorch  # noqa: F401


class _OfCompiler(type):
    """Metaclass of a class whose instances are those of the compiler's, once that is loaded."""

    def __instancecheck__(cls, instance: Any) -> bool:
        compiler = sys.modules.get(COMPILER)
        if compiler is None or isinstance(compiler, StandInCompiler):
            return False
        return isinstance(instance, compiler.OptimizedModule)


class CompiledModule(metaclass=_OfCompiler):
    """Stand-in for the class of compiled modules: none is there before the compiler is loaded."""


class StandInCompiler(ModuleType):
    """``torch._dynamo`` while Lightning is imported; any other name loads the real one."""

    __path__: list[str] = []
    OptimizedModule = CompiledModule

    @staticmethod
    def disable(fn: Any = None, recursive: bool = True, **_: Any) -> Any:
        """Disable compilation of a function as torch does it before its compiler is loaded."""
        from torch._compile import _disable_dynamo

        return _disable_dynamo(fn, recursive)

    def __getattr__(self, name: str) -> Any:
        """Load the compiler in place of this module, and return its attribute."""
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


def deferred_metrics() -> ModuleType:
    """Make a torchmetrics package whose code runs on the first access of a name that is not in `_OF_METRICS`."""
    spec = find_spec(METRICS)
    assert spec is not None
    assert spec.loader is not None
    loader, module = spec.loader, module_from_spec(spec)
    names = vars(module)
    names["__version__"] = version(METRICS)

    def get(name: str) -> Any:
        if name in _OF_METRICS:
            importlib.import_module("torchmetrics.utilities")  # which must come before the others
            return getattr(importlib.import_module(_OF_METRICS[name]), name)
        if name == "_logger":
            import logging

            return logging.getLogger(METRICS)
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {METRICS!r} has no attribute {name!r}")
        del names["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    names["__getattr__"] = get
    return module
