"""The user's own rows: files, folders or hub data sets of several layouts, read into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipo_lightning.data.prompts import suggestion
from dipo_lightning.data.records import (
    SUFFIXES,
    Record,
    available,
    checked_text,
    file_records,
    hub_records,
    is_hub_name,
    text_field,
)
from dipo_lightning.errors import InputError

Source = str | Path | Mapping[str, Any]
_PAIRS = (("question", "answer"), ("prompt", "completion"))
_ROLES = ("system", "user", "assistant")


def read_rows(
    source: Source | Sequence[Source],
    question: str | None = None,
    answer: str | None = None,
    text: str | None = None,
    messages: str | None = None,
    split: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of one or several sources.

    Without column names the layout is recognised: ``question`` and ``answer``, ``prompt`` and ``completion``,
    ``messages`` (turns with ``role`` and ``content``, the last one the assistant's), or ``text``.

    Args:
        source: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, a folder, a hub name ``owner/name`` or
            ``owner/name:configuration``; or a list of those; or a list of rows.
        question: Name of the column with the questions; ``answer`` must be given with it.
        answer: Name of the column with the answers.
        text: Name of the column with plain text.
        messages: Name of the column with conversations.
        split: Which file of a folder (its name without the ending), or which split on the hub. Without: ``train``, or
            a folder's only file.

    Returns:
        One dictionary a row: ``question`` and ``answer``, or ``messages``, or ``text``; and ``index`` (from 0, over all
        sources) and ``where`` (its place, for messages). Where the source has them also ``paraphrased_answer`` and
        ``perturbed_answer`` (a list of wrong answers), for the truth ratio.

    Raises:
        InputError: A source or column is not there, a file is empty or broken, or a row lacks a text; names the line.
    """
    if isinstance(source, str | Path | Mapping):
        source = [source]
    if not source:
        raise InputError("There is no source to read: give a file, a folder or a data set's name.")
    named = {"question": question, "answer": answer, "text": text, "messages": messages}
    chosen = {role: name for role, name in named.items() if name is not None}
    rows: list[dict[str, Any]] = []
    for number, one in enumerate(source):
        records = [Record(f"row {number}", dict(one))] if isinstance(one, Mapping) else _records(one, split)
        columns = _columns(records[0], chosen)
        for record in records:
            rows.append({"index": len(rows), "where": record.where, **_row(record, columns)})
    return rows


def _records(source: str | Path, split: str | None) -> list[Record]:
    """Records of one source, wherever it is."""
    path = Path(source).expanduser()
    if path.is_dir():
        return file_records(_file_in(path, split))
    name, _, config = str(source).partition(":")
    if path.exists() or not is_hub_name(name):
        return file_records(path)
    return hub_records(name, config or None, split or "train")


def _file_in(folder: Path, split: str | None) -> Path:
    """The file of a folder: the split's, or ``train``, or the only one."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    for path in files:
        if path.stem == (split or "train"):
            return path
    if split is None and len(files) == 1:
        return files[0]
    there = ", ".join(available(folder)) or f"nothing that I read ({', '.join(SUFFIXES)})"
    asked = f"no {split}" if split else "not one file to read, nor a train file"
    raise InputError(f"{folder}: there is {asked}; there is {there}. Name a file, or give its name as split.")


def _columns(record: Record, chosen: Mapping[str, str]) -> dict[str, str]:
    """Which column plays which role, from what was asked for or from the first record."""
    fields = list(record.fields)
    for role, name in chosen.items():
        if name not in fields:
            raise InputError(f"{record.where}: there is no column {name!r} (for the {role}){suggestion(name, fields)}.")
    if chosen:
        if set(chosen) not in ({"question", "answer"}, {"text"}, {"messages"}):
            raise InputError(f"Columns {', '.join(chosen)}: name question and answer together, or text, or messages.")
        return dict(chosen)
    for pair in _PAIRS:
        # One of the two is enough to recognise the layout: the missing one is then what the row lacks.
        if any(name in fields for name in pair):
            return dict(zip(("question", "answer"), pair, strict=True))
    for role in ("messages", "text"):
        if role in fields:
            return {role: role}
    raise InputError(
        f"{record.where}: none of question and answer, prompt and completion, messages, text is there; it has "
        f"{', '.join(fields) or 'no columns'}. Name the columns."
    )


def _row(record: Record, columns: Mapping[str, str]) -> dict[str, Any]:
    if "messages" in columns:
        return {"messages": _turns(record, columns["messages"]), **_other_answers(record)}
    return {role: text_field(record, name) for role, name in columns.items()} | _other_answers(record)


def _other_answers(record: Record) -> dict[str, Any]:
    """The right answer in other words and the wrong answers, where the record has them."""
    found: dict[str, Any] = {}
    if record.fields.get("paraphrased_answer") not in (None, ""):
        found["paraphrased_answer"] = text_field(record, "paraphrased_answer")
    wrong = record.fields.get("perturbed_answer")
    if wrong not in (None, "", []):
        label = f"{record.where}: 'perturbed_answer'"
        answers = wrong if isinstance(wrong, list) else [wrong]
        found["perturbed_answer"] = [checked_text(answer, label) for answer in answers]
    return found


def _turns(record: Record, name: str) -> list[dict[str, str]]:
    """The turns of a conversation, checked."""
    turns = record.fields.get(name)
    label = f"{record.where}: {name!r}"
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in turns
    ):
        raise InputError(f"{label} must be a list of turns, each with 'role' and 'content'.")
    for turn in turns:
        if turn["role"] not in _ROLES:
            raise InputError(f"{label} has a turn of {turn['role']!r}; roles are {', '.join(_ROLES)}.")
        checked_text(turn["content"], f"{label}, the {turn['role']}'s turn")
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
        raise InputError(f"{label} must end with a turn of the user and one of the assistant.")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
