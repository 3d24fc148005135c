"""MUSE and data in its schema: running text to forget, its evaluation sets, and the data module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.data.files import config_files, config_records, text_field
from dipo_lightning.data.rows import overlap, refuse_overlap
from dipo_lightning.data.unlearning import UnlearningDataModule, first_rows
from dipo_lightning.errors import InputError
from dipo_lightning.safety.paths import with_home

Rows = list[dict[str, Any]]
HUB_NAMES = ("muse-bench/MUSE-News", "muse-bench/MUSE-Books")
IN_CONTEXT = 10
"""Number of in-context examples of the knowledge questions."""
FOLDS = 4


@dataclass
class MUSEData:
    """Data set of MUSE, with one of its parts to forget.

    Every row has ``index`` (its row in the file), ``where`` (for messages) and the fields named here.

    Attributes:
        train_forget: ``text`` of the forget set.
        train_retain: ``text`` of retain1, the retain set of the training.
        retain2: ``text`` of retain2, on which utility is measured and no unlearning trains.
        verbmem: ``prompt`` and ``gt`` (its true continuation).
        knowmem: ``question`` and ``answer`` by ``forget`` and ``retain``.
        in_context: ``question`` and ``answer`` of the ten in-context examples, by ``forget`` and ``retain``.
        privleak: ``text`` by ``forget`` (members), ``retain`` and ``holdout`` (non-members).
        holdout: ``text`` of the source documents of the non-members, if a folder has them.
    """

    train_forget: Rows
    train_retain: Rows
    retain2: Rows
    verbmem: Rows
    knowmem: dict[str, Rows]
    in_context: dict[str, Rows]
    privleak: dict[str, Rows]
    holdout: Rows

    @property
    def sets(self) -> dict[str, Rows]:
        """The evaluation sets by name."""
        asked = {f"knowmem_{side}": rows for side, rows in self.knowmem.items()}
        return {"verbmem": self.verbmem, **asked, **{f"privleak_{side}": rows for side, rows in self.privleak.items()}}

    def first(self, rows: int | None) -> MUSEData:
        """Return the data with the first ``rows`` rows of each evaluation set; None for all."""
        knowmem, privleak = (
            {name: found[:rows] for name, found in sets.items()} for sets in (self.knowmem, self.privleak)
        )
        return replace(self, verbmem=self.verbmem[:rows], knowmem=knowmem, privleak=privleak)

    def refuse_trained(self, trained: Mapping[str, Rows], retain2: bool = True) -> None:
        """Raise an `InputError` if training rows (by the name of their set) are in the holdout set or in retain2.

        With ``retain2`` false that set is not checked, since targets are trained on it.
        """
        apart = {"privleak/holdout": self.privleak["holdout"], "raw/holdout": self.holdout}
        apart |= {"retain2": self.retain2} if retain2 else {}
        for name, rows in apart.items():
            for other, others in trained.items():
                refuse_overlap(
                    rows, others, (name, other), "Take such rows out of one of the two, or set allow_overlap: true."
                )


def load_muse(source: str | Path, forget: str = "train/forget", allow_overlap: bool = False) -> MUSEData:
    """Read a data set of MUSE.

    Args:
        source: ``muse-bench/MUSE-News`` or ``muse-bench/MUSE-Books`` on the hub, or a folder of
            ``<configuration>/<split>.jsonl`` (or ``.parquet``); also one made by MUSE's own code, with ``.json`` arrays
            of texts, and ``raw`` instead of ``train``.
        forget: The forget set as ``configuration/split``: ``train/forget``, ``raw/forget``, ``scal/forget_2`` or
            ``sust/forget_1``. With ``raw/forget``, retain1 and retain2 are taken from ``raw``; with all others, from
            ``train``.
        allow_overlap: Continue although training documents are in retain2 or the holdout set.

    Raises:
        InputError: A split or field is missing or of another type, a text to be measured is empty, there are fewer
            than ten in-context examples, or evaluation documents are trained on.
    """
    config = configuration(forget)
    data = MUSEData(
        train_forget=forget_texts(source, forget),
        train_retain=_documents(source, f"{config}/retain1"),
        retain2=_documents(source, f"{config}/retain2"),
        verbmem=_rows(source, "verbmem/forget", "prompt", "gt"),
        knowmem={name: _rows(source, f"knowmem/{name}_qa", "question", "answer") for name in _SIDES},
        in_context={name: _in_context(source, f"knowmem/{name}_qa_icl") for name in _SIDES},
        privleak={name: _rows(source, f"privleak/{name}", "text") for name in (*_SIDES, "holdout")},
        holdout=_held_out(source),
    )
    if not allow_overlap:
        data.refuse_trained({forget: data.train_forget, f"{config}/retain1": data.train_retain})
    return data


def forget_texts(source: str | Path, part: str = "train/forget") -> Rows:
    """Read the documents of a forget set: the whole one, or a fold of the scalability or sustainability runs.

    ``part`` is ``train/forget``, ``raw/forget``, or ``scal/forget_k`` or ``sust/forget_k`` with k from 1 to 4.
    """
    parts = ["train/forget", "raw/forget"]
    parts += [f"{config}/forget_{fold}" for config in ("scal", "sust") for fold in range(1, FOLDS + 1)]
    if part not in parts:
        raise InputError(f"{part!r} is not a forget set of MUSE; there are {', '.join(parts)}.")
    return _documents(source, part)


def configuration(forget: str) -> str:
    """Return the configuration that holds the splits retain1 and retain2 for a forget set."""
    return "raw" if forget.startswith("raw/") else "train"


_SIDES = ("forget", "retain")


def _held_out(source: str | Path) -> Rows:
    """Return the documents of the holdout set if a folder has them; the hub's are not downloaded just for a check."""
    there = config_files(with_home(source), "raw", "holdout")
    return _documents(source, "raw/holdout") if there else []


def _in_context(source: str | Path, part: str) -> Rows:
    rows = _rows(source, part, "question", "answer")
    if len(rows) < IN_CONTEXT:
        raise InputError(
            f"{source}: {part} has {len(rows)} in-context examples; MUSE's questions need at least {IN_CONTEXT}."
        )
    return rows[:IN_CONTEXT]


def _documents(source: str | Path, part: str) -> Rows:
    """Return the documents of one split, without empty ones such as row 821 of MUSE-News."""
    if part.startswith("train/") and (with_home(source) / "raw").is_dir():
        train = with_home(source) / "train"
        part = part if train.is_dir() else part.replace("train/", "raw/")
    records = config_records(source, *part.split("/"))
    empty = [record for record in records if isinstance(text := record.fields.get("text"), str) and not text.strip()]
    if empty and len(empty) < len(records):
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        rank_zero_warn(f"An empty document is left out: {empty[0].where}{more}.", category=UserWarning)
    return [
        {"index": index, "where": record.where, "text": text_field(record, "text")}
        for index, record in enumerate(records)
        if record not in empty or len(empty) == len(records)
    ]


def _rows(source: str | Path, part: str, *names: str) -> Rows:
    """Return the rows of one split, checked."""
    records = config_records(source, *part.split("/"))
    return [
        {"index": index, "where": record.where, **{name: text_field(record, name) for name in names}}
        for index, record in enumerate(records)
    ]


class MUSEDataModule(UnlearningDataModule):
    """MUSE's forget documents and retain1, in pieces of one length with the loss on every token.

    The documents are joined by blank lines and cut; a piece is BOS and ``max_length - 1`` tokens. retain2 and the
    holdout set are not trained on: it is an error if training documents of your own corpus are in them (the published
    corpora are not checked for this).

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's
            own (the published targets come without one: name it there).
        data: ``muse-bench/MUSE-News`` or ``muse-bench/MUSE-Books`` on the hub, or a folder of
            ``<configuration>/<split>.jsonl`` in their schema.
        forget: The forget set as ``configuration/split``: ``train/forget``, ``raw/forget``, ``scal/forget_1`` to ``_4``
            or ``sust/forget_1`` to ``_4``. With ``raw/forget``, retain1 is taken from ``raw``; with all others, from
            ``train``.
        max_forget_rows: Use only the first n forget documents.
        max_retain_rows: Use only the first n retain documents.
        max_length: Length of a piece in tokens.
        batch_size: Forget pieces (and as many retain pieces) per process and micro-batch.
        allow_overlap: Continue although sets that should be disjoint share documents.
        num_workers: Loader processes; 0 loads in the training process.
        seed: Seed of the order and of the pairing.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        data: str = "muse-bench/MUSE-News",
        forget: str = "train/forget",
        max_forget_rows: int | None = None,
        max_retain_rows: int | None = None,
        max_length: int = 2048,
        batch_size: int = 4,
        allow_overlap: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            forget=data,
            max_forget_rows=max_forget_rows,
            max_retain_rows=max_retain_rows,
            prompt="text",
            max_length=max_length,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        self.data, self.forget, self.allow_overlap = data, forget, allow_overlap
        self.muse: MUSEData | None = None

    def check(self) -> None:
        """Read both sets and the tokenizer, and check them."""
        if not self.forget_rows:
            self.read()
        super(UnlearningDataModule, self).check()

    def read(self) -> None:
        """Read the corpus: the forget documents, retain1, and the evaluation sets of `MUSEEvaluation`."""
        self.muse = corpus = load_muse(
            self.data, self.forget, allow_overlap=self.allow_overlap or is_published(self.data)
        )
        pairs = overlap(corpus.train_forget, corpus.train_retain)
        if pairs:
            both = f"{self.forget} are in {configuration(self.forget)}/retain1 too"
            problem = f"{len(pairs)} of {len(corpus.train_forget)} documents of {both}"
            if not (self.allow_overlap or is_published(self.data)):
                where = corpus.train_forget[pairs[0][0]]["where"]
                raise InputError(
                    f"{problem}, the first {where}. Take them out of one, or set data.allow_overlap: true."
                )
            rank_zero_warn(f"{self.data}: {problem}; they are both forgotten and kept.", category=UserWarning)
        self.forget_rows = first_rows(corpus.train_forget, self.max_forget_rows, "max_forget_rows")
        self.retain_rows = first_rows(corpus.train_retain, self.max_retain_rows, "max_retain_rows")


def is_published(data: str | Path) -> bool:
    """Return whether the data is one of MUSE's own corpora on the hub, and not a local folder of that name."""
    return str(data) in HUB_NAMES and not Path(data).is_dir()
