"""Evaluated rows: their type, the options of their measurement, rows without a value, and logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from dipo_lightning.errors import InputError, check_numbers, check_positive
from dipo_lightning.evaluation.scoring import BATCH_TOKENS
from dipo_lightning.metrics.functional.answers import log_truth_ratio
from dipo_lightning.metrics.functional.membership import FRACTION

Progress = Callable[[int, str], AbstractContextManager[Callable[[int], object]]]
"""Factory of progress bars: takes a total and a label, and returns a context that yields a function to advance it."""


def no_progress(total: int, what: str) -> AbstractContextManager[Callable[[int], object]]:
    """Make a progress bar that is not shown."""
    return nullcontext(lambda done: None)


class Row(TypedDict, total=False):
    """Evaluated row, live and in logs. A field is absent if its set has no such value, and None if this row has none.

    Benchmarks with further fields extend it. NLLs are means per token in nats.

    Attributes:
        index: Index of the row in its data set.
        question: Question or prompt, for a reader.
        prompt: Prompt of a continuation, for a reader.
        answer: True answer.
        text: Beginning of a text that was scored as a whole.
        generation: The model's own answer.
        reason: Reason why a skipped row has no value.
        nll: NLL of the answer or the text.
        tokens: Number of scored tokens of the answer or the text.
        correct_nll: NLL of the paraphrased answer, or of the answer itself if there is none.
        wrong_nll: NLL of each wrong answer.
        log_ratio: Natural logarithm of the truth ratio R, in the variant of the evaluation's settings.
        truth_ratio: R in open-unlearning's variant, in foreign logs that lack the losses behind it.
        rouge_l_recall: ROUGE-L recall of the generation.
        paraphrased_rouge: ROUGE-L recall of the generation against the paraphrased answer.
        perturbed_rouge: Mean ROUGE-L recall of the generation against the wrong answers.
        rouge: ROUGE-L F1 of the generation.
        generation_nll: NLL of the generation under the model itself.
        generation_tokens: Number of generated tokens.
        exact_memorization: Share of the answer's tokens that are the model's first choice.
        extraction_strength: See `dipo_lightning.metrics.functional.extraction_strength`.
        min_k: Min-K score in nats.
        min_k_plus_plus: Min-K++ score.
        zlib: NLL per compressed byte.
        loss: NLL for the loss attack.
        gradnorm: Mean over the parameter tensors of the L2 norm of the gradient of the NLL without the end-of-turn
            token.
        reference: `nll` minus that of another model, in foreign logs.
    """

    index: int
    question: str
    prompt: str
    answer: str
    text: str
    generation: str | None
    reason: str
    nll: float | None
    tokens: float | None
    correct_nll: float | None
    wrong_nll: list[float | None]
    log_ratio: float | None
    truth_ratio: float | None
    rouge_l_recall: float | None
    paraphrased_rouge: float | None
    perturbed_rouge: float | None
    rouge: float | None
    generation_nll: float | None
    generation_tokens: float | None
    exact_memorization: float | None
    extraction_strength: float | None
    min_k: float | None
    min_k_plus_plus: float | None
    zlib: float | None
    loss: float | None
    gradnorm: float | None
    reference: float | None


Sets = Mapping[str, Sequence[Row]]
"""Rows by the name of their set."""


@dataclass
class Measuring:
    """Options of the measurement of rows.

    Attributes:
        batch_tokens: Maximum number of tokens in a scoring forward pass, padding included; a longer row gets its own
            pass.
        generation_rows: Maximum number of rows in a generation batch; None for the benchmark's default.
        max_new_tokens: Maximum length of a generated answer in tokens; None for the benchmark's default.
        generate: Generate answers; evaluation is faster without them but has no ROUGE.
        min_k_fraction: Share of the least likely tokens over which Min-K and Min-K++ average.
        on_missing: Treatment of a row without a value (an answer without tokens, a loss that is not finite): ``skip``
            leaves it out and lists it, ``raise`` ends the run.
    """

    batch_tokens: int = BATCH_TOKENS
    generation_rows: int | None = None
    max_new_tokens: int | None = None
    generate: bool = True
    min_k_fraction: float = FRACTION
    on_missing: Literal["skip", "raise"] = "skip"

    def check(self, owner: object) -> None:
        """Raise an `InputError` that names the option of ``owner`` (a callback) if a value is out of range."""
        numbers = ("batch_tokens", "generation_rows", "max_new_tokens")
        check_numbers(owner, {f"measuring.{name}": getattr(self, name) for name in numbers})
        check_positive(owner, {"measuring.min_k_fraction": self.min_k_fraction}, most=1)


@dataclass
class EvaluatedRows:
    """Evaluated rows, and the rows without a value with the reasons, both by set name."""

    sets: dict[str, list[Row]] = field(default_factory=dict)
    skipped: dict[str, list[Row]] = field(default_factory=dict)

    def skip(self, set_name: str, index: int, reason: str, on_missing: str) -> None:
        """Leave a row out, or with ``on_missing: raise`` raise an `InputError`."""
        if on_missing == "raise":
            raise InputError(
                f"Row {index} of {set_name} has no value: {reason} Correct the data, or leave such rows out with "
                "on_missing: skip (the retain model's log must then leave out the same rows)."
            )
        self.skipped.setdefault(set_name, []).append({"index": index, "reason": reason})

    def add(self, set_name: str, rows: Iterable[Any], on_missing: str) -> None:
        """Add the measured rows of a set; those with an ``index`` and a ``reason`` only are skipped."""
        found = self.sets.setdefault(set_name, [])
        for row in rows:
            if set(row) == {"index", "reason"}:
                self.skip(set_name, row["index"], row["reason"], on_missing)
            else:
                found.append(row)

    def whole(self) -> dict[str, list[Row]]:
        """Return the sets with the skipped rows among them; see `with_skipped`."""
        return with_skipped(self.sets, self.skipped)


@dataclass(frozen=True)
class EvaluationLog:
    """Rows of an evaluation with its settings and provenance.

    Attributes:
        format: Name of the format, ``dipo-lightning/tofu/1`` or that of another package, which identifies the
            benchmark.
        settings: Settings of the evaluation (split, prompt_style, truth_ratio, ...) as far as the format states them.
        sets: Rows by set name.
        skipped: Rows without a value by set name, each with `index` and `reason`.
        aggregates: Aggregates stored in the log; empty in formats that store none.
        provenance: Versions, seeds and fingerprints, if stored.
        path: Path of the file.
        benchmark: Class path of the benchmark; empty in foreign formats.
    """

    format: str
    settings: dict[str, Any]
    sets: dict[str, list[Row]]
    skipped: dict[str, list[Row]] = field(default_factory=dict)
    aggregates: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    benchmark: str = ""


def with_skipped(sets: Sets, skipped: Sets | None) -> dict[str, list[Row]]:
    """Return the sets including the skipped rows (index and reason only), ordered by index."""
    names = dict.fromkeys([*sets, *(skipped or {})])
    whole = {name: [*sets.get(name, ()), *(skipped or {}).get(name, ())] for name in names}
    return {
        name: sorted(unique_rows(f"set {name!r}", rows), key=lambda row: row["index"]) for name, rows in whole.items()
    }


def unique_rows(where: str, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the set ``where`` as a list; raise an `InputError` for an invalid or duplicate index."""
    rows = list(rows)
    seen: set[int] = set()
    for position, row in enumerate(rows):
        index = row.get("index")
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise InputError(f"{where}, row number {position}: `index` must be an integer >= 0, got {index!r}")
        if index in seen:
            raise InputError(f"{where}: row {index} occurs twice; each row counts once")
        seen.add(index)
    return rows


def add_log_ratios(sets: Sets, variant: str) -> None:
    """Add the `log_ratio` of a variant to every row with wrong answers or a stored truth ratio, in place.

    Other rows lose a stored `log_ratio`, which may be of another variant.

    Raises:
        InputError: The variant is unknown, or a row holds only open-unlearning's ratio and another variant is needed.
    """
    for rows in sets.values():
        for row in rows:
            ratio = row.get("truth_ratio")
            if row.get("wrong_nll"):
                numbers = [math.nan if value is None else value for value in row["wrong_nll"]]
                correct = row.get("correct_nll")
                value = log_truth_ratio(math.nan if correct is None else correct, numbers, variant)
                row["log_ratio"] = None if math.isnan(value) else value
            elif ratio is not None:
                if variant != "open_unlearning":
                    raise InputError(
                        f"row {row['index']} holds open-unlearning's truth ratio but not the losses behind it: "
                        f"{variant!r} cannot be computed from it; use truth_ratio='open_unlearning'"
                    )
                row["log_ratio"] = None if math.isnan(ratio) else math.log(ratio) if ratio > 0 else -math.inf
            else:
                row.pop("log_ratio", None)
