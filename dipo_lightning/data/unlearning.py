"""What to forget and what to keep, from files (`UnlearningDataModule`), and rows to fine-tune on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.data.alternatives import Alternatives, read_alternatives
from dipo_lightning.data.files import read_rows
from dipo_lightning.data.module import TokenizedDataModule
from dipo_lightning.data.overlap import refuse_overlap
from dipo_lightning.data.pairs import Example, ForgetRetainPairs, TrainingRows
from dipo_lightning.errors import InputError


class UnlearningDataModule(TokenizedDataModule):
    """Pairs each row to forget with a row to keep; one epoch is one pass over what must be forgotten.

    The retain partner is a pure function of (seed, epoch, index). A batch holds ``forget`` and ``retain`` token
    batches, and ``alternative`` where there are alternatives.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; usually the model's own.
        forget: File(s), folder or hub data set of what must be forgotten.
        retain: The same of what must be kept; None unlearns without it and warns.
        forget_rows: Use the first n forget rows only.
        retain_rows: Use the first n retain rows only.
        columns: Names of the columns where they are not recognised, such as ``{question: ask, answer: reply}``.
        alternatives: Other answers to the forget questions, for methods that prefer them (IdkDPO): ``idk`` for the
            package's list of "I don't know" lines, a text file with one answer a line, or a list of answers. Each epoch
            draws anew; the draw is a pure function of (seed, epoch, index).
        **options: Those of `TokenizedDataModule`.
    """

    def __init__(
        self,
        tokenizer: str,
        forget: str | list[str],
        retain: str | list[str] | None = None,
        forget_rows: int | None = None,
        retain_rows: int | None = None,
        columns: dict[str, str] | None = None,
        alternatives: str | list[str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.forget_source, self.retain_source, self.columns = forget, retain, columns
        self.alternative_lines = None if alternatives is None else read_alternatives(alternatives)
        self.limits = forget_rows, retain_rows
        self.forget_rows: list[dict[str, Any]] = []
        self.retain_rows: list[dict[str, Any]] | None = None

    def check(self) -> None:
        """Read both sets and refuse what cannot be right (see `dipo_lightning.errors.InputError`)."""
        if not self.forget_rows:
            self.read()
            if self.retain_rows is None:
                rank_zero_warn(
                    "No retain rows: nothing holds the model's other abilities while it forgets. Expect its utility to "
                    "fall; give data.retain, even a small sample of what it should keep.",
                    category=UserWarning,
                )
            else:
                refuse_overlap(self.forget_rows, self.retain_rows)
        super().check()

    def read(self) -> None:
        """Read ``forget_rows`` and ``retain_rows``; a benchmark's data module overrides this."""
        forget_limit, retain_limit = self.limits
        self.forget_rows = first_rows(
            read_rows(self.forget_source, **(self.columns or {})), forget_limit, "forget_rows"
        )
        if self.retain_source is not None:
            self.retain_rows = first_rows(
                read_rows(self.retain_source, **(self.columns or {})), retain_limit, "retain_rows"
            )

    def training_set(self) -> ForgetRetainPairs:
        """Tokenise both sets and pair them."""
        forget = self.tokenize(self.forget_rows, "forget")
        retain: list[Example] | None = None
        if self.retain_rows is not None:
            retain = self.tokenize(self.retain_rows, "retain")
        alternative = None
        if self.alternative_lines is not None:
            lines, rows = self.alternative_lines, self.forget_rows
            alternative = Alternatives(lines, rows, self.style, self.max_length, self.seed)
        return ForgetRetainPairs(forget, retain, self.seed, alternative)

    @property
    def forget_examples(self) -> Sequence[Example]:
        """The tokenised forget rows, after `setup` for ``fit``."""
        assert isinstance(self._training, ForgetRetainPairs)
        return self._training.forget


class FineTuningDataModule(TokenizedDataModule):
    """Rows to fine-tune on; makes targets and retain models.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from.
        train: File(s), folder or hub data set; several are read one after the other.
        rows: Use the first n rows of each source only: one number for all, or one a source (null for all rows).
        columns: Names of the columns where they are not recognised.
        **options: Those of `TokenizedDataModule`.
    """

    def __init__(
        self,
        tokenizer: str,
        train: str | list[str],
        rows: int | list[int | None] | None = None,
        columns: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.train_sources = [train] if isinstance(train, str | Path) else list(train)
        self.limits = list(rows) if isinstance(rows, list) else [rows] * len(self.train_sources)
        if len(self.limits) != len(self.train_sources):
            raise InputError(
                f"data.rows has {len(self.limits)} numbers for {len(self.train_sources)} sources in data.train; "
                "give one number, or one a source."
            )
        self.columns = columns
        self.train_rows: list[dict[str, Any]] = []

    def check(self) -> None:
        """Read the rows and the tokenizer."""
        if not self.train_rows:
            for source, limit in zip(self.train_sources, self.limits, strict=True):
                self.train_rows += first_rows(read_rows(source, **(self.columns or {})), limit, "rows")
            for index, row in enumerate(self.train_rows):
                row["index"] = index
        super().check()

    def training_set(self) -> TrainingRows:
        """Tokenise the rows."""
        return TrainingRows(self.tokenize(self.train_rows, "training"))


def first_rows(rows: list[dict[str, Any]], limit: int | None, option: str) -> list[dict[str, Any]]:
    """Return the first ``limit`` rows, or all.

    Raises:
        InputError: ``limit`` is not between 1 and the number of rows.
    """
    if limit is None:
        return rows
    if not 1 <= limit <= len(rows):
        raise InputError(
            f"data.{option} is {limit}, but there are {len(rows)} rows; give 1 to {len(rows)}, or nothing."
        )
    return rows[:limit]
