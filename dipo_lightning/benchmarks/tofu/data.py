"""TOFU and data in its schema: training and evaluation rows of one forget split, and their data modules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from dipo_lightning.data.files import (
    AbsentError,
    Record,
    config_files,
    config_records,
    is_saved,
    text_field,
)
from dipo_lightning.data.rows import EXTRAS, extras, listed, refuse_overlap
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule, first_rows
from dipo_lightning.errors import InputError
from dipo_lightning.safety.paths import with_home

Rows = list[dict[str, Any]]
HUB_NAME = "locuslab/TOFU"
_MEANT = (*EXTRAS, "messages", "text")  # columns that have a meaning in a row


@dataclass
class TOFUData:
    """Rows of one forget split of TOFU.

    Every row has ``index`` (its number in the file), ``where`` (its place, for messages) and the fields of the file; of
    those in `EXTRAS`, the ones that are not empty.

    Attributes:
        split: Name of the forget split, such as ``forget10``.
        train_forget: Training rows to forget: ``question`` and ``answer``.
        train_retain: Training rows to keep: ``question`` and ``answer``.
        forget: Evaluation rows of the forget set: ``question``, ``answer``, ``paraphrased_answer`` and
            ``perturbed_answer``, a list of wrong answers.
        retain: Evaluation rows of the retain set, with the fields of ``forget``.
        real_authors: Evaluation rows about real authors: ``question``, ``answer`` and ``perturbed_answer``.
        world_facts: Evaluation rows of general knowledge, with the fields of ``real_authors``.
        holdout: Rows that no model was trained on: ``question`` and ``answer``; empty if the data has none.
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
        """The four evaluation sets by name, and ``holdout`` unless it is empty."""
        sets = {name: getattr(self, name) for name in ("forget", "retain", "real_authors", "world_facts")}
        return sets | ({"holdout": self.holdout} if self.holdout else {})

    def first(self, rows: int | None) -> TOFUData:
        """Return a copy with the first ``rows`` rows of each evaluation set; None keeps all."""
        cut: dict[str, Any] = {name: found[:rows] for name, found in self.sets.items()}
        return replace(self, **cut)


def load_tofu(source: str | Path = HUB_NAME, split: str = "forget10") -> TOFUData:
    """Read one forget split.

    Args:
        source: ``locuslab/TOFU``, another data set on the hub in its schema, or a folder of JSON-lines files.
        split: ``forget01``, ``forget05``, ``forget10``, or another that the data has.

    Raises:
        InputError: A file or field is missing, a field has the wrong type, or two training sets share rows.
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
    """Return the rows of one configuration, checked."""
    rows = []
    for index, record in enumerate(config_records(source, config)):
        row = {name: text_field(record, name) for name in ("question", "answer")}
        if paraphrased:
            text_field(record, "paraphrased_answer")
        if wrong:
            _check_wrong_answers(record)
        others = {name: value for name, value in record.fields.items() if name not in _MEANT}
        row |= extras(record, {name: name for name in EXTRAS}, row, marks=False)
        rows.append({**others, **row, "index": index, "where": record.where})
    return rows


def _holdout(source: str | Path, config: str) -> Rows:
    """Return the rows of the holdout set, or none if the data has no such set; TOFU on the hub has one since 2025."""
    try:
        return _rows(source, config)
    except AbsentError:
        if not with_home(source).is_dir():
            rank_zero_info(f"{source} has no {config} (a copy from before 2025?), so there is no membership inference.")
        return []


def _check_wrong_answers(record: Record) -> None:
    """Refuse a record without a list of wrong answers."""
    answers = record.fields.get("perturbed_answer")
    if answers is None:
        text_field(record, "perturbed_answer")
    answers = listed(answers, f"{record.where}: 'perturbed_answer'")
    if not isinstance(answers, list) or not answers:
        raise InputError(f"{record.where}: 'perturbed_answer' must be a list of at least one wrong answer.")


class TOFUDataModule(UnlearningDataModule):
    """TOFU's split ``forgetXX`` to forget, and the rest, ``retainYY``, to keep.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        data: ``locuslab/TOFU`` on the hub, or a folder of JSON-lines files in its schema.
        split: The forget split: ``forget01``, ``forget05``, ``forget10``, or another that the data has.
        max_forget_rows: Use only the first n forget rows; None for all.
        max_retain_rows: Use only the first n retain rows; None for all.
        **options: Those of `UnlearningDataModule` except ``forget`` and ``retain``.
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
        """Read the training rows of the split, and the evaluation rows for `TOFUEvaluation`."""
        self.tofu = tofu = load_tofu(self.data, self.split)
        self.forget_rows = first_rows(tofu.train_forget, self.max_forget_rows, "max_forget_rows")
        self.retain_rows = first_rows(tofu.train_retain, self.max_retain_rows, "max_retain_rows")


class TOFUFineTuningDataModule(FineTuningDataModule):
    """Rows of TOFU, or of data in its schema, for fine-tuning the target and the retain model.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        data: ``locuslab/TOFU`` on the hub, or a folder of JSON-lines files in its schema.
        train: Configuration to train on, or several: ``full`` for the target, ``retain90`` for the retain model.
        max_rows: Use only the first n rows of each configuration: one number for all, or one each; None for all rows.
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
        folder, names = with_home(data), [train] if isinstance(train, str) else train
        sources = [_files(folder, name) if folder.is_dir() else f"{data}:{name}" for name in names]
        super().__init__(tokenizer, train=sources, max_rows=max_rows, **options)  # type: ignore[arg-type]  # parts of one
        self.data = data


def _files(folder: Path, config: str) -> list[str]:
    """Return the files of a configuration; if there are none, the path that the message will name as missing."""
    alone = folder / config if is_saved(folder / config) else folder / f"{config}.json"
    return [str(path) for path in config_files(folder, config) or [alone]]
