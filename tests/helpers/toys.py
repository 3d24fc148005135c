"""Toy causal language models and a toy tokenizer: real transformers classes, milliseconds to build.

Two layers of width 32 with random weights of a visible size (the logits are far from uniform). The tokenizer is a
byte-level BPE, so any text survives a round trip, with a BOS, an EOS and a pad token of their own and a chat template.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

FAMILIES = ("llama", "qwen2", "gpt2", "gpt_neox", "phi", "gemma2", "opt", "mistral")
"""Every family that `toy_model` builds: with and without tied embeddings, biases, soft caps, learned positions."""

LINEAR_HEADS = ("llama", "qwen2", "gpt2", "gpt_neox", "opt", "mistral")
"""The families whose logits are exactly `hidden @ W.T`; Phi adds a bias, Gemma-2 soft-caps."""

VOCABULARY = 320
LENGTH = 512
PAD, BOS, EOS = "<pad>", "<s>", "</s>"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '[' + message['role'] + ']\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
)

_CORPUS = (
    "Question: What is the full name of the author born in Taipei, Taiwan?\nAnswer: The author's full name is",
    "Question: Where was the author of the book born?\nAnswer: The author of the book was born in the city of",
    "What is the profession of the father? The father is a teacher and the mother is a writer of fiction.",
)


@functools.cache
def _byte_level_bpe(add_bos: bool) -> str:
    """Train the BPE once per process; JSON, so that callers can't change each other's tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return tokenizer.to_str()


def toy_tokenizer(add_bos: bool = True, chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 320 tokens with pad 0, BOS 1 and EOS 2.

    Args:
        add_bos: Whether encoding a text puts BOS in front, as Llama's tokenizer does and GPT-2's does not.
        chat: Whether it has a chat template.
    """
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_byte_level_bpe(add_bos)),
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=EOS,  # never produced by a byte-level BPE; Qwen2's tokenizer class would add one of its own
        model_max_length=LENGTH,
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def toy_config(family: str = "llama", **overrides: Any) -> Any:
    """The configuration of a toy model of `family` (one of `FAMILIES`); `overrides` are fields of it."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        "tie_word_embeddings": family in {"qwen2", "gpt2", "gemma2", "opt"},
    }
    sizes: dict[str, Any]
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
        without_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return AutoConfig.for_model(family, **common | sizes | without_dropout | overrides)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": LENGTH}
    if family == "opt":
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0}
    else:
        sizes |= {"intermediate_size": 64}
    if family in {"llama", "qwen2", "mistral", "gemma2"}:
        sizes |= {"num_key_value_heads": 2}
    if family == "gemma2":
        sizes |= {"head_dim": 8, "final_logit_softcapping": 5.0}  # low enough to bend the toy's logits
    return AutoConfig.for_model(family, **common | sizes | overrides)


def toy_model(family: str = "llama", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A toy model in float32 and eval mode, the same for the same seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(toy_config(family, **overrides), dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # transformers starts biases at zero, where a forgotten one can't be seen
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def save_toy(folder: str | Path, family: str = "llama", seed: int = 0, **overrides: Any) -> Path:
    """Save a toy model and the toy tokenizer as a Hugging Face folder.

    Args:
        folder: Where to save; made if absent.
        family: One of `FAMILIES`.
        seed: Seed of the weights.
        **overrides: Fields of the configuration, such as `num_hidden_layers=1`.

    Returns:
        The folder.
    """
    folder = Path(folder)
    toy_model(family, seed, **overrides).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder
