"""TOFU and data in its schema: rows of one forget split to train on and to evaluate, and their data modules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from dipo_lightning.data.encoding import checked_text
from dipo_lightning.data.files import (
    AbsentError,
    Record,
    config_files,
    config_records,
    is_saved,
    text_field,
)
from dipo_lightning.data.rows import listed, refuse_overlap
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule, first_rows
from dipo_lightning.errors import InputError

Rows = list[dict[str, Any]]
HUB_NAME = "locuslab/TOFU"


@dataclass
class TOFUData:
    """One forget split of TOFU.

    Every row has ``index`` (its row in the file), ``where`` (for messages) and the file's own fields.

    Attributes:
        split: The forget split, such as ``forget10``.
        train_forget: ``question`` and ``answer`` of what is to be forgotten.
        train_retain: The same of the rest.
        forget: Evaluation rows: ``question``, ``answer``, ``paraphrased_answer``, ``perturbed_answer`` (wrong ones).
        retain: The same of the retain set.
        real_authors: ``question``, ``answer``, ``perturbed_answer``.
        world_facts: The same.
        holdout: ``question`` and ``answer`` of rows that no model was trained on; empty where the data has none.
    """

    split: str
    train_forget: Rows
    train_retain: Rows
    forget: Rows
    retain: Rows
    real_authors: Rows
    world_facts: Rows
    holdout: Rows = field(default_factory=list)

    @property
    def sets(self) -> dict[str, Rows]:
        """The four evaluation sets by name, and ``holdout`` where there is one."""
        sets = {name: getattr(self, name) for name in ("forget", "retain", "real_authors", "world_facts")}
        return sets | ({"holdout": self.holdout} if self.holdout else {})

    def first(self, rows: int | None) -> TOFUData:
        """Return the same with only so many rows of each evaluation set, from the first; None for all."""
        cut: dict[str, Any] = {name: found[:rows] for name, found in self.sets.items()}
        return replace(self, **cut)


def load_tofu(source: str | Path = HUB_NAME, split: str = "forget10") -> TOFUData:
    """Read one forget split.

    Args:
        source: ``locuslab/TOFU`` (or another data set on the hub of its schema), or a folder of JSON-lines files.
        split: ``forget01``, ``forget05``, ``forget10``, or another the folder has.

    Raises:
        InputError: A file or field is missing or of another type, or forget and retain share rows.
    """
    retain = retain_split(split)
    data = TOFUData(
        split=split,
        train_forget=_rows(source, split),
        train_retain=_rows(source, retain),
        forget=_rows(source, f"{split}_perturbed", paraphrased=True, wrong=True),
        retain=_rows(source, "retain_perturbed", paraphrased=True, wrong=True),
        real_authors=_rows(source, "real_authors_perturbed", wrong=True),
        world_facts=_rows(source, "world_facts_perturbed", wrong=True),
        holdout=_holdout(source, split.replace("forget", "holdout")),
    )
    refuse_overlap(data.train_forget, data.train_retain, (split, retain))
    refuse_overlap(data.holdout, data.train_forget, ("holdout", split))
    refuse_overlap(data.holdout, data.train_retain, ("holdout", retain))
    return data


def retain_split(split: str) -> str:
    """Return the retain split that belongs to a forget split: ``retain90`` for ``forget10``."""
    match = re.fullmatch(r"forget(\d\d)", split)
    if not match or not 1 <= int(match[1]) <= 99:
        raise InputError(f"{split!r} is not a forget split of TOFU; write forget01, forget05 or forget10.")
    return f"retain{100 - int(match[1]):02d}"


def _rows(source: str | Path, config: str, paraphrased: bool = False, wrong: bool = False) -> Rows:
    """Checked rows of one configuration."""
    texts = ("question", "answer") + (("paraphrased_answer",) if paraphrased else ())
    rows = []
    for index, record in enumerate(config_records(source, config)):
        for name in texts:
            text_field(record, name)
        wrong_answers = {"perturbed_answer": _wrong_answers(record)} if wrong else {}
        rows.append({"index": index, "where": record.where, **record.fields, **wrong_answers})
    return rows


def _holdout(source: str | Path, config: str) -> Rows:
    """Rows of the holdout set where the data has one; TOFU on the hub has it since 2025."""
    try:
        return _rows(source, config)
    except AbsentError:
        if not Path(source).expanduser().is_dir():
            rank_zero_info(f"{source} has no {config} (a copy from before 2025?), so there is no membership inference.")
        return []


def _wrong_answers(record: Record) -> list[str]:
    """The wrong answers: a list with at least one text."""
    answers = record.fields.get("perturbed_answer")
    if answers is None:
        text_field(record, "perturbed_answer")
    answers = listed(answers, f"{record.where}: 'perturbed_answer'")
    if not isinstance(answers, list) or not answers:
        raise InputError(f"{record.where}: 'perturbed_answer' must be a list of at least one wrong answer.")
    return [checked_text(answer, f"{record.where}: a 'perturbed_answer'") for answer in answers]


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
