"""Configurations of the quickstart's steps."""

from dipo_lightning.cli.configs import filled
from dipo_lightning.quickstart import elsewhere


def test_another_run_of_the_configuration_does_not_export_over_the_quickstart_s_model():
    config = filled("quickstart/configs/unlearning", folder="runs/quickstart", seed=0)
    [ours] = [one for one in config["trainer"]["callbacks"] if one["class_path"].endswith(".ExportModel")]
    [theirs] = [one for one in elsewhere(config)["trainer"]["callbacks"] if one["class_path"].endswith(".ExportModel")]
    assert ours["init_args"]["folder"] == "runs/quickstart/models/unlearned"
    assert theirs == {"class_path": ours["class_path"]}  # into the run's own folder
