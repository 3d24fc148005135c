"""The record of a run refuses other options, rows and models by name, and lets through what changes no number."""

from __future__ import annotations

import copy
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from dipo_lightning.callbacks.run_record import (
    FolderLock,
    describe_run,
    model_files,
    read_record,
    refuse_changes,
    write_record,
)
from dipo_lightning.errors import InputError, RunError

CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "run": "a",
    "trainer": {
        "max_epochs": 2,
        "accumulate_grad_batches": 1,
        "devices": 1,
        "logger": None,
        "callbacks": [
            {"class_path": "dipo_lightning.MemorizationEvaluation", "init_args": {"metrics": None}},
            {"class_path": "dipo_lightning.callbacks.Checkpoint", "init_args": {"every_n_steps": None}},
        ],
    },
    "model": {
        "class_path": "dipo_lightning.DiPOModule",
        "init_args": {
            "pretrained": "org/name",
            "beta": 0.1,
            "pair": {"alpha": 0.2},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
        },
    },
    "data": {"class_path": "dipo_lightning.UnlearningDataModule", "init_args": {"prompt": "plain", "seed": 0}},
}
ROWS = {"forget": {"rows": 4, "sha256": "a"}}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The config with one option set."""
    config: Any = copy.deepcopy(CONFIG)
    place = config
    *names, last = path.split("/")
    for name in names:
        place = place[int(name)] if name.isdigit() else place[name]
    place[last] = value
    return config


REFUSED = {
    "model/init_args/optimizer/init_args/lr": (1e-4, "model.optimizer.lr was 0.001, now 0.0001"),
    "model/init_args/pair/alpha": (0.3, "model.pair.alpha was 0.2, now 0.3"),
    "model/class_path": ("dipo_lightning.NPOModule", "model.class was DiPOModule, now NPOModule"),
    "data/init_args/seed": (3, "data.seed was 0, now 3"),
    "data/init_args/prompt": ("llama2", "data.prompt was plain, now llama2"),
    "trainer/accumulate_grad_batches": (2, "trainer.accumulate_grad_batches was 1, now 2"),
    "trainer/max_epochs": (1, "trainer.max_epochs was 2, now 1"),
    "trainer/gradient_clip_val": (1.0, "trainer.gradient_clip_val was not given, now 1.0"),
    "trainer/callbacks/0/init_args": ({"metrics": {"a": "b"}}, "trainer.callbacks.MemorizationEvaluation.metrics.a"),
}

ALLOWED = {
    "run": "b",
    "trainer/max_epochs": 5,
    "trainer/devices": 4,
    "trainer/logger": {"class_path": "x.WandbLogger", "init_args": {}},
    "trainer/callbacks/1/init_args": {"every_n_steps": 3},
    "trainer/enable_progress_bar": False,
    "data/init_args/num_workers": 2,
}


@pytest.mark.parametrize("path", REFUSED)
def test_an_option_that_numbers_depend_on_is_named_with_both_values(path: str) -> None:
    value, said = REFUSED[path]
    record = describe_run(CONFIG, ROWS)
    with pytest.raises(InputError, match="another folder .* or the old options") as refused:
        refuse_changes(record, describe_run(changed(path, value), ROWS), Path("run"))
    assert said in str(refused.value)


@pytest.mark.parametrize("path", ALLOWED)
def test_what_changes_no_number_may_differ_and_a_run_may_grow(path: str) -> None:
    refuse_changes(describe_run(CONFIG, ROWS), describe_run(changed(path, ALLOWED[path]), ROWS), Path("run"))


def test_other_rows_are_refused_and_a_moved_file_with_the_same_rows_is_not(tmp_path: Path) -> None:
    (tmp_path / "moved.jsonl").touch()
    before, now = changed("data/init_args/forget", "old.jsonl"), str(tmp_path / "moved.jsonl")
    refuse_changes(describe_run(before, ROWS), describe_run(changed("data/init_args/forget", now), ROWS), tmp_path)
    other = {"forget": {"rows": 5, "sha256": "b"}}
    with pytest.raises(InputError, match=r"the forget rows \(4 then, 5 now\) have other texts"):
        refuse_changes(describe_run(CONFIG, ROWS), describe_run(CONFIG, other), tmp_path)


def test_a_model_may_only_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    local, hub = (describe_run(changed("model/init_args/pretrained", name), ROWS) for name in ("old", "org/name"))
    (tmp_path / "old").rename(tmp_path / "new")
    new, other = (describe_run(changed("model/init_args/pretrained", name), ROWS) for name in ("new", "other"))
    refuse_changes(local, new, tmp_path)
    for before in (local, hub):
        with pytest.raises(InputError, match=r"model\.pretrained was .*, now other"):
            refuse_changes(before, other, tmp_path)


def test_an_option_that_names_no_file_is_refused_beside_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat").mkdir()
    with pytest.raises(InputError, match=r"data\.prompt was plain, now chat"):
        refuse_changes(
            describe_run(CONFIG, ROWS), describe_run(changed("data/init_args/prompt", "chat"), ROWS), tmp_path
        )


def test_a_lock_on_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(RunError, match=rf"folder {tmp_path} cannot be written: File too large"):
            FolderLock().hold(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    FolderLock().hold(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/lock").write_text("mine")
    with pytest.raises(InputError, match=r"mine/lock is no file of this package"):
        FolderLock().hold(tmp_path / "mine")
    assert (tmp_path / "mine/lock").read_text() == "mine"


def test_a_tokenizer_and_a_file_of_an_own_data_module_may_have_moved_too(tmp_path: Path) -> None:
    for name, content in (("model/model.safetensors", "1"), ("new.jsonl", "{}")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    before = describe_run(changed("model/init_args/pretrained", str(tmp_path / "model")), ROWS)
    for name, old, new in (("tokenizer", "gone", "model"), ("corpus", "gone.jsonl", "new.jsonl")):
        for config in (before["config"], CONFIG):
            sides = [copy.deepcopy(config) for _ in range(2)]
            for side, value in zip(sides, (old, new), strict=True):
                side["data"]["init_args"][name] = str(tmp_path / value)
            was, now = (describe_run(side, ROWS) for side in sides)
            if name == "tokenizer" and config is CONFIG:
                with pytest.raises(InputError, match=r"data\.tokenizer was"):
                    refuse_changes(was, now, tmp_path)
            else:
                refuse_changes(was, now, tmp_path)


def test_every_form_of_a_model_has_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {"gguf/m.gguf": "1", "weights/__init__.py": "", "weights/a/m.gguf": "1", "base/model.safetensors": "1"}
    written["base/config.json"] = "{}"
    for folder, base in (("adapters", str(tmp_path / "base")), ("of_hub", "org/hub")):
        written[f"{folder}/adapter_config.json"] = json.dumps({"base_model_name_or_path": base})
        written[f"{folder}/adapter_model.safetensors"] = "1"
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for source, files in {
        str(tmp_path / "gguf"): ["gguf/m.gguf"],
        "package:weights": ["weights/a/m.gguf"],
        str(tmp_path / "adapters"): ["adapters/adapter_model.safetensors", "base/model.safetensors"],
        str(tmp_path / "of_hub"): ["of_hub/adapter_model.safetensors"],
    }.items():
        for file in files:
            before = model_files(source)
            (tmp_path / file).write_text("2")
            assert None is not before != model_files(source)
    assert model_files("org/hub") is None
    assert model_files(None) is None


def test_other_weights_under_the_same_name_are_refused(tmp_path: Path) -> None:
    config = changed("model/init_args/pretrained", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"one")
    record = describe_run(config, ROWS)
    refuse_changes(record, describe_run(config, ROWS), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    with pytest.raises(InputError, match="files of the model have changed"):
        refuse_changes(record, describe_run(config, ROWS), tmp_path)


def test_another_retain_log_under_the_same_name_is_refused_and_another_evaluation_beside_it_is_not(
    tmp_path: Path,
) -> None:
    config = changed("trainer/callbacks/0/init_args", {"retain_log": str(tmp_path)})
    log, attack = (tmp_path / "evaluations" / f"{name}_epoch=002_step=00004.json" for name in ("tofu", "robustness"))
    log.parent.mkdir()
    log.write_text("one")
    record = describe_run(config, ROWS)
    attack.write_text("worst")
    refuse_changes(record, describe_run(config, ROWS), tmp_path)
    refuse_changes({"config": config, "data": ROWS}, describe_run(config, ROWS), tmp_path)
    log.write_text("two")
    with pytest.raises(InputError, match=f"the retain log {tmp_path} tofu has another content"):
        refuse_changes(record, describe_run(config, ROWS), tmp_path)


def test_a_record_is_added_to_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    write_record(tmp_path, config={"a": 1})
    write_record(tmp_path, exports=["model"])
    assert read_record(tmp_path) == {"config": {"a": 1}, "exports": ["model"]}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        read_record(tmp_path)


def test_a_folder_has_one_holder_and_is_free_again_when_it_lets_go(tmp_path: Path) -> None:
    first, second = FolderLock(), FolderLock()
    first.hold(tmp_path)
    with pytest.raises(InputError, match="in use by process"):
        second.hold(tmp_path)
    first.release()
    second.hold(tmp_path)
    second.release()


def test_each_of_several_callbacks_of_a_kind_counts() -> None:
    rules = [{"class_path": "x.StopAtThreshold", "init_args": {"monitor": name, "threshold": 0.1}} for name in "ab"]
    before = changed("trainer/callbacks", copy.deepcopy(rules))
    rules[0]["init_args"]["threshold"] = 0.2
    with pytest.raises(InputError, match=r"callbacks\.StopAtThreshold\.threshold was 0\.1, now 0\.2"):
        refuse_changes(describe_run(before, ROWS), describe_run(changed("trainer/callbacks", rules), ROWS), Path("run"))


def test_other_weights_anywhere_another_tokenizer_and_another_template_are_other_files(tmp_path: Path) -> None:
    weights = bytearray(8 << 20)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes(weights if name == "model.safetensors" else b"{}")
    found = {model_files(tmp_path)}
    for part in range(16):  # the weights of each layer
        changed = weights.copy()
        changed[part << 19 : (part + 1) << 19] = b"1" * (1 << 19)
        (tmp_path / "model.safetensors").write_bytes(changed)
        found.add(model_files(tmp_path))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text("other")
        found.add(model_files(tmp_path))
    assert len(found) == 19
