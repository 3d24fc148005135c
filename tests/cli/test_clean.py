"""`clean` lists and removes what holds forget texts or the target's weights, and nothing else."""

import json
import subprocess
import sys

import pytest

from dipo_lightning.callbacks.run_record import FolderLock
from dipo_lightning.cli.clean import clean, find_copies
from dipo_lightning.cli.main import main
from dipo_lightning.errors import InputError

SECRET = "glassblower"
ATTACK = json.dumps({"aggregates": {"recall": 0.5}, "sets": {"forget": [SECRET]}})


@pytest.fixture
def run(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    for name in ("evaluations", "checkpoints", "model"):
        (folder / name).mkdir(parents=True)
    outside.mkdir()
    (outside / "forget.jsonl").write_text(SECRET)
    (folder / "evaluations/user_data_epoch=000_step=00004.json").write_text(json.dumps({
        "provenance": {"epoch": 0, "step": 4}, "aggregates": {"forget_rouge": 0.25}, "sets": {"forget": [SECRET]},
    }))  # fmt: skip
    (folder / "checkpoints/last.ckpt").write_text(SECRET)
    (folder / "results.html").write_text(SECRET)
    (folder / "events.out.tfevents.1").write_text(SECRET)
    (folder / "model/config.json").write_text("{}")
    (folder / "model/model.safetensors").write_text("forgotten")
    (folder / "config.yaml").write_text(
        f"model: {{init_args: {{pretrained: {outside}, alternatives_file: {outside}/a.jsonl}}}}\n"
        f"data: {{init_args: {{forget: {outside}/forget.jsonl}}}}\n"
    )
    (folder / "linked").symlink_to(outside)
    return folder


def texts(folder):
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and SECRET in path.read_text()
    }


def test_without_yes_nothing_is_removed(run, capsys):
    before = sorted(run.rglob("*"))
    clean(str(run))
    assert sorted(run.rglob("*")) == before
    out = capsys.readouterr().out
    assert "add --yes" in out
    assert "forget.jsonl (forget rows)" in out
    assert "a.jsonl (alternative answers)" in out
    assert "outside (target model)" in out


def test_with_yes_no_secret_is_left_and_model_and_scores_are(run, tmp_path):
    assert len(texts(run)) == 4
    clean(str(run), yes=True)
    assert not texts(run)
    assert (tmp_path / "outside/forget.jsonl").exists(), "behind a link"
    assert (run / "model/model.safetensors").read_text() == "forgotten"
    scores = json.loads((run / "scores.json").read_text())
    assert scores == {
        "evaluations/user_data_epoch=000_step=00004.json": {"epoch": 0, "step": 4, "aggregates": {"forget_rouge": 0.25}}
    }
    clean(str(run), yes=True)
    assert json.loads((run / "scores.json").read_text()) == scores, "a second call keeps them"


def test_the_shared_cache_of_the_reference_is_named_and_stays(run, tmp_path, monkeypatch, capsys):
    (run / "config.yaml").write_text("model: {init_args: {reference_cache: runs/reference_cache}}\n")
    cached = tmp_path / "runs/reference_cache/0123/values.bin"
    cached.parent.mkdir(parents=True)
    cached.write_text(SECRET)
    run = run.rename(tmp_path / "runs/run")
    for folder in (tmp_path, tmp_path / "outside"):  # where the run was started, and elsewhere
        monkeypatch.chdir(folder)
        clean(str(run))
        assert "reference_cache (hidden states of the forget rows" in capsys.readouterr().out
    clean(str(run), yes=True)
    assert cached.exists()


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("dipo_lightning.SelectiveModule", "reference: auto, retain_loss: kl", False),
        ("dipo_lightning.methods.selective.module.SelectiveModule", "reference: auto", False),
        ("GradDiffModule", "reference: auto, retain_loss: nll", False),
        ("GradDiffModule", "reference: auto, retain_loss: kl", True),
        ("dipo_lightning.NPOModule", "reference: auto, retain_loss: nll", True),
        ("dipo_lightning.NPOModule", "reference: live, retain_loss: nll", False),
        ("mine.SelectiveModule", "reference: auto, retain_loss: nll", True),
    ],
)
def test_a_cache_is_named_for_methods_that_use_one(run, tmp_path, monkeypatch, capsys, method, options, named):
    options = f"{{reference_cache: runs/reference_cache, {options}}}"
    (run / "config.yaml").write_text(f"model: {{class_path: {method}, init_args: {options}}}\n")
    (tmp_path / "runs/reference_cache").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    clean(str(run))
    assert ("reference_cache (hidden states" in capsys.readouterr().out) is named


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "evil.html").write_text("mine")
    with pytest.raises(InputError, match="is not a run"):
        clean(str(tmp_path), yes=True)
    with pytest.raises(InputError, match="no such folder"):
        find_copies(tmp_path / "nowhere")
    assert (tmp_path / "evil.html").exists()


def test_a_switch_needs_no_value(tmp_path):
    (tmp_path / "config.yaml").write_text("private: true\n")
    (tmp_path / "hparams.yaml").write_text("{}\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    assert main(["clean", str(tmp_path), "--yes", "false"]) == 0
    assert (tmp_path / "rows.jsonl").exists()
    assert main(["clean", str(tmp_path), "--yes"]) == 0
    assert not (tmp_path / "rows.jsonl").exists()


def test_what_lies_beside_runs_is_never_removed(run, tmp_path, capsys):
    mine = ["data/kept.jsonl", "examinations/a.json", "forget.jsonl", "index.html", "scores.json", "config.yaml"]
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    (tmp_path / "evaluations").mkdir()
    (run / "data").mkdir()
    (run / "verdict.json").write_text("[]")
    clean(str(tmp_path), yes=True)
    assert all((tmp_path / name).read_text() == "[]" for name in mine)
    assert (run / "data").is_dir(), "only forget keeps rows there"
    assert not texts(run)
    assert f"The numbers are in {run / 'scores.json'}." in capsys.readouterr().out
    assert (run / "scores.json").is_file()


@pytest.fixture
def forgotten(tmp_path):
    """A folder of forget that has been given to the command although it has files of its user."""
    folder = tmp_path / "project"
    sources = {"target model": "model", "forget rows": str(folder / "forget.jsonl")}
    written = {"data/forget.jsonl": SECRET, "examinations/target.json": SECRET, "attacks/robustness.json": ATTACK}
    written |= {"run/log.txt": SECRET, "run/checkpoints/run.json": SECRET, "run/model/config.json": "{}"}
    written |= {"verdict.json": "{}", "results.html": SECRET, "sources.json": json.dumps(sources)}
    written |= {".results.html.4711": SECRET, "run/.results.html.4711": SECRET}  # of commands killed in writing
    mine = ["forget.jsonl", "thesis.html", "server.log", "checkpoints/a.safetensors", "sub/evaluations/a.txt"]
    for name, text in [*written.items(), *((name, "mine") for name in [*mine, "wandb/a", "sub/config.yaml"])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_of_a_folder_of_forget_only_what_the_command_writes_is_removed(forgotten, capsys):
    mine = {path for path in forgotten.rglob("*") if path.is_file() and path.read_text() == "mine"}
    clean(str(forgotten), yes=True)
    assert {path for path in forgotten.rglob("*") if path.is_file() and path.read_text() == "mine"} == mine
    assert len(mine) == 7
    scores = json.loads((forgotten / "scores.json").read_text())
    assert scores["attacks/robustness.json"]["aggregates"] == {"recall": 0.5}
    assert not texts(forgotten)
    left = {path.name for path in forgotten.rglob("*") if path.is_file()} - {path.name for path in mine}
    assert left == {"config.json", "sources.json", "scores.json", "lock"}
    said = capsys.readouterr().out
    assert (
        f"Not written by forget, and so not looked into: {forgotten / 'checkpoints'}, {forgotten / 'forget.jsonl'}"
        in said
    )


def test_the_user_s_forget_rows_are_named_also_after_the_folder_was_moved(forgotten, tmp_path, capsys):
    copy = f"data: {{init_args: {{forget: {forgotten}/data/forget.jsonl}}}}"
    (forgotten / "run/config.yaml").write_text(f"model: {{init_args: {{pretrained: model}}}}\n{copy}\n")
    sources = json.loads((forgotten / "sources.json").read_text())
    (forgotten / "sources.json").write_text(json.dumps(sources | {"retain rows": "retain.jsonl"}))
    forgotten.rename(tmp_path / "moved")
    clean(str(tmp_path / "moved"))
    named = [line for line in capsys.readouterr().out.splitlines() if "for you to remove" in line]
    assert [line.partition("remove: ")[2] for line in named] == [
        "model (target model)",
        f"{forgotten / 'forget.jsonl'} (forget rows)",
    ]


def test_a_run_in_progress_is_left_alone(forgotten):
    (forgotten / "run/checkpoints/lock").touch()
    before = sorted(forgotten.rglob("*"))
    for place in (forgotten, forgotten / "run/checkpoints"):
        lock = FolderLock()
        code = f"from tests.cli.test_clean import *; clean({str(forgotten)!r}, yes=True)"
        lock.hold(place)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        lock.release()
        assert f"{place} is in use by process" in done.stderr
        assert "nothing was removed. Wait until it has ended." in done.stderr
        assert set(before) <= set(forgotten.rglob("*"))
    clean(str(forgotten), yes=True)
    assert not texts(forgotten)


def test_the_user_s_file_of_scores_stays(forgotten, run):
    for folder in (forgotten, run):
        (folder / "scores.json").write_text('{"mine": {"a": 1}}')
        before = sorted(folder.rglob("*"))
        with pytest.raises(InputError, match=r"scores\.json is no file of clean, .* Nothing was removed"):
            clean(str(folder), yes=True)
        assert sorted(folder.rglob("*")) == before
        assert (folder / "scores.json").read_text() == '{"mine": {"a": 1}}'


def test_cleaned_twice_is_cleaned(forgotten, run, capsys):
    for folder in (forgotten, run):
        clean(str(folder), yes=True)
        kept = (folder / "scores.json").read_text()
        clean(str(folder), yes=True)
        assert "holds no copy of the forget rows" in capsys.readouterr().out
        assert (folder / "scores.json").read_text() == kept


def test_weights_of_an_export_that_was_cut_off_are_removed(forgotten, run):
    for model in (forgotten / "run/model", run / "model"):
        for part in (model / ".partial", model.with_name("model.partial")):
            part.mkdir()
            for name in ("config.json", "model.safetensors"):
                (part / name).write_text(SECRET)
        clean(str(model.parents[1] if model.is_relative_to(forgotten) else run), yes=True)
        assert (model / "config.json").exists()
        assert not list(model.parent.rglob("*.partial"))
    assert not texts(run)
    whole = run / "model.partial"  # of an export whose move into its folder failed
    whole.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (whole / name).write_text("unlearned")
    clean(str(run), yes=True)
    assert (whole / "model.safetensors").exists()


def test_a_model_of_a_run_that_has_not_ended_is_named(forgotten, capsys):
    clean(str(forgotten))
    assert "had not ended" not in capsys.readouterr().out
    (forgotten / "verdict.json").unlink()
    for yes in (False, True, True):
        clean(str(forgotten), yes=yes)
        assert f"had not ended: {forgotten / 'run/model'} may still know the rows" in capsys.readouterr().out


def test_attacks_in_progress_are_left_alone(forgotten):
    (forgotten / "attacks/lock").touch()
    code = f"from tests.cli.test_clean import *; clean({str(forgotten)!r}, yes=True)"
    with FolderLock() as lock:
        lock.hold(forgotten / "attacks")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{forgotten / 'attacks'} is in use by process" in done.stderr
    assert (forgotten / "attacks/robustness.json").exists()


def test_hidden_files_of_the_user_s_stay(forgotten, run):
    for folder in (forgotten, run):
        for name in (".backup.7z", ".notes.2024"):
            (folder / name).write_text("mine")
        clean(str(folder), yes=True)
        assert {path.name for path in folder.glob(".*")} == {".backup.7z", ".notes.2024"}


def test_a_link_to_checkpoints_elsewhere_is_named(run, tmp_path, capsys):
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    clean(str(run), yes=True)
    assert f"remove: {tmp_path / 'disk'} (the target of the link checkpoints)" in capsys.readouterr().out
    assert (tmp_path / "disk/last.ckpt").exists()


def test_a_name_that_is_no_folder_is_refused(run):
    with pytest.raises(InputError, match="The name of the run folder is empty"):
        clean("")
    with pytest.raises(InputError, match="is a file; give the folder of a run"):
        clean(str(run / "config.yaml"))


def test_another_run_in_a_folder_of_forget_is_a_run_of_its_own(forgotten, run):
    run.rename(forgotten / "second")
    clean(str(forgotten), yes=True)
    assert not texts(forgotten)


def test_without_evaluations_no_numbers_are_named(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/lock").touch()
    clean(str(tmp_path), yes=True)
    assert "Removed 1 copies.\n" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_run_that_holds_a_configuration_of_a_model_is_cleaned_all_the_same(run):
    (run / "config.json").write_text("{}")
    clean(str(run), yes=True)
    assert not texts(run)
    assert (run / "model/model.safetensors").exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_an_attack_on_a_model_writes_is_found(tmp_path, interrupted):
    folder = tmp_path / "toy-attacks"
    (folder / "parts").mkdir(parents=True)
    written = [folder / "parts" / f"{name}.json" for name in ("unlearned_plain", "target_plain")]
    written += [] if interrupted else [folder / "robustness.json"]
    for file in written:
        file.write_text(SECRET)
    (folder / "robustness.md").write_text("| 0.5 |")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/mine.json").write_text(SECRET)
    for place in (folder, tmp_path):
        copies, runs = find_copies(place)
        assert {copy.path for copy in copies} == set(written)
        assert runs == [folder]
    clean(str(folder), yes=True)
    assert texts(tmp_path) == {"parts/mine.json"}
