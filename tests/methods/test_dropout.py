"""Dropout of a model's own configuration is off in the policy, unless it is asked for."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dipo_lightning import DiPOModule, NPOModule
from dipo_lightning.models.inspection import dropout_rates
from tests.helpers.toys import save_toy, toy_model
from tests.methods.test_unlearning import files, fit  # noqa: F401

RATES: dict[str, dict[str, float]] = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "opt": {"dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.5},
    "phi": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1},
    "gpt_neox": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "llama": {"attention_dropout": 0.5},
}
OTHERS: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "resid_dropout": 0.2,
                "embed_dropout": 0.2, "attention_dropout": 0.2},
    "bloom": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "persimmon": {"hidden_dropout": 0.3, "attention_dropout": 0.3},
    "phimoe": {"num_local_experts": 4, "num_key_value_heads": 2, "intermediate_size": 64, "router_jitter_noise": 0.5},
}  # fmt: skip
IDS = torch.arange(3, 43).view(2, 20)


@pytest.mark.parametrize("family", [*RATES, *OTHERS])
def test_a_policy_in_training_computes_what_it_computes_in_evaluation(family: str) -> None:
    if family in RATES:
        model: Any = toy_model(family, **RATES[family])
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **OTHERS[family]))
    config = model.config.to_dict()
    expected = model.eval()(IDS).logits
    assert dropout_rates(model)
    assert not torch.equal(model.train()(IDS).logits, expected), "and there is something to switch off"
    dropout_rates(model, switch_off=True)
    for trained in (model, copy.deepcopy(model), model):
        torch.testing.assert_close(trained.train()(IDS).logits, expected, rtol=0, atol=0)
    assert model.config.to_dict() == config, "an export writes it unchanged"
    assert not [module.p for module in model.modules() if isinstance(module, nn.Dropout) and module.p]


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_margin_and_loss_begin_where_theory_says(files: Path, family: str, tmp_path: Path) -> None:  # noqa: F811
    save_toy(files / f"{family}-dropout", family, **RATES[family])
    place = str(tmp_path / "cache")
    for reference in ("live", "hidden_states"):
        _, trainer = fit(files, NPOModule, f"{family}-dropout", steps=1, reference=reference, reference_cache=place)
        assert float(trainer.callback_metrics["train/forget"]) == pytest.approx(2 / 0.1 * math.log(2), abs=1e-6)
        _, trainer = fit(files, DiPOModule, f"{family}-dropout", steps=1, reference=reference, reference_cache=place)
        assert float(trainer.callback_metrics["train/margin"]) == 0.0


def test_dropout_that_is_asked_for_stays_and_is_said(files: Path, tmp_path: Path, caplog: Any) -> None:  # noqa: F811
    save_toy(files / "kept", "gpt2", **RATES["gpt2"])
    with caplog.at_level("INFO"):
        module, trainer = fit(files, DiPOModule, "kept", steps=1, dropout="keep", reference_cache=str(tmp_path))
    assert "dropout: kept (" in caplog.text
    assert "attn_pdrop 0.1" in caplog.text
    assert float(trainer.callback_metrics["train/margin"]) != 0.0
    assert module.policy.transformer.drop.p == 0.1  # type: ignore[union-attr]
