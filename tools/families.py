"""Check every causal family of transformers, as a tiny model with random weights, in batches against single rows.

    python tools/families.py [FAMILY ...] [--part 1/4]

Six checks each: scores of rows in a batch (packed after a shared prompt, and padded) equal those of a row alone; so do
greedy generations; `plan` counts the model's parameters; the loss of a padded training batch is that of its rows; one
step trains all weights, and one trains LoRA adapters. The exit code is the number of results that are neither right,
nor told to the user by an error or a warning, nor listed in `KNOWN`.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as FAMILIES
from transformers.utils.logging import set_verbosity_error

from dipo_lightning.cli.plan import Run, activations, count
from dipo_lightning.errors import InputError
from dipo_lightning.evaluation.generation import generate
from dipo_lightning.evaluation.scoring import score
from dipo_lightning.models.answers import collate, compute_answers
from dipo_lightning.models.head import known_head
from dipo_lightning.models.inspection import check_causal, check_training, dropout_rates
from dipo_lightning.models.lora import LoRA, add_lora

SECONDS = 120
VOCABULARY = 320
STOP = 2

SIZES = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input unpadded_vocab_size",
    512: "max_position_embeddings n_positions n_ctx",
    64: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dff d_ff ffn_hidden_size feed_forward_size "
    "dense_intermediate_size intermediate_size_mlp mamba_d_ssm",
    32: "hidden_size d_model n_embd emb_dim embedding_size word_embed_proj_dim lru_width attention_hidden_size "
    "embed_dim embedding_dim out_hidden_size dim_model_base hidden_size_global moe_intermediate_size "
    "shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size "
    "moe_shared_expert_intermediate_size",
    28: "image_size",
    24: "sliding_window attention_window_size sliding_window_size window_size",
    16: "kv_lora_rank q_lora_rank qk_head_dim index_topk mamba_d_head mamba_head_dim mamba_headdim mamba_chunk_size "
    "chunk_size",
    14: "patch_size",
    8: "head_dim d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim o_lora_rank linear_key_head_dim "
    "linear_value_head_dim linear_head_dim mamba_d_state ssm_state_size state_size hidden_size_per_layer_input "
    "attention_head_size",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads num_experts n_routed_experts num_local_experts "
    "moe_num_experts linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads n_mamba_heads rotary_dim "
    "time_step_rank mamba_dt_rank",
    2: "num_hidden_layers num_layers n_layer n_layers decoder_layers encoder_layers num_decoder_layers num_blocks "
    "num_encoder_layers num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token index_n_heads "
    "linear_num_key_heads depth mamba_expand eos_token_id",
    1: "n_group topk_group num_expert_group max_window_layers bos_token_id decoder_start_token_id",
    0: "pad_token_id num_kv_shared_layers",
    0.2: "initializer_range init_std",
}  # fmt: skip
SIZE = {name: value for value, names in SIZES.items() for name in names.split()}

OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2, "layer_types": ["linear_attention", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0}
                                                for kind in ("full_attention", "sliding_attention")}},
    "dots1": {"num_experts_per_tok": 2, "n_shared_experts": 1, "n_routed_experts": 4},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_k": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_key_value_heads": 4, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "longcat_flash": {"head_dim": 8, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "n_groups": 2,
                   "mamba_head_dim": 16},
    "qwen4_exp_text": {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
                       "indexer_compress_ratio": 4},
    "recurrent_gemma": {"num_hidden_layers": 3, "num_key_value_heads": 4},
    "reformer": {"axial_pos_shape": (8, 16), "axial_pos_embds_dim": (16, 16), "attn_layers": ["local", "lsh"],
                 "num_buckets": 4},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_hidden_layers": 4,
              "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16, "num_hidden_layers": 4,
               "layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

_TEXT = "transformers makes no small one; its text part is tried by itself"
_HELPER = "a helper of another model, whose keys and values it reads"
_ONE_LENGTH = "it takes rows of one length only; a fit refuses others in a sentence"
KNOWN = {
    ("dbrx", "build"): "transformers 5.23 makes none from its own configuration",
    ("dots3_note", "build"): _TEXT,
    ("gemma3n", "build"): _TEXT,
    ("gemma4_assistant", "build"): _HELPER,
    ("gemma4_unified_assistant", "build"): _HELPER,
    ("musicgen", "build"): "a model of sounds",
    ("musicgen_melody", "build"): "a model of sounds",
    ("qwen4_exp", "build"): _TEXT,
    ("reformer", "step"): _ONE_LENGTH,
    ("reformer", "lora"): _ONE_LENGTH,
}
"""Results that are not right, with the reason."""
SAID = ("refused", "sentence:", "warned")
"""Beginnings of the results that a user is told by an error or a warning."""


def config(family: str) -> Any:
    """A tiny configuration: the family's own fields with small sizes."""
    made = CONFIG_MAPPING[family](**_shrunk(CONFIG_MAPPING[family]()) | OWN.get(family, {}))
    if hasattr(made, "is_decoder"):
        made.is_decoder = True
    return made


def _shrunk(whole: Any) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in vars(whole).items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if hasattr(value, "to_dict"):
            small[name] = _shrunk(value)
        elif name in SIZE and (number or name in ("pad_token_id", "bos_token_id", "eos_token_id")):
            small[name] = SIZE[name]
        elif name.endswith(("_token_id", "token_index")) and number:
            small[name] = 3
        elif "drop" in name and isinstance(value, float):
            small[name] = 0.0
    if "qk_nope_head_dim" in vars(whole) and "num_key_value_heads" in small:
        small["num_key_value_heads"] = small["num_attention_heads"]
        small.pop("head_dim", None)
    if "layer_types" in vars(whole) and "num_hidden_layers" in small:
        small["num_hidden_layers"] = 4
    return small


def build(family: str) -> Any:
    """A tiny model, float32 in evaluation mode."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config(family), dtype=torch.float32).eval()
    model.family = family
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > 160e6:
        raise ValueError(f"too large: {size / 1e6:.0f} million parameters")
    return model


def rows() -> list[tuple[list[int], list[int]]]:
    """Two prompts with four answers each, of rows shorter and longer than a window or a selection of keys."""
    draw, made = random.Random(0), []
    for length in (10, 17):
        prompt = [draw.randrange(4, VOCABULARY) for _ in range(length)]
        for answer in ([draw.randrange(4, VOCABULARY) for _ in range(size)] for size in (3, 6, 30, 4)):
            made.append((prompt + answer, [-100] * length + answer))
    return made


@torch.no_grad()
def logits_of(model: Any, ids: list[int]) -> torch.Tensor:
    """(L, V) float64 logits of a row by itself, without a cache."""
    row = torch.tensor([ids])
    return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].double()


def scored(model: Any) -> str:
    """Compare the scores of all rows together with those of each alone."""
    wrong = 0
    for (ids, labels), got in zip(rows(), score(model, rows()), strict=True):
        first = next(place for place, label in enumerate(labels) if label != -100)
        logprobs = logits_of(model, ids).log_softmax(-1)[range(first - 1, len(ids) - 1), ids[first:]]
        wrong += not torch.allclose(got.logprobs.double(), logprobs, atol=2e-3)
    return f"{wrong} of {len(rows())} wrong" if wrong else ""


def generated(model: Any) -> str:
    """Compare greedy answers in batches with those of each prompt alone, token by token."""
    prompts = [ids[:size] for (ids, _), size in zip(rows(), (3, 20, 9, 9, 27, 12, 12, 5), strict=True)]
    wrong = 0
    for prompt, said in zip(prompts, generate(model, prompts, max_new_tokens=5, stop_ids=[STOP]), strict=True):
        alone: list[int] = []
        while len(alone) < 5 and STOP not in alone:
            alone.append(int(logits_of(model, prompt + alone)[-1].argmax()))
        wrong += said != [token for token in alone if token != STOP]
    return f"{wrong} of {len(prompts)} wrong" if wrong else ""


def planned(model: Any) -> str:
    """Count parameters and activations, of all weights and with adapters."""
    for options in ({}, {"trainable": "lora", "reference": "adapters_off"}):
        run = Run(batch_size=2, length=16, answer_length=4, **options)  # type: ignore[arg-type]
        sizes = config(model.family)
        counts = count(sizes, run)
        if not (counts.layers > 0 and activations(sizes, counts, run) > 0):
            return f"nothing counted: {counts.layers} layers"
    return ""


def padded(model: Any) -> str:
    """Compare the training loss of three rows together with that of each alone; a warning counts as said."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_training(model, max(len(ids) for ids, _ in rows()))
    dropout_rates(model, switch_off=True)
    made = [{"input_ids": rows()[place][0], "labels": rows()[place][1], "index": place} for place in (0, 2, 5)]
    together = loss(model.train(), made)
    alone = torch.cat([loss(model, [one]) for one in made])
    if torch.allclose(together, alone, rtol=1e-3):
        return "" if torch.allclose(together, loss(model.eval(), made), rtol=1e-3) else "training draws"
    return "warned" if any("Padding behind" in str(one.message) for one in found) else "padding counts"


def trained(model: Any) -> str:
    """Check that a step of plain gradient descent lowers the loss; a small one, since routing to experts jumps."""
    dropout_rates(model, switch_off=True)
    made = [{"input_ids": ids, "labels": labels, "index": 0} for ids, labels in rows()[:1]]
    before = loss(model.train(), made).sum()
    before.backward()
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in moved])
    at = 0.0
    with torch.no_grad():
        for size in (1e-3, 1e-4, 1e-5):
            for parameter in moved:
                parameter -= (size - at) / norm * parameter.grad
            at = size
            if loss(model, made).sum() < before:
                return ""
    return "the loss does not fall"


def adapted(model: Any) -> str:
    """Train LoRA adapters on every linear layer of the blocks."""
    policy = add_lora(model, LoRA(rank=2)).train()
    made = [{"input_ids": ids, "labels": labels, "index": 0} for ids, labels in rows()[:1]]
    loss(policy, made).sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return "" if gradients and norm.isfinite() and norm > 0 else "no gradient"


def loss(model: Any, made: list[dict[str, Any]]) -> torch.Tensor:
    """(B,) NLL of each row, as a training step computes it."""
    return compute_answers(
        model,
        {"forget": collate(made)},
        lambda parts: {"nll": parts["forget"].sequence_nll()},
        from_hidden=known_head(model) is not None,
    )["nll"]


CHECKS: dict[str, Callable[[Any], str]] = {
    "score": scored, "generate": generated, "plan": planned, "batch": padded, "step": trained, "lora": adapted,
}  # fmt: skip


def found_in(family: str) -> dict[str, str]:
    """Return the findings of each check; an empty one is right."""
    try:
        model = build(family)
        check_causal(model, family)
    except InputError:
        return {"causal": "refused"}
    except Exception as error:  # whatever a family raises is a line of the table
        return {"build": _short(error)}
    found = {}
    for name, check in CHECKS.items():
        try:
            found[name] = check(model)
        except InputError as error:
            found[name] = f"sentence: {str(error)[:90]}"
        except Exception as error:
            found[name] = _short(error)
    return found


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def tried(family: str) -> dict[str, str]:
    """Check a family in a process of its own, so that a crash or a hang ends no other."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=lambda: theirs.send(found_in(family)))
    process.start()
    theirs.close()
    found = {"build": f"no answer in {SECONDS} s, or a crash"}
    with contextlib.suppress(EOFError):
        found = ours.recv() if ours.poll(SECONDS) else found
    process.kill()
    process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--part", default="1/1", help="every n-th family only, such as 2/4")
    arguments = parser.parse_args()
    number, parts = map(int, arguments.part.split("/"))
    set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts = Counter[str]()
    for family in (arguments.families or sorted(FAMILIES))[number - 1 :: parts]:
        cells = []
        for name, result in tried(family).items():
            kind = "right" if not result else "said" if result.startswith(SAID) else "unexpected"
            if kind == "unexpected" and (known := KNOWN.get((family, name))):
                kind, result = "known", known
            counts[f"{name} {kind}"] += 1
            counts["unexpected"] += kind == "unexpected"
            cells += [f"{name} {kind}: {result}"] if result else []
        print(f"{family:<28}{'; '.join(cells) or 'right'}", flush=True)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return min(counts["unexpected"], 100)


if __name__ == "__main__":
    sys.exit(main())
