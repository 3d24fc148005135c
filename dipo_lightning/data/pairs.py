"""Forget rows paired with retain rows: a pure function of (seed, epoch, index).

Being pure, the pairing is the same for any number of workers and ranks and after a resume. Lightning's combined
loaders are not: they repeat one permutation inside an epoch and give both sets the same one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler


class Example(TypedDict):
    """One tokenised row: ids, labels (-100 where not supervised) and the row's place in its file."""

    input_ids: list[int]
    labels: list[int]
    index: int


def random_stream(seed: int, epoch: int, name: str, first: int | None = None) -> torch.Generator:
    """Return the random stream of one epoch, which no other (seed, epoch, name) has.

    Seeds are hashed and not added up: with ``seed + epoch`` an epoch of one seed is an epoch of the next seed too.

    Args:
        seed: Seed of the run.
        epoch: Epoch, from 0.
        name: What is drawn.
        first: Seed of epoch 0; hashed like the others without.
    """
    if epoch == 0 and first is not None:
        return torch.Generator().manual_seed(first)
    digest = hashlib.sha256(f"{name} {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def supervised_count(example: Example) -> int:
    """Return how many tokens of ``example`` are predicted and supervised (the first token is never predicted)."""
    return sum(label != -100 for label in example["labels"][1:])


class ForgetRetainPairs(Dataset):
    """One epoch is one pass over the forget rows, each with a retain row drawn for that epoch.

    Args:
        forget: Tokenised rows to forget.
        retain: Tokenised rows to keep, or None to train on the forget rows alone.
        seed: Seed of the pairing.
        alternative: For methods that prefer another answer (IdkDPO): gives the example for ``(epoch, index)``.
    """

    def __init__(
        self,
        forget: Sequence[Example],
        retain: Sequence[Example] | None,
        seed: int = 0,
        alternative: Callable[[int, int], Example] | None = None,
    ) -> None:
        self.forget, self.retain, self.seed, self.alternative = forget, retain, seed, alternative
        self._counts: dict[tuple[str, int], int] = {}
        self._partners: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        """Return the number of forget rows."""
        return len(self.forget)

    def partner(self, epoch: int, index: int) -> int:
        """Return the retain row that meets forget row ``index`` in ``epoch``."""
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
    """Sampler of the keys ``epoch * len(dataset) + index``: with them an item can depend on the epoch in any worker.

    Attributes:
        skip: Keys to pass over at the start of the next pass.
    """

    skip: int = 0

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's keys of the current epoch."""
        skip, self.skip = self.skip, 0
        return iter(self.keys_of_all_ranks()[self.rank][skip:])

    def keys_of_all_ranks(self) -> list[list[int]]:
        """Return the keys of every rank in the current epoch; each rank computes the same lists, without talking.

        All ranks have as many: where the rows do not divide, the first rows of the order come again.
        """
        rows = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(rows, generator=random_stream(self.seed, self.epoch, "order", first=self.seed))
        keys = (order.repeat(math.ceil(self.total_size / rows))[: self.total_size] + self.epoch * rows).tolist()
        return [keys[rank :: self.num_replicas] for rank in range(self.num_replicas)]


class FirstRowsSampler(EpochSampler, SequentialSampler):
    """Sampler of the first rows in their order, the same in every epoch, as ``trainer.overfit_batches`` asks for.

    A `SequentialSampler`, which Lightning leaves in its place there.
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
