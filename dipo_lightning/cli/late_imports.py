"""Late import of large libraries: stand-ins take their places until they are used.

A `fit` of one step takes 7 CPU seconds with everything that Lightning, torch's optimisers and transformers import, and
less than 5 without what it never uses: torch's compiler, matplotlib, SciPy's optimisers, and the image, audio and text
functions of torchmetrics. Importers usually need only a few names of these, and the stand-ins have them.
"""

import functools
import gc
import importlib
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

COMPILER, METRICS = "torch._dynamo", "torchmetrics"

_OF_METRICS = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
"""Modules of torchmetrics that can be imported without the rest of it, by the name they define."""

_REGISTERED: list[tuple[str, Any]] = []
"""Functions to register with the compiler when it is loaded, each with the compiler's function that does so."""


def import_late(name: str) -> ModuleType:
    """Import a module, with stand-ins for the late libraries that it would import.

    Garbage collection is off meanwhile, and later collections skip the objects that exist by then: repeated passes over
    all the objects of the modules would take half a second.
    """
    if name in sys.modules:
        return sys.modules[name]
    if METRICS not in sys.modules:
        sys.modules[METRICS] = deferred_metrics()
    for late, given in stand_ins().items():
        if late not in sys.modules:
            sys.modules[late] = StandIn(late, given)
    if not any(isinstance(finder, Within) for finder in sys.meta_path):
        sys.meta_path.insert(0, Within())
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def stand_ins() -> dict[str, dict[str, Any]]:
    """Return the names that each stand-in has, by module: those that other libraries import from it.

    Those of the compiler are also called at every step; they do nothing until the compiler is loaded.
    """
    compiler = {
        "OptimizedModule": CompiledModule,
        "disable": not_compiled,
        "graph_break": lambda *_, **__: None,
        "assume_constant_result": functools.partial(_register, "assume_constant_result"),
        "allow_in_graph": functools.partial(_register, "allow_in_graph"),
    }
    plots = {"_AX_TYPE": Any, "_PLOT_OUT_TYPE": Any}
    return {
        COMPILER: compiler,
        **_late("torch._dynamo._trace_wrapped_higher_order_op", "TransformGetItemToIndex"),
        **_late("torchmetrics.utilities.plot", "plot_single_or_multi_val", **plots),
        **_late("scipy.optimize", "linear_sum_assignment"),
    }


def _late(module: str, *functions: str, **given: Any) -> dict[str, dict[str, Any]]:
    """Return the names of one stand-in: ``given``, and functions that load the module when they are called."""

    def late(name: str) -> Callable[..., Any]:
        return lambda *args, **options: getattr(loaded(module), name)(*args, **options)

    return {module: given | {name: late(name) for name in functions}}


class StandIn(ModuleType):
    """Stand-in for a module, which has some of its names; access to any other name loads the module.

    Args:
        name: Full name of the module.
        given: Values of the names that the stand-in has.
    """

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        super().__init__(name)
        self.__path__: list[str] = []  # the import system reads it; `Within` finds the submodules
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        vars(self).update(given)

    def __getattr__(self, name: str) -> Any:
        """Load the module in place of this one, and return its attribute."""
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(loaded(self.__name__), name)


def is_late(name: str) -> bool:
    """Return whether a module is not loaded, apart from a stand-in."""
    return isinstance(sys.modules.get(name), StandIn | None)


def loaded(name: str) -> ModuleType:
    """Load a module in place of its stand-in and of those of its submodules, and return it."""
    if isinstance(sys.modules.get(name), StandIn):
        for one in [one for one in stand_ins() if one == name or one.startswith(f"{name}.")]:
            if isinstance(sys.modules.get(one), StandIn):  # the one that is being loaded is gone already
                del sys.modules[one]
    module = importlib.import_module(name)
    while name == COMPILER and _REGISTERED:
        how, fn = _REGISTERED.pop()
        getattr(module, how)(fn)
    return module


class Within(MetaPathFinder):
    """Finder of the submodules of a stand-in, which loads the module itself first."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Import a module whose package is a stand-in, and return a specification that does not run it again."""
        package = name.rpartition(".")[0]
        if not isinstance(sys.modules.get(package), StandIn):
            return None
        loaded(package)
        module = importlib.import_module(name)
        del sys.modules[name]  # else the import system would run its code again
        return ModuleSpec(name, _Ready(module))


class _Ready(Loader):
    """Loader that returns a module whose code has run already."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own specification if the import system has replaced it."""
        if module.__spec__ is not self.spec:
            module.__spec__ = self.spec


class _OfCompiler(type):
    """Metaclass by which `isinstance` asks the compiler's own class, once the compiler is loaded."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return not is_late(COMPILER) and isinstance(instance, sys.modules[COMPILER].OptimizedModule)


class CompiledModule(metaclass=_OfCompiler):
    """Stand-in for the class of compiled modules; without the compiler nothing is an instance of it."""


def not_compiled(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
    """Exempt a function from compilation, through the compiler's `disable` once the compiler is loaded."""
    if fn is None:
        return functools.partial(not_compiled, recursive=recursive, **options)

    @functools.wraps(fn)
    def call(*args: Any, **keywords: Any) -> Any:
        disable = None if is_late(COMPILER) else getattr(sys.modules[COMPILER], "disable", None)  # it may be loading
        return (disable(fn, recursive, **options) if disable else fn)(*args, **keywords)

    return call


def _register(how: str, fn: Any) -> Any:
    """Note a function to be registered with the compiler when it is loaded, and return it."""
    _REGISTERED.append((how, fn))
    return fn


def deferred_metrics() -> ModuleType:
    """Make a torchmetrics package whose code runs on the first access to a name outside `_OF_METRICS`."""
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
