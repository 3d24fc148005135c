"""A wrong option or class gets one sentence and the nearest right one; help imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dipo_lightning.cli.attack import attack
from dipo_lightning.cli.main import COMMANDS, SUMMARIES, TRAINER_COMMANDS, main, spelled_out

WRONG = {
    "--model=NPO": "model: there is no class 'NPO'. Did you mean 'NPOModule'?",
    "--trainer.callbacks+=ResultPage": "trainer.callbacks: there is no class 'ResultPage'. Did you mean 'ResultsPage'?",
    "--trainer.callbacks+=EarlyStoping": "Did you mean 'EarlyStopping'?",
    "--data=TOFUData": "data: there is no class 'TOFUData'. Did you mean 'TOFUDataModule'?",
    "--optimizer=SGD": "Did you mean '--model.optimizer'?",
    "--lr=1e-4": "Did you mean '--model.optimizer=AdamW --model.optimizer.lr'?",
    "--epochs=3": "Did you mean '--trainer.max_epochs'?",
    "--output_dir=x": "Did you mean '--run'?",
    "--max_epochs=3": "Did you mean '--trainer.max_epochs'?",
    "--max-epochs=3": "Did you mean '--trainer.max_epochs'?",
    "--reference=live": "Did you mean '--model.reference'?",
}


@pytest.mark.parametrize("option", WRONG)
def test_the_nearest_right_name_is_given(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["fit", option])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert WRONG[option] in said
    assert said.count("error: ") == 1


@pytest.mark.parametrize(
    ("option", "right"),
    [("learning_rate", "lr"), ("max_epochs", "epochs"), ("output_dir", "output"), ("run", "output"), ("seeds", "seed")],
)
def test_an_option_of_other_programs_or_of_fit_gets_the_command_s_own(
    option: str, right: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["forget", "model", "forget.jsonl", f"--{option}", "1"])
    said = capsys.readouterr().err
    assert f"Did you mean '--{right}'?" in said or f"Did you mean '{right}'?" in said


def test_an_old_name_is_explained_only_where_its_new_one_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    for command, said in (["fit"], "It is model.pair.alpha now"), (["forget", "model", "rows.jsonl"], "There is: "):
        with pytest.raises(SystemExit):
            main([*command, "--alpha", "1"])
        message = capsys.readouterr().err
        assert said in message
        assert ("model.pair" in message) == (command == ["fit"])


def test_every_command_has_its_line() -> None:
    assert set(SUMMARIES) == {*COMMANDS, *TRAINER_COMMANDS}


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys; from dipo_lightning.cli.main import main; main(['--help']);"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'yaml'} & set(sys.modules);"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fit " in done.stdout


def test_a_list_needs_no_brackets() -> None:
    given = ["model", "--attacks", "wordings", "--metrics=probability,rouge", "--prefixes.shares", "0,100"]
    found = spelled_out("attack", attack, [*given, "--attacks=[sampling, prefixes]", "--sampling.k=3"])
    assert found == [
        *("model", "--attacks", "[wordings]", "--metrics=[probability,rouge]", "--prefixes.shares", "[0,100]"),
        *("--attacks=[sampling, prefixes]", "--sampling.k=[3]"),
    ]
