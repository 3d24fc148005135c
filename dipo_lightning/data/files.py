"""Records of a file or a hub data set, each with the place it came from.

JSON and CSV are read by the standard library, which knows the line an error is in; Parquet by pyarrow.

The user's own rows: files, folders or hub data sets of several layouts, read into one form.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dipo_lightning.data.prompts import shortened, suggestion
from dipo_lightning.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Record(NamedTuple):
    """One record: its fields, and where it stands (``data.jsonl, line 3``)."""

    where: str
    fields: dict[str, Any]


def file_records(path: Path) -> list[Record]:
    """All records of one file.

    Args:
        path: A ``.jsonl`` or ``.json`` file (one object a line, or one array), ``.csv`` with a header, or ``.parquet``.

    Raises:
        InputError: The file is missing, empty, of another kind, or broken; names the line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: I don't read {path.suffix or 'files without an ending'}; give {', '.join(SUFFIXES)}."
        )
    try:
        records = list(_READERS[path.suffix.lower()](path))
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file{_neighbours(path)}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if not records:
        raise InputError(f"{path}: the file has no rows.")
    return records


def config_records(source: str | Path, config: str, split: str = "train") -> list[Record]:
    """Records of one configuration of a data set with several.

    Args:
        source: A folder with ``<config>.json`` (or another ending) or ``<config>/<split>.json``; or a copy of a hub
            data set's files (``<config>/<split>-00000-of-00001.parquet``); or a hub name.
        config: The configuration.
        split: The split within it.

    Raises:
        InputError: The folder lacks it, or the hub cannot give it.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.exists() or not is_hub_name(str(source)):
            raise InputError(f"{source}: neither a folder nor a data set's name on the hub (owner/name).")
        return hub_records(str(source), config, split)
    paths = config_files(folder, config, split)
    if paths:
        return [record for path in paths for record in file_records(path)]
    asked = config if split == "train" else f"{config}/{split}"
    found = ", ".join(available(folder)) or "nothing that I read"
    raise InputError(f"{folder}: there is no {asked} ({'/'.join(SUFFIXES)}); there is {found}.")


def config_files(folder: Path, config: str, split: str = "train") -> list[Path]:
    """The files of one split in a folder, or none: one file, or the parts that the hub keeps it in."""
    stems = [folder / config / split] + ([folder / config] if split == "train" else [])
    for stem in stems:
        for suffix in SUFFIXES:
            path = stem.with_name(stem.name + suffix)
            if path.is_file():
                return [path]
            parts = sorted(stem.parent.glob(f"{stem.name}-[0-9]*-of-[0-9]*{suffix}"))
            if parts:
                return parts
    return []


def available(folder: Path) -> list[str]:
    """What a folder has to read, as ``config`` or ``config/split``."""
    paths = [path for path in sorted(folder.glob("*")) + sorted(folder.glob("*/*")) if path.suffix in SUFFIXES]
    return list(dict.fromkeys(str(path.relative_to(folder).with_suffix("")) for path in paths))


def is_hub_name(source: str) -> bool:
    """Whether this can be a data set's name on the hub: ``owner/name``, no data file's ending, no folder's beginning.

    A mistyped path must not become a call over the network that takes half a minute to fail.
    """
    path = Path(source)
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    return named and path.suffix.lower() not in SUFFIXES and not Path(path.parts[0]).is_dir()


def hub_records(name: str, config: str | None = None, split: str = "train") -> list[Record]:
    """Records of a data set on the hub, through `datasets` (which keeps a copy).

    Raises:
        InputError: There is no network, no such data set, or no such configuration or split.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    label = f"{name}{f', {config}' if config else ''}, {split}"
    try:
        rows = load_dataset(name, config, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        # OSError: no network, no such data set, not allowed; ValueError: no such configuration or split.
        raise InputError(
            f"{label}: there is no such folder here, and the hub did not give it: {str(error).strip() or type(error)}\n"
            "Check the name and the network, or give a folder with the files."
        ) from error
    return [Record(f"{label}, row {index}", dict(row)) for index, row in enumerate(rows)]


def text_field(record: Record, name: str) -> str:
    """The text in one field of a record.

    Raises:
        InputError: The field is missing, no text, or empty.
    """
    value = record.fields.get(name)
    if value is None:
        there = ", ".join(field for field, content in record.fields.items() if content is not None)
        raise InputError(f"{record.where}: there is no {name!r}; it has {there or 'no fields'}.")
    return checked_text(value, f"{record.where}: {name!r}")


def checked_text(value: object, label: str) -> str:
    """The value, if it is a text that isn't empty.

    Raises:
        InputError: It isn't; the message starts with ``label``.
    """
    if not isinstance(value, str):
        raise InputError(f"{label} is {shortened(repr(value))} ({type(value).__name__}), not a text.")
    if not value.strip():
        raise InputError(f"{label} is empty.")
    return value


def _json_records(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: broken JSON: {error.msg}.") from error
        for number, row in enumerate(rows):
            yield _record(f"{path}, row {number} of the array", row)
        return
    # Not splitlines(): JSON strings may hold U+2028, which ends a line there.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                problem = f"broken JSON: {error.msg} at column {error.colno}; each line must be one whole object"
                raise InputError(f"{path}, line {number}: {problem}.") from error
            yield _record(f"{path}, line {number}", row)


def _csv_records(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the 128 KiB that Python starts with
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise InputError(f"{path}, line {reader.line_num}: not as many columns as the header has.")
                yield Record(f"{path}, line {reader.line_num}", dict(row))
        except csv.Error as error:
            # The inner reader's count: the outer one's lags behind by the row that failed.
            raise InputError(f"{path}, line {reader.reader.line_num}: broken CSV: {error}.") from error


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: broken Parquet: {error}.") from error
    for number, row in enumerate(rows):
        yield Record(f"{path}, row {number}", row)


def _record(where: str, row: object) -> Record:
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object with named fields.")
    return Record(where, row)


def _neighbours(path: Path) -> str:
    names = [other.name for other in sorted(path.parent.glob("*")) if other.suffix in SUFFIXES][:8]
    return f"; beside it: {', '.join(names)}" if names else ""


_READERS = {".jsonl": _json_records, ".json": _json_records, ".csv": _csv_records, ".parquet": _parquet_records}


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
