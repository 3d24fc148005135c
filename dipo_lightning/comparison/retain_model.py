"""The retain model, the one that never saw the forget set: read from the log that the base compares with."""

from __future__ import annotations

from dipo_lightning.benchmarks.tofu.metrics import aggregate
from dipo_lightning.comparison.configs import Config, callbacks
from dipo_lightning.comparison.results import Row, add_utility_kept, measures
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.logs import read_log


def retain_row(base: Config, seed: int, target: Row | None) -> Row | None:
    """Return the row of the retain model of ``base``; None where the base names no log, or one without utility.

    Its forget quality is p = 1 by definition: it is compared with itself.
    """
    found = [callback["init_args"] for callback in callbacks(base.get("trainer") or {})]
    options = next((options for options in found if options.get("retain_log")), None)
    if options is None:
        return None
    try:
        log = read_log(options["retain_log"])
    except InputError as error:
        print(f"The retain model is not shown: {error}")
        return None
    aggregates = log.aggregates or aggregate(log.sets, truth_ratio=options.get("truth_ratio", "geometric"))
    row: Row = {"method": "retain", "settings": "", "seed": seed, "epoch": None, "step": None}
    row |= measures(aggregates)
    if row["model_utility"] is None:
        return None
    row |= {"forget_quality_p": 1.0, "log10_p": 0.0}
    add_utility_kept([row], target)
    return row
