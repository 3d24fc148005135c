"""RMU against loops."""

import pytest
import torch

from dipo_lightning.methods.rmu import control_vector, rmu_distance

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
