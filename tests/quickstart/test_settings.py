"""Configurations of the quickstart's steps."""

import pytest

from dipo_lightning.cli.configs import filled
from dipo_lightning.errors import InputError
from dipo_lightning.quickstart import elsewhere, quickstart
from dipo_lightning.quickstart.muse_small import muse_small


@pytest.mark.parametrize("command", [quickstart, muse_small])
@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_run_accepts_is_refused_before_anything_is_written(command, seed, tmp_path):
    with pytest.raises(InputError, match=f"seed is {seed}; give a number from 0 to 4294967295"):
        command(seed=seed, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("note", ["", '{"seed": 0, "arti', '{"seed": 1}'])
def test_a_damaged_note_is_as_one_of_other_settings(note, tmp_path):
    (tmp_path / "made.json").write_text(note)
    with pytest.raises(InputError, match="was made with other settings"):
        muse_small(output=str(tmp_path))
    assert (tmp_path / "made.json").read_text() == note


def test_another_run_of_the_configuration_does_not_export_over_the_quickstart_s_model():
    config = filled("quickstart/configs/unlearning", folder="runs/quickstart", seed=0)
    [ours] = [one for one in config["trainer"]["callbacks"] if one["class_path"].endswith(".ExportModel")]
    [theirs] = [one for one in elsewhere(config)["trainer"]["callbacks"] if one["class_path"].endswith(".ExportModel")]
    assert ours["init_args"]["folder"] == "runs/quickstart/models/unlearned"
    assert theirs == {"class_path": ours["class_path"]}  # into the run's own folder
