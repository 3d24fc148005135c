"""Records of files, folders and hub data sets, each with the place it came from.

JSON and CSV are read with the standard library, which reports the line of an error; Parquet with pyarrow; the hub,
and folders written by `Dataset.save_to_disk`, with `datasets`.
"""

from __future__ import annotations

import csv
import importlib.resources
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dipo_lightning.data.encoding import checked_text
from dipo_lightning.errors import InputError
from dipo_lightning.safety.network import bounded_hub, hub_errors
from dipo_lightning.safety.paths import with_home

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
BATCH = 10_000  # records that are decoded together
_SAVED = ("dataset_info.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


class AbsentError(InputError):
    """Error for a configuration or split that the data set, or its local copy, does not have."""


class RepeatedKeyError(ValueError):
    """Error for a JSON object that has a key twice, of which the standard library would keep the last."""


class Record(NamedTuple):
    """One record: its place (``data.jsonl, line``), its number there, and its fields."""

    place: str
    number: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """The record's place, for messages: ``data.jsonl, line 3``."""
        return f"{self.place} {self.number}"


def file_records(path: Path) -> Iterator[Record]:
    """Yield the records of one file: ``.jsonl`` or ``.json`` (objects or texts), ``.csv`` with a header, ``.parquet``.

    Raises:
        InputError: The file is missing, empty, of another kind, or broken; names the line.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"{path}: {path.suffix or 'a file without an ending'} is not supported; give {', '.join(SUFFIXES)}."
        )
    empty = True
    try:
        for record in reader(path):
            empty = False
            yield record
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file{_neighbours(path)}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {_odd_byte(path)}; save the file as UTF-8.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if empty:
        raise InputError(f"{path}: the file has no rows.")


def source_records(source: str | Path, split: str | None = None, option: str | None = None) -> Iterator[Record]:
    """Yield the records of a file, a folder or a hub data set.

    Args:
        source: A file; a folder with files, with a hub data set's shards or written by `save_to_disk`; or a hub name
            ``owner/name`` or ``owner/name:configuration``.
        split: File or split of a folder, or split on the hub; by default ``train``, or the only one.
        option: The name of the user's option for ``split``, for messages; None where there is none.
    """
    path = with_home(source)
    if path.is_dir():
        return _folder_records(path, split, option)
    if split is not None and path.is_file():
        raise InputError(f"{path}: a file has no splits, so {split!r} counts for nothing; leave {option or 'it'} out.")
    name, _, config = str(source).partition(":")
    if path.exists() or not is_hub_name(name):
        return file_records(path)
    return hub_records(name, config or None, split or "train")


def config_records(source: str | Path, config: str, split: str = "train") -> list[Record]:
    """Read one split of one configuration of a data set that has several.

    ``source`` is a hub name, or a folder with ``<config>.json`` (or another ending), with ``<config>/<split>.json``,
    with a copy of a hub data set's files (``<config>/<split>-00000-of-00001.parquet``) or with a folder ``<config>``
    written by `save_to_disk`.
    """
    folder = with_home(source)
    if not folder.is_dir():
        if folder.exists() or not is_hub_name(str(source)):
            raise InputError(f"{source}: neither a folder nor a data set's name on the hub (owner/name).")
        return list(hub_records(str(source), config, split))
    for saved, part in ((folder / config, split), (folder, config)):
        if is_saved(saved):
            return list(_saved_records(saved, part))
    paths = config_files(folder, config, split)
    if paths:
        return [record for path in paths for record in file_records(path)]
    asked = config if split == "train" else f"{config}/{split}"
    found = ", ".join(available(folder)) or "nothing readable"
    raise AbsentError(f"{folder}: there is no {asked} ({'/'.join(SUFFIXES)}); there is {found}.")


def config_files(folder: Path, config: str, split: str = "train") -> list[Path]:
    """Find the files of one split in a folder: one file, the hub's shards of it, or none."""
    stems = [folder / config / split] + ([folder / config] if split == "train" else [])
    return next((found for stem in stems if (found := _files_called(stem))), [])


def available(folder: Path) -> list[str]:
    """List the data sets in a folder, as ``config`` or ``config/split``."""
    paths = [path for path in sorted(folder.glob("*")) + sorted(folder.glob("*/*")) if path.suffix in SUFFIXES]
    paths = [path for path in paths if not is_saved(path.parent)]
    saved = [path / "train" for path in sorted(folder.iterdir()) if is_saved(path)]
    names = [str(path.relative_to(folder).with_suffix("")) for path in paths + saved]
    return list(dict.fromkeys(_SHARD.sub("", name) for name in names))


def is_saved(folder: Path) -> bool:
    """Return whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in _SAVED)


def is_hub_name(source: str) -> bool:
    """Return whether ``source`` is a hub name: ``owner/name``, no data file's ending, and no folder called ``owner``.

    A mistyped path must not cause a network request.
    """
    path = Path(source)
    named = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None
    return named and path.suffix.lower() not in SUFFIXES and not Path(path.parts[0]).is_dir()


def hub_records(name: str, config: str | None = None, split: str = "train") -> Iterator[Record]:
    """Yield the records of a data set on the hub, through `datasets` (which keeps a copy)."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    label = f"{name}{f', {config}' if config else ''}, {split}"
    try:
        with bounded_hub():
            rows = load_dataset(name, config, split=split)
    except hub_errors(DatasetsError, ValueError) as error:
        # OSError: no network, no such data set, not allowed; ValueError: no such configuration or split.
        kind = AbsentError if isinstance(error, ValueError) else InputError
        raise kind(
            f"{label}: there is no such folder here, and it could not be loaded from the hub: "
            f"{str(error).strip() or type(error)}\n"
            "Check the name and the network, or give a folder with the files; a gated data set needs `hf auth login`."
        ) from error
    return _dataset_records(label, rows)


def shipped_json(package: str, name: str) -> Any:
    """Read ``name.json`` in the folder of ``package``, a package of this project."""
    return json.loads((importlib.resources.files(package) / f"{name}.json").read_text(encoding="utf-8"))


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Write records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def text_field(record: Record, name: str) -> str:
    """Return the text in one field of a record; an `InputError` if it is missing, not a text, or empty."""
    value = record.fields.get(name)
    if value is None:
        there = ", ".join(field for field, content in record.fields.items() if content is not None)
        raise InputError(f"{record.where}: there is no {name!r}; it has {there or 'no fields'}.")
    return checked_text(value, f"{record.where}: {name!r}")


def _folder_records(folder: Path, split: str | None, option: str | None) -> Iterator[Record]:
    """Records of one split of a folder; by default ``train``, or the only one."""
    if is_saved(folder):
        return _saved_records(folder, split, option)
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    stems = {_SHARD.sub("", path.stem) for path in files}
    for stem in (folder / (split or "train"), folder / "data" / (split or "train")):
        if paths := _files_called(stem):
            return (record for path in paths for record in file_records(path))
    if split is None and len(stems) == 1:
        return (record for path in _files_called(folder / stems.pop()) for record in file_records(path))
    there = ", ".join(available(folder)) or f"nothing readable ({', '.join(SUFFIXES)})"
    asked = f"no {split}" if split else "neither a single file nor one called train"
    remedy = f"Name a file, or set {option} to the name of one." if option else "Give the path of one file."
    raise InputError(f"{folder}: there is {asked}; there is {there}. {remedy}")


def _files_called(stem: Path) -> list[Path]:
    """Return the file of this name, with any of the endings, or the shards of this name.

    Raises:
        InputError: There are several such files, or shards are missing.
    """
    files = [path for path in sorted(stem.parent.glob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = [path for path in files if _SHARD.sub("", path.stem) == stem.name]
    kinds = {(shard[2] if (shard := _SHARD.search(path.stem)) else None, path.suffix): path for path in found}
    if len(kinds) > 1:
        names = ", ".join(path.name for path in kinds.values())
        raise InputError(
            f"{stem.parent}: there are several data sets called {stem.name} ({names}); give the path of one, or move "
            "the others to another folder."
        )
    for total, _ in kinds:
        if total is not None and len(found) != int(total):
            raise InputError(
                f"{stem.parent}: {stem.name} has {len(found)} of its {int(total)} shards "
                f"({', '.join(path.name for path in found[:3])}); add the others."
            )
    return found


def _saved_records(folder: Path, split: str | None, option: str | None = None) -> Iterator[Record]:
    """Records of a folder that `save_to_disk` wrote: a data set, or one from a dictionary of data sets."""
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: cannot be read as a data set that save_to_disk wrote: {error}") from error
    if isinstance(saved, Dataset):
        return _dataset_records(str(folder), saved)
    chosen = split or ("train" if "train" in saved else next(iter(saved)) if len(saved) == 1 else None)
    if chosen not in saved:
        asked = f"no {split}" if split else "no train split"
        hint = f" Set {option} to one of them." if option else ""
        if split is None and not option and len(saved):
            hint = f" Give the folder of one, such as {folder / next(iter(saved))}."
        raise AbsentError(f"{folder}: there is {asked}; there is {', '.join(saved)}.{hint}")
    return _dataset_records(f"{folder}, {chosen}", saved[chosen])


def _dataset_records(label: str, rows: Any) -> Iterator[Record]:
    """Records of a `datasets.Dataset`, decoded in batches, or of plain rows."""
    if hasattr(rows, "with_format"):
        batches = rows.with_format("arrow").iter(BATCH)
        rows = (row for batch in batches for row in batch.to_pylist())
    empty = True
    for number, row in enumerate(rows):
        empty = False
        yield Record(f"{label}, row", number, dict(row))
    if empty:
        raise InputError(f"{label}: the data set has no rows.")


def _json_records(path: Path) -> Iterator[Record]:
    """Values line by line; if the first line is not a whole object, those of the whole file in any JSON layout."""
    values = _json_lines(path)
    first = list(itertools.islice(values, 2))
    if not first:
        values = _json_values(path)
        first = list(itertools.islice(values, 2))
    if len(first) == 1 and isinstance(first[0].fields, dict) and (rows := _wrapped(first[0]) or _turned(first[0])):
        place, found = rows
        values, first = (Record(place, number, value) for number, value in enumerate(found)), []
    for record in itertools.chain(first, values):
        yield record._replace(fields=_fields(record))


def _json_lines(path: Path) -> Iterator[Record]:
    """Value of each line; nothing if the first line is not a whole object."""
    place, started = f"{path}, line", False
    with path.open("rb") as file:  # as bytes: text mode would also split lines at characters inside JSON strings
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if not text.strip():
                continue
            try:
                value = _DECODER.decode(text)
            except json.JSONDecodeError as error:
                if not started:
                    return
                problem = f"broken JSON: {error.msg} at column {error.colno}; each line must be one whole object"
                raise InputError(f"{place} {number}: {problem}.") from error
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} {number}: {_unreadable(error)}.") from error
            if not started and isinstance(value, list):
                return
            started = True
            yield Record(place, number, value)


def _json_values(path: Path) -> Iterator[Record]:
    """Elements of an array, or consecutive values over any number of lines; decoded one by one."""
    text = path.read_text(encoding="utf-8-sig")
    number, end = 0, len(text.rstrip())
    array = text.lstrip().startswith("[")
    position = _after_space(text, text.find("[") + 1 if array else 0)
    closed = array and text.startswith("]", position)
    while not closed and position < end:
        try:
            value, position = _DECODER.raw_decode(text, position)
            position = _after_space(text, position)
            closed = array and text.startswith("]", position)
            if array and not closed:
                if not text.startswith(",", position):
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
                position = _after_space(text, position + 1)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: broken JSON: {error.msg}.") from error
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            raise InputError(f"{path}, the value that begins in line {line}: {_unreadable(error)}.") from error
        yield Record(f"{path}, row", number, value)
        number += 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object of the pairs, whose keys must differ."""
    found = dict(pairs)
    if len(found) != len(pairs) and (repeated := _repeated([name for name, _ in pairs])):
        raise RepeatedKeyError(repeated)
    return found


def _repeated(names: Sequence[str]) -> str:
    """Return a sentence about the first of the names that occurs twice; empty names, as of empty columns, may."""
    twice = next((name for name in names if name.strip() and names.count(name) > 1), None)
    return "" if twice is None else f"there are several {twice!r}; rename them, or leave all but one out"


def _unreadable(error: ValueError | RecursionError) -> str:
    """Return the reason for which a JSON value that is well formed is not read."""
    if isinstance(error, RepeatedKeyError):
        return str(error)
    if isinstance(error, RecursionError):
        return "cannot be read: too many lists or objects lie inside each other; leave that column out"
    return f"cannot be read: a number has more than {sys.get_int_max_str_digits()} digits; write it as a text"


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _odd_byte(path: Path) -> int:
    """Position of the first byte of a file that is not UTF-8; that of the decoder's error counts from its buffer."""
    position = 0
    with path.open("rb") as file:
        for line in file:  # no character is cut: a line break is a byte of its own
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return position + error.start
            position += len(line)
    return position


def _wrapped(record: Record) -> tuple[str, list[Any]] | None:
    """Rows in a list inside a file's only object, such as ``{"data": [...]}``, and their place.

    An object with texts beside the list is a row itself and holds no others.
    """
    lists = {
        name: value
        for name, value in record.fields.items()
        if isinstance(value, list)
        and value
        and all(isinstance(row, dict) and not {"role", "from"} & row.keys() for row in value)
    }
    if len(lists) != 1 or any(name.strip().lower() in _TEXTS for name in record.fields.keys() - lists.keys()):
        return None
    name, rows = lists.popitem()
    return f"{record.place.rpartition(',')[0]}, row of {name!r}", rows


def _turned(record: Record) -> tuple[str, list[Any]] | None:
    """Rows of a file whose only object holds columns, as pandas writes them: lists, or values by row name."""
    columns = {
        name: list(value.values()) if isinstance(value, dict) else value for name, value in record.fields.items()
    }
    if not all(isinstance(values, list) for values in columns.values()):
        return None
    lengths = {len(values) for values in columns.values()}
    plain = all(isinstance(value, str | list | None) for values in columns.values() for value in values)
    if len(lengths) != 1 or lengths == {0} or not plain or not (len(columns) > 1 or "text" in columns):
        return None
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return f"{record.place.rpartition(',')[0]}, row", rows


def _fields(record: Record) -> dict[str, Any]:
    """Fields of a JSON value: the object's own, or ``text`` for a bare string."""
    value: object = record.fields
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise InputError(f"{record.where}: a {type(value).__name__}, not an object with named fields.")
    return value


def _csv_records(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # documents are longer than the 128 KiB that Python starts with
    with path.open(encoding="utf-8-sig", newline="") as file:
        blank, header = 0, file.readline()
        while header and not header.strip(_BLANK):
            blank, header = blank + 1, file.readline()
        # The separator is the one that gives the header the most columns: spreadsheets write ; and tabs too.
        separator = max(_SEPARATORS, key=lambda one: len(next(csv.reader([header], delimiter=one), [])))
        reader = csv.DictReader(itertools.chain([header], file), strict=True, delimiter=separator)
        try:
            if repeated := _repeated(reader.fieldnames or ()):
                raise InputError(f"{path}, line {blank + 1}: {repeated}.")
            for row in reader:
                number = blank + reader.line_num
                if None in row or None in row.values():
                    raise InputError(f"{path}, line {number}: the row has another number of columns than the header.")
                yield Record(f"{path}, line", number, dict(row))
        except csv.Error as error:
            # The inner reader's count: the outer one's lags behind by the row that failed.
            raise InputError(f"{path}, line {blank + reader.reader.line_num}: broken CSV: {error}.") from error


def _parquet_records(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if repeated := _repeated(file.schema_arrow.names):
            raise InputError(f"{path}: {repeated}.")
        rows = (row for batch in file.iter_batches(BATCH) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield Record(f"{path}, row", number, row)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: broken Parquet: {str(error).rstrip('.')}.") from error


def _neighbours(path: Path) -> str:
    names = [other.name for other in sorted(path.parent.glob("*")) if other.suffix in SUFFIXES][:8]
    return f"; beside it: {', '.join(names)}" if names else ""


_SEPARATORS = (",", ";", "\t", "|")
_BLANK = "".join((" ", "\r", "\n", *_SEPARATORS))
"""Characters of an empty line above the header of a table, as spreadsheets write it."""
_TEXTS = ("question", "answer", "prompt", "completion", "messages", "text")
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_SPACE = re.compile(r"\s*")
_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_records, ".json": _json_records, ".csv": _csv_records, ".parquet": _parquet_records,
}  # fmt: skip
