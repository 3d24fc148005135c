"""Tiny models of families that differ in what disturbs a row: masks, padding, positions, states, where blocks stand."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.helpers.toys import VOCABULARY

_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_LLAMA = _BERT | {"num_key_value_heads": 2, "head_dim": 8}
_BART = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "init_std": 0.2}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

SIZES: dict[str, dict[str, Any]] = {
    "bart": _BART | {"dropout": 0.0},
    "bert": _BERT | _NO_DROPOUT | {"is_decoder": True},
    "biogpt": _BERT | _NO_DROPOUT | {"activation_dropout": 0.0, "layerdrop": 0.0},
    "deepseek_v32": _BERT
    | {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8}
    | {"qk_nope_head_dim": 8, "v_head_dim": 8, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 16}
    | {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "codegen": _GPT | {"rotary_dim": 4},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "gemma3_text": _LLAMA | {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": _LLAMA | {"sliding_window": 24, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
    "openai-gpt": _GPT,
    "phi3": _LLAMA | {"sliding_window": 24},
    "prophetnet": {"hidden_size": 32, "num_decoder_layers": 2, "num_decoder_attention_heads": 4, "decoder_ffn_dim": 64}
    | {"init_std": 0.2, "dropout": 0.0, "activation_dropout": 0.0, "attention_dropout": 0.0},
    "qwen2": _LLAMA | {"sliding_window": 24, "use_sliding_window": True, "max_window_layers": 1},
    "roberta": _BERT | _NO_DROPOUT | {"is_decoder": True},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64},
}
"""Sizes by family; sliding windows are of 24 tokens."""


def family_model(family: str, **overrides: Any) -> PreTrainedModel:
    """Return a tiny model of a family in `SIZES`, float32 and in eval mode, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **_COMMON | SIZES[family] | overrides)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
