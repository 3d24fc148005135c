"""AltPO: preference for plausible alternative answers that the model writes before unlearning (arXiv 2409.13474).

The loss is DPO's between an alternative of the row and the answer to forget. Before the first step the reference writes
the alternatives into a file that the user can read and edit; an existing file is used as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from dipo_lightning.data.alternatives import (
    answer_in,
    asked_in,
    find_alternatives,
    own_alternatives,
    refuse_text,
    written_alternatives,
)
from dipo_lightning.data.encoding import plain_text
from dipo_lightning.data.unlearning import UnlearningDataModule
from dipo_lightning.errors import InputError, check_numbers, check_positive
from dipo_lightning.evaluation.run_folder import run_folder, write_text
from dipo_lightning.evaluation.sampling import hash_seed, sample
from dipo_lightning.methods.preference import DPOModule
from dipo_lightning.models.distributed import evaluation_mode, unsharded
from dipo_lightning.models.inspection import position_limit
from dipo_lightning.reference.references import ModelReference
from dipo_lightning.safety.paths import with_home

INSTRUCTION = (
    "Question: {question}\nAnswer: {answer}\n\nInvent another answer to this question in the same style. It must sound "
    "true, keep to what the question says, and give other facts than the answer above in every detail. Write the new "
    "answer and nothing else."
)
"""Default request for one alternative; not the source's wording."""
FILE = "alternatives.jsonl"
ROUNDS = 4
"""Maximum number of rounds of sampling until every row has its alternatives."""

_LABEL = re.compile(r"^(\w+ )?answer\s*:\s*", re.IGNORECASE)
_NEXT = re.compile(r"\n\s*(question|q)\s*:", re.IGNORECASE)


class AltPOModule(DPOModule):
    """DPO between the answer and alternatives that the model wrote itself. Source: arXiv 2409.13474.

    The user's own alternatives take precedence: ``data.alternatives``, a column ``alternatives`` of the forget rows, or
    an existing file; the model writes those that are missing.

    Args:
        pretrained: The model that must forget; also the reference, which writes the alternatives.
        per_row: Number of alternatives to write for each forget row.
        alternatives_file: JSON-lines file to keep them in, and to read them from if it exists; None is
            ``alternatives.jsonl`` in the run's folder.
        instruction: Request for one alternative, containing ``{question}`` and ``{answer}``; ``{question}`` alone
            repeats the question, for models that do not follow instructions.
        temperature: Sampling temperature.
        max_new_tokens: Maximum length of an alternative in tokens.
        **options: Those of `DPOModule`.
    """

    def __init__(
        self,
        pretrained: str,
        per_row: int = 5,
        alternatives_file: str | None = None,
        instruction: str = INSTRUCTION,
        temperature: float = 1.0,
        max_new_tokens: int = 200,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, **options)
        check_numbers("model", {"per_row": per_row, "max_new_tokens": max_new_tokens})
        check_positive("model", {"temperature": temperature})
        if "{question}" not in instruction:
            raise InputError("model.instruction does not contain {question}; write it where the question belongs.")
        if alternatives_file is not None and Path(alternatives_file).suffix != ".jsonl":
            raise InputError(f"model.alternatives_file is {alternatives_file}; give a name that ends in .jsonl.")
        self.per_row, self.alternatives_file, self.instruction = per_row, alternatives_file, instruction
        self.temperature, self.max_new_tokens = temperature, max_new_tokens

    def check_alternatives(self, data: UnlearningDataModule) -> None:
        """Check the file of alternatives if it exists; missing alternatives will be written."""
        refuse_text(data.trained_rows)
        if self.alternatives_file is not None and (path := with_home(self.alternatives_file)).exists():
            find_alternatives(path, data.trained_rows)

    def on_fit_start(self) -> None:
        """Let the reference write the alternatives that the rows do not have yet; collective.

        Raises:
            InputError: A row is left without an alternative, or one exceeds the model's table of positions.
        """
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, UnlearningDataModule) or data.alternatives is not None:
            return
        folder = run_folder(self.trainer) if self.alternatives_file is None else None
        path = folder / FILE if folder else with_home(str(self.alternatives_file))
        lines = self.trainer.strategy.broadcast(self.alternatives(data, path))
        if empty := [place for place, own in enumerate(lines) if not own]:
            row = data.trained_rows[empty[0]]
            raise InputError(
                f"The model wrote no other answer for {len(empty)} of {len(lines)} forget rows in {ROUNDS} rounds. The "
                f"first is {row.get('where', f'row {empty[0]}')}: {asked_in(row)[-1]!r}. Fill in its alternatives in "
                f"{path} and name that file in model.alternatives_file, or raise model.temperature."
            )
        data.add_alternatives(lines)
        assert self.policy is not None
        limit = position_limit(self.policy)
        if limit is not None and data.longest > limit:
            raise InputError(
                f"An alternative has {data.longest} tokens with its question, but the model has positions for {limit} "
                f"only: set data.max_length to {limit} or less."
            )

    def alternatives(self, data: UnlearningDataModule, path: Path) -> list[list[str]]:
        """Return each training row's alternatives: its own, the file's, or new ones, which are added to the file."""
        rows, known = data.trained_rows, path.exists()
        lines = own_alternatives(rows)
        if known:
            lines = [own or there for own, there in zip(lines, find_alternatives(path, rows), strict=True)]
        lacking = [place for place, own in enumerate(lines) if not own]
        if not lacking:
            rank_zero_info(f"alternatives: {path if known else 'those of the rows'}")
            return lines
        assert isinstance(self.frozen_reference, ModelReference)
        rank_zero_info(f"alternatives: the model writes {self.per_row} for each of {len(lacking)} forget rows")
        model = self.frozen_reference.model
        with self.frozen_reference.frozen(), evaluation_mode(model), unsharded(model):
            made = self.write([rows[place] for place in lacking], model, data)
        for place, new in zip(lacking, made, strict=True):
            lines[place] = new
        if self.trainer.is_global_zero:
            before = path.read_text(encoding="utf-8").rstrip() + "\n" if known else ""  # the user's lines stay
            write_text(path, before + written_alternatives([rows[place] for place in lacking], made))
        few = sum(len(own) < self.per_row for own in made)
        rank_zero_info(f"alternatives: kept in {path}, to be read and edited; {few} rows have fewer than asked for")
        return lines

    def write(self, rows: Sequence[Mapping[str, Any]], model: nn.Module, data: UnlearningDataModule) -> list[list[str]]:
        """Sample alternatives until each row has ``per_row`` distinct ones, or `ROUNDS` is reached."""
        lines: list[list[str]] = [[] for _ in rows]
        prompts = [data.style.prompt(request(self.instruction, row)) for row in rows]
        limit, longest = position_limit(model), max(map(len, prompts))
        room = self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - longest)
        if room < 1:
            raise InputError(
                f"A request for an alternative has {longest} tokens, but the model has positions for {limit} only: set "
                "a shorter model.instruction, or leave the longest rows out."
            )
        for attempt in range(ROUNDS):
            lacking = [place for place, own in enumerate(lines) if len(own) < self.per_row]
            said = sample(
                model,
                [prompts[place] for place in lacking],
                samples=self.per_row,
                max_new_tokens=room,
                stop_ids=data.style.stop_ids,
                seeds=[hash_seed(data.seed * ROUNDS + attempt, place) for place in lacking],
                temperature=self.temperature,
            )
            for place, answers in zip(lacking, said, strict=True):
                texts = [cleaned(data.tokenizer.decode(ids, skip_special_tokens=True)) for ids in answers]
                lines[place] = different(lines[place] + texts, answer_in(rows[place]))[: self.per_row]
        return lines


def request(instruction: str, row: Mapping[str, Any]) -> str:
    """Insert a row's question and answer into an instruction."""
    return instruction.replace("{question}", asked_in(row)[-1]).replace("{answer}", answer_in(row))


def cleaned(text: str) -> str:
    """Cut an answer before the next question, and strip a label such as ``Answer:`` and surrounding space."""
    return _LABEL.sub("", _NEXT.split(text.strip(), maxsplit=1)[0].strip()).strip()


def different(texts: Sequence[str], answer: str) -> list[str]:
    """Return the distinct texts that are neither blank nor the answer itself, up to case and white space."""
    found: dict[str, str] = {}
    for text in texts:
        found.setdefault(plain_text(text), text)
    return [text for plain, text in found.items() if plain not in ("", plain_text(answer))]
