"""TOFU, or data in its schema, as a data module."""

from pathlib import Path
from typing import Any

from dipo_lightning.benchmarks.tofu.data import HUB_NAME, TOFUData, load_tofu
from dipo_lightning.data.files import config_files, is_saved
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule, first_rows


class TOFUDataModule(UnlearningDataModule):
    """TOFU's ``forgetXX`` to forget and the rest, ``retainYY``, to keep.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        data: ``locuslab/TOFU`` on the hub, or a folder of JSON-lines files in its schema.
        split: The forget split: ``forget01``, ``forget05``, ``forget10``, or another the folder has.
        max_forget_rows: Use the first n forget rows only.
        max_retain_rows: Use the first n retain rows only.
        **options: Those of `UnlearningDataModule` but ``forget`` and ``retain``.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        data: str = HUB_NAME,
        split: str = "forget10",
        max_forget_rows: int | None = None,
        max_retain_rows: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, data, max_forget_rows=max_forget_rows, max_retain_rows=max_retain_rows, **options)
        self.data, self.split = data, split
        self.tofu: TOFUData | None = None

    def read(self) -> None:
        """Read the split: the training rows, and those that `TOFUEvaluation` measures."""
        self.tofu = tofu = load_tofu(self.data, self.split)
        self.forget_rows = first_rows(tofu.train_forget, self.max_forget_rows, "max_forget_rows")
        self.retain_rows = first_rows(tofu.train_retain, self.max_retain_rows, "max_retain_rows")


class TOFUFineTuningDataModule(FineTuningDataModule):
    """Rows of TOFU, or of data in its schema, to fine-tune on: makes the target and the retain model.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        data: ``locuslab/TOFU`` on the hub, or a folder of JSON-lines files in its schema.
        train: Its configurations to train on, one after the other: ``full`` for a target, ``retain90`` for a
            retain model.
        max_rows: Use the first n rows of each only: one number for all, or one per configuration.
        **options: Those of `FineTuningDataModule`.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        data: str = HUB_NAME,
        train: str | list[str] = "full",
        max_rows: int | list[int | None] | None = None,
        **options: Any,
    ) -> None:
        folder, names = Path(data).expanduser(), [train] if isinstance(train, str) else train
        sources = [_files(folder, name) if folder.is_dir() else f"{data}:{name}" for name in names]
        super().__init__(tokenizer, train=sources, max_rows=max_rows, **options)  # type: ignore[arg-type]  # parts of one
        self.data = data


def _files(folder: Path, config: str) -> list[str]:
    """The file of a configuration or its parts; where there is none, the name that the message says is missing."""
    alone = folder / config if is_saved(folder / config) else folder / f"{config}.json"
    return [str(path) for path in config_files(folder, config) or [alone]]
