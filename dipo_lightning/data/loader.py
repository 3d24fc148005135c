"""A loader that resumes in the middle of an epoch and tells each batch what to divide its sums by.

A mean over the tokens of a micro-batch is not the mean over the global batch where ranks or micro-batches hold
different counts. So each batch carries ``denominators``: the count of its whole optimiser step over all ranks, divided
by the number of micro-batches in it. ``sum / denominator``, averaged over ranks and micro-batches as Lightning and
FSDP2 do, is then exactly the mean over the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from dipo_lightning.data.pairs import EpochSampler
from dipo_lightning.errors import InputError


class ResumableLoader(DataLoader):
    """A DataLoader over `EpochSampler` keys that can start an epoch part-way through.

    Attributes:
        done: Batches given out in the current epoch.
        skip: Batches to pass over at the start of the next epoch; set on resume.
        accumulate: Micro-batches of an optimiser step.
        limit: ``trainer.limit_train_batches``, which ends an epoch before the loader does: a number, or a share.
    """

    skip: int = 0
    done: int = 0
    accumulate: int = 1
    limit: int | float = 1.0

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return min(self.limit, len(self)) if isinstance(self.limit, int) else int(self.limit * len(self))

    @property
    def repeated(self) -> int:
        """Rows that an epoch has twice, so that all ranks have as many."""
        assert isinstance(self.sampler, EpochSampler)
        given = min(self.sampler.total_size, self.batches * self._epoch()["rows"])
        return max(0, given - len(self.sampler.dataset))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Yield the batches of the current epoch, each with its ``denominators``."""
        # A generator starts on the first request, when Lightning has already set the sampler's epoch.
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        skip, self.skip = self.skip, 0
        self.sampler.skip = skip * self.batch_size
        ranks = [keys[: self.batches * self.batch_size] for keys in self.sampler.keys_of_all_ranks()]
        step, denominators = -1, dict[str, float]()
        for self.done, batch in enumerate(super().__iter__(), skip + 1):
            if (self.done - 1) // self.accumulate != step:
                step = (self.done - 1) // self.accumulate
                denominators = self.denominators(step, ranks)
            yield {**batch, "denominators": denominators}

    def _epoch(self) -> dict[str, int]:
        """Batches of an epoch, and rows of a batch over all ranks: both give a number of batches its meaning."""
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        return {"length": self.batches, "rows": self.batch_size * self.sampler.num_replicas}

    def state_dict(self) -> dict[str, int]:
        """Return how far into the epoch the loader is: the same on every rank, so that rank 0's serves all."""
        return {"done": self.done, **self._epoch()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after the batches that were given out; after the last one, with a new epoch.

        Raises:
            InputError: It is the state of a loader inside an epoch of other batches.
        """
        here = self._epoch()
        saved = {name: state_dict.get(name, value) for name, value in here.items()}  # earlier states have no rows
        skip = state_dict["done"] % max(1, saved["length"])
        if skip and saved != here:
            raise InputError(
                f"The checkpoint was written inside an epoch of {saved['length']} batches of {saved['rows']} rows; "
                f"here an epoch has {here['length']} of {here['rows']}, and other rows would be left out. Keep "
                "data.batch_size x processes, the data and trainer.limit_train_batches as they were."
            )
        if saved["rows"] != here["rows"]:
            rank_zero_warn(
                f"A batch had {saved['rows']} rows until this checkpoint and has {here['rows']} from here on "
                "(data.batch_size x processes): the numbers are not those of an uninterrupted run.",
                category=UserWarning,
            )
        self.skip = self.done = skip  # saved again before the first batch, it is the same place

    def denominators(self, step: int, ranks: list[list[int]]) -> dict[str, float]:
        """Return rows and supervised tokens per micro-batch and rank, for one optimiser step of the current epoch.

        Args:
            step: Optimiser step within the epoch, from 0.
            ranks: Keys of the epoch by rank.
        """
        assert self.batch_size is not None
        size, share = self.batch_size * self.accumulate, 1 / (self.accumulate * len(ranks))
        keys = [key for rank in ranks for key in rank[step * size : (step + 1) * size]]
        totals: dict[str, float] = {"rows": len(keys) * share}
        for key in keys:
            for part, count in self.dataset.token_counts(key).items():  # type: ignore[attr-defined]
                totals[part] = totals.get(part, 0) + count * share
        return totals
