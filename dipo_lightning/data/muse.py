"""MUSE and data in its schema: running text to forget, and its evaluation sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipo_lightning.data.overlap import refuse_overlap
from dipo_lightning.data.records import config_records, text_field
from dipo_lightning.errors import InputError

Rows = list[dict[str, Any]]
HUB_NAMES = ("muse-bench/MUSE-News", "muse-bench/MUSE-Books")
IN_CONTEXT = 10
"""In-context examples of the knowledge questions."""
FOLDS = 4


@dataclass
class MUSEData:
    """One data set of MUSE, to forget one of its parts.

    Every row has ``index`` (its row in the file), ``where`` (for messages) and the fields named here.

    Attributes:
        train_forget: ``text`` of what is to be forgotten.
        train_retain: ``text`` of retain1, which is trained on to be kept.
        retain2: ``text`` that utility is measured on and nothing trains on.
        verbmem: ``prompt`` and ``gt`` (its true continuation).
        knowmem: ``question`` and ``answer`` by ``forget`` and ``retain``.
        in_context: The ten ``question`` and ``answer`` that stand before each question, by ``forget`` and ``retain``.
        privleak: ``text`` by ``forget`` (members), ``retain`` and ``holdout`` (non-members).
    """

    train_forget: Rows
    train_retain: Rows
    retain2: Rows
    verbmem: Rows
    knowmem: dict[str, Rows]
    in_context: dict[str, Rows]
    privleak: dict[str, Rows]


def load_muse(
    source: str | Path, forget: str = "train/forget", first: int | None = None, allow_overlap: bool = False
) -> MUSEData:
    """Reads a data set of MUSE.

    Args:
        source: ``muse-bench/MUSE-News`` or ``muse-bench/MUSE-Books`` on the hub, or a folder of
            ``<configuration>/<split>.jsonl`` (or ``.parquet``).
        forget: What is to be forgotten, as ``configuration/split``: ``train/forget``, ``raw/forget``,
            ``scal/forget_2`` or ``sust/forget_1``.
        first: Only so many rows of each evaluation set, from the first. All without.
        allow_overlap: Go on where retain2 or the holdout set has documents that are trained on.

    Raises:
        InputError: A split or field is missing or of another type, a document is empty, there are fewer than ten
            in-context examples, or evaluation documents are trained on.
    """
    if first is not None and first < 1:
        raise InputError(f"first is {first}; give a number of rows from 1, or none for all.")
    data = MUSEData(
        train_forget=forget_texts(source, forget),
        train_retain=_rows(source, "train/retain1", "text"),
        retain2=_rows(source, "train/retain2", "text"),
        verbmem=_rows(source, "verbmem/forget", "prompt", "gt")[:first],
        knowmem={name: _rows(source, f"knowmem/{name}_qa", "question", "answer")[:first] for name in _SIDES},
        in_context={name: _in_context(source, f"knowmem/{name}_qa_icl") for name in _SIDES},
        privleak={name: _rows(source, f"privleak/{name}", "text")[:first] for name in (*_SIDES, "holdout")},
    )
    if not allow_overlap:
        for name, rows in (("retain2", data.retain2), ("holdout", data.privleak["holdout"])):
            refuse_overlap(rows, data.train_forget, (name, forget))
            refuse_overlap(rows, data.train_retain, (name, "train/retain1"))
    return data


def forget_texts(source: str | Path, part: str = "train/forget") -> Rows:
    """Documents to forget: the whole forget set, or a fold of the scalability or sustainability runs.

    Args:
        source: See `load_muse`.
        part: ``train/forget``, ``raw/forget``, or ``scal/forget_k`` or ``sust/forget_k`` with k from 1 to 4.

    Raises:
        InputError: There is no such part.
    """
    parts = ["train/forget", "raw/forget"]
    parts += [f"{config}/forget_{fold}" for config in ("scal", "sust") for fold in range(1, FOLDS + 1)]
    if part not in parts:
        raise InputError(f"{part!r} is no part of MUSE to forget; there are {', '.join(parts)}.")
    return _rows(source, part, "text")


_SIDES = ("forget", "retain")


def _in_context(source: str | Path, part: str) -> Rows:
    rows = _rows(source, part, "question", "answer")
    if len(rows) < IN_CONTEXT:
        raise InputError(f"{source}: {part} has {len(rows)} in-context examples; MUSE's questions need {IN_CONTEXT}.")
    return rows[:IN_CONTEXT]


def _rows(source: str | Path, part: str, *names: str) -> Rows:
    """Checked rows of one split."""
    records = config_records(source, *part.split("/"))
    return [
        {"index": index, "where": record.where, **{name: text_field(record, name) for name in names}}
        for index, record in enumerate(records)
    ]
