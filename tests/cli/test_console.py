"""The console shows what a person wants to read; what libraries say is in the run's log file."""

import io
import logging
import warnings

import pytest

from dipo_lightning import ExportModel, StopOnCollapse
from dipo_lightning.cli import STEP, VERBOSE, console
from dipo_lightning.cli.main import main
from tests.helpers.refused import write_rows
from tests.helpers.toys import save_toy


@pytest.fixture
def lightning(monkeypatch):
    """Lightning's logger with a handler that one can read."""
    stream, logger = io.StringIO(), logging.getLogger("lightning.pytorch")
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(stream)])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.delenv(VERBOSE, raising=False)
    monkeypatch.delenv(STEP, raising=False)
    return logger, stream


def test_noise_and_repetitions_are_hidden_and_logged(lightning, tmp_path):
    logger, stream = lightning
    with console.quiet():
        for message in ("Seed set to 0", "GPU available: False, used: False", "16 forget rows", "16 forget rows"):
            logger.info(message)
        console.LOG_FILE.open_in(tmp_path)
        logger.info("`weights_only` was not set, defaulting to `False`.")
    assert stream.getvalue() == "16 forget rows\n"
    log = (tmp_path / console.LOG).read_text()
    assert [log.count(word) for word in ("Seed set", "GPU available", "16 forget rows", "weights_only")] == [1, 1, 2, 1]
    logger.info("Seed set to 1")
    assert stream.getvalue().endswith("Seed set to 1\n"), "afterwards all is as it was"


def test_verbose_shows_noise(lightning, monkeypatch):
    logger, stream = lightning
    monkeypatch.setenv(VERBOSE, "1")
    with console.quiet():
        logger.info("Seed set to 0")
    assert stream.getvalue() == "Seed set to 0\n"


def test_warnings_are_sentences_said_once(lightning):
    def said(text, category):  # by Python, which asks this function of the module
        return warnings.formatwarning(category(text), category, "library.py", 7)

    with console.quiet():
        assert said("The rows are few.", UserWarning) == "warning: The rows are few.\n"
        assert said("The rows are few.", UserWarning) == ""
        assert said("old name", FutureWarning) == ""
    assert "library.py:7: FutureWarning" in said("old name", FutureWarning)


def test_a_missing_export_is_no_warning_but_a_missing_rule_is():
    export, rule = ExportModel("model").state_key, StopOnCollapse(share=0.5).state_key
    words = "Be aware that when using `ckpt_path`, [...] Please add the following callbacks: "
    essential = console.Essential()
    assert not essential.shows(f"{words}{[export]}.")
    assert not essential.shows(f"{words}{[export, ExportModel('other').state_key]}.")
    assert essential.shows(f"{words}{[rule]}.")
    assert essential.shows(f"{words}{[export, rule]}.")


def test_a_step_shows_bars_only(lightning, monkeypatch, capsys, tmp_path):
    logger, stream = lightning
    monkeypatch.setenv(STEP, "1")
    with console.quiet():
        console.LOG_FILE.open_in(tmp_path)
        print("The model is in models/target")
        print("epoch   1, step     4: model utility 0.9")
        logger.info("16 forget rows")
    assert capsys.readouterr().out == ""
    assert stream.getvalue() == ""
    log = (tmp_path / console.LOG).read_text()
    assert "The model is in models/target" in log
    assert "epoch   1, step     4: model utility 0.9" in log


def test_a_fit_prints_a_line_per_evaluation_and_one_table(here, capfd):
    save_toy(here / "model")
    write_rows(here / "forget.jsonl", [{"question": f"Who is {i}?", "answer": f"Person {i}."} for i in range(4)])
    write_rows(here / "retain.jsonl", [{"question": f"What is {i}?", "answer": f"Thing {i}."} for i in range(4)])
    capfd.readouterr()
    data = ["--data.forget", "forget.jsonl", "--data.retain", "retain.jsonl", "--data.prompt", "plain"]
    callback = ["--trainer.callbacks+=MemorizationEvaluation", "--trainer.callbacks.measuring.generate=false"]
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "2", "--run", "run"]
    assert main(["fit", "--model.pretrained", "model", *data, *trainer, *callback]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines if line.startswith("epoch")] == ["epoch   0", "epoch   1", "epoch   2"]
    assert out.count("Every row and text") == 1
    assert lines[-1].startswith("Results are in")
    for noise in ("weights_only", "TPU", "Tip", "Trainable params", "v_num", "it/s", "\r"):
        assert noise not in out + err
    assert "TPU available" in (here / "run" / console.LOG).read_text()


def test_a_command_shows_warnings_as_lines_and_no_deprecation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warns(folder: str) -> None:
        """Warn."""
        warnings.warn(f"{folder} is\n nearly full.", stacklevel=1)
        warnings.warn("the old name goes in v6", FutureWarning, stacklevel=1)

    monkeypatch.setattr("dipo_lightning.cli.clean.clean", warns)
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *said: print(warnings.formatwarning(*said[:4]), end=""))
        assert main(["clean", "x"]) == 0
        shown = capsys.readouterr().out
    assert shown == "warning: x is nearly full.\n"
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["forget", "m", "f"], "Interrupted. Finished parts are kept; the same command resumes."),
        (["clean", "x"], "Interrupted."),
    ],
)
def test_an_interrupted_command_says_whether_it_goes_on(monkeypatch, capsys, command, said):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dipo_lightning.cli.main.run_command", interrupted)
    assert main(command) == 130
    assert capsys.readouterr().err == f"\n{said}\n"
