"""Options of an evaluation callback, written flat."""

from dataclasses import fields
from typing import Any

from dipo_lightning.evaluation.rows import Measuring
from dipo_lightning.evaluation.schedule import Schedule


def nested(**options: Any) -> dict[str, Any]:
    """Put each option into the dataclass that has it."""
    made: dict[str, Any] = {}
    for name, kind in (("schedule", Schedule), ("measuring", Measuring)):
        own = {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}
        if own:
            made[name] = kind(**own)
    return made | options
