"""Imports what a fit imports, once for all the runs that are forked from here."""

import lightning.pytorch  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401
from torch.utils.tensorboard import SummaryWriter  # noqa: F401

import dipo_lightning.callbacks
import dipo_lightning.cli.main
import dipo_lightning.data.unlearning
import dipo_lightning.methods.dipo.module  # noqa: F401
