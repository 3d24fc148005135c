"""Somebody's own project: a metric over evaluated rows, and a whole benchmark, registered nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import lightning.pytorch as pl

from dipo_lightning.benchmarks import Benchmark, Chart, Headline
from dipo_lightning.benchmarks.tofu.metrics import TOFU
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.callback import Evaluation
from dipo_lightning.evaluation.rows import EvaluatedRows, Row
from dipo_lightning.evaluation.scoring import score
from dipo_lightning.metrics import RowMean, RowSet


class Words(RowMean):
    """Words that the model says about the forget rows."""

    label = "words said"
    meaning = "Number of words in the model's own answers."
    remembers = 1

    def __init__(self, sets: tuple[str, ...] = ("forget",)) -> None:
        super().__init__(*sets)

    def value(self, row: Mapping[str, Any]) -> float | None:
        return None if row.get("generation") is None else len(row["generation"].split())


class Invented(RowMean):
    """Words of what the model says that stand in no wrong answer: a number that the metric measures itself."""

    field: ClassVar[str] = "invented"

    def __init__(self) -> None:
        super().__init__("forget")

    def measured(self, row: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, float | None]:
        wrong = " ".join(source["perturbed_answer"]).split()
        return {"invented": float(sum(word not in wrong for word in row["generation"].split()))}


class WordyTOFU(TOFU):
    """TOFU with one more number."""

    def metrics(self, settings: Mapping[str, Any], retain: Any = None) -> dict[str, Any]:
        return {**super().metrics(settings, retain), "words": Words()}


class CapitalRow(Row, total=False):
    country: str
    known: float | None


class Known(RowMean):
    field: ClassVar[str] = "known"
    label = "capitals known"
    meaning = "Share of the capital's tokens that are the model's first choice."
    remembers = 1


ASKED = RowSet("asked", "Capitals to forget", "capitals to forget", True, ("known",))
KEPT = RowSet("kept", "Capitals to keep", "capitals to keep", False, ("known",))
CAPITALS = {"asked": {"Norway": "Oslo", "Peru": "Lima"}, "kept": {"Ghana": "Accra", "Cuba": "Havana", "Mali": "Bamako"}}


class Capitals(Benchmark):
    """Capitals of countries."""

    name = "capitals"
    title = "Capitals"
    format = "my-project/capitals/1"
    sets = (ASKED, KEPT)
    row = CapitalRow
    headline = Headline("asked_known", "kept_known")
    shown = ("asked_known", "kept_known")
    charts = (Chart("capitals", "Known to the model.", {"asked_known": "to forget", "kept_known": "to keep"}),)

    def metrics(self, settings: Mapping[str, Any], retain: Any = None) -> dict[str, Any]:
        return {"asked_known": Known(ASKED), "kept_known": Known(KEPT)}


class CapitalsEvaluation(Evaluation):
    """Asks for capitals.

    Args:
        shortest: Only capitals of at least so many letters.
        **options: Those of `Evaluation`.
    """

    benchmark = Capitals()

    def __init__(self, shortest: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.shortest = shortest

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.shortest < 1:
            raise InputError("shortest must be at least 1")
        self.style = self.style_of(trainer)

    @property
    def settings(self) -> dict[str, Any]:
        return {"shortest": self.shortest}

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> EvaluatedRows:
        found = EvaluatedRows()
        for name, capitals in CAPITALS.items():
            examples = [self.style.example(f"Capital of {country}?", capital) for country, capital in capitals.items()]
            scores = score(pl_module.policy, examples, device=pl_module.device)  # type: ignore[arg-type]
            known = [one.correct.float().mean().item() for one in scores]
            rows: list[CapitalRow] = [
                {"index": index, "country": country, "answer": capital, "known": known[index]}
                for index, (country, capital) in enumerate(capitals.items())
            ]
            found.sets[name] = rows  # type: ignore[assignment]
        return found


class Letters(RowMean):
    """Letters of the shortest capital, a metric without a set in its label."""

    label = "letters of the answers"
    names_set = False

    def __init__(self) -> None:
        super().__init__("asked")

    def value(self, row: Mapping[str, Any]) -> float:
        return len(row["answer"])
