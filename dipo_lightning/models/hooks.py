"""Hooks of modules and data modules that do their part also where a subclass overrides them without ``super()``."""

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

PACKAGE = __name__.partition(".")[0] + "."


class CompleteHooks:
    """Base of classes whose hooks (``setup``, ``on_...``, ``state_dict``) never lose this package's part.

    Lightning's own hooks are empty, so its users override them without ``super()``. The package's version of such a
    hook then runs right after the override; a hook that calls ``super()`` chooses the moment itself.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Complete the hooks that the class, or a mixin among its bases, defines."""
        super().__init_subclass__(**kwargs)
        for name in filter(_is_hook, dir(cls)):
            owners = [base for base in cls.__mro__ if isinstance(vars(base).get(name), FunctionType)]
            own = next((base for base in owners if base.__module__.startswith(PACKAGE)), None)
            if own is not None and (owners[0] is cls or not issubclass(owners[0], CompleteHooks)):
                setattr(cls, name, _completed(vars(owners[0])[name], vars(own)[name]))


def _is_hook(name: str) -> bool:
    return name.startswith("on_") or name in ("setup", "teardown", "state_dict", "load_state_dict")


def _completed(hook: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``hook``, followed by the package's ``own`` version if it has not called that; states are merged."""
    name = hook.__name__

    @functools.wraps(hook)
    def complete(self: Any, *args: Any, **kwargs: Any) -> Any:
        reached: set[str] = vars(self).setdefault("_reached_hooks", set())
        reached.discard(name)
        result = hook(self, *args, **kwargs)
        if own is not hook and name not in reached:
            state = own(self, *args, **kwargs)
            result = {**state, **result} if isinstance(state, dict) else result
        reached.add(name)
        return result

    return complete
