"""Methods: a loss and its LightningModule per file."""
