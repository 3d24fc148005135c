"""A cache of vectors is keyed by what it depends on, resumes where it was cut off, and is never read half-made."""

import errno
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dipo_lightning.errors import RunError
from dipo_lightning.models import distributed as row_batches
from dipo_lightning.models.answers import TokenBatch, supervised_labels
from dipo_lightning.reference import cache as position_cache
from dipo_lightning.reference.cache import PositionCache, cache_key

EXAMPLES = [
    {
        "input_ids": [1, *([5 + index] * (index + 2))],
        "labels": [-100, -100, *([5 + index] * (index + 1))],
        "index": 3 * index,
    }
    for index in range(5)
]


def vectors(batch: TokenBatch) -> Tensor:
    """(N, 2): the label of each position and its square."""
    labels = supervised_labels(batch["labels"]).float()
    return torch.stack([labels, labels**2], -1)


def made(root: Path, key: str | None = None) -> PositionCache:
    cache = PositionCache(root, key or cache_key(EXAMPLES, weights="a"), EXAMPLES, width=2)
    cache.claim()
    cache.release()
    cache.open()
    return cache


def finished(root: Path, key: str | None = None) -> PositionCache:
    cache = made(root, key)
    cache.build(vectors, batch_size=2, device=torch.device("cpu"))
    cache.finish()
    cache.open()
    return cache


def test_reads_what_was_computed_in_the_order_asked_for(tmp_path: Path) -> None:
    assert not made(tmp_path).complete
    assert finished(tmp_path).complete
    read = made(tmp_path).read(torch.tensor([9, 0]))
    assert read.tolist() == [[8, 64]] * 4 + [[5, 25]]


def test_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    seen = []

    def failing(batch: TokenBatch) -> Tensor:
        seen.append(batch["index"].tolist())
        if len(seen) == 2:
            raise KeyboardInterrupt
        return vectors(batch)

    cache = made(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.build(failing, batch_size=2, device=torch.device("cpu"))
    again = made(tmp_path)
    assert not again.complete
    seen.clear()
    seen.append([])
    seen.append([])
    again.build(failing, batch_size=2, device=torch.device("cpu"))
    assert seen[2:] == [[6, 9], [12]]
    again.finish()
    assert made(tmp_path).read(torch.tensor([12]))[0].tolist() == [9, 81]


def test_two_ranks_compute_the_same_number_of_batches_and_the_first_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches, seen, sent = [made(tmp_path), made(tmp_path)], ([], []), []

    def send(rows: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        sent.append(rows)
        return rows

    def join(rows: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        return rows | sent.pop(0)

    for rank, exchange in ((1, send), (0, join)):
        assert not made(tmp_path).marks.any()
        for module in (row_batches, position_cache):
            monkeypatch.setattr(module, "rank_and_world", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(position_cache, "gather", exchange)

        def seeing(batch: TokenBatch, rank: int = rank) -> Tensor:
            seen[rank].extend(batch["index"].tolist())
            return vectors(batch)

        caches[rank].build(seeing, batch_size=1, device=torch.device("cpu"))
    assert seen == ([0, 6, 12], [3, 9, 12])  # the short one repeats the last
    again = made(tmp_path)
    again.finish()
    assert again.read(torch.tensor([3, 12]))[:, 0].tolist() == [6] * 2 + [9] * 5


def test_a_row_that_it_does_not_know_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no row 7"):
        finished(tmp_path).read(torch.tensor([3, 7]))


def test_other_weights_or_rows_are_another_cache(tmp_path: Path) -> None:
    keys = {
        cache_key(EXAMPLES, weights="a"),
        cache_key(EXAMPLES, weights="b"),
        cache_key(EXAMPLES[:-1], weights="a"),
        cache_key([{**EXAMPLES[0], "index": 1}, *EXAMPLES[1:]], weights="a"),
    }
    assert len(keys) == 4
    finished(tmp_path, "k" * 64)
    assert not made(tmp_path, "l" * 64).complete


def test_a_foreign_or_truncated_cache_is_refused(tmp_path: Path) -> None:
    cache = finished(tmp_path)
    manifest = cache.folder / "manifest.json"
    good = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(good), "key": "0" * 64}))
    with pytest.raises(RunError, match="other data or weights"):
        made(tmp_path)
    manifest.write_text(good[:10])
    with pytest.raises(RunError, match="cannot be read"):
        made(tmp_path)
    manifest.write_text(good)
    values = cache.folder / "values.bin"
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(RunError, match="truncated"):
        made(tmp_path)


def test_a_changed_value_is_found(tmp_path: Path) -> None:
    values = finished(tmp_path).folder / "values.bin"
    content = bytearray(values.read_bytes())
    content[4] ^= 1
    values.write_bytes(content)
    cache = made(tmp_path)
    cache.read(torch.tensor([3]))
    with pytest.raises(RunError, match=r"is damaged \(row 0\); delete it"):
        cache.read(torch.tensor([3, 0]))


def test_nothing_has_the_cache_s_name_before_it_is_whole(tmp_path: Path) -> None:
    cache = made(tmp_path)
    cache.build(vectors, batch_size=2, device=torch.device("cpu"))
    assert not cache.folder.exists()
    cache.finish()
    assert cache.folder.exists()
    assert not cache.partial.exists()


def test_a_whole_cache_is_used_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    for name in ("mkdir", "write_text", "rename"):
        monkeypatch.setattr(Path, name, lambda *_, **__: pytest.fail("nothing is to be written"))
    original = np.memmap

    def mapped(path: Path, dtype: type, mode: str, **options: object) -> np.memmap:
        assert mode == "r"
        return original(path, dtype, mode, **options)

    monkeypatch.setattr(np, "memmap", mapped)
    monkeypatch.setattr(position_cache, "locked", lambda _: pytest.fail("nothing is to be locked"))
    cache = made(tmp_path)
    assert cache.read(torch.tensor([0])).tolist() == [[5, 25]]


def test_a_second_maker_waits_for_the_first_and_takes_what_it_made(tmp_path: Path) -> None:
    first, second = (PositionCache(tmp_path, cache_key(EXAMPLES), EXAMPLES, width=2) for _ in range(2))
    first.claim()
    waiting = threading.Thread(target=second.claim)
    waiting.start()
    first.open()
    first.build(vectors, batch_size=2, device=torch.device("cpu"))
    assert waiting.is_alive()
    first.finish()
    first.release()
    waiting.join(timeout=60)
    assert not waiting.is_alive()
    second.open()
    assert second.complete
    second.release()


def test_a_file_system_without_locks_has_caches_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    assert finished(tmp_path).read(torch.tensor([0])).tolist() == [[5, 25]]


def test_a_row_s_mark_or_vectors_in_the_place_of_another_s_are_found(tmp_path: Path) -> None:
    marks = finished(tmp_path).folder / "marks.bin"
    content = marks.read_bytes()
    marks.write_bytes(content[8:16] + content[:8] + content[16:])
    with pytest.raises(RunError, match=r"is damaged \(row 3\)"):
        made(tmp_path).read(torch.tensor([3]))
    marks.write_bytes(bytes(8) + content[8:])
    with pytest.raises(RunError, match="lacks 1 rows"):
        made(tmp_path)
