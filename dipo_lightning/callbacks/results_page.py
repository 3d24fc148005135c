"""Results page at the end of training: everything a run found, in one HTML file."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from dipo_lightning.evaluation.run_folder import is_trial, run_folder
from dipo_lightning.evaluation.schedule import settle_evaluations
from dipo_lightning.evaluation.trackers import trackers_of
from dipo_lightning.report.page import PAGE, write_page


class ResultsPage(Callback):
    """Page ``results.html``, written into the run's folder at the end of ``fit``, after the last evaluation.

    The page needs no network and no server; loggers that take files (W&B, trackio, MLflow) get it as an artifact.
    ``dipo-lightning report RUN_FOLDER`` writes it again.

    Args:
        rows: Most rows of each set whose answers are shown.
    """

    def __init__(self, rows: int = 100) -> None:
        self.rows = rows

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page on rank 0, and say where it is."""
        settle_evaluations(trainer, pl_module)
        folder = run_folder(trainer)  # collective
        if not trainer.is_global_zero or is_trial(trainer):
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        if not any((folder / "evaluations").glob("*.json")):
            message = "No evaluation was made in this run, so there is no results page: add an evaluation callback."
            trainer.print(message)
            return
        page = write_page(folder, folder / PAGE, self.rows)
        for tracker in trackers_of(trainer):
            tracker.file(page)
        trainer.print(f"The results page is {page}")
