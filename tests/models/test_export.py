"""An export appears whole or not at all, and says why it does not."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest

from dipo_lightning.errors import InputError, RunError
from dipo_lightning.models.export import check_place, save_model
from dipo_lightning.models.loading import load_policy
from dipo_lightning.models.lora import LoRA, add_lora
from tests.helpers.toys import toy_model, toy_tokenizer


@pytest.mark.parametrize(("room", "adapters"), [(40_000, False), (10, False), (2_000, True)])
def test_a_full_disk_in_an_export_is_a_sentence_and_leaves_what_was_there(
    tmp_path: Path, room: int, adapters: bool
) -> None:
    folder = tmp_path / "model"
    save_model(toy_model(), folder, toy_tokenizer())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    policy = add_lora(toy_model(seed=1), LoRA(4)) if adapters else toy_model(seed=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # no file grows beyond: the kernel refuses the rest
    try:
        with pytest.raises(RunError, match=r"The model could not be written to .*model: .*[Ff]ile too large"):
            save_model(policy, folder, toy_tokenizer(), merge=not adapters, card="A card.", replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_after_the_weights_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = toy_tokenizer()

    def full(*_: object) -> None:
        raise Exception("File too large (os error 27)")  # noqa: TRY002 - as `tokenizers` does

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(RunError, match=r"could not be written to .*model: File too large"):
        save_model(toy_model(), tmp_path / "model", tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_that_is_there_is_filled_and_stays_the_same_folder(tmp_path: Path, link: bool) -> None:
    """A mount point can be neither removed nor renamed, and a link to a folder is no folder."""
    place = tmp_path / "place"
    place.mkdir()
    folder = tmp_path / "link" if link else place
    if link:
        folder.symlink_to(place)
    inode = place.stat().st_ino
    (place / ".partial").mkdir()  # of an export that was killed
    (place / ".partial" / "half").touch()
    check_place(folder, "export")
    save_model(toy_model(), folder, toy_tokenizer())
    (place / "additional_chat_templates").mkdir()  # of the earlier export
    (place / "model-00001-of-00002.safetensors").touch()
    (place / "model-q4.gguf").write_text("mine")
    save_model(toy_model(seed=1), folder, toy_tokenizer(), replace=True)
    read = load_policy(str(folder)).state_dict()
    assert all(value.equal(read[name]) for name, value in toy_model(seed=1).state_dict().items())
    assert (folder.is_symlink(), place.stat().st_ino) == (link, inode)
    assert {path.suffix for path in place.iterdir()} == {".json", ".jinja", ".safetensors", ".gguf"}
    assert [path.name for path in place.glob("*.safetensors")] == ["model.safetensors"]
    assert (place / "model-q4.gguf").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"place", folder.name}


@pytest.mark.parametrize("there", [False, True])
def test_a_move_that_fails_half_way_leaves_a_complete_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "model"
    if there:
        save_model(toy_model(), folder, toy_tokenizer())

    def move(self: Path, target: Path) -> Path:
        if self.suffix != ".safetensors":
            raise OSError(errno.EIO, "Input/output error")
        os.rename(self, target)
        return target

    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, move)
    partial = folder / ".partial" if there else tmp_path / "model.partial"
    with pytest.raises(RunError, match=rf"move into .*model failed: Input/output error\..* in {partial} belong"):
        save_model(toy_model(seed=1), folder, toy_tokenizer(), replace=True)
    monkeypatch.undo()
    if there:
        assert (folder / "config.json").is_file()
    shutil.copytree(partial, folder, dirs_exist_ok=True)
    read = load_policy(str(folder)).state_dict()
    assert all(value.equal(read[name]) for name, value in toy_model(seed=1).state_dict().items())


def test_what_came_into_the_folder_meanwhile_stays_and_the_model_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(RunError, match=r"model is not empty any more.*: .*model\.partial has it"):
        save_model(toy_model(), tmp_path / "model")
    assert (tmp_path / "model" / "mine").read_text() == "mine"
    load_policy(str(tmp_path / "model.partial"))


def test_a_place_that_cannot_be_written_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for folder, said in (
        ("file", "file is not empty; export would"),
        ("file/model", "cannot be written: .*file is not"),
    ):
        with pytest.raises(InputError, match=said):
            check_place(tmp_path / folder, "export")
    check_place(tmp_path / "a/b", "export")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # the tests may run as root, who may write
    with pytest.raises(InputError, match="a/b cannot be written: .* is not a folder that you may write to"):
        check_place(tmp_path / "a/b", "export")
