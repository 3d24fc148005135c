"""Tiny Llama with its own tokenizer, small enough to be trained on a data set in a minute on two cores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dipo_lightning.models.loading import without_bars

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], vocabulary: int | None = None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on ``texts``; it prepends BOS.

    ``vocabulary`` is its size, including the 256 bytes and three special tokens. Without it, every word of the texts is
    one token, so that a tiny model never has to put a word together from pieces.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special, alphabet = [PAD, BOS, EOS], sorted(pre_tokenizers.ByteLevel.alphabet())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if vocabulary is None:
        words = [word for text in texts for word, _ in split.pre_tokenize_str(text)]
        ids = {token: number for number, token in enumerate(dict.fromkeys([*special, *alphabet, *words]))}
        bpe = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
        bpe.pre_tokenizer = split
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = split
        options: dict[str, Any] = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
        bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=vocabulary, **options))
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False
    )


def write_untrained(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int, **shape: Any) -> Path:
    """Write a randomly initialised Llama of ``shape`` and its tokenizer as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **shape))
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
