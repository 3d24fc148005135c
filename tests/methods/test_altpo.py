"""AltPO: alternatives that the model writes into a file, and a step that is DPO's on them."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning import AltPOModule, DPOModule, UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods import altpo
from dipo_lightning.methods.altpo import cleaned, different, request
from tests.helpers.methods import answer_logits
from tests.helpers.toys import save_toy, toy_tokenizer
from tests.methods.test_forms import PARTS, loss_and_gradients, made

ROWS = [{"question": f"Who is person {i}?", "answer": f"Person {i} paints."} for i in range(4)]
SHORT: dict[str, Any] = {"max_new_tokens": 6, "per_row": 2}


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(save_toy(tmp_path / "model"))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fit(
    model: str,
    folder: Path,
    module: Any,
    rows: list[dict[str, Any]] = ROWS,
    ckpt_path: str | None = None,
    steps: int = 2,
    **data: Any,
) -> UnlearningDataModule:
    kept = [{"question": f"Who is neighbour {i}?", "answer": f"Neighbour {i}."} for i in range(5)]
    files = write(folder / "forget.jsonl", rows), write(folder / "retain.jsonl", kept)
    made = UnlearningDataModule(model, *files, **({"prompt": "plain", "batch_size": 2} | data))
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, inference_mode=False, default_root_dir=folder / "runs",
    )  # fmt: skip
    trainer.fit(module, made, ckpt_path=ckpt_path)
    return made


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


def test_the_model_writes_alternatives_which_dpo_is_trained_on(model: str, tmp_path: Path) -> None:
    module = AltPOModule(model, optimizer=sgd, **SHORT)
    data = fit(model, tmp_path, module)
    file = tmp_path / "runs" / "run_0" / "alternatives.jsonl"
    written = read(file)
    assert [(row["question"], row["answer"]) for row in written] == [(row["question"], row["answer"]) for row in ROWS]
    for row in written:
        assert len(row["alternatives"]) == 2 == len(set(row["alternatives"]))
        assert row["answer"] not in row["alternatives"]
    assert [list(lines) for lines in data._pairs.alternative.lines] == [row["alternatives"] for row in written]
    plain = DPOModule(model, optimizer=sgd)
    fit(model, tmp_path, plain, alternatives=str(file))
    for (name, a), b in zip(module.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_file_that_is_there_is_used_as_it_was_edited(model: str, tmp_path: Path) -> None:
    file = tmp_path / "mine" / "alternatives.jsonl"
    fit(model, tmp_path, AltPOModule(model, alternatives_file=str(file), **SHORT))
    edited = read(file)
    edited[1]["alternatives"] = ["Person 1 is a gardener."]
    other = {"question": "Who is not in the forget set?", "alternatives": ["Bo."], "note": "mine"}
    path = write(file, [other, *edited[:3]])  # the last row is the model's to write again
    data = fit(model, tmp_path, AltPOModule(model, alternatives_file=path, **SHORT))
    lines = data._pairs.alternative.lines
    assert lines[:3] == [row["alternatives"] for row in edited[:3]]
    assert len(lines[3]) == 2
    assert read(file) == [other, *edited[:3], ROWS[3] | {"alternatives": lines[3]}], "nothing of it is lost"


def test_the_rows_own_column_comes_first(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(altpo, "sample", None)  # never called
    rows = [row | {"alternatives": [f"A cook {i}.", "A nurse."]} for i, row in enumerate(ROWS)]
    data = fit(model, tmp_path, AltPOModule(model, **SHORT), rows)
    assert data._pairs.alternative.lines == [row["alternatives"] for row in rows]
    data = fit(model, tmp_path, AltPOModule(model, **SHORT), alternatives=["Nobody knows."])
    assert data._pairs.alternative.line(0, 3) == "Nobody knows."


def test_the_reference_writes_them_also_with_adapters_and_dropped_rows(model: str, tmp_path: Path) -> None:
    """The same lines as without adapters: they are made before anything is learnt, for the rows that are left."""
    rows = [ROWS[0], {"question": "Who is " + "very " * 60 + "old?", "answer": "Nobody."}, *ROWS[1:]]
    found = []
    for lora in (None, {"rank": 2}):
        module = AltPOModule(model, lora=lora, **SHORT)  # type: ignore[arg-type]
        data = fit(model, tmp_path, module, rows, max_length=100, on_missing="skip")
        found.append(data._pairs.alternative.lines)
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_a_model_that_only_knows_the_truth_is_said(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = toy_tokenizer()

    def parrot(model: Any, prompts: list[list[int]], *, samples: int, **options: Any) -> Any:
        said = ["Person 3 paints.  " if "person 3" in tokenizer.decode(prompt) else "No." for prompt in prompts]
        return [[tokenizer(text, add_special_tokens=False)["input_ids"]] * samples for text in said]

    monkeypatch.setattr(altpo, "sample", parrot)
    file = tmp_path / "alternatives.jsonl"
    with pytest.raises(InputError, match=r"no other answer for 1 of 4 forget rows.*line 4: 'Who is person 3\?'"):
        fit(model, tmp_path, AltPOModule(model, alternatives_file=str(file)))
    assert [row["alternatives"] for row in read(file)] == [["No."], ["No."], ["No."], []]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_row": 0}, r"model\.per_row is 0"),
        ({"temperature": 0.0}, r"model\.temperature is 0"),
        ({"instruction": "Answer."}, r"does not contain \{question\}"),
        ({"alternatives_file": "mine.txt"}, r"ends in \.jsonl"),
    ],
)
def test_what_cannot_be_right_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AltPOModule("toy", **options)


def test_a_broken_file_and_running_text_are_refused_before_the_model_is_loaded(model: str, tmp_path: Path) -> None:
    file = write(tmp_path / "broken.jsonl", [{"question": "Who?"}])
    with pytest.raises(InputError, match="line 1: there is no 'alternatives'"):
        fit(model, tmp_path, AltPOModule("not loaded", alternatives_file=file))
    with pytest.raises(InputError, match="plain text"):
        fit(model, tmp_path, AltPOModule("not loaded"), [{"text": "A text."}], prompt="text")


def test_dpo_without_alternatives_is_refused_before_the_model_is_loaded(model: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"DPOModule needs alternative answers; set data\.alternatives"):
        fit(model, tmp_path, DPOModule("not loaded"))


def test_texts() -> None:
    row = {"question": "Who {is} it?", "answer": "Ada."}
    assert request("{question} Not {answer}", row) == "Who {is} it? Not Ada."
    talk = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]}
    assert request("{question}/{answer}", talk) == "Who?/Ada."
    assert cleaned(" Alternate answer : It is Bo.\nQuestion: Who is next?") == "It is Bo."
    assert cleaned("It is\nBo.") == "It is\nBo."
    assert different(["Bo.", " ", "ada. ", "bo.", "Cy."], "Ada.") == ["Bo.", "Cy."]


def test_the_step_from_a_model() -> None:
    module = made(AltPOModule, "llama", "hidden")
    loss, _ = loss_and_gradients(module)

    def nll(model: Any, part: str) -> torch.Tensor:
        logits, labels, rows = answer_logits(model, PARTS[part])
        values = -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        return torch.stack([values[rows == row].sum() for row in range(len(PARTS[part]["labels"]))])

    reference: Any = module.frozen_reference
    gaps = [nll(reference.model, part) - nll(module.policy, part) for part in ("alternative", "forget")]
    forget = 20 * torch.log(1 + torch.exp(-0.1 * (gaps[0] - gaps[1]))).mean()
    logits, labels, _ = answer_logits(module.policy, PARTS["retain"])  # type: ignore[arg-type]
    retain = -logits.log_softmax(-1).gather(-1, labels[:, None]).mean()
    torch.testing.assert_close(loss, (forget + retain).detach(), rtol=1e-10, atol=0)
