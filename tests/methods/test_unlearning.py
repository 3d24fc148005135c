"""Promises of an unlearning module, whatever the method: the reference, the terms, the step."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from transformers import AutoModelForCausalLM

from dipo_lightning import DiPOModule, SelectiveModule, UnlearningDataModule, UnlearningModule
from dipo_lightning.callbacks import Checkpoint
from dipo_lightning.errors import InputError, RunError
from dipo_lightning.methods.gradient_ascent import GradDiffModule
from dipo_lightning.methods.language_model import fuse
from dipo_lightning.methods.pdu import PDUModule
from dipo_lightning.methods.preference import DPOModule, NPOModule
from dipo_lightning.methods.rmu import RMUModule
from dipo_lightning.methods.undial import UNDIALModule
from dipo_lightning.models import grouping
from dipo_lightning.models.answers import Answers, divergence
from dipo_lightning.models.lora import LoRA
from dipo_lightning.reference.references import AdaptersOffReference, HiddenStatesReference, LiveReference
from tests.helpers.methods import CLASSES, options_of
from tests.helpers.toys import FAMILIES, save_toy

METHODS = [cls for cls in CLASSES if cls is not SelectiveModule]  # which has tests of its own


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, count in (("forget", 4), ("retain", 9)):
        rows = [
            {"question": f"Who is {name} {i}?", "answer": f"The {name} person {'very ' * (i % 3)}{i * 37}."}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for family in FAMILIES:
        save_toy(folder / family, family)
    return folder


def fit(
    files: Path,
    cls: type[UnlearningModule],
    family: str = "llama",
    steps: int = 2,
    trainer: dict[str, Any] | None = None,
    ckpt_path: str | None = None,
    parts: Sequence[str] = ("forget", "retain"),
    batch_size: int = 2,
    **options: Any,
) -> tuple[UnlearningModule, pl.Trainer]:
    pl.seed_everything(0, verbose=False)
    rows = (str(files / f"{name}.jsonl") for name in parts)
    alternatives = "idk" if issubclass(cls, DPOModule) else None
    data_options: dict[str, Any] = {"prompt": "plain", "batch_size": batch_size, "alternatives": alternatives}
    data = UnlearningDataModule(str(files / family), *rows, **data_options)
    settings: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.05),
        "reference_cache": str(files / "cache"),
    }
    module = cls(str(files / family), **(settings | options))
    made = pl.Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": steps,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "inference_mode": False,
            **(trainer or {}),
        }
    )
    made.fit(module, data, ckpt_path=ckpt_path)
    return module, made


def weights(module: UnlearningModule) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_every_method_takes_finite_steps_and_logs_its_terms(files: Path, cls: type[UnlearningModule]) -> None:
    module, trainer = fit(files, cls, **options_of(cls))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert all(torch.isfinite(torch.tensor(list(logged.values()))))
    assert {"train/loss", "train/forget", "train/gradient_norm"} <= set(logged)
    assert ("train/retain" in logged) == (module.retain_loss_name != "none" and module.lambda_ > 0)
    assert module.policy is not None
    start = fit(files, cls, steps=0, **options_of(cls))[0]
    moved = [not torch.equal(a, b) for a, b in zip(weights(module).values(), weights(start).values(), strict=True)]
    assert any(moved)
    if not module.reference_parts:
        assert module.frozen_reference is None, "a method that needs no reference loads none"


class FirstGap(DiPOModule):
    """Notes the largest difference between policy and reference before the first step."""

    gaps: tuple[float, ...] = ()

    def losses(self, answers: dict[str, Answers]) -> dict[str, torch.Tensor]:
        pairs = ((one.logits.detach(), self.reference_logits(one)) for one in answers.values())
        self.gaps = self.gaps or tuple(float((here - there).abs().max()) for here, there in pairs)
        return super().losses(answers)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["live", "adapters_off"])
@pytest.mark.parametrize(
    ("options", "shared"),
    [({}, True), ({"activation_checkpointing": True}, False), ({"compile_blocks": True}, False)],
    ids=["plain", "activation_checkpointing", "compile_blocks"],
)
def test_on_a_cpu_policy_and_reference_are_equal_to_the_last_bit_before_the_first_step(
    files: Path, monkeypatch: pytest.MonkeyPatch, lora: LoRA | None, options: dict[str, Any], shared: bool
) -> None:
    monkeypatch.setattr(grouping, "FORWARD_TOKENS", 1)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    beginnings: list[int] = []
    chosen = grouping.forward_plan

    def noted(*arguments: Any) -> grouping.Plan:
        plan = chosen(*arguments)
        beginnings.append(plan.beginning)
        return plan

    monkeypatch.setattr(grouping, "forward_plan", noted)
    reference = "live" if lora is None else "adapters_off"
    module, _ = fit(files, FirstGap, retain_loss="kl", reference=reference, lora=lora, steps=1, **options)
    assert module.gaps == (0, 0)
    assert any(beginnings) == shared


class AnotherDefaultDevice(SingleDeviceStrategy):
    """Makes another device the default while the model is made, as Lightning does on a GPU."""

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        with torch.device("meta"):
            yield


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        *((cls, options_of(cls)) for cls in METHODS),
        *((DiPOModule, {"reference": name}) for name in ("live", "hidden_states", "directions")),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(map(str, value.values())) or "auto",
)
def test_models_are_made_on_the_cpu_whatever_the_default_device(
    files: Path, cls: type[UnlearningModule], options: dict[str, Any]
) -> None:
    frozen = {"freeze_projection": True} if options.get("reference") == "directions" else {}
    strategy = AnotherDefaultDevice(torch.device("cpu"))
    module, _ = fit(files, cls, trainer={"strategy": strategy}, **options, **frozen)
    expected, _ = fit(files, cls, **options, **frozen)
    assert all(torch.equal(a, b) for a, b in zip(weights(module).values(), weights(expected).values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_dipo_starts_at_log_two_with_an_exact_live_reference(files: Path, family: str) -> None:
    _, trainer = fit(files, DiPOModule, family, steps=1, reference="live", scale=1, beta=0.1)
    logged = trainer.callback_metrics
    assert float(logged["train/margin"]) == 0.0
    assert float(logged["train/forget"]) == pytest.approx(0.6931472, abs=1e-7)


def test_the_reference_is_not_trained_saved_or_counted(files: Path, tmp_path: Path) -> None:
    module, trainer = fit(files, DiPOModule, reference="live")
    assert isinstance(module.frozen_reference, LiveReference)
    trained = list(module.parameters())
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in module.policy.parameters())
    assert not any(p is q for p in module.frozen_reference.model.parameters() for q in trained)
    fresh = fit(files, DiPOModule, steps=0, reference="live")[0]
    for after, before in zip(
        module.frozen_reference.model.parameters(), fresh.frozen_reference.model.parameters(), strict=True
    ):
        assert torch.equal(after, before)
        assert not after.requires_grad
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("policy.") for name in saved)
    assert len(saved) == len(module.policy.state_dict())


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("cls", [DiPOModule, NPOModule, UNDIALModule], ids=lambda cls: cls.__name__)
def test_every_reference_gives_the_same_training(files: Path, cls: type[UnlearningModule], lora: bool) -> None:
    options: dict[str, Any] = {"lora": {"rank": 4}} if lora else {}
    # As many steps as a cache of forget and retain rows is worth; DiPO's usual weight would amplify rounding in them.
    options |= {"steps": 4, "lambda_": 1.0}
    live, _ = fit(files, cls, reference="live", **options)
    auto, _ = fit(files, cls, **options)
    assert isinstance(auto.frozen_reference, HiddenStatesReference) or lora
    for (name, a), b in zip(weights(live).items(), weights(auto).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)
    if lora:
        off, _ = fit(files, cls, reference="adapters_off", **options)
        assert isinstance(off.frozen_reference, AdaptersOffReference)
        for (name, a), b in zip(weights(live).items(), weights(off).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_a_head_that_breaks_the_algebra_gets_a_live_reference(files: Path) -> None:
    for family in ("gemma2", "phi"):
        module, _ = fit(files, DiPOModule, family)
        assert isinstance(module.frozen_reference, LiveReference)
        with pytest.raises(InputError, match="hidden_states, but the model's logits"):
            fit(files, DiPOModule, family, reference="hidden_states")


def test_dipo_without_retain_term_or_with_kl(files: Path) -> None:
    _, trainer = fit(files, DiPOModule, retain_loss="none")
    assert "train/retain" not in trainer.callback_metrics
    module, trainer = fit(files, DiPOModule, retain_loss="kl", steps=1)
    assert float(trainer.callback_metrics["train/retain"]) == pytest.approx(0.0, abs=1e-6)
    assert isinstance(module.frozen_reference, LiveReference), "a run of one step answers fewer rows than a cache holds"
    module, trainer = fit(files, DiPOModule, reference="hidden_states", steps=1)
    assert isinstance(module.frozen_reference, HiddenStatesReference)
    assert set(module.frozen_reference.caches) == {"forget", "retain"}
    assert float(trainer.callback_metrics["train/retain"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:No retain rows")
def test_without_retain_rows_no_reference_is_made_for_them(files: Path) -> None:
    module, _ = fit(files, DiPOModule, parts=["forget"], steps=1)
    assert isinstance(module.frozen_reference, HiddenStatesReference)
    assert set(module.frozen_reference.caches) == {"forget"}
    module, _ = fit(files, RMUModule, parts=["forget"], steps=1, layer=0)
    assert module.frozen_reference is None


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({}, 40.0),
        ({"reduction": "mean"}, 1.0),
        ({"retain_loss": "nll"}, 1.0),
        ({"retain_loss": "nll", "reduction": "mean"}, 1.0),
        ({"lambda_": 3.0}, 3.0),
        ({"lambda_": 0.0}, 0.0),
    ],
    ids=str,
)
def test_the_weight_of_dipos_retain_term_is_that_of_its_unit_and_recorded(
    options: dict[str, Any], weight: float
) -> None:
    module = DiPOModule("toy", **options)
    assert module.lambda_ == module.hparams["lambda_"] == module.hparams_initial["lambda_"] == weight


@pytest.mark.parametrize(
    "options",
    [
        {"pair": {"source": "policy"}},
        {"pair": {"selection": "top_p", "p": 0.5}},
        {"pair": {"selection": "relative", "rho": 0.2}},
        {"pair": {"memory_vector": "raw"}},
        {"pair": {"alpha": 2.5, "k": 3}},
        {"reduction": "mean", "beta": 1.0},
        {"scale": 1},
    ],
    ids=str,
)
def test_every_option_of_dipo_changes_the_step(files: Path, options: dict[str, Any]) -> None:
    plain, _ = fit(files, DiPOModule)
    other, trainer = fit(files, DiPOModule, **options)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert any(not torch.equal(a, b) for a, b in zip(weights(plain).values(), weights(other).values(), strict=True))


@pytest.mark.parametrize(
    ("make", "fused"),
    [
        (torch.optim.AdamW, True),
        (torch.optim.Adam, True),
        (lambda p: torch.optim.AdamW(p, fused=False), False),
        (lambda p: torch.optim.AdamW(p, foreach=True), None),
        (torch.optim.Adagrad, None),
    ],
)
def test_adam_is_fused_unless_the_user_chose(make: Any, fused: bool | None) -> None:
    module = GradDiffModule("none", optimizer=make)
    module.policy = torch.nn.Linear(3, 2)
    optimizer = module.configure_optimizers()
    assert optimizer.param_groups[0]["fused"] is fused


def test_a_fused_optimiser_takes_the_steps_of_the_plain_one() -> None:
    torch.manual_seed(0)
    both = [torch.randn(40, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    both[1].data.copy_(both[0].data)
    plain, fused = (torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1) for weight in both)
    fuse(fused)
    for _ in range(5):
        for weight, optimizer in zip(both, (plain, fused), strict=True):
            weight.grad = weight.detach().sin()
            optimizer.step()
    torch.testing.assert_close(both[1], both[0], rtol=1e-12, atol=0)
    assert fused.state[both[1]]["step"] == 5


def test_gradients_are_clipped_before_a_fused_step_under_mixed_precision(files: Path) -> None:
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 0.1}
    _, trainer = fit(files, GradDiffModule, trainer=settings, optimizer=torch.optim.AdamW)
    assert trainer.global_step == 2
    assert trainer.optimizers[0].param_groups[0]["fused"]


def test_gradient_accumulation_does_not_change_the_step(files: Path) -> None:
    whole, _ = fit(files, DiPOModule, steps=2)
    data = UnlearningDataModule(
        str(files / "llama"), str(files / "forget.jsonl"), str(files / "retain.jsonl"), prompt="plain", batch_size=1
    )
    pl.seed_everything(0, verbose=False)
    parts = DiPOModule(
        str(files / "llama"), optimizer=lambda p: torch.optim.SGD(p, lr=0.05), reference_cache=str(files / "cache")
    )
    pl.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False, accumulate_grad_batches=2,
    ).fit(parts, data)  # fmt: skip
    for (name, a), b in zip(weights(whole).items(), weights(parts).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(files: Path) -> None:
    class Broken(GradDiffModule):
        def forget_loss(self, forget: Answers) -> torch.Tensor:
            return super().forget_loss(forget) * float("nan")

    with pytest.raises(RunError, match=r"The loss is nan at step 0.*forget': \[\d, \d\]"):
        fit(files, Broken)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_rows_and_checkpoint(files: Path, tmp_path: Path) -> None:
    class Broken(GradDiffModule):
        def forget_loss(self, forget: Answers) -> torch.Tensor:
            loss = super().forget_loss(forget)
            return loss if self.global_step == 0 else loss + (loss - loss).abs().sqrt()  # sqrt has no slope at 0

    keep = Checkpoint(every_n_steps=1, folder=str(tmp_path))
    said = r"gradient's norm is nan at step 1.*'forget': .*forget': \[\d, \d\].*last.ckpt"
    with pytest.raises(RunError, match=said):
        fit(files, Broken, steps=3, trainer={"callbacks": [keep], "enable_checkpointing": True})
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_the_rows_of_all_micro_batches_of_the_step_are_named(files: Path) -> None:
    class Broken(GradDiffModule):
        def forget_loss(self, forget: Answers) -> torch.Tensor:
            loss = super().forget_loss(forget)
            return loss if self.global_step == 0 else loss + (loss - loss).abs().sqrt()

    with pytest.raises(RunError, match=r"norm is nan at step 1\..*forget': \[\d(, \d){3}\]"):
        fit(files, Broken, steps=3, trainer={"accumulate_grad_batches": 2})


@pytest.mark.filterwarnings("ignore:The retain loss is", "ignore:.*training_step. returned .None.")
@pytest.mark.parametrize("cls", [GradDiffModule, PDUModule])
def test_a_training_step_of_a_subclass_may_remember_nothing(files: Path, cls: type[UnlearningModule]) -> None:
    """Of three steps the first is the method's, the second another loss, and the third skipped."""
    logged = []

    class Own(cls):  # type: ignore[misc, valid-type]
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor | None:
            if self.global_step == 0:
                return super().training_step(batch, batch_idx)
            ids = batch["forget"]["input_ids"]
            return self.policy(ids, labels=ids).loss if self.global_step == 1 else None

        def log_terms(self, terms: dict[str, torch.Tensor]) -> None:
            logged.append(set(terms))

    fit(files, Own, steps=3)
    assert logged == [{"loss", "forget", "retain"}, set(), set()]


ODD_TERMS: dict[str, tuple[str, Any, str]] = {
    "vector": ("forget_loss", lambda forget: -forget.nll, "a tensor of shape (39,) as the term forget"),
    "one value": ("forget_loss", lambda forget: -forget.nll.mean()[None], "a tensor of shape (1,) as the term forget"),
    "nothing": ("forget_loss", lambda forget: None, "None as the term forget"),
    "float": ("forget_loss", lambda forget: 1.5, "1.5 as the term forget"),
    "no dictionary": ("forget_terms", lambda answers: None, "None; it must return a dictionary"),
    "a float to log": (
        "forget_terms",
        lambda answers: {"forget": -answers["forget"].mean_nll, "count": 3.0},
        "3.0 as the term count",
    ),
    "loss": (
        "forget_terms",
        lambda answers: {"forget": -answers["forget"].mean_nll, "loss": answers["forget"].mean_nll},
        "a term called loss",
    ),
    "retain": ("retain_term", lambda retain: retain.nll, "as the term retain"),
}


@pytest.mark.parametrize("odd", ODD_TERMS)
def test_terms_that_are_no_scalars_are_refused_with_their_method(files: Path, odd: str) -> None:
    method, function, message = ODD_TERMS[odd]
    cls = type("Mine", (GradDiffModule,), {method: lambda _, answers: function(answers)})
    with pytest.raises(InputError) as found:
        fit(files, cls)
    assert str(found.value).startswith(f"Mine.{method}() returns ")
    assert message in str(found.value)


@pytest.mark.parametrize(("needed", "retain"), [(True, "kl"), (False, "kl"), (False, "nll")])
def test_dipo_with_another_forget_loss_needs_neither_margin_nor_reference(
    files: Path, needed: bool, retain: str
) -> None:
    class Other(DiPOModule):
        needs_reference = needed

        def forget_loss(self, forget: Answers) -> torch.Tensor:
            return -forget.mean_nll

    module, trainer = fit(files, Other, retain_loss=retain)
    assert (module.frozen_reference is None) == (retain == "nll" and not needed)
    assert {"train/forget", "train/retain"} < set(trainer.callback_metrics)
    assert float(trainer.progress_bar_metrics["loss"]) == pytest.approx(float(trainer.callback_metrics["train/loss"]))


def test_margins_without_a_reference_are_refused_with_the_remedy(files: Path) -> None:
    class Without(DiPOModule):
        needs_reference = False

    with pytest.raises(RunError, match=r"Without asks for DiPO's margins.*needs_reference = True"):
        fit(files, Without, retain_loss="nll")


def test_a_module_without_a_forget_loss_says_so(files: Path) -> None:
    with pytest.raises(TypeError, match="must define forget_loss"):
        fit(files, UnlearningModule)


def test_a_retain_term_of_a_subclass_is_trained_and_one_by_its_former_name_refused(files: Path) -> None:
    class Holding(GradDiffModule):
        def retain_term(self, retain: Answers) -> torch.Tensor:
            return 0 * retain.mean_nll + 5.0

    _, trainer = fit(files, Holding, steps=1)
    assert trainer.callback_metrics["train/retain"] == 5.0

    class Older(GradDiffModule):
        retain_loss = Holding.retain_term

    with pytest.raises(InputError, match=r"^Older\.retain_loss\(\) is called retain_term\(\) now; rename it\.$"):
        Older("model")


class OwnRetain(GradDiffModule):
    """Keeps the retain answers near the reference with a term of its own."""

    def retain_term(self, retain: Answers) -> torch.Tensor:
        return divergence(retain, self.reference_answers(retain)) / retain.token_denominator


class OwnForget(GradDiffModule):
    """Uses the reference without `needs_reference`."""

    def forget_loss(self, forget: Answers) -> torch.Tensor:
        return -divergence(forget, self.reference_answers(forget)) / forget.token_denominator


@pytest.mark.parametrize("reference", ["auto", "live"])
def test_a_loss_that_asks_for_a_reference_that_nothing_announced_says_what_helps(files: Path, reference: Any) -> None:
    with pytest.raises(RunError, match=r"OwnRetain .* retain part, .* Set model\.retain_loss: kl\.$"):
        fit(files, OwnRetain, reference=reference)
    _, trainer = fit(files, OwnRetain, steps=1, reference=reference, retain_loss="kl")
    assert float(trainer.callback_metrics["train/retain"]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(RunError, match=r"OwnForget .* forget part, .* Set needs_reference = True in the class\.$"):
        fit(files, OwnForget, reference=reference)
    helped = type("Helped", (OwnForget,), {"needs_reference": True})
    _, trainer = fit(files, helped, steps=1, reference=reference)
    assert float(trainer.callback_metrics["train/forget"]) == pytest.approx(0, abs=1e-6)


def test_a_reference_under_its_former_name_is_refused(files: Path) -> None:
    class Older(NPOModule):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.reference = self.frozen_reference

    with pytest.raises(InputError, match=r"^Older\.reference is called frozen_reference now; rename it\.$"):
        fit(files, Older, steps=1)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [({"precision": "bf16-true"}, "precision is bf16-true"), ({"precision": "16-true"}, "precision is 16-true")],
)
def test_what_cannot_be_right_is_refused_before_the_model_is_loaded(files: Path, trainer: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(files, DiPOModule, trainer=trainer)


@pytest.mark.parametrize("held", ["itself", "inside"])
def test_a_reference_that_would_be_saved_is_refused(files: Path, held: str) -> None:
    class Keeping(NPOModule):
        def make_reference(self) -> Any:
            if held == "itself":
                return self.load()
            self.copy = self.load()
            return LiveReference(self.copy)

    with pytest.raises(InputError, match="one of its submodules: every checkpoint would hold it"):
        fit(files, Keeping)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resume_ends_with_the_weights_of_an_uninterrupted_run(files: Path, tmp_path: Path) -> None:
    whole, _ = fit(files, DiPOModule, steps=5)
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit(files, DiPOModule, steps=5, trainer={"callbacks": [keep], "enable_checkpointing": True})
    for step in (1, 2, 3):  # in the middle of an epoch, at its end, in the middle of the next
        again = ModelCheckpoint(tmp_path, filename="again-{step}", every_n_train_steps=1, save_top_k=-1)
        settings = {"callbacks": [again], "enable_checkpointing": True}
        path = str(tmp_path / f"step={step}.ckpt")
        resumed, _ = fit(files, DiPOModule, steps=5, ckpt_path=path, trainer=settings)
        for (name, a), b in zip(weights(whole).items(), weights(resumed).values(), strict=True):
            assert torch.equal(a, b), (step, name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resume_with_dropout_is_exact_at_every_step(files: Path, tmp_path: Path, accumulate: int) -> None:
    options: dict[str, Any] = {"steps": 4, "lora": {"rank": 2, "dropout": 0.5}}
    trainer = {"enable_checkpointing": True, "accumulate_grad_batches": accumulate}
    every = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, _ = fit(files, GradDiffModule, trainer=trainer | {"callbacks": [every]}, **options)
    for step in (1, 2, 3):
        again = ModelCheckpoint(tmp_path, filename="again-{step}", every_n_train_steps=1, save_top_k=-1)
        path = str(tmp_path / f"step={step}.ckpt")
        resumed, _ = fit(files, GradDiffModule, trainer=trainer | {"callbacks": [again]}, ckpt_path=path, **options)
        for (name, a), b in zip(weights(whole).items(), weights(resumed).values(), strict=True):
            assert torch.equal(a, b), (step, name)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_resume_is_exact_at_every_step_while_the_accumulation_changes(files: Path, tmp_path: Path) -> None:
    """Lightning asks its scheduler only where an epoch begins."""

    def run(name: str, ckpt_path: str | None = None) -> UnlearningModule:
        every = ModelCheckpoint(tmp_path, filename=name, every_n_train_steps=1, save_top_k=-1)
        callbacks = [GradientAccumulationScheduler({0: 3, 1: 2}), every]
        trainer = {"enable_checkpointing": True, "callbacks": callbacks, "max_epochs": 2}
        return fit(files, GradDiffModule, steps=-1, trainer=trainer, ckpt_path=ckpt_path, batch_size=1)[0]

    whole = run("{step}")
    for step in (1, 2, 3):
        resumed = run("again-{step}", str(tmp_path / f"step={step}.ckpt"))
        for (name, a), b in zip(weights(whole).items(), weights(resumed).values(), strict=True):
            assert torch.equal(a, b), (step, name)


def saved(files: Path, folder: Path, **options: Any) -> str:
    """Train and return the checkpoint."""
    _, trainer = fit(files, DiPOModule, steps=4, **options)
    trainer.save_checkpoint(folder / "trained.ckpt")
    return str(folder / "trained.ckpt")


def again(module: UnlearningModule, files: Path, ckpt_path: str | None = None, rows: str = "forget") -> pl.Trainer:
    """Validate a module with a checkpoint, or train it as it is, with a new Trainer."""
    paths = [str(files / f"{name}.jsonl") for name in (rows, "retain" if rows == "forget" else "forget")]
    data = UnlearningDataModule(str(files / "llama"), *paths, prompt="plain", batch_size=2)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    settings = {"max_steps": 4, "log_every_n_steps": 1, "logger": False, "inference_mode": False}
    trainer = pl.Trainer(accelerator="cpu", **settings, **quiet)
    if ckpt_path is None:
        trainer.fit(module, data)
    else:
        trainer.validate(module, data, ckpt_path=ckpt_path, verbose=False)
    return trainer


def trained_before(way: str, files: Path, folder: Path, **options: Any) -> UnlearningModule:
    """A module whose policy was trained, or has the weights of one that was, before its next fit."""
    options = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05), "reference_cache": str(folder / "cache")} | options
    if way == "fit":
        return fit(files, DiPOModule, steps=4, **options)[0]
    path = saved(files, folder, **(options | {"reference": "live"}))
    if way == "load_from_checkpoint":
        return DiPOModule.load_from_checkpoint(path, **options)
    module = DiPOModule(str(files / "llama"), **options)
    again(module, files, path)
    return module


@pytest.mark.parametrize("way", ["fit", "load_from_checkpoint", "validate"])
def test_the_reference_of_a_policy_that_was_trained_before_is_the_pretrained_model(
    files: Path, tmp_path: Path, way: str
) -> None:
    module = trained_before(way, files, tmp_path)
    moved = weights(module)
    assert isinstance(module.frozen_reference, HiddenStatesReference) == (way == "fit")
    caches = sorted(tmp_path.glob("cache/*"))
    again(module, files)
    assert isinstance(module.frozen_reference, LiveReference)
    pretrained = AutoModelForCausalLM.from_pretrained(files / "llama").state_dict()
    for name, weight in module.frozen_reference.model.state_dict().items():
        assert torch.equal(weight, pretrained[name]), name
    assert any(not torch.equal(moved[f"policy.{name}"], pretrained[name]) for name in pretrained)
    assert sorted(tmp_path.glob("cache/*")) == caches, "a cache would be of the trained policy"


@pytest.mark.parametrize("name", ["hidden_states", "directions"])
@pytest.mark.parametrize("way", ["fit", "load_from_checkpoint", "validate"])
def test_a_policy_that_was_trained_before_is_not_cached_as_the_reference(
    files: Path, tmp_path: Path, way: str, name: str
) -> None:
    module = trained_before(way, files, tmp_path, reference=name, freeze_projection=True)
    with pytest.raises(InputError, match=rf"^model\.reference is {name}, but its cache .* not the pretrained model"):
        again(module, files)


def test_a_policy_that_was_only_validated_is_cached(files: Path, tmp_path: Path) -> None:
    module = DiPOModule(str(files / "llama"), reference_cache=str(tmp_path / "cache"))
    _, trainer = fit(files, DiPOModule, steps=0)
    trainer.save_checkpoint(tmp_path / "start.ckpt")
    again(module, files, str(tmp_path / "start.ckpt"))
    again(module, files)
    assert isinstance(module.frozen_reference, HiddenStatesReference)


def test_another_fit_caches_its_own_rows(files: Path, tmp_path: Path) -> None:
    module, _ = fit(files, DiPOModule, steps=0, reference="hidden_states", reference_cache=str(tmp_path))
    again(module, files, rows="retain")
    assert isinstance(module.frozen_reference, HiddenStatesReference)
    assert len(module.frozen_reference.caches["forget"].examples) == 9


def test_a_frozen_projection_from_a_checkpoint_is_not_taken_for_the_references(files: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"reference": "live", "optimizer": lambda p: torch.optim.SGD(p, lr=0.05)}
    path = saved(files, tmp_path)
    margins = []
    for form in ("hidden", "logits"):
        module = DiPOModule.load_from_checkpoint(path, freeze_projection=True, form=form, **options)
        pl.seed_everything(0, verbose=False)
        margins.append(float(again(module, files).callback_metrics["train/margin"]))
    assert margins[0] == pytest.approx(margins[1], rel=1e-4)
    assert abs(margins[0]) > 1e-3


def test_a_loaded_checkpoint_is_of_the_model_it_began_with(files: Path, tmp_path: Path) -> None:
    save_toy(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match="began with other weights"):
        DiPOModule.load_from_checkpoint(saved(files, tmp_path), pretrained=str(tmp_path / "other"))
