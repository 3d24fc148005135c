"""The pairing is a pure function of (seed, epoch, index), and sums are divided by the counts of the global batch."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from dipo_lightning.data.loader import EpochSampler, ForgetRetainPairs, ResumableLoader, TrainingRows, supervised_count
from dipo_lightning.errors import InputError
from dipo_lightning.models.answers import collate


def rows(count: int, start: int = 0) -> list[dict]:
    """Rows of different lengths: row i has i % 3 + 1 supervised tokens after two of prompt."""
    made = []
    for index in range(count):
        answer = [10 + (start + index) % 50] * (index % 3 + 1)
        made.append({"input_ids": [1, 2, *answer], "labels": [-100, -100, *answer], "index": index})
    return made


def loader(
    pairs: ForgetRetainPairs, rank: int = 0, ranks: int = 1, batch_size: int = 2, accumulate: int = 1, workers: int = 0
) -> ResumableLoader:
    sampler = EpochSampler(pairs, num_replicas=ranks, rank=rank, shuffle=True, seed=3)
    made = ResumableLoader(
        pairs,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=lambda items: {half: collate([item[half] for item in items], 0) for half in items[0]},
    )
    made.trainer = SimpleNamespace(accumulate_grad_batches=accumulate)
    return made


def order(batches: list[dict]) -> list[list[tuple[int, int]]]:
    return [
        list(zip(batch["forget"]["index"].tolist(), batch["retain"]["index"].tolist(), strict=True))
        for batch in batches
    ]


def test_an_epoch_is_one_pass_over_the_forget_rows_with_new_partners_each_epoch() -> None:
    pairs = ForgetRetainPairs(rows(7), rows(20), seed=1)
    made = loader(pairs)
    seen = []
    for epoch in range(3):
        made.sampler.set_epoch(epoch)
        met = [pair for batch in order(list(made)) for pair in batch]
        assert sorted(forget for forget, _ in met) == list(range(7))
        assert len({retain for _, retain in met}) == 7
        seen.append(dict(met))
    assert seen[0] != seen[1] != seen[2]
    assert seen[1] == {index: ForgetRetainPairs(rows(7), rows(20), seed=1).partner(1, index) for index in range(7)}
    other = {index: ForgetRetainPairs(rows(7), rows(20), seed=2).partner(1, index) for index in range(7)}
    assert other != seen[1]


def test_more_forget_rows_than_retain_rows_use_retain_rows_again() -> None:
    pairs = ForgetRetainPairs(rows(8), rows(3), seed=0)
    partners = [pairs.partner(0, index) for index in range(8)]
    assert sorted(set(partners)) == [0, 1, 2]
    assert max(partners.count(partner) for partner in set(partners)) == 3


def test_without_retain_rows_a_batch_has_the_forget_half_only() -> None:
    batch = next(iter(loader(ForgetRetainPairs(rows(4), None))))
    assert "retain" not in batch
    assert set(batch["denominators"]) == {"rows", "forget"}


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_does_not_depend_on_workers_and_resumes_in_the_middle(workers: int) -> None:
    pairs = ForgetRetainPairs(rows(9), rows(20), seed=1)
    whole = loader(pairs)
    whole.sampler.set_epoch(2)
    expected = order(list(whole))
    resumed = loader(pairs, workers=workers)
    resumed.sampler.set_epoch(2)
    resumed.skip = 2
    assert order(list(resumed)) == expected[2:]
    assert resumed.done == len(expected)
    assert order(list(resumed)) == expected, "the next epoch starts at its first batch"


@pytest.mark.parametrize(
    ("batch_size", "ranks", "count"), [(1, 1, 9), (4, 2, 9), (3, 1, 9), (4, 1, 16)],
    ids=["smaller batches", "more processes", "smaller batches, but as many", "more rows"],
)  # fmt: skip
def test_other_batches_in_the_middle_of_an_epoch_are_refused(batch_size: int, ranks: int, count: int) -> None:
    saved = loader(ForgetRetainPairs(rows(9), rows(20)), batch_size=4)
    other = loader(ForgetRetainPairs(rows(count), rows(20)), ranks=ranks, batch_size=batch_size)
    saved.done = 2
    with pytest.raises(InputError, match="inside an epoch of 3 batches of 4 rows; here an epoch has"):
        other.load_state_dict(saved.state_dict())
    saved.done = 3
    changed = batch_size * ranks != 4
    with pytest.warns(UserWarning, match="A batch had 4 rows until this") if changed else nullcontext():
        other.load_state_dict(saved.state_dict())
    assert other.skip == 0, "at the end of an epoch it does not matter"


def test_the_same_batches_on_more_processes_go_on() -> None:
    saved = loader(ForgetRetainPairs(rows(9), rows(20)), batch_size=4)
    saved.done = 2
    halves = loader(ForgetRetainPairs(rows(9), rows(20)), ranks=2, batch_size=2)
    halves.load_state_dict(saved.state_dict())
    assert halves.skip == 2


def test_ranks_share_out_the_batch_of_one_process() -> None:
    pairs = ForgetRetainPairs(rows(8), rows(20), seed=1)
    alone = loader(pairs, batch_size=4)
    two = [loader(pairs, rank=rank, ranks=2) for rank in range(2)]
    for made in (alone, *two):
        made.sampler.set_epoch(1)
    for together, first, second in zip(order(list(alone)), *(order(list(made)) for made in two), strict=True):
        assert sorted(together) == sorted(first + second)


@pytest.mark.parametrize(("ranks", "accumulate", "batch_size"), [(1, 1, 4), (2, 1, 2), (1, 4, 1), (2, 2, 1), (2, 3, 1)])
def test_sums_over_denominators_average_to_the_mean_of_the_global_batch(
    ranks: int, accumulate: int, batch_size: int
) -> None:
    pairs = ForgetRetainPairs(rows(8), rows(20), seed=1)
    made = [loader(pairs, rank, ranks, batch_size, accumulate) for rank in range(ranks)]
    for each in made:
        each.sampler.set_epoch(1)
    batches = [list(each) for each in made]
    for start in range(0, len(batches[0]), accumulate):
        window = [batch for rank in batches for batch in rank[start : start + accumulate]]
        for half in ("forget", "retain"):
            labels = [batch[half]["labels"][:, 1:] for batch in window]
            values = [torch.where(each != -100, each.double(), 0.0) for each in labels]
            mean = sum(each.sum() for each in values) / sum((each != -100).sum() for each in labels)
            # Lightning divides each micro-batch by `accumulate`, the gradient average divides by the ranks
            terms = [each.sum() / batch["denominators"][half] for each, batch in zip(values, window, strict=True)]
            torch.testing.assert_close(sum(terms) / (accumulate * ranks), mean)
        total = sum(batch["forget"]["index"].numel() / batch["denominators"]["rows"] for batch in window)
        assert total / (accumulate * ranks) == pytest.approx(1.0)


def test_training_rows_follow_the_same_keys() -> None:
    made = TrainingRows(rows(3))
    assert made[5]["train"]["index"] == 2
    assert made.token_counts(4) == {"train": supervised_count(rows(3)[1])}


def epoch_order(seed: int, epoch: int, count: int = 40) -> list[int]:
    sampler = EpochSampler(ForgetRetainPairs(rows(count), None), num_replicas=1, rank=0, seed=seed)
    sampler.set_epoch(epoch)
    return [key % count for key in sampler]


def epoch_partners(seed: int, epoch: int, count: int = 40) -> list[int]:
    pairs = ForgetRetainPairs(rows(count), rows(count), seed)
    return [pairs.partner(epoch, index) for index in range(count)]


@pytest.mark.parametrize("drawn", [epoch_order, epoch_partners])
def test_no_epoch_of_one_seed_is_an_epoch_of_another(drawn) -> None:
    cases = [(seed, epoch) for seed in range(6) for epoch in range(6)] + [(0, 1_000_003)]
    assert len({tuple(drawn(seed, epoch)) for seed, epoch in cases}) == len(cases)


def test_the_first_epoch_is_torch_s_permutation_of_the_seed() -> None:
    for seed in (0, 3):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
        assert epoch_order(seed, 0) == order.tolist()


def test_order_and_pairing_of_an_epoch_are_not_one_permutation() -> None:
    assert epoch_order(0, 1) != epoch_partners(0, 1)


def test_more_processes_than_rows_all_train_on_them() -> None:
    keys = [list(EpochSampler(ForgetRetainPairs(rows(2), None), 5, rank, seed=0)) for rank in range(5)]
    assert all(len(own) == 1 for own in keys)
    assert {key for own in keys for key in own} == {0, 1}
