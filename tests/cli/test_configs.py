"""Shipped configurations are found by their short names, and a file of the user's comes first."""

from pathlib import Path

import pytest

from dipo_lightning.cli.configs import find_config, shipped_folder, shipped_names, with_shipped_configs
from dipo_lightning.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def test_every_configuration_of_the_repository_has_a_short_name():
    assert set(shipped_names()) == {
        path.relative_to(ROOT / "configs").with_suffix("").as_posix() for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert "tofu/smollm2/unlearn" in shipped_names()


@pytest.mark.parametrize("name", ["trainer/fsdp2", "trainer/fsdp2.yaml", "configs/trainer/fsdp2.yaml"])
def test_a_shipped_configuration_is_found_from_any_folder(name, here):
    assert Path(find_config(name)).read_text() == (ROOT / "configs/trainer/fsdp2.yaml").read_text()


def test_a_file_of_the_users_comes_first(here):
    (here / "trainer").mkdir()
    (here / "trainer/fsdp2").touch()
    assert find_config("trainer/fsdp2") == "trainer/fsdp2"
    assert find_config("mine.yaml") == "mine.yaml"


def test_only_configs_are_replaced_among_arguments(here):
    folder = shipped_folder()
    given = ["fit", "--config", "trainer/cpu", "-c=trainer/gpu", "--run", "trainer/cpu", "--config=other.yaml"]
    expected = ["fit", "--config", f"{folder}/trainer/cpu.yaml", f"-c={folder}/trainer/gpu.yaml"]
    assert with_shipped_configs(given) == [*expected, "--run", "trainer/cpu", "--config=other.yaml"]


def test_a_command_finds_a_shipped_configuration_from_any_folder(here, capsys):
    with pytest.raises(SystemExit) as end:
        main(["scalability", "--config", "muse/scalability", "--print_config"])
    assert end.value.code in (0, None)
    assert "run: muse/news" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "made", "makers"),
    [
        ("muse/small", [], "`dipo-lightning muse-small`."),
        ("muse/small", ["runs/muse-small/target", "runs/muse-small/news"], "`dipo-lightning muse-small`."),
        (
            "tofu/smollm2/unlearn",
            [],
            "`dipo-lightning fit --config tofu/smollm2/target`; then "
            "`dipo-lightning fit --config tofu/smollm2/retain`.",
        ),
        (
            "tofu/smollm2/unlearn",
            ["runs/tofu-smollm2/models/target"],
            "no 'runs/tofu-smollm2/retain' to start from. To make it: "
            "`dipo-lightning fit --config tofu/smollm2/retain`.",
        ),
        ("tofu/llama32-1b/unlearn", ["runs/tofu-llama32-1b/models/target"], "--config tofu/llama32-1b/retain`."),
        ("tofu/smollm2/target", [], "`make smollm2` in a clone, or start from HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_a_configuration_without_what_it_starts_from_names_the_commands_that_make_it(
    here, config, made, makers, capsys
):
    for folder in made:
        (here / folder).mkdir(parents=True)
    assert main(["fit", "--config", config]) == 2
    assert makers in capsys.readouterr().err
