"""Data modules: rows to forget and to keep, and rows to fine-tune on; the tokenizer, the loader and its state."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dipo_lightning.data.alternatives import Alternatives, read_alternatives
from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.loader import (
    EpochSampler,
    Example,
    FirstRowsSampler,
    ForgetRetainPairs,
    ResumableLoader,
    TrainingRows,
)
from dipo_lightning.data.private import PrivateTokens, rows_with_words
from dipo_lightning.data.prompts import PromptName, prompt_style
from dipo_lightning.data.rows import Rows, check_columns, read_rows, refuse_overlap
from dipo_lightning.data.tokenization import (
    LARGE,
    LONGEST,
    CheckedOnDemand,
    Chosen,
    LazyRows,
    pieces,
    prompts_without_room,
    tokenize_rows,
)
from dipo_lightning.errors import InputError, check_arguments, check_numbers, refuse_unknown
from dipo_lightning.models.answers import IGNORED, collate_parts
from dipo_lightning.models.hooks import CompleteHooks
from dipo_lightning.models.loading import load_tokenizer


class TokenizedDataModule(CompleteHooks, pl.LightningDataModule):
    """Base of the package's data modules: turns rows into token batches in one prompt style.

    A subclass returns the training rows from `training_set`; everything else (right padding from lengths, one sampler
    for any number of ranks, resuming inside an epoch) is here.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        prompt: Prompt style: ``chat`` (the model's chat template), ``open_unlearning`` (the same with its system
            prompt and date), ``plain``, ``llama2`` or ``text``.
        prompt_options: Options of the style: ``system_prompt``, ``date``, ``chat_template`` (text, file or name) and
            ``template_options`` for ``chat``; ``space`` (``prompt`` or ``answer``) for ``plain``; ``end`` for ``text``.
        max_length: Maximum length of a row in tokens; rows that are cut are counted and reported.
        batch_size: Rows per process and micro-batch (for unlearning: as many forget as retain rows).
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of the order and of the pairing.
        on_missing: Treatment of rows with nothing left to learn (an empty text, a prompt as long as ``max_length``):
            ``raise`` ends the run before it begins, ``skip`` leaves them out and reports it.

    Attributes:
        tokenizer: The tokenizer, after `setup`.
        style: The prompt style, after `setup`.
        longest: Tokens of the longest row that was looked at, after `setup` for ``fit``.
    """

    tokenizer: Any = None
    style: PromptStyle
    longest: int = 0

    def __init__(
        self,
        tokenizer: str | None = None,
        prompt: PromptName = "chat",
        prompt_options: dict[str, Any] | None = None,
        max_length: int = 512,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        on_missing: Literal["raise", "skip"] = "raise",
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(type(self).__name__, unknown)
        check_arguments(self)
        check_numbers("data", {"batch_size": batch_size, "max_length": max_length})
        check_numbers("data", {"num_workers": num_workers}, least=0)
        self.tokenizer_source, self.prompt, self.prompt_options = tokenizer, prompt, prompt_options or {}
        self.max_length, self.batch_size, self.num_workers, self.seed = max_length, batch_size, num_workers, seed
        self.on_missing = on_missing
        self._loaded_from: str | None = None
        self._training: Dataset | None = None
        self._loader: ResumableLoader | None = None
        self._resume: dict[str, int] | None = None

    def check(self) -> None:
        """Read the data, and check before a model is loaded everything that can be wrong with it.

        Idempotent; if another model brings its own tokenizer, the rows are tokenised again.
        """
        own = getattr(getattr(self.trainer, "lightning_module", None), "pretrained", None)
        source = self.tokenizer_source or own or self._loaded_from
        if self.tokenizer is None or (self._loaded_from is not None and source != self._loaded_from):
            self.tokenizer, self._loaded_from, self._training = self.load_tokenizer(), source, None
            self.style = prompt_style(self.prompt, self.tokenizer, **self.prompt_options)

    def load_tokenizer(self) -> Any:
        """Load the tokenizer: the one that was named, or the model's own in the model's revision."""
        model = getattr(self.trainer, "lightning_module", None)
        own = getattr(model, "pretrained", None)
        if self.tokenizer_source is None and own is None:
            raise InputError("There is no tokenizer: set data.tokenizer to a hub name, a folder or a GGUF file.")
        if self.tokenizer_source not in (None, own):
            return load_tokenizer(str(self.tokenizer_source))
        trusted = getattr(model, "trust_remote_code", False)
        return load_tokenizer(str(own), revision=getattr(model, "revision", None), trust_remote_code=trusted)

    def setup(self, stage: str) -> None:
        """Tokenise the rows that ``stage`` needs, once."""
        self.check()
        if stage == TrainerFn.FITTING and self._training is not None:
            for examples in vars(self._training).values():
                if isinstance(examples, CheckedOnDemand):
                    examples.checks.pop("method", None)  # that of an earlier fit
        elif stage == TrainerFn.FITTING:
            self._training = self.training_set()
            rows = len(self._training)  # type: ignore[arg-type]
            if self.batch_size > rows:
                rank_zero_info(f"data.batch_size is {self.batch_size} with {rows} rows: all are one batch.")

    def training_set(self) -> Dataset:
        """Return the tokenised training rows (`ForgetRetainPairs` or `TrainingRows`)."""
        raise TypeError(f"{type(self).__name__} must define training_set()")

    def tokenize(self, rows: Sequence[dict[str, Any]], name: str) -> tuple[Sequence[Example], Sequence[dict[str, Any]]]:
        """Tokenise ``rows`` in the prompt style; returns the examples with the rows they were made from.

        Plain texts are joined and cut into pieces of ``max_length`` tokens, every token supervised. The rows of a large
        set are tokenised on demand. A warning gives the number of cut rows of ``name``.
        """
        plain = rows.plain if isinstance(rows, Rows) else ["text" in row for row in rows]
        if any(plain) and not all(plain):
            odd = rows[plain.index(not plain[0])]
            raise InputError(
                f"{odd.get('where', name)}: plain text and questions with answers are mixed among the {name} rows; "
                "give files of one kind (text can be forgotten while questions are kept, and the other way round)."
            )
        if plain[0]:
            made = pieces([row["text"] for row in rows], self.tokenizer, self.max_length)
            self._note_longest(made[:1])
            rank_zero_info(f"{len(rows)} {name} texts, in {len(made)} pieces of {self.max_length} tokens")
            return made, rows
        by_need = isinstance(rows, Rows) and len(rows) > LARGE
        looked_at = list(range(len(rows)))
        if by_need and isinstance(rows, Rows):  # the longest show if rows are cut, the tight ones may be left out
            skips = self.on_missing == "skip"
            tight = prompts_without_room(rows, self.style, self.max_length) if skips else []
            looked_at = list(dict.fromkeys([*rows.longest(LONGEST), *tight]))
        tokenized = tokenize_rows(Chosen(rows, looked_at), self.style, self.max_length, self.on_missing)
        if len(tokenized.dropped) == len(rows):
            raise InputError(f"None of {len(rows)} {name} rows is left: {tokenized.report(name)}.")
        self._note_longest(tokenized)
        if tokenized.truncated:
            among = f"the {len(looked_at)} longest of " if by_need else ""
            rank_zero_warn(
                f"{tokenized.truncated} of {among}{len(rows)} {name} rows are longer than data.max_length="
                f"{self.max_length} tokens and were cut at the end.",
                category=UserWarning,
            )
        if not by_need:
            rank_zero_info(tokenized.report(name))
            return tokenized.examples, rows if not tokenized.dropped else [rows[i] for i in tokenized.kept]
        kept: Sequence[dict[str, Any]] = rows
        if dropped := {row["index"] for row in tokenized.dropped}:
            kept = Chosen(rows, [position for position in range(len(rows)) if position not in dropped])
        left_out = f", {len(dropped)} left out" if dropped else ""
        rank_zero_info(f"{len(rows)} {name} rows, each tokenised when a batch needs it{left_out}")
        return LazyRows(kept, self.style, self.max_length, tokenized.examples), kept

    def _note_longest(self, examples: Sequence[Example]) -> None:
        self.longest = max([self.longest, *(len(example["input_ids"]) for example in examples)])

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader; the order is a pure function of (seed, epoch, world size)."""
        trainer = self.trainer
        ranks = (trainer.distributed_sampler_kwargs if trainer else None) or {"num_replicas": 1, "rank": 0}
        training = self._tokenized
        kind = FirstRowsSampler if getattr(trainer, "overfit_batches", 0) else EpochSampler
        sampler = kind(training, shuffle=True, seed=self.seed, **ranks)
        self._loader = ResumableLoader(
            training,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_parts,
            pin_memory=torch.cuda.is_available(),
            # Starting an epoch draws nothing from dropout's generator.
            generator=torch.Generator().manual_seed(self.seed),
        )
        self._loader.trainer = trainer
        if repeated := self._loader.repeated:
            rank_zero_info(
                f"{len(sampler.dataset)} rows do not divide by {sampler.num_replicas} processes, which take as many "  # type: ignore[arg-type]
                f"each: {repeated} of them {'is' if repeated == 1 else 'are'} trained on twice in every epoch."
            )
        if self._resume is not None:
            self._loader.load_state_dict(self._resume)
            self._resume = None
        return self._loader

    @property
    def _tokenized(self) -> Dataset:
        if self._training is None:
            raise InputError(
                f"{type(self).__name__} has no tokenised rows yet. Call setup('fit') first, or in an overridden setup "
                "super().setup(stage); rows in another format are read by overriding read()."
            )
        return self._training

    def val_dataloader(self) -> DataLoader | list:
        """Return one empty step: ``validate`` exists to run the evaluation callbacks; ``fit`` has no such loop."""
        fitting = self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING
        if not fitting:
            return self.test_dataloader()
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # it is meant
        return []

    def test_dataloader(self) -> DataLoader:
        """Return one empty step: ``test`` exists to run the evaluation callbacks."""
        ranks = self.trainer.world_size if self.trainer else 1
        return DataLoader(TensorDataset(torch.zeros(ranks)), batch_size=1)

    def state_dict(self) -> dict[str, int]:
        """Return the loader's state, kept here too: Lightning restores that of a loader only if nothing came before."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Hand the state to the loader, now or when it is made."""
        if "done" in state_dict and self._loader is not None:
            self._loader.load_state_dict(state_dict)
        elif "done" in state_dict:
            self._resume = dict(state_dict)


AnyRows = Rows | list[dict[str, Any]]


class UnlearningDataModule(TokenizedDataModule):
    """Rows to forget, each paired with a row to keep; one epoch is one pass over the forget rows.

    The retain partner is a pure function of (seed, epoch, index). A batch holds ``forget`` and ``retain`` token
    batches, and ``alternative`` where there are alternatives.

    Besides a question and its answer a row may have columns that evaluations use: ``paraphrased_answer`` (a text),
    ``perturbed_answer`` (wrong answers), ``paraphrased_question`` (a text or a list), and ``private``, the private
    values in its answer (a text or a list). Instead, a forget row may mark the private values in its answer, as in
    ``He was born in [[Lima]].``; the marks are removed. ``alternatives`` (a text or a list) are other answers, which
    some methods prefer. `forget_rows` and `retain_rows` hold all of these, with every list as a list.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        forget: File(s), folder or hub data set to be forgotten.
        retain: File(s), folder or hub data set to be kept; None unlearns without retain rows and warns.
        max_forget_rows: Use the first n forget rows only.
        max_retain_rows: Use the first n retain rows only.
        forget_split: Split of the forget data set or folder; without it ``train``, or the only one.
        retain_split: Split of the retain data set or folder.
        columns: Names of the columns where they are not recognised, such as ``{question: ask, answer: reply}``; also
            of the optional ones.
        alternatives: Other answers to the forget questions, for methods that prefer them (DPO, IdkDPO, AltPO): ``idk``
            for the package's list of "I don't know" lines; a data file with a column ``alternatives`` beside the
            question; ``rows`` for that column of the forget rows themselves; or, for all rows, a text file with one
            answer per line or a list of answers. Each epoch draws again; the draw is a pure function of (seed, epoch,
            index).
        forget_tokens: Tokens of the forget answers in the loss: the whole ``answer``, or only its ``private`` values,
            named by the data or found (`dipo_lightning.data.private.find_private`).
        **options: Those of `TokenizedDataModule`.

    Attributes:
        forget_rows: The rows to forget, after `setup`.
        trained_rows: The forget rows that are trained on, in the order of ``forget_examples``.
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
        if not forget and type(self).read is UnlearningDataModule.read:
            raise InputError("data.forget is missing: give a file, a folder or a data set of what must be forgotten.")
        check_columns(columns or ())
        self.forget_source, self.retain_source, self.columns = forget, retain, columns
        self.forget_split, self.retain_split = forget_split, retain_split
        self.alternatives, self.forget_tokens = alternatives, forget_tokens
        self.max_forget_rows, self.max_retain_rows = max_forget_rows, max_retain_rows
        self.forget_rows: AnyRows = []
        self.trained_rows: Sequence[dict[str, Any]] = []
        self.retain_rows: AnyRows | None = None

    def check(self) -> None:
        """Read both sets and check them; an `InputError` if they are broken or share rows."""
        if not self.forget_rows:
            self.read()
            if self.retain_rows is not None:
                refuse_overlap(self.forget_rows, self.retain_rows)
            elif getattr(getattr(self.trainer, "lightning_module", None), "needs_retain_rows", True):
                rank_zero_warn(
                    "No retain rows: nothing holds the model's other abilities while it forgets. Expect its utility to "
                    "fall; give data.retain, even a small sample of what it should keep.",
                    category=UserWarning,
                )
        super().check()

    def read(self) -> None:
        """Read ``forget_rows`` and ``retain_rows``; override it for rows in another format.

        A row is a dictionary with ``question`` and ``answer``, or with ``text``, and columns that are used as they are.
        """
        self.forget_rows = self.read_rows(self.forget_source, self.forget_split, "forget", self.max_forget_rows)
        if self.retain_source is not None:
            self.retain_rows = self.read_rows(self.retain_source, self.retain_split, "retain", self.max_retain_rows)

    def read_rows(self, source: str | list[str], split: str | None, name: str, limit: int | None) -> AnyRows:
        """Read the rows of one set."""
        columns, option = self.columns or {}, f"data.{name}_split"
        marks = name == "forget"
        rows = read_rows(source, **columns, split=split, option=option, on_missing=self.on_missing, marks=marks)
        return first_rows(rows, limit, f"max_{name}_rows")

    def training_set(self) -> ForgetRetainPairs:
        """Tokenise both sets and pair them."""
        forget, self.trained_rows = self.tokenize(self.forget_rows, "forget")
        if self.forget_tokens == "private":
            forget, self.trained_rows = self._private(forget, self.trained_rows)
        retain = None if self.retain_rows is None else self.tokenize(self.retain_rows, "retain")[0]
        pairs = ForgetRetainPairs(forget, retain, self.seed)
        if self.alternatives is not None:
            self.add_alternatives(read_alternatives(self.alternatives, self.trained_rows), pairs)
        return pairs

    def add_alternatives(self, lines: Sequence[Sequence[str]], pairs: ForgetRetainPairs | None = None) -> None:
        """Let every pair come with an alternative answer to its forget question, the batch's ``alternative`` part.

        ``lines`` are, for each of ``trained_rows``, the answers to draw from.
        """
        pairs = self._pairs if pairs is None else pairs
        pairs.alternative = Alternatives(lines, self.trained_rows, self.style, self.max_length, self.seed)
        self._note_longest(pairs.alternative.to_longest())

    def _private(
        self, forget: Sequence[Example], rows: Sequence[dict[str, Any]]
    ) -> tuple[Sequence[Example], Sequence[dict[str, Any]]]:
        """Keep the labels of private values only, and the rows that have some left within ``max_length``."""
        odd = next((number for number, row in enumerate(rows) if "question" not in row), None)
        if odd is not None:
            raise InputError(
                f"{rows[odd].get('where', f'forget row {odd}')}: data.forget_tokens: private needs rows with a "
                "question and an answer, and this is not one. Leave the option out."
            )
        kept = (row for row in self.retain_rows or () if "question" in row)
        shared = rows_with_words(kept)
        private = PrivateTokens(forget, rows, shared, self.tokenizer)
        if isinstance(forget, LazyRows):
            return private, rows
        cut = [position for position, example in enumerate(forget) if len(example["input_ids"]) >= self.max_length]
        missing = [
            position for position in cut if not any(label != IGNORED for label in private.make(position)["labels"])
        ]
        if not missing:
            return private, rows
        out = set(missing)
        left = [position for position in range(len(forget)) if position not in out]
        problem = (
            f"{rows[missing[0]].get('where', f'forget row {missing[0]}')}: its private values lie beyond "
            "data.max_length, which leaves data.forget_tokens: private nothing to train on. Raise data.max_length, "
            "shorten the answer, or leave such rows out with data.on_missing: skip."
        )
        if self.on_missing == "raise" or not left:
            raise InputError(problem)
        rank_zero_warn(
            f"{len(missing)} of {len(forget)} forget rows left out. The first: {problem}", category=UserWarning
        )
        rows = [rows[position] for position in left]
        return PrivateTokens([forget[position] for position in left], rows, shared, self.tokenizer), rows

    def place(self, index: int) -> int:
        """Return the position of a forget example in `trained_rows` by its index, which counts left-out rows too."""
        rows = self.trained_rows
        if index < len(rows) and rows[index].get("index", index) == index:
            return index
        return bisect_left(range(len(rows)), index, key=lambda place: rows[place]["index"])

    @property
    def forget_examples(self) -> Sequence[Example]:
        """The tokenised forget rows, after `setup` for ``fit``."""
        return self._pairs.forget

    @property
    def retain_examples(self) -> Sequence[Example] | None:
        """The tokenised retain rows, after `setup` for ``fit``; None if there are none."""
        return self._pairs.retain

    @property
    def _pairs(self) -> ForgetRetainPairs:
        pairs = self._tokenized
        if not isinstance(pairs, ForgetRetainPairs):
            raise InputError(
                f"{type(self).__name__}.training_set() returns a {type(pairs).__name__}; it must return "
                "ForgetRetainPairs, as that of UnlearningDataModule does."
            )
        return pairs


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
        if not train and type(self).read is FineTuningDataModule.read:
            raise InputError("data.train is missing: give a file, a folder or a data set to train on.")
        self.train_sources = [train] if isinstance(train, str | Path) else list(train)
        self.limits = list(max_rows) if isinstance(max_rows, list) else [max_rows] * len(self.train_sources)
        if len(self.limits) != len(self.train_sources):
            raise InputError(
                f"data.max_rows has {len(self.limits)} numbers for {len(self.train_sources)} sources in data.train; "
                "give one number, or one per source."
            )
        check_columns(columns or ())
        self.split, self.columns = split, columns
        self.train_rows: Rows = Rows()

    def check(self) -> None:
        """Read the rows and the tokenizer."""
        if not self.train_rows:
            self.read()
        super().check()

    def read(self) -> None:
        """Read ``train_rows``; override it for rows in another format."""
        columns, missing, read = self.columns or {}, self.on_missing, Rows()
        for source, limit in zip(self.train_sources, self.limits, strict=True):
            split, option = self.split, "data.split"
            rows = read_rows(source, **columns, split=split, option=option, on_missing=missing, marks=False)
            read.extend(first_rows(rows, limit, "max_rows"))
        self.train_rows = read

    def training_set(self) -> TrainingRows:
        """Tokenise the rows."""
        return TrainingRows(self.tokenize(self.train_rows, "training")[0])


def first_rows(rows: Any, limit: int | None, option: str) -> Any:
    """Return the first ``limit`` rows (`Rows` or a list), or all."""
    if limit is None:
        return rows
    if not 1 <= limit <= len(rows):
        raise InputError(
            f"data.{option} is {limit}, but there are {len(rows)} rows; give a number from 1 to {len(rows)}, or leave "
            "it out."
        )
    return rows.first(limit) if isinstance(rows, Rows) else rows[:limit]
