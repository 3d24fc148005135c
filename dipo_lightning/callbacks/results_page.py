"""Writes the results page when training has ended: everything a run found, in one HTML file."""

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_lightning.report.page import PAGE, write_page


class ResultsPage(Callback):
    """Writes ``results.html`` into the run's log folder at the end of ``fit``, after the last evaluation.

    The page needs no network and no server. ``dipo-lightning report RUN_FOLDER`` writes it again.

    Args:
        rows: Most rows of each set whose answers are shown.
    """

    def __init__(self, rows: int = 100) -> None:
        self.rows = rows

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page on rank 0, and say where it is."""
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is collective
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        if not any((folder / "evaluations").glob("*.json")):
            message = "No evaluation was made in this run, so there is no results page: add an evaluation callback."
            trainer.print(message)
            return
        trainer.print(f"The results page is {write_page(folder, folder / PAGE, self.rows)}")
