"""Alternative answers for the rows to forget: "I don't know" lines (IdkDPO), or answers made for each row (AltPO).

A file with alternatives for each row is a data file with ``question``, optionally ``answer``, and ``alternatives``, a
list or one text; a question may appear in several rows. open-unlearning's files, with one text per row called
``alternate``, are read too.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from dipo_lightning.data.encoding import PromptStyle, checked_text, plain_text
from dipo_lightning.data.files import SUFFIXES, Record, file_records, json_lines, shipped_json
from dipo_lightning.data.loader import Example
from dipo_lightning.data.rows import as_list, listed
from dipo_lightning.data.tokenization import LARGE, LONGEST, tokenize_rows
from dipo_lightning.errors import InputError
from dipo_lightning.safety.paths import with_home

SHIPPED = "idk"
"""The name of the list shipped with the package: a hundred ways to say "I don't know"."""
OWN_COLUMN = "rows"
"""The name for the alternatives in the forget rows' own column ``alternatives``."""

_COLUMNS = ("alternatives", "alternative", "alternate")
_ASKED, _ANSWERED = ("question", "prompt"), ("answer", "completion")


class Alternatives:
    """Alternative answers of the forget rows, drawn as a pure function of (seed, epoch, index).

    Args:
        lines: For each row, the answers to draw from.
        rows: The forget rows, in the order of their tokenised examples.
        style: The prompt style of the forget rows; the alternative follows the same prompt.
        max_length: Maximum length of an example in tokens.
        seed: Seed of the draw.
    """

    def __init__(
        self,
        lines: Sequence[Sequence[str]],
        rows: Sequence[Mapping[str, Any]],
        style: PromptStyle,
        max_length: int,
        seed: int = 0,
    ) -> None:
        self.lines, self.rows, self.style, self.max_length, self.seed = lines, rows, style, max_length, seed
        self._check: Callable[[Example], object] | None = None

    def line(self, epoch: int, index: int) -> str:
        """Return the alternative of forget row ``index`` in ``epoch``."""
        # A string gives the same seed in every process: it is hashed with SHA-512, not with Python's salted hash.
        return random.Random(f"{self.seed} {epoch} {index}").choice(self.lines[index])

    def __call__(self, epoch: int, index: int) -> Example:
        """Return the tokenised alternative of forget row ``index`` in ``epoch``."""
        row = with_answer(self.rows[index], self.line(epoch, index))
        example = tokenize_rows([row], self.style, self.max_length).examples[0]
        if self._check is not None:
            self._check(example)
        return example

    def check_each(self, check: Callable[[Example], object]) -> None:
        """Call ``check`` with the longest alternatives now, and with every other one when it is drawn."""
        self._check = check
        for example in self.to_longest():
            check(example)

    def to_longest(self) -> Sequence[Example]:
        """Return the tokenised alternatives (if there are many, only the longest), each after its longest question."""
        asked: dict[int, tuple[int, int]] = {}  # length of the longest question and its row, by list of lines
        for place, lines in enumerate(self.lines):
            found = len(str(asked_in(self.rows[place]))), place
            if found[0] > asked.get(id(lines), (-1, 0))[0]:
                asked[id(lines)] = found
        texts = [(size + len(line), place, line) for size, place in asked.values() for line in self.lines[place]]
        chosen = heapq.nlargest(LONGEST, texts) if len(texts) > LARGE else texts
        made = [with_answer(self.rows[place], line) for _, place, line in chosen]
        return tokenize_rows(made, self.style, self.max_length)


def asked_in(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the question of a row as a tuple, or all turns of its conversation except the last."""
    return tuple(turn["content"] for turn in row["messages"][:-1]) if "messages" in row else (row["question"],)


def answer_in(row: Mapping[str, Any]) -> str:
    """Return the answer of a row, or the last turn of its conversation."""
    return row["messages"][-1]["content"] if "messages" in row else row["answer"]


def with_answer(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Return ``row`` with another answer; in a conversation that is the last turn."""
    if "messages" in row:
        return {**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": answer}]}
    return {**row, "answer": answer}


def refuse_text(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise an `InputError` if the rows are running text."""
    if rows and "text" in rows[0]:
        raise InputError("The forget rows are plain text: there is no answer that an alternative could replace.")


def read_alternatives(source: str | Path | Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    """Read the alternatives of each row; one list object if all rows share it.

    Args:
        source: ``idk`` for the list shipped with the package, ``rows`` for the rows' own column, a data file with
            alternatives per row, a text file with one answer per line for all rows, or the answers for all rows.
        rows: The forget rows.

    Raises:
        InputError: The file is missing, broken or without an answer, or a row has no alternative or is running text.
    """
    refuse_text(rows)
    source = str(source) if isinstance(source, Path) else source
    if source == OWN_COLUMN:
        return _complete(own_alternatives(rows), rows, "the rows' own column 'alternatives'")
    if isinstance(source, str) and Path(source).suffix.lower() in SUFFIXES:
        try:
            found = find_alternatives(with_home(source), rows)
        except InputError as error:
            raise InputError(f"data.alternatives: {error}") from error
        return _complete(found, rows, source)
    return [_shared_lines(source)] * len(rows)


def own_alternatives(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the alternatives in the rows' own column; an empty list for a row without it."""
    found = []
    for row in rows:
        label = f"{row.get('where', 'a row')}: 'alternatives'"
        found.append(_others(_lines_in(row.get("alternatives"), label), row, label))
    return found


def find_alternatives(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the alternatives that a data file has for each row, matched by question; an empty list without a match.

    If the file has several answers to a question, the records with the row's own answer are used, or all if none has
    it. Records whose question no row asks are ignored, and their number is printed.
    """
    given: dict[str, list[tuple[str | None, list[str]]]] = {}
    rows_ask, others = {plain_text(*asked_in(row)) for row in rows}, list[Record]()
    for record in file_records(path):
        asked, answer, lines = _alternatives_in(record)
        given.setdefault(plain_text(*asked), []).append((answer, lines))
        if plain_text(*asked) not in rows_ask:
            others.append(record)
    if others:
        rank_zero_info(
            f"{path}: {len(others)} of its records have a question that no forget row has (first: {others[0].where})"
        )
    found = []
    for row in rows:
        candidates, answer = given.get(plain_text(*asked_in(row)), []), plain_text(answer_in(row))
        own = [lines for stated, lines in candidates if stated is not None and plain_text(stated) == answer]
        chosen = own or [lines for _, lines in candidates]
        found.append(_others(list(dict.fromkeys(line for lines in chosen for line in lines)), row, str(path)))
    return found


def _others(lines: list[str], row: Mapping[str, Any], label: str) -> list[str]:
    """Return the alternatives of a row, none of which may be the row's own answer."""
    answer = plain_text(answer_in(row))
    if any(plain_text(line) == answer for line in lines):
        raise InputError(
            f"{label}: an alternative for {asked_in(row)[-1]!r} is the answer that is to be forgotten; change it."
        )
    return lines


def written_alternatives(rows: Sequence[Mapping[str, Any]], lines: Sequence[Sequence[str]]) -> str:
    """Write rows with their alternatives as JSON lines, which `find_alternatives` reads."""
    written = ("question", "answer", "messages")
    return json_lines(
        {name: row[name] for name in written if name in row} | {"alternatives": list(own)}
        for row, own in zip(rows, lines, strict=True)
    )


def _alternatives_in(record: Record) -> tuple[tuple[str, ...], str | None, list[str]]:
    """Return a record's question (or turns), its answer if it has one, and its alternatives."""
    fields = {name.strip().lower(): value for name, value in record.fields.items()}
    answer: str | None
    if turns := listed(fields.get("messages"), f"{record.where}: 'messages'"):
        asked, answer = asked_in({"messages": turns}), answer_in({"messages": turns})
    else:
        name = next((name for name in _ASKED if name in fields), _ASKED[0])
        asked = (checked_text(fields.get(name), f"{record.where}: {name!r}"),)
        answer = next((str(fields[name]) for name in _ANSWERED if fields.get(name)), None)
    column = next((name for name in _COLUMNS if name in fields), None)
    if column is None:
        raise InputError(f"{record.where}: there is no 'alternatives'; it has {', '.join(record.fields)}.")
    return asked, answer, _lines_in(fields[column], f"{record.where}: {column!r}")


def _lines_in(value: object, label: str) -> list[str]:
    """Return the texts in a field: those of a list, of a cell that holds a list, or the one text."""
    return [checked_text(text, label).strip() for text in as_list(value, label)]


def _complete(found: list[list[str]], rows: Sequence[Mapping[str, Any]], source: str) -> list[Sequence[str]]:
    """Return the alternatives after checking that every row has one."""
    lacking = [place for place, lines in enumerate(found) if not lines]
    if lacking:
        row = rows[lacking[0]]
        raise InputError(
            f"data.alternatives: {source} has no alternative for {len(lacking)} of {len(rows)} forget rows. The first "
            f"is {row.get('where', f'row {lacking[0]}')}: {asked_in(row)[-1]!r}. Add "
            "them, or leave such rows out."
        )
    return [*found]


def _shared_lines(source: str | Sequence[str]) -> list[str]:
    """Return the answers that all rows share."""
    if not isinstance(source, str):
        lines = [line.strip() for line in source]
    elif source == SHIPPED:
        lines = shipped_json(__package__, "idk")
    else:
        lines = [line.strip() for line in _read(with_home(source)).splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(
            f"data.alternatives has no answer in it ({source!r}); write one per line, or take {SHIPPED!r}."
        )
    return lines


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"data.alternatives: {path} cannot be read ({error.strerror}); name a text file with one answer per line, "
            f"a data file ({', '.join(SUFFIXES)}) with alternatives for each row, or write {SHIPPED!r} for the list "
            "that comes with the package."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"data.alternatives: {path} is not UTF-8 text (byte {error.start}).") from error
