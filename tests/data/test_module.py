"""The data modules' own options: the tokenizer, rows without anything to learn, and few rows."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from dipo_lightning.data.loader import TrainingRows
from dipo_lightning.data.unlearning import FineTuningDataModule, UnlearningDataModule
from dipo_lightning.errors import InputError
from dipo_lightning.methods.gradient_ascent import GradDiffModule
from dipo_lightning.methods.selective.module import SelectiveModule
from tests.helpers.small_tofu import trainer
from tests.helpers.toys import save_toy, toy_tokenizer

ROWS = [{"question": f"Who is {i}?", "answer": f"The author {i}."} for i in range(3)]
KEEP = [{"question": f"Where is {i}?", "answer": f"In {i}."} for i in range(3)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_toy(tmp_path_factory.mktemp("toy")))


def data(folder: Path, tokenizer: str | None, forget: list | None = None, **options: Any) -> UnlearningDataModule:
    files = write(folder / "forget.jsonl", forget or ROWS), write(folder / "retain.jsonl", KEEP)
    return UnlearningDataModule(tokenizer, *files, **({"prompt": "plain", "batch_size": 2} | options))


def test_a_named_tokenizer_is_used_in_place_of_the_model_s(tmp_path: Path, model: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_bos_token = False
    other = toy_tokenizer(add_bos=False)
    other.save_pretrained(tmp_path / "other")
    found = {}
    for name in (None, model, str(tmp_path / "other")):
        module = data(tmp_path, name)
        module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(pretrained=model))  # type: ignore[assignment]
        module.setup("fit")
        found[name] = module.forget_examples[0]["input_ids"]
    assert found[None] == found[model] == [1, *found[str(tmp_path / "other")]]


@pytest.mark.parametrize(
    ("module", "warned"),
    [(GradDiffModule("m"), True), (SelectiveModule("m"), False), (SelectiveModule("m", general_weight=0), True)],
    ids=["unbounded", "selective", "selective without general rows"],
)
def test_retain_rows_are_missed_where_nothing_else_holds_abilities(
    tmp_path: Path, model: str, module: pl.LightningModule, warned: bool
) -> None:
    rows = UnlearningDataModule(model, write(tmp_path / "forget.jsonl", ROWS), prompt="plain")
    rows.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="No retain rows: nothing holds") if warned else nullcontext():
        rows.check()


def test_the_row_of_an_example_is_found_among_those_that_are_left(tmp_path: Path, model: str) -> None:
    rows = [{"question": f"Who is {i}{' and who' * (60 * (i in (1, 4)))}?", "answer": f"Author {i}."} for i in range(6)]
    module = data(tmp_path, model, rows, max_length=64, on_missing="skip")
    module.setup("fit")
    found = {
        example["index"]: module.trained_rows[module.place(example["index"])] for example in module.forget_examples
    }
    assert {index: row["answer"] for index, row in found.items()} == {i: f"Author {i}." for i in (0, 2, 3, 5)}


def test_another_model_brings_its_own_tokenizer(tmp_path: Path, model: str) -> None:
    """A data module that is used for two models, one after the other."""
    toy_tokenizer(add_bos=False).save_pretrained(tmp_path / "other")
    reused = data(tmp_path, None)
    found = []
    for pretrained in (model, str(tmp_path / "other"), model):
        reused.trainer = SimpleNamespace(lightning_module=SimpleNamespace(pretrained=pretrained))  # type: ignore[assignment]
        reused.setup("fit")
        found.append(reused.forget_examples[0]["input_ids"])
    assert found[0] == [1, *found[1]] == found[2]


def test_the_model_s_tokenizer_comes_in_the_model_s_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Any:
        asked.append((name, revision, trust_remote_code))
        return toy_tokenizer()

    monkeypatch.setattr("dipo_lightning.data.unlearning.load_tokenizer", load)
    for name in (None, "owner/model", "owner/other"):
        module = data(tmp_path, name)
        own = SimpleNamespace(pretrained="owner/model", revision="v2", trust_remote_code=True)
        module.trainer = SimpleNamespace(lightning_module=own)  # type: ignore[assignment]
        module.check()
    assert asked == [("owner/model", "v2", True)] * 2 + [("owner/other", None, False)]


def test_an_old_name_of_a_limit_names_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="UnlearningDataModule has no option forget_rows; it is max_forget_rows now"):
        data(tmp_path, None, forget_rows=3)


def test_a_pad_token_beyond_the_embedding_trains(tmp_path: Path, model: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 320
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"question": "Who?", "answer": "I."}, {"question": "Who is the author?", "answer": "The author."}]
    run = trainer(tmp_path, max_steps=1)
    run.fit(GradDiffModule(model), data(tmp_path, str(tmp_path / "tokenizer"), rows))
    assert run.global_step == 1


def test_a_column_without_a_meaning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.columns has 'split', which is no column of a row.* Known: question, "):
        data(tmp_path, None, columns={"split": "s"})
    with pytest.raises(InputError, match="data.columns has 'anwser', .*did you mean 'answer'"):
        FineTuningDataModule(train="rows.jsonl", columns={"anwser": "s"})


def test_no_tokenizer_and_no_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set data\.tokenizer"):
        data(tmp_path, None).check()


def test_one_deletion_request_trains_at_the_default_batch_size(tmp_path: Path, model: str) -> None:
    module = GradDiffModule(model, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    one = data(tmp_path, None, ROWS[:1], batch_size=8)
    seen: list[torch.Tensor] = []

    class Recorder(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch["forget"]["index"])
            assert batch["denominators"]["rows"] == 1

    trainer(tmp_path, Recorder(), max_epochs=2).fit(module, one)
    assert [rows.tolist() for rows in seen] == [[0], [0]]


@pytest.mark.parametrize("kind", [UnlearningDataModule, FineTuningDataModule])
def test_rows_with_nothing_to_learn_stop_the_run_or_are_left_out(tmp_path: Path, model: str, kind: type) -> None:
    long = {"question": "Who is " + "very " * 60 + "old?", "answer": "Nobody."}
    rows = [ROWS[0], long, {"question": "Who?", "answer": " "}, ROWS[1]]
    options: dict[str, Any] = {"prompt": "plain", "max_length": 40, "batch_size": 2}
    if kind is UnlearningDataModule:
        options |= {"alternatives": ["No."], "retain": write(tmp_path / "keep.jsonl", KEEP)}
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match="line 3: 'answer' is empty"):
        kind(model, file, **options).check()
    module = kind(model, file, on_missing="skip", **options)
    with pytest.warns(UserWarning, match="1 of 4 rows left out.*line 3: 'answer' is empty"):
        module.setup("fit")
    batches = list(module.train_dataloader())
    part = "forget" if kind is UnlearningDataModule else "train"
    assert sorted(index for batch in batches for index in batch[part]["index"].tolist()) == [0, 2]
    for batch in batches if kind is UnlearningDataModule else ():
        assert torch.equal(batch["alternative"]["index"], batch["forget"]["index"])
    del rows[2]
    few = write(tmp_path / "few.jsonl", rows)
    with pytest.raises(InputError, match=r"None of 3 \w+ rows is left: .* 3 left out \(row 0: its prompt alone"):
        kind(model, few, **options | {"on_missing": "skip", "max_length": 2}).setup("fit")
    with pytest.raises(InputError, match=r"line 2: its prompt alone has \d+ tokens.*set data\.max_length to"):
        kind(model, write(tmp_path / "rows.jsonl", rows), **options).setup("fit")


class Bare(UnlearningDataModule):
    """Overrides what Lightning calls as it is in Lightning: without ``super()``."""

    def setup(self, stage: str) -> None:
        self.forget_rows, self.retain_rows = ROWS, KEEP

    def state_dict(self) -> dict[str, Any]:
        return {"mine": 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.mine = state_dict["mine"]


def test_a_data_module_s_hook_without_super_keeps_its_rows_and_the_position(model: str) -> None:
    first, second = (Bare(model, forget="mine", prompt="plain", batch_size=1) for _ in range(2))
    first.setup("fit")
    next(iter(first.train_dataloader()))
    state = first.state_dict()
    assert (state["mine"], state["done"]) == (1, 1)
    second.setup("fit")
    second.load_state_dict(state)
    assert (second.mine, second.train_dataloader().skip) == (1, 1)


class Made(UnlearningDataModule):
    def read(self) -> None:
        self.forget_rows, self.retain_rows = ROWS, KEEP


class MadeToLearn(FineTuningDataModule):
    def read(self) -> None:
        self.train_rows = ROWS  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Made, MadeToLearn])
def test_rows_of_an_overridden_read_need_no_files(model: str, kind: Any) -> None:
    module = kind(model, prompt="plain", batch_size=2)
    with pytest.raises(InputError, match=r"no tokenised rows yet.*super\(\)\.setup\(stage\).*overriding read"):
        module.train_dataloader()
    module.setup("fit")
    assert len(module.train_dataloader()) == 2
    with pytest.raises(InputError, match=r"data\.(forget|train) is missing"):
        kind.__base__(model)


class Unpaired(Made):
    def training_set(self) -> Any:
        return TrainingRows(self.tokenize(self.forget_rows, "forget")[0])


def test_forget_rows_that_are_not_paired_are_named(model: str) -> None:
    module = Unpaired(model, prompt="plain")
    module.setup("fit")
    with pytest.raises(InputError, match=r"Unpaired\.training_set\(\) returns a TrainingRows"):
        _ = module.forget_examples
