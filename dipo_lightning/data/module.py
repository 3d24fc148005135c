"""Base of the data modules: the tokenizer, the prompt style, the resumable loader and its state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dipo_lightning.data.encoding import PromptStyle
from dipo_lightning.data.loader import ResumableLoader
from dipo_lightning.data.pairs import EpochSampler, Example, FirstRowsSampler
from dipo_lightning.data.prompts import PromptName, prompt_style
from dipo_lightning.data.rows import Rows
from dipo_lightning.data.tokenization import (
    LARGE,
    LONGEST,
    Chosen,
    LazyRows,
    pieces,
    prompts_without_room,
    tokenize_rows,
)
from dipo_lightning.errors import InputError, check_numbers, refuse_unknown
from dipo_lightning.models.loading import load_tokenizer
from dipo_lightning.models.token_batch import collate_parts


class TokenizedDataModule(pl.LightningDataModule):
    """Base of the package's data modules: rows become token batches under one prompt style.

    A subclass gives the training rows in `training_set`; everything else (right padding from lengths, one sampler for
    any number of ranks, resuming inside an epoch) is here.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's own.
        prompt: Prompt style: ``chat`` (the model's chat template), ``open_unlearning`` (the same with its system
            prompt and date), ``plain``, ``llama2`` or ``text``.
        prompt_options: Options of the style: ``system_prompt``, ``date``, ``chat_template`` (text, file or name) and
            ``template_options`` for ``chat``; ``space`` (``prompt`` or ``answer``) for ``plain``; ``end`` for ``text``.
        max_length: Longest row in tokens; what is cut off is counted and reported.
        batch_size: Rows of one process and one micro-batch (for unlearning: as many forget as retain rows).
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of the order and of the pairing.
        on_missing: What to do with a row of which nothing is left to learn (an empty text, a prompt as long as
            ``max_length``): ``raise`` ends the run before it begins, ``skip`` leaves it out and says so.

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
        check_numbers("data", {"batch_size": batch_size, "max_length": max_length})
        check_numbers("data", {"num_workers": num_workers}, least=0)
        self.tokenizer_source, self.prompt, self.prompt_options = tokenizer, prompt, prompt_options or {}
        self.max_length, self.batch_size, self.num_workers, self.seed = max_length, batch_size, num_workers, seed
        self.on_missing = on_missing
        self._training: Dataset | None = None
        self._loader: ResumableLoader | None = None
        self._resume: dict[str, int] | None = None

    def check(self) -> None:
        """Read and check everything that can be wrong with the data before a model is loaded; idempotent."""
        if self.tokenizer is None:
            self.tokenizer = self.load_tokenizer()
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
        if stage == TrainerFn.FITTING and self._training is None:
            self._training = self.training_set()
            rows = len(self._training)  # type: ignore[arg-type]
            if self.batch_size > rows:
                rank_zero_info(f"data.batch_size is {self.batch_size} with {rows} rows: all are one batch.")

    def training_set(self) -> Dataset:
        """Return the tokenised training rows (`ForgetRetainPairs` or `TrainingRows`)."""
        raise TypeError(f"{type(self).__name__} must define training_set()")

    def tokenize(self, rows: Sequence[dict[str, Any]], name: str) -> tuple[Sequence[Example], Sequence[dict[str, Any]]]:
        """Tokenise ``rows`` in the prompt style, saying how many of ``name`` were cut.

        Plain texts are joined and cut into pieces of ``max_length`` tokens, every token supervised. Of a large set a
        row is tokenised when a batch needs it.

        Returns:
            The examples, and the rows that they were made from (of texts all).
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
        looked_at = self._doubtful(rows) if by_need and isinstance(rows, Rows) else list(range(len(rows)))
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

    def _doubtful(self, rows: Rows) -> list[int]:
        """Positions of the rows of a large set that are looked at before the first step.

        Those with most text show whether rows fit; of those whose prompt may leave no room some may be left out.
        """
        doubtful = prompts_without_room(rows, self.style, self.max_length) if self.on_missing == "skip" else []
        return list(dict.fromkeys([*rows.longest(LONGEST), *doubtful]))

    def _note_longest(self, examples: Sequence[Example]) -> None:
        self.longest = max([self.longest, *(len(example["input_ids"]) for example in examples)])

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader; the order is a pure function of (seed, epoch, world size)."""
        trainer = self.trainer
        ranks = (trainer.distributed_sampler_kwargs if trainer else None) or {"num_replicas": 1, "rank": 0}
        assert self._training is not None
        kind = FirstRowsSampler if getattr(trainer, "overfit_batches", 0) else EpochSampler
        sampler = kind(self._training, shuffle=True, seed=self.seed, **ranks)
        self._loader = ResumableLoader(
            self._training,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_parts,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(
                self.seed
            ),  # starting an epoch draws nothing from dropout's generator
        )
        if trainer:
            self._loader.accumulate, self._loader.limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
        if repeated := self._loader.repeated:
            rank_zero_info(
                f"{len(sampler.dataset)} rows do not divide by {sampler.num_replicas} processes, which take as many "  # type: ignore[arg-type]
                f"each: {repeated} of them {'is' if repeated == 1 else 'are'} trained on twice in every epoch."
            )
        if self._resume is not None:
            self._loader.load_state_dict(self._resume)
            self._resume = None
        return self._loader

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
        """Return the loader's state; kept here too, since Lightning restores a loader's only if nothing came before."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Hand the state to the loader, now or when it is made."""
        if state_dict and self._loader is not None:
            self._loader.load_state_dict(state_dict)
        elif state_dict:
            self._resume = dict(state_dict)
