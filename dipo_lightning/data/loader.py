"""Rows in batches: forget rows paired with retain rows, and a loader that resumes in the middle of an epoch.

The pairing is a pure function of (seed, epoch, index): the same for any number of workers and ranks and after a resume.
Lightning's combined loaders would repeat one permutation inside an epoch and use the same one for both sets.

If ranks or micro-batches hold different numbers of tokens, the mean over the tokens of a micro-batch is not the mean
over the global batch. So each batch carries ``denominators``: the count of its whole optimiser step over all ranks,
divided by the number of micro-batches in it. ``sum / denominator``, averaged over ranks and micro-batches as Lightning
and FSDP2 do, is then exactly the mean over the global batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import IGNORED


class Example(TypedDict):
    """One tokenised row: ids, labels (-100 where not supervised) and the row's position in its data set."""

    input_ids: list[int]
    labels: list[int]
    index: int


def random_stream(seed: int, epoch: int, name: str, first: int | None = None) -> torch.Generator:
    """Return a random generator that is unique to (seed, epoch, name), with epochs counted from 0.

    Seeds are hashed, not added: ``seed + epoch`` would give epoch 1 of one seed to epoch 0 of the next.
    Epoch 0 uses the seed ``first`` if it is given.
    """
    if epoch == 0 and first is not None:
        return torch.Generator().manual_seed(first)
    digest = hashlib.sha256(f"{name} {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def supervised_count(example: Example) -> int:
    """Return the number of supervised tokens of ``example`` that are predicted (the first token never is)."""
    return sum(label != IGNORED for label in example["labels"][1:])


class ForgetRetainPairs(Dataset):
    """Forget rows, each paired with a retain row drawn for the epoch; one epoch is one pass over the forget rows.

    Args:
        forget: Tokenised rows to forget.
        retain: Tokenised rows to keep, or None to train on the forget rows alone.
        seed: Seed of the pairing.

    Attributes:
        alternative: Function from ``(epoch, index)`` to the example of an alternative answer, for methods that prefer
            one (IdkDPO).
    """

    alternative: Callable[[int, int], Example] | None = None

    def __init__(self, forget: Sequence[Example], retain: Sequence[Example] | None, seed: int = 0) -> None:
        self.forget, self.retain, self.seed = forget, retain, seed
        self._counts: dict[tuple[str, int], int] = {}
        self._partners: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of forget rows."""
        return len(self.forget)

    def partner(self, epoch: int, index: int) -> int:
        """Return the retain row paired with forget row ``index`` in ``epoch``."""
        if self.retain is None:
            raise ValueError("there are no retain rows to pair with")
        if self._partners is None or self._partners[0] != epoch:
            generator = random_stream(self.seed, epoch, "pairing", first=self.seed * 1_000_003)
            self._partners = epoch, torch.randperm(len(self.retain), generator=generator)
        return int(self._partners[1][index % len(self.retain)])

    def __getitem__(self, key: int) -> dict[str, Example]:
        """Return the parts of a pair; ``key`` is ``epoch * len(self) + index`` (see `EpochSampler`)."""
        epoch, index = divmod(key, len(self))
        parts = {"forget": self.forget[index]}
        if self.retain is not None:
            parts["retain"] = self.retain[self.partner(epoch, index)]
        if self.alternative is not None:
            parts["alternative"] = self.alternative(epoch, index)
        return parts

    def token_counts(self, key: int) -> dict[str, int]:
        """Return the supervised tokens of each part, without making a batch."""
        epoch, index = divmod(key, len(self))
        counts = {"forget": self._count("forget", self.forget, index)}
        if self.retain is not None:
            counts["retain"] = self._count("retain", self.retain, self.partner(epoch, index))
        return counts

    def _count(self, name: str, rows: Sequence[Example], index: int) -> int:
        if (name, index) not in self._counts:
            self._counts[name, index] = supervised_count(rows[index])
        return self._counts[name, index]


class TrainingRows(Dataset):
    """Rows to fine-tune on, with the interface of `ForgetRetainPairs` and one part, ``train``."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self.rows = rows
        self._counts: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def __getitem__(self, key: int) -> dict[str, Example]:
        """Return the row of ``key`` (``epoch * len(self) + index``)."""
        return {"train": self.rows[key % len(self)]}

    def token_counts(self, key: int) -> dict[str, int]:
        """Return the supervised tokens of the row of ``key``."""
        index = key % len(self)
        if index not in self._counts:
            self._counts[index] = supervised_count(self.rows[index])
        return {"train": self._counts[index]}


class EpochSampler(DistributedSampler):
    """Sampler of the keys ``epoch * len(dataset) + index``, so that an item can depend on the epoch in any worker.

    Attributes:
        skip: Keys to skip at the start of the next pass.
    """

    skip: int = 0

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's keys of the current epoch."""
        skip, self.skip = self.skip, 0
        return iter(self.keys_of_all_ranks()[self.rank][skip:])

    def keys_of_all_ranks(self) -> list[list[int]]:
        """Return the keys of every rank in the current epoch; each rank computes the same lists by itself.

        All ranks have the same number of keys: if the rows do not divide by the ranks, the first rows come twice.
        """
        rows = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(rows, generator=random_stream(self.seed, self.epoch, "order", first=self.seed))
        keys = (order.repeat(math.ceil(self.total_size / rows))[: self.total_size] + self.epoch * rows).tolist()
        return [keys[rank :: self.num_replicas] for rank in range(self.num_replicas)]


class FirstRowsSampler(EpochSampler, SequentialSampler):
    """Sampler of the first rows in file order, the same in every epoch, for ``trainer.overfit_batches``.

    It is a `SequentialSampler`, so Lightning does not replace it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        EpochSampler.__init__(self, *args, **options)

    def __len__(self) -> int:
        """Return the number of this rank's keys."""
        return self.num_samples

    def keys_of_all_ranks(self) -> list[list[int]]:
        """Return the keys of every rank."""
        rows = len(self.dataset)  # type: ignore[arg-type]
        keys = [key % rows for key in range(self.total_size)]
        return [keys[rank :: self.num_replicas] for rank in range(self.num_replicas)]


class ResumableLoader(DataLoader):
    """A DataLoader over `EpochSampler` keys that can start an epoch part-way through.

    Attributes:
        done: Batches yielded in the current epoch.
        skip: Batches to skip at the start of the next epoch; set on resume.
        trainer: Trainer, which is asked at every epoch: ``limit_train_batches`` may end it before the loader does, and
            a callback may change ``accumulate_grad_batches`` between two epochs.
    """

    skip: int = 0
    done: int = 0
    trainer: Any = None

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        limit = getattr(self.trainer, "limit_train_batches", 1.0)
        return min(limit, len(self)) if isinstance(limit, int) else int(limit * len(self))

    @property
    def repeated(self) -> int:
        """Number of rows that come twice in an epoch, so that all ranks have the same number."""
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
        accumulate = getattr(self.trainer, "accumulate_grad_batches", 1)
        step, denominators = -1, dict[str, float]()
        for self.done, batch in enumerate(super().__iter__(), skip + 1):
            if (self.done - 1) // accumulate != step:
                step = (self.done - 1) // accumulate
                denominators = self.denominators(step, ranks, accumulate)
            yield {**batch, "denominators": denominators}

    def _epoch(self) -> dict[str, int]:
        """Batches per epoch, and rows per batch over all ranks: a saved position is only valid for the same values."""
        assert isinstance(self.sampler, EpochSampler)
        assert self.batch_size is not None
        return {"length": self.batches, "rows": self.batch_size * self.sampler.num_replicas}

    def state_dict(self) -> dict[str, int]:
        """Return the position within the epoch: the same on every rank, so that rank 0's serves all."""
        return {"done": self.done, **self._epoch()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue after the batches already yielded; after the last one, with a new epoch.

        An `InputError` if the state is from inside an epoch with other batches.
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
        self.skip = self.done = skip  # so that a state saved before the first batch is the same position

    def denominators(self, step: int, ranks: list[list[int]], accumulate: int) -> dict[str, float]:
        """Return rows and supervised tokens per micro-batch and rank, for one optimiser step of the current epoch.

        ``step`` counts within the epoch, from 0; ``ranks`` are the epoch's keys by rank; ``accumulate`` is the number
        of micro-batches in a step.
        """
        assert self.batch_size is not None
        size, share = self.batch_size * accumulate, 1 / (accumulate * len(ranks))
        keys = [key for rank in ranks for key in rank[step * size : (step + 1) * size]]
        totals: dict[str, float] = {"rows": len(keys) * share}
        for key in keys:
            for part, count in self.dataset.token_counts(key).items():  # type: ignore[attr-defined]
                totals[part] = totals.get(part, 0) + count * share
        return totals
