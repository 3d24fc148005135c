"""Rows to forget or to keep: read from any layout, stored compactly; their fingerprints and overlaps."""

from __future__ import annotations

import ast
import hashlib
import io
import itertools
import json
import math
import re
import tokenize
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from dipo_lightning.data.encoding import checked_text, plain_text, shortened, suggestion
from dipo_lightning.data.files import Record, source_records, text_field
from dipo_lightning.errors import InputError

Row = dict[str, Any]
Source = str | Path | Mapping[str, Any]
_PLACE = ("index", "where")  # a row's position, not its content
_PAIRS = (("question", "answer"), ("prompt", "completion"))
_LAYOUTS = (*_PAIRS[0], *_PAIRS[1], "messages", "text", "conversations")
_ROLES = ("system", "user", "assistant")
EXTRAS = ("paraphrased_answer", "perturbed_answer", "paraphrased_question", "alternatives", "private")
"""Columns beside question and answer that have a meaning; see `extras`."""
COLUMNS = ("question", "answer", "text", "messages", *EXTRAS)
"""Columns that a user may name."""
_ARRAY = re.compile(r"(?:np\.|numpy\.)?array\((\[.*\])(, dtype=[\w<']+)?\)", re.DOTALL)
_TEXTS = re.compile(r"""[\[({]\s*(['"]).*?\1\s*,|\[\s*['"]""", re.DOTALL)
"""The beginning of several quoted texts in brackets, or of a list of them."""
_CLOSED_BY = {"(": ")", "{": "}"}
_MARK = re.compile(r"\[\[(\s*[^\[\]\s][^\[\]]*|[^\[\]]+(?:\[[^\[\]]*\][^\[\]]+)+)\]\]")
"""A marked value: not blank, without brackets or with single ones inside ("flat [2] 7 Harbour Street")."""
_LEFT, _RIGHT = re.compile(r"[\w.,:;!?)\]]\Z"), re.compile(r"[\w(]|\[\[(?!\s)")
"""Ends of a text, and beginnings, that a blank parts from a word."""
_EMPTY_MARK = re.compile(r"\[\[\s+\]\]")


class Rows(Sequence[Row]):
    """Rows in one block of bytes, so that a million of them take hardly more memory than their text.

    As dictionaries they would take several times as much, in each process. A row is decoded on access, and then has
    ``index`` (its position) and ``where`` (its place in its file).
    """

    def __init__(self) -> None:
        self._content = bytearray()
        self._ends, self._numbers = array("q"), array("q")
        self.plain = bytearray()  # 1 for a row of plain text
        self.keys = array("q")  # hashes by which `overlap` finds equal rows; valid in this process only
        self._places: list[tuple[int, str]] = []  # for each place (a file), the first of its rows, and the place

    def append(self, row: Mapping[str, Any], place: str, number: int) -> None:
        """Add the row ``number`` of ``place``."""
        if not self._places or self._places[-1][1] != place:
            self._places.append((len(self), place))
        self._content += _said(row)
        self._ends.append(len(self._content))
        self._numbers.append(number)
        self.plain.append("text" in row)
        self.keys.append(hash(_key(row)))

    def extend(self, others: Rows) -> None:
        """Add all rows of another collection; their index continues from here."""
        self._places += [(first + len(self), place) for first, place in others._places]
        self._ends.extend(end + len(self._content) for end in others._ends)
        self._content += others._content
        self._numbers.extend(others._numbers)
        self.plain += others.plain
        self.keys.extend(others.keys)

    def first(self, count: int) -> Rows:
        """Return the first ``count`` rows."""
        rows = Rows()
        rows._ends, rows._numbers = self._ends[:count], self._numbers[:count]
        rows.plain, rows.keys = self.plain[:count], self.keys[:count]
        rows._content = self._content[: rows._ends[-1] if rows._ends else 0]
        rows._places = [(first, place) for first, place in self._places if first < count]
        return rows

    def longest(self, count: int) -> list[int]:
        """Return the positions of the rows with the most text."""
        sizes = [end - start for start, end in zip((0, *self._ends), self._ends, strict=False)]
        return sorted(range(len(self)), key=sizes.__getitem__, reverse=True)[:count]

    def fingerprint(self) -> str:
        """Return the hash that `data_fingerprint` gives these rows."""
        return hashlib.sha256(self._content).hexdigest()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._ends)

    def __getitem__(self, position: Any) -> Any:
        """Row at a position, or rows of a slice."""
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        index = range(len(self))[position]
        line = self._content[self._ends[index - 1] if index else 0 : self._ends[index]]
        place = next(place for first, place in reversed(self._places) if first <= index)
        return {"index": index, "where": f"{place} {self._numbers[index]}", **json.loads(line)}


def read_rows(
    source: Source | Sequence[Source],
    question: str | None = None,
    answer: str | None = None,
    text: str | None = None,
    messages: str | None = None,
    split: str | None = None,
    option: str | None = None,
    on_missing: Literal["raise", "skip"] = "raise",
    marks: bool = True,
    **optional: str,
) -> Rows:
    """Read the rows of one or several sources.

    Without column names the layout is recognised: ``question`` and ``answer``, ``prompt`` and ``completion``,
    ``messages`` (turns with ``role`` and ``content``, the last one the assistant's), or ``text``, in any case.

    Args:
        source: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, a folder, a hub name ``owner/name`` or
            ``owner/name:configuration``; or a list of those; or a list of rows.
        question: Name of the column with the questions; ``answer`` must be given with it.
        answer: Name of the column with the answers.
        text: Name of the column with plain text.
        messages: Name of the column with conversations.
        split: File of a folder (its name without the ending) or split; by default ``train``, or the only one.
        option: The name of the user's option for ``split``, for messages; None where there is none.
        on_missing: ``raise`` stops at a row without a text; ``skip`` leaves it out and warns.
        marks: Whether ``[[...]]`` in an answer marks a private value, as in forget rows; otherwise it stays as it is.
        **optional: Names of the columns of `EXTRAS`, of which each must be in some forget row.

    Returns:
        Rows, each with ``question`` and ``answer``, or ``messages``, or ``text``; with ``index`` (from 0, over all
        sources) and ``where`` (its place, for messages). If the source has them, also ``paraphrased_answer``, and as
        lists ``perturbed_answer`` (wrong answers), ``paraphrased_question``, ``alternatives`` (answers to give
        instead), and ``private`` (see `private_values`).

    Raises:
        InputError: A source or column is missing, a file is empty or broken, or a row lacks a text; names the line.
    """
    if isinstance(source, str | Path | Mapping):
        source = [source]
    if not source:
        raise InputError("There is no source to read: give a file, a folder or a data set's name.")
    check_columns(optional)
    named = {"question": question, "answer": answer, "text": text, "messages": messages}
    chosen = {role: name for role, name in named.items() if name is not None}
    rows, missing, in_vain, absent = Rows(), list[InputError](), list[str](), dict(optional)
    for number, one in enumerate(source):
        given = isinstance(one, Mapping)
        records = iter([Record("row", number, dict(one))]) if given else source_records(one, split, option)  # type: ignore[arg-type]
        first = next(records)
        columns = {**_columns(first, chosen), **optional}
        for record in shown(itertools.chain([first], records), f"reading {one}", given):
            if absent:
                absent = {role: name for role, name in absent.items() if name not in record.fields}
            try:
                row = _row(record, columns, marks)
                rows.append(row, record.place, record.number)
                if marks and "text" in row and _names_values(record, columns, row["text"]):
                    in_vain.append(record.where)
            except InputError as error:
                if on_missing == "raise":
                    raise
                missing.append(error)
    if marks and absent:  # rows to keep may have none of them
        role, name = next(iter(absent.items()))
        near = suggestion(name, list(first.fields))
        raise InputError(f"{first.where}: neither this nor another row has a column {name!r} (for {role}){near}.")
    if missing:
        left = f"{len(missing)} of {len(missing) + len(rows)} rows left out"
        rank_zero_warn(f"{left}. The first: {missing[0]}", category=UserWarning)
    if in_vain:
        rank_zero_warn(
            f"{in_vain[0]}: a row of plain text has no private values, so a column private and marks [[...]] count "
            f"for nothing, and the brackets stay ({len(in_vain)} of {len(rows)} rows). Write such rows as questions "
            "and answers.",
            category=UserWarning,
        )
    if not len(rows):
        raise InputError(f"No row is left. The first that was left out: {missing[0]}")
    return rows


def check_columns(columns: Iterable[str]) -> None:
    """Raise an `InputError` for the first of the user's columns that is none of `COLUMNS`."""
    for role in columns:
        if role not in COLUMNS:
            raise InputError(f"data.columns has {role!r}, which is no column of a row{suggestion(role, [*COLUMNS])}.")


def shown(items: Iterable[Any], what: str, quiet: bool = False, total: int | None = None) -> Iterator[Any]:
    """Iterate over items with a progress bar on a terminal, shown after a few seconds."""
    from tqdm import tqdm

    hidden = True if quiet or int(getattr(rank_zero_only, "rank", 0)) else None  # None: only on a terminal
    return iter(tqdm(items, desc=what, total=total, unit=" rows", disable=hidden, delay=3, leave=False))


def data_fingerprint(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of the rows' content, in order; the location and format of the files do not matter."""
    if isinstance(rows, Rows):
        return rows.fingerprint()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_said(row))
    return digest.hexdigest()


def fingerprints(datamodule: object) -> dict[str, dict[str, Any]]:
    """Describe the rows of a data module of this package: ``{"forget": {"rows": n, "sha256": ...}, ...}``."""
    found = {}
    for part in ("forget", "retain", "train"):
        rows = getattr(datamodule, f"{part}_rows", None)
        if isinstance(rows, list | Rows) and len(rows) and isinstance(rows[0], Mapping):
            found[part] = {"rows": len(rows), "sha256": data_fingerprint(rows)}
    return found


def overlap(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Find rows that are equal up to case and white space: pairs of positions in the first and the second set."""
    keys, others = (
        rows.keys if isinstance(rows, Rows) else [hash(_key(row)) for row in rows] for rows in (first, second)
    )
    wanted, places = set(keys), dict[int, int]()
    for position, key in enumerate(others):
        if key in wanted:
            places.setdefault(key, position)
    found = [(position, places[key]) for position, key in enumerate(keys) if key in places]
    return [(position, other) for position, other in found if _key(first[position]) == _key(second[other])]


def refuse_overlap(
    first: Sequence[Mapping[str, Any]],
    second: Sequence[Mapping[str, Any]],
    names: tuple[str, str] = ("forget", "retain"),
    remedy: str = "Take such rows out of one of the two.",
) -> None:
    """Raise an `InputError` if two sets share rows, since a row cannot be both forgotten and kept.

    The message has the number of shared rows, the places of the first one in both sets, which it calls by ``names``,
    and the ``remedy``.
    """
    if pairs := overlap(first, second):
        places = [
            str(rows[position].get("where", f"{name} row {position}"))
            for rows, position, name in zip((first, second), pairs[0], names, strict=True)
        ]
        raise InputError(
            f"{len(pairs)} of {len(first)} {names[0]} rows are {names[1]} rows too. The first: {places[0]} is "
            f"{places[1]}. {remedy}"
        )


def listed(value: object, label: str) -> list[Any] | None:
    """Return the list in a field: the value itself, or the list written in a table's cell; None if it is not a list.

    A cell of a table cannot hold a list, so lists are written as JSON, as Python prints them (also a tuple or a set of
    texts), or as NumPy prints them, without commas.
    """
    if isinstance(value, list):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if shown_array := _ARRAY.fullmatch(text):
        text = shown_array[1]
    if _TEXTS.match(text) and text[-1:] == _CLOSED_BY.get(text[0]):
        text = f"[{text[1:-1]}]"
    if not (text.startswith("[") and text.endswith("]")):
        if _TEXTS.match(text):
            raise InputError(f'{label} begins like a list, {shortened(text)}, and is cut off; write ["one", "two"].')
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _shown_list(text)
    if not isinstance(found, list):
        raise InputError(f'{label} begins like a list, {shortened(text)}, but is not one; write it as ["one", "two"].')
    return found


def private_values(answer: str, given: object, label: str, marks: bool = True) -> tuple[str, list[str]]:
    """Return an answer without its marks ``[[...]]``, and its private values: those marked, and those in ``given``.

    Without ``marks`` the answer stays as it is.

    Raises:
        InputError: A value is no text or number, has punctuation only, or does not occur in the answer; begins with
            ``label``.
    """
    marked = [value.strip() for value in _MARK.findall(answer)] if marks and "[[" in answer else []
    answer = _without_marks(answer) if marked else answer
    values = [_spelled(checked_text(_as_text(value, answer), label), answer, label) for value in as_list(given, label)]
    if signs := [value for value in (*marked, *values) if value.strip() and not any(map(_is_content, value))]:
        raise InputError(f"{label} names {signs[0]!r}, which has no letter, digit or symbol.")
    return answer, list(dict.fromkeys([*marked, *values]))


def _is_content(sign: str) -> bool:
    """Return whether a character is more than punctuation, a blank or a control character."""
    return unicodedata.category(sign)[0] not in "PZC"


def _without_marks(text: str) -> str:
    """Return a text without the brackets of its marks, and without the blanks at their inner sides."""
    return _MARK.sub(_marked_value, text)


def _marked_value(mark: re.Match[str]) -> str:
    """Return the value of a mark; a blank at its inner side stays where nothing else parts it from the next word."""
    value, text = mark[1], mark.string
    left = value[0].isspace() and _LEFT.search(text, 0, mark.start())
    right = value[-1].isspace() and _RIGHT.match(text, mark.end())
    return " " * bool(left) + value.strip() + " " * bool(right)


def _as_text(value: object, answer: str) -> object:
    """Return a number as the answer has it: a whole one without ``.0``, which tables add; other values as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return value
    text = str(value)
    whole = re.search(rf"(?<![\d.]){re.escape(text)}(?!\d)", answer)
    return text if whole else text.removesuffix(".0")


def _spelled(value: str, answer: str, label: str) -> str:
    """Return a value in the Unicode form in which the answer has it: é as one character, or as e and an accent."""
    found = _form_in(answer, value)
    if found is None:
        pieces = json.dumps(_pieces_in(answer, value), ensure_ascii=False)
        hint = f" Write several values as a list: {pieces}." if pieces != "[]" else ""
        raise InputError(f"{label} names {value!r}, which is not in the answer.{hint}")
    return found


def _form_in(answer: str, value: str) -> str | None:
    """Return the Unicode form of a value that occurs in an answer; None if none does."""
    forms = (value, unicodedata.normalize("NFC", value), unicodedata.normalize("NFD", value))
    return next((form for form in forms if form in answer), None)


def _pieces_in(answer: str, value: str) -> list[str]:
    """Return the pieces of a value between ``;``, ``|`` or ``,`` if all occur in the answer; else none."""
    for sign in ";|,":
        pieces = [piece.strip() for piece in value.split(sign)]
        pieces = [piece for piece in pieces if piece]
        if len(pieces) > 1 and all(_form_in(answer, piece) for piece in pieces):
            return pieces
    return []


def _said(row: Mapping[str, Any]) -> bytes:
    """Serialise a row's content, without its position, in one canonical form."""
    content = {key: value for key, value in row.items() if key not in _PLACE}
    return json.dumps(content, sort_keys=True, ensure_ascii=True, default=str).encode() + b"\n"


def _key(row: Mapping[str, Any]) -> str:
    """The texts of a row up to case, white space and the marks of private values, which stay in other sets' copies."""
    if "text" in row:
        texts = [row["text"]]
    elif "messages" in row:
        texts = [message["content"] for message in row["messages"]]
    else:
        texts = [row["question"], row["answer"]]
    return plain_text(*map(_without_marks, texts))


def _spellings(record: Record, names: Sequence[str]) -> dict[str, str]:
    """Return the record's columns that have one of the names, in any spelling, by name.

    Raises:
        InputError: Two columns have the same name in different spellings.
    """
    spelled: dict[str, str] = {}
    for field in record.fields:
        name = field.strip().lower()
        if name in spelled:
            raise InputError(
                f"{record.where}: {spelled[name]!r} and {field!r} are two spellings of one column; rename one of them."
            )
        if name in names:
            spelled[name] = field
    return spelled


def _extra_columns(record: Record, named: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each extra, as named or as recognised in this record; the first may lack some of them."""
    spelled = _spellings(record, [name for name in EXTRAS if name not in named])
    return {name: named.get(name) or spelled.get(name, name) for name in EXTRAS}


def _columns(record: Record, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each role, as chosen or as recognised in the first record."""
    fields = list(record.fields)
    for role, name in chosen.items():
        if name not in fields:
            raise InputError(f"{record.where}: there is no column {name!r} (for the {role}){suggestion(name, fields)}.")
    if chosen:
        if set(chosen) not in ({"question", "answer"}, {"text"}, {"messages"}):
            raise InputError(f"Columns {', '.join(chosen)}: name question and answer together, or text, or messages.")
        return dict(chosen)
    spelled = _spellings(record, _LAYOUTS)
    for pair in _PAIRS:
        # One of the two is enough to recognise the layout; the error is then about the other one.
        if any(name in spelled for name in pair):
            return {role: spelled.get(name, name) for role, name in zip(_PAIRS[0], pair, strict=True)}
    for role in ("messages", "text"):
        if role in spelled:
            return {role: spelled[role]}
    nested = any(isinstance(value, list | dict) for value in record.fields.values())
    hint = " If the rows lie inside, write one object per row: a line each, or an array of them." if nested else ""
    if "conversations" in spelled:
        hint = " Conversations are read as messages: turns with role (user, assistant) and content."
    raise InputError(
        f"{record.where}: there is no question and answer, prompt and completion, messages, or text; it has "
        f"{', '.join(fields) or 'no columns'}. Name the columns so in the file; fit also takes their own names, "
        f"in data.columns.{hint}"
    )


def _row(record: Record, columns: Mapping[str, str], marks: bool) -> Row:
    row: Row = {}
    if "messages" in columns:
        row["messages"] = _turns(record, columns["messages"])
    else:
        row |= {role: text_field(record, columns[role]) for role in ("question", "answer", "text") if role in columns}
    if len(record.fields) == len(row) and not any(double in str(row) for double in ("[[", "]]")):
        return row
    return row | extras(record, _extra_columns(record, columns), row, marks)


def extras(record: Record, columns: Mapping[str, str], row: Row, marks: bool) -> Row:
    """Return the other answers, other questions and private values of a record; removes the marks from ``row``.

    A field that is null or empty is as absent, and a text in place of a list is a list of one.

    Args:
        record: The record.
        columns: Its column of each of `EXTRAS`.
        row: The question and the answer, the messages or the text.
        marks: See `read_rows`.

    Raises:
        InputError: A field has the wrong type; names the place.
    """
    found: Row = {}
    if (text := _lone_text(record, columns["paraphrased_answer"])) is not None:
        found["paraphrased_answer"] = text
    for extra in ("perturbed_answer", "paraphrased_question", "alternatives"):
        label = f"{record.where}: {columns[extra]!r}"
        if values := as_list(record.fields.get(columns[extra]), label):
            found[extra] = [checked_text(value, label) for value in values]
    holder, key = (row["messages"][-1], "content") if "messages" in row else (row, "answer")
    if key in holder:
        label, given = f"{record.where}: {columns['private']!r}", record.fields.get(columns["private"])
        holder[key], private = private_values(holder[key], given, label, marks)
        if marks and private and (outer := _MARK.search(holder[key])):
            raise InputError(f"{record.where}: marks are nested around {outer[1]!r}; mark each value by itself.")
        if marks and not as_list(given, label):
            _check_brackets(holder[key], record.where)
        found |= {"private": private} if private else {}
    return found


def _check_brackets(answer: str, where: str) -> None:
    """Refuse half a mark in an answer without its marks: double brackets of which one side is missing or single.

    Brackets that are balanced are text, such as the matrix ``[[1, 2], [3, 4]]``; with blanks alone they are a mark
    without its value.
    """
    if empty := _EMPTY_MARK.search(answer):
        raise InputError(f"{where}: the answer has a mark without a value: {empty.group()!r}. Write [[value]].")
    turned = answer[::-1].translate({ord("["): "]", ord("]"): "["})  # so that closing brackets open
    halves = [match.start() for match in re.finditer(r"\[\[", answer) if not _is_closed(answer[match.start() :])]
    halves += [
        len(turned) - match.end() for match in re.finditer(r"\[\[", turned) if not _is_closed(turned[match.start() :])
    ]
    if halves:
        around = answer[max(min(halves) - 30, 0) : min(halves) + 32]
        raise InputError(
            f"{where}: the answer has double brackets without their other half: {around!r}. Mark a private value as "
            "[[value]]; if the brackets are text, name the private values in a column private."
        )


def _is_closed(text: str) -> bool:
    """Return whether the bracket that opens a text is closed in it."""
    depth = 0
    for bracket in re.finditer(r"[\[\]]", text):
        depth += 1 if bracket.group() == "[" else -1
        if not depth:
            return True
    return False


def _names_values(record: Record, columns: Mapping[str, str], text: str) -> bool:
    """Return whether a row of plain text names private values, by a column or by marks."""
    column = _extra_columns(record, columns)["private"]
    return _MARK.search(text) is not None or bool(as_list(record.fields.get(column), f"{record.where}: {column!r}"))


def _lone_text(record: Record, name: str) -> str | None:
    """Return the one text in a field, which may be a list of one; None if there is none."""
    label = f"{record.where}: {name!r}"
    values = as_list(record.fields.get(name), label)
    if len(values) > 1:
        raise InputError(f"{label} holds {len(values)} texts; give one.")
    return checked_text(values[0], label) if values else None


def as_list(value: object, label: str) -> list[Any]:
    """Return the values in a field: those of a list (see `listed`), the one value, or none."""
    if value in (None, "", []) or value != value:  # pandas writes NaN for an absent value
        return []
    values = listed(value, label)
    return [value] if values is None else values


def _shown_list(text: str) -> list[Any] | None:
    """Parse a list as Python or NumPy prints it."""
    try:
        tokens = [
            token
            for token in tokenize.generate_tokens(io.StringIO(text.replace("\n", " ")).readline)
            if token.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER)
        ]
        inner = tokens[1:-1]
        # Python would join neighbours without a comma between them into one text.
        if all(token.type == tokenize.STRING or token.string == "," for token in inner):
            return [ast.literal_eval(token.string) for token in inner if token.type == tokenize.STRING]
        return ast.literal_eval(text)
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # MemoryError: the parser's word for brackets that lie too deep


def _turns(record: Record, name: str) -> list[dict[str, str]]:
    """The turns of a conversation, checked."""
    label = f"{record.where}: {name!r}"
    turns = listed(record.fields.get(name), label)
    if turns is None or not all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in turns):
        raise InputError(f"{label} must be a list of turns, each with 'role' and 'content'.")
    for turn in turns:
        if turn["role"] not in _ROLES:
            raise InputError(f"{label} has a turn of {turn['role']!r}; roles are {', '.join(_ROLES)}.")
        checked_text(turn["content"], f"{label}, the {turn['role']}'s turn")
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or turns[-2]["role"] != "user":
        raise InputError(f"{label} must end with a turn of the user and one of the assistant.")
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]
