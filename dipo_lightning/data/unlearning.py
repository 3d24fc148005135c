"""Data modules over files: what to forget and what to keep, and rows to fine-tune on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.data.alternatives import Alternatives, read_alternatives
from dipo_lightning.data.module import TokenizedDataModule
from dipo_lightning.data.pairs import Example, ForgetRetainPairs, TrainingRows
from dipo_lightning.data.private import PrivateTokens, rows_with_words
from dipo_lightning.data.rows import Rows, read_rows, refuse_overlap
from dipo_lightning.errors import InputError

AnyRows = Rows | list[dict[str, Any]]


class UnlearningDataModule(TokenizedDataModule):
    """Rows to forget, each paired with a row to keep; one epoch is one pass over the forget rows.

    The retain partner is a pure function of (seed, epoch, index). A batch holds ``forget`` and ``retain`` token
    batches, and ``alternative`` where there are alternatives.

    Beside a question and its answer a row may carry what evaluations use: ``paraphrased_answer`` (a text),
    ``perturbed_answer`` (wrong answers), ``paraphrased_question`` (a text or a list), and ``private``, the private
    values in its answer (a text or a list). Instead of the last an answer may mark them, as in
    ``He was born in [[Lima]].``: the marks are taken out. ``alternatives`` (a text or a list) are answers that may be
    trained towards. `forget_rows` and `retain_rows` hold all of it, every list as a list.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        forget: File(s), folder or hub data set of what must be forgotten.
        retain: The same of what must be kept; None unlearns without it and warns.
        max_forget_rows: Use the first n forget rows only.
        max_retain_rows: Use the first n retain rows only.
        forget_split: Split of the forget data set or folder; without it ``train``, or the only one.
        retain_split: Split of the retain data set or folder.
        columns: Names of the columns where they are not recognised, such as ``{question: ask, answer: reply}``.
        alternatives: Other answers to the forget questions, for methods that prefer them (DPO, IdkDPO, AltPO): ``idk``
            for the package's list of "I don't know" lines; a data file with a column ``alternatives`` beside the
            question; ``rows`` for that column of the forget rows themselves; a text file with one answer per line, or a
            list of answers, for all rows. Each epoch draws anew; the draw is a pure function of (seed, epoch, index).
        forget_tokens: Tokens of the forget answers that the loss is about: all of the ``answer``, or those of its
            ``private`` values, named by the data or found (`dipo_lightning.data.private.find_private`).
        **options: Those of `TokenizedDataModule`.

    Attributes:
        forget_rows: The rows to forget, after `setup`.
        trained_rows: Those of them that are trained on, in the order of ``forget_examples``.
        retain_rows: The rows to keep, or None.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        forget: str | list[str] = "",
        retain: str | list[str] | None = None,
        max_forget_rows: int | None = None,
        max_retain_rows: int | None = None,
        forget_split: str | None = None,
        retain_split: str | None = None,
        columns: dict[str, str] | None = None,
        alternatives: str | list[str] | None = None,
        forget_tokens: Literal["answer", "private"] = "answer",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if not forget:
            raise InputError("data.forget is missing: give a file, a folder or a data set of what must be forgotten.")
        self.forget_source, self.retain_source, self.columns = forget, retain, columns
        self.forget_split, self.retain_split = forget_split, retain_split
        self.alternatives, self.forget_tokens = alternatives, forget_tokens
        self.max_forget_rows, self.max_retain_rows = max_forget_rows, max_retain_rows
        self.forget_rows: AnyRows = []
        self.trained_rows: Sequence[dict[str, Any]] = []
        self.retain_rows: AnyRows | None = None

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
        self.forget_rows = self.read_rows(self.forget_source, self.forget_split, "forget", self.max_forget_rows)
        if self.retain_source is not None:
            self.retain_rows = self.read_rows(self.retain_source, self.retain_split, "retain", self.max_retain_rows)

    def read_rows(self, source: str | list[str], split: str | None, name: str, limit: int | None) -> AnyRows:
        """Read the rows of one set."""
        columns, option = self.columns or {}, f"data.{name}_split"
        rows = read_rows(source, **columns, split=split, option=option, on_missing=self.on_missing)
        return first_rows(rows, limit, f"max_{name}_rows")

    def training_set(self) -> ForgetRetainPairs:
        """Tokenise both sets and pair them."""
        forget, self.trained_rows = self.tokenize(self.forget_rows, "forget")
        if self.forget_tokens == "private":
            forget = self._private(forget, self.trained_rows)
        retain = None if self.retain_rows is None else self.tokenize(self.retain_rows, "retain")[0]
        pairs = ForgetRetainPairs(forget, retain, self.seed)
        if self.alternatives is not None:
            self.add_alternatives(read_alternatives(self.alternatives, self.trained_rows), pairs)
        return pairs

    def add_alternatives(self, lines: Sequence[Sequence[str]], pairs: ForgetRetainPairs | None = None) -> None:
        """Let every pair come with an alternative answer to its forget question, the batch's ``alternative`` part.

        Args:
            lines: For each of ``trained_rows``, the answers to draw from.
            pairs: The training set; None is the one that `setup` made.

        Raises:
            InputError: An alternative cannot be tokenised.
        """
        pairs = self._pairs if pairs is None else pairs
        pairs.alternative = Alternatives(lines, self.trained_rows, self.style, self.max_length, self.seed)
        self._note_longest(pairs.alternative.to_longest())

    def _private(self, forget: Sequence[Example], rows: Sequence[dict[str, Any]]) -> Sequence[Example]:
        """Keep the labels of private values only.

        Raises:
            InputError: A row is no question with its answer.
        """
        odd = next((number for number, row in enumerate(rows) if "question" not in row), None)
        if odd is not None:
            raise InputError(
                f"{rows[odd].get('where', f'forget row {odd}')}: data.forget_tokens: private looks for private values "
                "in answers to questions; this row is none. Leave the option out."
            )
        kept = (row for row in self.retain_rows or () if "question" in row)
        return PrivateTokens(forget, rows, rows_with_words(kept), self.tokenizer)

    @property
    def forget_examples(self) -> Sequence[Example]:
        """The tokenised forget rows, after `setup` for ``fit``."""
        return self._pairs.forget

    @property
    def _pairs(self) -> ForgetRetainPairs:
        assert isinstance(self._training, ForgetRetainPairs)
        return self._training


class FineTuningDataModule(TokenizedDataModule):
    """Rows to fine-tune on, for target and retain models.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        train: File(s), folder or hub data set; several are read one after the other.
        max_rows: Use the first n rows of each source only: one number for all, or one per source (null for all rows).
        split: Split of the data sets or folders; without it ``train``, or the only one.
        columns: Names of the columns where they are not recognised.
        **options: Those of `TokenizedDataModule`.

    Attributes:
        train_rows: The rows, after `setup`.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        train: str | list[str] = "",
        max_rows: int | list[int | None] | None = None,
        split: str | None = None,
        columns: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if not train:
            raise InputError("data.train is missing: give a file, a folder or a data set to train on.")
        self.train_sources = [train] if isinstance(train, str | Path) else list(train)
        self.limits = list(max_rows) if isinstance(max_rows, list) else [max_rows] * len(self.train_sources)
        if len(self.limits) != len(self.train_sources):
            raise InputError(
                f"data.max_rows has {len(self.limits)} numbers for {len(self.train_sources)} sources in data.train; "
                "give one number, or one per source."
            )
        self.split, self.columns = split, columns
        self.train_rows: Rows = Rows()

    def check(self) -> None:
        """Read the rows and the tokenizer."""
        if not self.train_rows:
            self.read()
        super().check()

    def read(self) -> None:
        """Read ``train_rows``."""
        columns, missing, read = self.columns or {}, self.on_missing, Rows()
        for source, limit in zip(self.train_sources, self.limits, strict=True):
            rows = read_rows(source, **columns, split=self.split, option="data.split", on_missing=missing)
            read.extend(first_rows(rows, limit, "max_rows"))
        self.train_rows = read

    def training_set(self) -> TrainingRows:
        """Tokenise the rows."""
        return TrainingRows(self.tokenize(self.train_rows, "training")[0])


def first_rows(rows: Any, limit: int | None, option: str) -> Any:
    """Return the first ``limit`` rows (`Rows` or a list), or all.

    Raises:
        InputError: ``limit`` is not between 1 and the number of rows.
    """
    if limit is None:
        return rows
    if not 1 <= limit <= len(rows):
        raise InputError(
            f"data.{option} is {limit}, but there are {len(rows)} rows; give 1 to {len(rows)}, or nothing."
        )
    return rows.first(limit) if isinstance(rows, Rows) else rows[:limit]
