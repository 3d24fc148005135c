"""The retain model, the one that never saw the forget set: read from the log that the base compares with."""

from __future__ import annotations

from dipo_lightning.comparison.configs import Config, callbacks
from dipo_lightning.comparison.results import Row, Scale, add_utility_kept
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.aggregates import flat_numbers, log_aggregates
from dipo_lightning.evaluation.logs import read_log
from dipo_lightning.evaluation.rows import with_skipped


def retain_row(base: Config, seed: int, target: Row | None, scale: Scale) -> Row | None:
    """Return the row of the retain model of ``base``; None where the base names no log, or one without utility.

    Compared with itself it has the values that the benchmark defines, such as p = 1.
    """
    found = [callback["init_args"] for callback in callbacks(base.get("trainer") or {})]
    options = next((options for options in found if options.get("retain_log")), None)
    if options is None:
        return None
    try:
        data, model = (base[part].get("init_args") or {} for part in ("data", "model"))
        named = data | {name: value for name, value in options.items() if value is not None}
        log = read_log(options["retain_log"], scale.benchmark.hub_log(str(model.get("pretrained")), named))
        chosen = {name: options[name] for name in scale.benchmark.score_options if name in options}
        settings = {**log.settings, **chosen}
        aggregates = log.aggregates or log_aggregates(scale.benchmark, with_skipped(log.sets, log.skipped), settings)
    except InputError as error:
        print(f"The retain model is not shown: {error}")
        return None
    row: Row = {"method": "retain", "settings": "", "seed": seed, "epoch": None, "step": None}
    row |= flat_numbers(aggregates)
    if scale.utility(row) is None:
        return None
    row |= scale.benchmark.retain_values
    add_utility_kept([row], target, scale)
    return row
