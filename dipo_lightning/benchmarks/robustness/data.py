"""Questions of the attacks, from TOFU, MUSE, user data, or the data module of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dipo_lightning.benchmarks.muse.data import load_muse
from dipo_lightning.benchmarks.muse.measuring import answer_part
from dipo_lightning.benchmarks.robustness.attack import Source, Subject
from dipo_lightning.benchmarks.tofu.data import load_tofu
from dipo_lightning.benchmarks.user_data.data import evenly, question_rows, row_style
from dipo_lightning.data.encoding import PlainStyle, PromptStyle, TextStyle
from dipo_lightning.data.files import config_files, is_hub_name
from dipo_lightning.data.rows import read_rows
from dipo_lightning.errors import InputError, check_numbers
from dipo_lightning.safety.paths import read_text, with_home

TEXT_TOKENS = 256
"""Number of tokens used of a plain text; the first half is the question, the second the answer."""


def tofu_subject(style: PromptStyle, data: str, split: str) -> Subject:
    """Return TOFU's forget questions, with their paraphrases where the data has them, and its retain rows."""
    tofu = load_tofu(data, split)
    return Subject(style, tofu.forget, tofu.train_retain)


def muse_subject(style: PromptStyle, data: str, forget: str = "train/forget") -> Subject:
    """Return MUSE's knowledge questions; relearning trains on the forget documents.

    The style of running text is replaced by ``plain``, in which MUSE asks.
    """
    muse = load_muse(data, forget, allow_overlap=True)
    return Subject(
        PlainStyle(style.tokenizer) if isinstance(style, TextStyle) else style,
        muse.knowmem["forget"],
        muse.knowmem["retain"],
        trained=muse.train_forget,
        max_new_tokens=32,
        answer_part=answer_part,
    )


@dataclass(frozen=True)
class Questions(Sequence[Source]):
    """User data as questions, built on access, since attacks use only a few of the retain rows.

    The question of a conversation, to be reworded, is the last turn of its user.
    """

    rows: Sequence[Any]
    tokenizer: Any

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, position: Any) -> Any:
        """Question at a position, or questions of a slice."""
        places = range(len(self))[position]
        if isinstance(places, int):
            [row] = question_rows([self.rows[places]], self.tokenizer, TEXT_TOKENS)
            last = {"question": row["messages"][-2]["content"]} if "messages" in row else {}
            return {"index": places, **row, **last}
        return [self[place] for place in places]


def user_subject(style: PromptStyle, forget: Sequence[Any], retain: Sequence[Any]) -> Subject:
    """Return user data as questions; the question of a plain text is its first half, the answer the second."""
    asked, kept = (Questions(rows, style.tokenizer) for rows in (forget, retain))
    plain = bool(forget) and "text" in forget[0]
    return Subject(row_style(forget[:1], style), asked, kept, trained=list(forget) if plain else [])


def read_subject(
    style: PromptStyle,
    data: str | None,
    split: str | None,
    forget: str | None,
    retain: str | None,
) -> Subject:
    """Read the questions of the attacks.

    Args:
        style: The model's prompt style.
        data: A data set in TOFU's schema (with ``split``) or MUSE's, on the hub or in a folder.
        split: TOFU's forget split.
        forget: File or folder with the forget rows of user data, instead of ``data``.
        retain: File or folder with its retain rows.

    Raises:
        InputError: Neither or both of ``data`` and ``forget`` are given, or a file cannot be read.
    """
    if (data is None) == (forget is None):
        raise InputError(
            "Name the data that was unlearned: either data (TOFU with split, or MUSE) or forget (your own rows)."
        )
    if forget is not None:
        return user_subject(style, read_rows(forget), read_rows(retain, marks=False) if retain else [])
    assert data is not None
    if split is not None:
        return tofu_subject(style, data, split)
    if is_muse(data):
        return muse_subject(style, data)
    raise InputError(f"data is {data}, for which split must be given too, such as forget10.")


def limited(subject: Subject, unrelated: str | None, max_rows: int | None) -> Subject:
    """Return a subject with at most ``max_rows`` forget rows, and with unrelated texts.

    Args:
        subject: The questions.
        unrelated: Text file for relearning on unrelated text; blank lines separate the texts.
        max_rows: Maximum number of forget rows, spread evenly over the forget set; None for all.

    Raises:
        InputError: ``max_rows`` is below 1, or the file cannot be read or is empty.
    """
    check_numbers("", {"max_rows": max_rows})
    texts: list[str] = []
    if unrelated is not None:
        texts = [part.strip() for part in read_text(unrelated, "unrelated").split("\n\n") if part.strip()]
        if not texts:
            raise InputError(f"unrelated: {unrelated} holds no text.")
    return replace(subject, forget=at_most(subject.forget, max_rows), unrelated=texts)


def at_most(rows: Sequence[Source], most: int | None) -> list[Source]:
    """Return at most ``most`` rows, spread evenly over all; None for all."""
    return [dict(rows[place]) for place in evenly(range(len(rows)), most)]


def subject_of(datamodule: Any, style: PromptStyle) -> Subject:
    """Return the questions about the forget set of a run's data module.

    Raises:
        InputError: It has no forget rows.
    """
    if not getattr(datamodule, "forget_rows", None) and not hasattr(datamodule, "split"):
        raise InputError(
            "RobustnessEvaluation asks about the forget rows of the data module; use one with `forget_rows` and "
            "`style`."
        )
    data, split = getattr(datamodule, "data", None), getattr(datamodule, "split", None)
    if data is not None and split is not None:
        found = tofu_subject(style, str(data), str(split))
        return replace(found, forget=found.forget[: getattr(datamodule, "max_forget_rows", None)])
    if data is not None and is_muse(str(data)):
        return muse_subject(style, str(data), str(getattr(datamodule, "forget", "train/forget")))
    return user_subject(style, datamodule.forget_rows, getattr(datamodule, "retain_rows", None) or [])


def is_muse(data: str) -> bool:
    """Return whether a folder, or a name on the hub, is data in MUSE's schema."""
    folder = with_home(data)
    if folder.is_dir():
        return bool(config_files(folder, "knowmem", "forget_qa"))
    return is_hub_name(data) and "MUSE" in data
