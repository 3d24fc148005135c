"""RMU against loops, with chosen weights and every retain term."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dipo_lightning import RMUModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.rmu import control_vector, rmu_distance
from tests.helpers.methods import answer_logits
from tests.methods.test_forms import PARTS, loss_and_gradients, made
from tests.methods.test_unlearning import files, fit, weights  # noqa: F401

HIDDEN = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_control_vector() -> None:
    control = control_vector(64, 6.5, seed=3)
    assert control.norm().item() == pytest.approx(6.5, rel=1e-6)
    assert (control >= 0).all()
    torch.manual_seed(1)
    assert torch.equal(control, control_vector(64, 6.5, seed=3))
    assert not torch.equal(control, control_vector(64, 6.5, seed=4))


def test_forget_and_retain_by_hand() -> None:
    control = control_vector(5, 2.0)
    squares = [(float(h) - float(c)) ** 2 for row in HIDDEN for h, c in zip(row, control, strict=True)]
    assert rmu_distance(HIDDEN, control).item() == pytest.approx(sum(squares) / 15)
    assert rmu_distance(HIDDEN, control, 30).item() == pytest.approx(sum(squares) / 5 / 30)
    squares = [(float(a) - float(b)) ** 2 for a, b in zip(HIDDEN.flatten(), OTHER.flatten(), strict=True)]
    assert rmu_distance(HIDDEN, OTHER).item() == pytest.approx(sum(squares) / 15)


def test_gradient_goes_to_the_policy_only() -> None:
    policy, reference = HIDDEN.clone().requires_grad_(), OTHER.clone().requires_grad_()
    rmu_distance(policy, reference).backward()
    torch.testing.assert_close(policy.grad, 2 * (HIDDEN - OTHER) / 15)
    assert reference.grad is None


def test_bfloat16_is_computed_in_float32() -> None:
    assert rmu_distance(HIDDEN.bfloat16(), control_vector(5, 2.0)).dtype == torch.float32


def states(model: Any, part: str, layer: int) -> torch.Tensor:
    """Output of a block at the positions that predict an answer token."""
    batch = PARTS[part]
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    return output.hidden_states[layer + 1][:, :-1][batch["labels"][:, 1:] != -100]


@pytest.mark.parametrize("form", ["logits", "hidden"])
@pytest.mark.parametrize("retain_loss", ["hidden", "nll", "kl", "none"])
def test_the_step_from_a_model(retain_loss: str, form: str) -> None:
    module = made(RMUModule, "llama", form, layer=0, retain_loss=retain_loss, lambda_=0.7)
    loss, found = loss_and_gradients(module)
    policy: Any = module.policy
    reference: Any = getattr(module.frozen_reference, "model", None)
    assert (reference is None) == (retain_loss in ("nll", "none"))
    expected = (states(policy, "forget", 0) - control_vector(32, 2.0)).pow(2).mean()
    logits, labels, _ = answer_logits(policy, PARTS["retain"])
    if retain_loss == "hidden":
        expected = expected + 0.7 * (states(policy, "retain", 0) - states(reference, "retain", 0)).pow(2).mean()
    elif retain_loss == "nll":
        expected = expected - 0.7 * logits.log_softmax(-1).gather(-1, labels[:, None]).mean()
    elif retain_loss == "kl":
        before = answer_logits(reference, PARTS["retain"])[0].log_softmax(-1)
        expected = expected + 0.7 * (before.exp() * (before - logits.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-9, atol=0)
    policy.zero_grad()
    expected.backward()
    right = {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}
    assert found.keys() == right.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, right[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("retain_loss", ["hidden", "nll", "kl"])
def test_only_the_chosen_weights_are_trained(files: Path, retain_loss: str) -> None:  # noqa: F811
    options: dict[str, Any] = {"layer": 1, "retain_loss": retain_loss}
    chosen = [r"model\.layers\.(0|1)\.mlp\.down_proj\.weight", r"model\.layers\.0\.self_attn\.q_proj.*"]
    before = weights(fit(files, RMUModule, steps=0, **options)[0])
    after = weights(fit(files, RMUModule, trained=chosen, **options)[0])
    assert [name for name, value in after.items() if not torch.equal(before[name], value)] == [
        "policy.model.layers.0.self_attn.q_proj.weight",
        "policy.model.layers.0.mlp.down_proj.weight",
        "policy.model.layers.1.mlp.down_proj.weight",
    ]


def test_all_weights_are_trained_where_the_retain_term_reaches_them(files: Path) -> None:  # noqa: F811
    before = weights(fit(files, RMUModule, steps=0, layer=0)[0])
    for retain_loss, whole in (("hidden", False), ("nll", True)):
        after = weights(fit(files, RMUModule, layer=0, retain_loss=retain_loss)[0])
        assert all(not torch.equal(before[name], value) for name, value in after.items()) == whole


@pytest.mark.parametrize("retain_loss", ["hidden", "nll", "kl"])
def test_adapters_are_trained_with_every_retain_term(files: Path, retain_loss: str) -> None:  # noqa: F811
    module, trainer = fit(files, RMUModule, layer=1, retain_loss=retain_loss, lora={"rank": 2})
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    moved = [name for name, value in weights(module).items() if "lora_B" in name and value.any()]
    assert moved
    assert all(".lora_" in name for name, parameter in module.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"trained": [r"layers\.0\.mlp"]},
            r"layers\\.0\\.mlp matches no weight; the nearest is model\.lay",
        ),
        ({"trained": [r"model\.layers\.1\..*"]}, r"lies behind block 0.*use nll or kl"),
        ({"trained": ["("]}, "not a regular expression"),
        ({"trained": [".*"], "lora": {"rank": 2}}, "the adapters are trained; use one"),
        ({"coefficient": float("nan")}, "model.coefficient is nan; it must be at least 0"),
        ({"layer": 2}, "the model has 2 blocks: give 0 to 1"),
    ],
)
def test_weights_that_cannot_be_trained_are_said(files: Path, options: dict[str, Any], message: str) -> None:  # noqa: F811
    with pytest.raises(InputError, match=message):
        fit(files, RMUModule, **({"layer": 0} | options))
