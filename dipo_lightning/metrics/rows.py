"""One value a row, exact on any number of ranks: the state under every metric of this package.

Forget quality and AUCs need every row's value, and a sampler that pads the last batch repeats rows. So each value
travels with its row's index, and a row counts once however often and wherever it was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from dipo_lightning.errors import InputError


class RowValues(Metric):
    """Named values of rows, each row once.

    A subclass names its columns and implements `update` (ending in `_append`) and `compute` (on `_scored`). All states
    are 1-D float64 (float32 on mps), the index too: ranks gather them at different lengths, which works for one kind of
    tensor only. Where a row was seen twice with different values, the smallest counts, so that neither the order nor
    the sharding of the rows can be seen in the result.

    Args:
        nan: What becomes of a row with a value that is NaN (an answer without tokens): `skip` leaves it out and keeps
            its index in `unscored` after `compute`; `raise` makes `compute` raise an InputError, on every rank.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better: bool | None = None

    columns: tuple[str, ...] = ()
    """The values of a row."""

    keys: tuple[str, ...] = ("index",)
    """What tells two rows apart; a metric over several sets adds `group`."""

    def __init__(self, nan: Literal["skip", "raise"] = "skip", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if nan not in ("skip", "raise"):
            raise InputError(f"nan={nan!r} is not an option: choose skip or raise")
        self.nan = nan
        self.unscored: Tensor = torch.empty(0, dtype=torch.long)
        for name in (*self.keys, *self.columns):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def rows(self) -> dict[str, Tensor]:
        """Keys and columns of the rows seen so far (by all ranks inside `compute`), each once, ordered by key.

        Returns:
            1-D float tensors of one length.
        """
        names = (*self.keys, *self.columns)
        table = {name: self._state(name) for name in names}
        order = torch.arange(table[names[0]].numel(), device=table[names[0]].device)
        for name in reversed(names):  # a lexicographic sort; NaN comes last, so a number wins over it
            order = order[torch.argsort(table[name][order], stable=True)]
        table = {name: values[order] for name, values in table.items()}
        first = torch.ones_like(order, dtype=torch.bool)
        if first.numel() > 1:
            first[1:] = torch.stack([table[name][1:] != table[name][:-1] for name in self.keys]).any(dim=0)
        return {name: values[first] for name, values in table.items()}

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.unscored = torch.empty(0, dtype=torch.long)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the rows of another metric of the same class, or of its state.

        Counts as an update: torchmetrics would go on giving the value computed before, and warn where there was none.
        """
        super().merge_state(incoming_state)
        self._computed = None
        self._update_count += 1

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the states of all ranks.

        A rank without rows takes part with empty tensors of the right kind; torchmetrics would make them in its own
        default dtype.
        """
        for name in (*self.keys, *self.columns):
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [self._state(name)])
        super().sync(*args, **kwargs)

    def _append(self, **values: Tensor | Sequence[float]) -> None:
        """Add rows: one 1-D value for every key and column, all of one length."""
        rows = {name: torch.as_tensor(value).detach().reshape(-1) for name, value in values.items()}
        if set(rows) != {*self.keys, *self.columns} or len({value.numel() for value in rows.values()}) != 1:
            sizes = {name: value.numel() for name, value in rows.items()}
            raise ValueError(f"{type(self).__name__} needs one value a row for each of its columns, got {sizes}")
        if bool((rows["index"] < 0).any()):
            raise ValueError(f"{type(self).__name__}: the index of a row cannot be negative")
        for name, value in rows.items():
            getattr(self, name).append(value.to(self.device, self._float))

    def _scored(self) -> dict[str, Tensor]:
        """The rows without NaN; keeps the indices of the others in `unscored`."""
        table = self.rows()
        bad = torch.stack([table[name].isnan() for name in self.columns]).any(dim=0)
        self.unscored = table["index"][bad].long()
        if self.nan == "raise" and self.unscored.numel():
            raise InputError(
                f"{type(self).__name__}: {self.unscored.numel()} rows cannot be scored (NaN), the first of them row "
                f"{int(self.unscored[0])}. Does their answer have tokens, and is the model finite? "
                "nan='skip' leaves such rows out."
            )
        return {name: values[~bad] for name, values in table.items()}

    @property
    def _float(self) -> torch.dtype:
        """Dtype of the states: index and value survive it unchanged."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def _state(self, name: str) -> Tensor:
        """A state as one tensor, whether it is a list still or was gathered."""
        state = getattr(self, name)
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.empty(0, dtype=self._float, device=self.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        """Move the states with the module, but never change their kind: bfloat16 has no index above 256."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)


def mean_or_nan(values: Tensor) -> Tensor:
    """Mean of a column; NaN without rows.

    Args:
        values: (n,) float.

    Returns:
        Scalar of the same dtype.
    """
    return values.mean() if values.numel() else values.new_tensor(math.nan)


class MeanOverRows(RowValues):
    """Mean over rows of one `value` a row; a subclass says in `update` what the value is."""

    columns = ("value",)

    def compute(self) -> Tensor:
        """Mean over the rows that can be scored; NaN where there is none."""
        return mean_or_nan(self._scored()["value"])


class RowMean(MeanOverRows):
    """Mean over rows of a given value."""

    def update(self, index: Tensor, value: Tensor) -> None:
        """Add rows.

        Args:
            index: (B,) index of each row in its data set.
            value: (B,) its value; NaN where it cannot be scored.
        """
        self._append(index=index, value=value)
