"""The two processes, shared by all tests of this folder, and a model with data to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed.jobs import write_task
from tests.distributed.pool import Pool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.stop()


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One process, for strategies that would leave a process group behind in the test process."""
    pool = Pool(tmp_path_factory.mktemp("alone"), world=1)
    yield pool
    pool.stop()


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a toy model and rows of very different lengths."""
    return str(write_task(tmp_path_factory.mktemp("task")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A matrix product split over threads rounds differently; the two processes have one each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
