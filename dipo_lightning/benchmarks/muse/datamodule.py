"""MUSE, or a corpus in its schema, as a data module."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_warn

from dipo_lightning.benchmarks.muse.data import HUB_NAMES, MUSEData, configuration, load_muse
from dipo_lightning.data.rows import overlap
from dipo_lightning.data.unlearning import UnlearningDataModule, first_rows
from dipo_lightning.errors import InputError


class MUSEDataModule(UnlearningDataModule):
    """MUSE's forget documents to forget and retain1 to keep, in pieces of one length with the loss on every token.

    The documents are joined by a blank line and cut; a piece is BOS and ``max_length - 1`` tokens. retain2 and the
    holdout set are never trained on: that they share documents with what is trained on is an error in a corpus of
    your own, and a warning in the published ones, which are what they are.

    Args:
        tokenizer: Hub name, folder or GGUF file that the tokenizer is loaded from; None takes the model's
            own (the published targets come without one: name it there).
        data: ``muse-bench/MUSE-News`` or ``muse-bench/MUSE-Books`` on the hub, or a folder of
            ``<configuration>/<split>.jsonl`` in their schema.
        forget: What is to be forgotten, as ``configuration/split``: ``train/forget``, ``raw/forget``,
            ``scal/forget_1`` to ``_4`` or ``sust/forget_1`` to ``_4``. retain1 is that of ``raw`` with ``raw/forget``,
            and that of ``train`` with all others.
        max_forget_rows: Use the first n forget documents only.
        max_retain_rows: Use the first n retain documents only.
        max_length: Tokens of a piece.
        batch_size: Pieces to forget (and as many to keep) of one process and one micro-batch.
        allow_overlap: Go on where documents stand in two sets that should have none in common.
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
        """Read both sets and the tokenizer, and refuse what cannot be right."""
        if not self.forget_rows:
            self.read()
        super(UnlearningDataModule, self).check()

    def read(self) -> None:
        """Read the corpus: the documents to forget and retain1, and what `MUSEEvaluation` measures."""
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
            rank_zero_warn(f"{self.data}: {problem}: they are trained both ways.", category=UserWarning)
        self.forget_rows = first_rows(corpus.train_forget, self.max_forget_rows, "max_forget_rows")
        self.retain_rows = first_rows(corpus.train_retain, self.max_retain_rows, "max_retain_rows")


def is_published(data: str | Path) -> bool:
    """Tell MUSE's own corpora on the hub from other data, and from folders of their names."""
    return str(data) in HUB_NAMES and not Path(data).is_dir()
