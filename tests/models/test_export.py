"""An export appears whole or not at all, and says why it does not."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from dipo_lightning.errors import RunError
from dipo_lightning.models.export import save_model
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
            save_model(policy, folder, toy_tokenizer(), merge=not adapters, card="A card.")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
