"""The hub's caches on this machine, filled as its own clients fill them: models and data sets without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetInfo
from datasets.arrow_writer import ArrowWriter
from datasets.naming import camelcase_to_snakecase


def cached_snapshot(home: Path, kind: str, name: str) -> Path:
    """The folder of a repository's files; ``kind`` is ``models`` or ``datasets``."""
    folder = home / "hub" / f"{kind}--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("c0ffee")
    snapshot = folder / "snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    return snapshot


def cached_dataset(
    home: Path, name: str, config: str, rows: Sequence[Mapping[str, Any]], splits: Sequence[str] = ("train",)
) -> None:
    """Keep a configuration of a data set as `datasets` does once it has loaded it, the same rows in every split."""
    owner, _, own = name.partition("/")
    own = camelcase_to_snakecase(own)
    folder = home / "datasets" / f"{owner}___{own}" / config / "0.0.0" / "c0ffee"
    folder.mkdir(parents=True)
    features = Dataset.from_list([dict(row) for row in rows]).features
    for split in splits:
        with ArrowWriter(features=features, path=str(folder / f"{own}-{split}.arrow")) as writer:
            for row in rows:
                writer.write(dict(row))
            writer.finalize()
    kept = {split: {"name": split, "num_examples": len(rows), "dataset_name": own} for split in splits}
    info = DatasetInfo(features=features, config_name=config, dataset_name=own, version="0.0.0", splits=kept)
    info.write_to_directory(str(folder))


def only_cached(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Let this process find data sets in ``home``, and no network."""
    import datasets.config
    from huggingface_hub import constants

    for owner in (datasets.config, constants):
        monkeypatch.setattr(owner, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "datasets"))
