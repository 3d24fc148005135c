"""Gradient ascent, WGA and CE-U against loops."""

import json
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning import CEUModule, UnlearningDataModule
from dipo_lightning.data.tokenization import LazyRows
from dipo_lightning.errors import InputError
from dipo_lightning.losses.likelihood import token_nll, weighted_ascent
from dipo_lightning.methods.gradient_ascent import WGAModule, ce_u
from tests.helpers.batches import (
    SELECTED,
    TOKENS,
    assert_only_selected_have_gradient,
    batch_logits,
    mean,
    nll_of,
    per_answer,
    probabilities,
)
from tests.helpers.methods import answer_logits
from tests.helpers.toys import save_toy
from tests.methods.test_forms import PARTS, loss_and_gradients, made


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
def test_wga(beta: float) -> None:
    logits = batch_logits(0).requires_grad_()
    loss = weighted_ascent(token_nll(logits[SELECTED], TOKENS), beta)
    expected = mean([[math.exp(-value) ** beta * value for value in answer] for answer in nll_of(logits)])
    assert loss.item() == pytest.approx(-expected, abs=1e-12)
    loss.backward()
    # the weight is a constant: d/dh = -p^beta (softmax - onehot) / N
    probability = logits.detach()[SELECTED].softmax(-1)
    chosen = probability.gather(-1, TOKENS.unsqueeze(-1))
    closed = -(chosen**beta) * (probability - torch.nn.functional.one_hot(TOKENS, 11)) / len(TOKENS)
    torch.testing.assert_close(logits.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(logits.grad)


def test_wga_with_beta_zero_is_gradient_ascent() -> None:
    nll = token_nll(batch_logits(0)[SELECTED], TOKENS)
    assert torch.equal(weighted_ascent(nll, 0.0), -nll.mean())


def test_ce_u() -> None:
    logits = batch_logits(0).requires_grad_()
    loss = ce_u(logits[SELECTED], TOKENS).mean()

    def value(row: int, t: int, token: int) -> float:
        p = probabilities(logits[row, t].tolist())
        return -sum(q / (1 - p[token]) * math.log(q) for z, q in enumerate(p) if z != token)

    assert loss.item() == pytest.approx(mean(per_answer(value)), abs=1e-12)
    loss.backward()
    p = logits.detach()[SELECTED].softmax(-1)
    target = p.scatter(-1, TOKENS.unsqueeze(-1), 0.0)
    closed = (p - target / target.sum(-1, keepdim=True)) / len(TOKENS)
    torch.testing.assert_close(logits.grad[SELECTED], closed, rtol=0, atol=1e-12)
    assert_only_selected_have_gradient(logits.grad)


def test_a_certain_label_stays_finite() -> None:
    logits = torch.zeros(1, 5)
    logits[0, 2] = 80.0
    logits.requires_grad_()
    loss = ce_u(logits, torch.tensor([2])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(80.0)
    assert logits.grad.isfinite().all()


def test_negative_beta() -> None:
    with pytest.raises(InputError, match="model.beta is -1"):
        WGAModule("absent", beta=-1)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("skip", [0, 1, 2])
def test_ce_u_leaves_the_first_answer_tokens_alone(skip: int, counted: bool) -> None:
    module = made(CEUModule, "llama", "hidden", skip_tokens=skip)
    batch = dict(PARTS)
    if counted:  # as the loader counts a step of two micro-batches: rows with an answer of at least as many tokens
        batch["forget"] = {name: value[:2] for name, value in PARTS["forget"].items()}
        batch["denominators"] = {"rows": 2.0 * 0.5, "forget": 9.0 * 0.5}
    loss = module.training_step(batch, 0)
    logits, labels, rows = answer_logits(module.policy, batch["forget"])  # type: ignore[arg-type]
    kept = [place for place, row in enumerate(rows.tolist()) if (rows[:place] == row).sum() >= skip]
    values = []
    for h, token in zip(logits[kept].tolist(), labels[kept].tolist(), strict=True):
        p = probabilities(h)
        values.append(-sum(q / (1 - p[token]) * math.log(q) for z, q in enumerate(p) if z != token))
    assert loss.item() == pytest.approx(sum(values) / len(values) / (0.5 if counted else 1), rel=1e-10)


def test_ce_u_has_no_retain_term_unless_asked_for() -> None:
    assert CEUModule("toy").retain_loss_name == "none"
    without, _ = loss_and_gradients(made(CEUModule, "llama", "hidden"))
    with_it, _ = loss_and_gradients(made(CEUModule, "llama", "hidden", retain_loss="nll"))
    assert with_it > without


@pytest.mark.parametrize("kind", ["listed", "large", "private", "large private"])
def test_an_answer_that_is_skipped_whole_is_said_at_once_or_when_its_row_is_made(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = kind.startswith("large")  # its rows are tokenised by need
    if large:
        monkeypatch.setattr("dipo_lightning.data.unlearning.LARGE", 1)
        monkeypatch.setattr("dipo_lightning.data.unlearning.LONGEST", 1)
    files = []
    for name in ("forget", "retain"):
        rows = [{"question": f"Who {name}?", "answer": "A longer answer."}, {"question": f"{name}?", "answer": "x"}]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"forget_tokens": "private"} if kind.endswith("private") else {}
    model = str(save_toy(tmp_path / "model"))
    data = UnlearningDataModule(model, *map(str, files), prompt="plain", batch_size=2, **options)

    def fit(skip_tokens: int) -> None:
        pl.Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1, enable_progress_bar=False
        ).fit(CEUModule(model if large else "not loaded", skip_tokens=skip_tokens), data)

    with pytest.raises(InputError, match=r"skip_tokens is 2, but forget row 1 has (2 answer tokens|1 answer token) to"):
        fit(2)
    if large:
        fit(0)  # the check of the other method is gone


def test_a_large_set_is_not_tokenised_whole_to_count_answer_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dipo_lightning.data.unlearning.LARGE", 20)
    monkeypatch.setattr("dipo_lightning.data.unlearning.LONGEST", 2)
    for name in ("forget", "retain"):
        rows = [{"question": f"Who {name} {i}?", "answer": f"The author {i}."} for i in range(30)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, files = str(save_toy(tmp_path / "model")), [str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")]
    data = UnlearningDataModule(model, *files, prompt="plain", batch_size=2)
    made: list[int] = []
    original = LazyRows._tokenized
    monkeypatch.setattr(LazyRows, "_tokenized", lambda self, index: made.append(index) or original(self, index))
    pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=1, enable_progress_bar=False).fit(
        CEUModule(model, skip_tokens=1), data
    )
    assert len(made) < 20
