"""No pickle is ever loaded: not by any line of the package, and not by any road that a file from outside can take."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml

from dipo_lightning.cli.main import main
from dipo_lightning.errors import InputError
from dipo_lightning.models.checkpoint import read_checkpoint, read_settled
from dipo_lightning.safety.shard_files import check_shards
from tests.helpers.toys import save_toy
from tests.safety.scan import calls

PACKAGE = Path(__file__).resolve().parents[2] / "dipo_lightning"


def payload(folder: Path, name: str) -> Any:
    """An object that leaves a file when it is unpickled, by whatever process."""

    class Writes:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (folder / name,)

    return Writes()


UNSAFE = {"pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.loads", "shelve.open",
          "eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system",
          "pandas.read_pickle"}  # fmt: skip


def unsafe_lines(source: str) -> list[int]:
    """Lines that load what can run code: pickles, numpy's objects, unrestricted YAML, eval."""
    found = []
    for line, name, keywords in calls(ast.parse(source)):
        bare = name.endswith("torch.load") and keywords.get("weights_only") is not True
        objects = name.endswith(("np.load", "numpy.load")) and keywords.get("allow_pickle") is not None
        reader = name.endswith(".FileSystemReader")  # torch's own unpickles the table of contents
        if name in UNSAFE or bare or objects or reader or keywords.get("weights_only") is False:
            found.append(line)
    return found


def test_no_line_of_the_package_loads_one() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    assert len(sources) > 100
    assert not {f"{path}:{line}" for path in sources for line in unsafe_lines(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle\npickle.load(f)",
        "from pickle import loads\nloads(x)",
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x, weights_only=False)",
        "import numpy as np\nnp.load(x, allow_pickle=True)",
        "from torch.distributed.checkpoint import FileSystemReader\nFileSystemReader(x)",
        "trainer.fit(m, weights_only=False)",
        "eval('1')",
    ],
)
def test_the_scan_sees_one(line: str) -> None:
    assert unsafe_lines(line) == [line.count("\n") + 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows, and an honest checkpoint of one step."""
    root = tmp_path_factory.mktemp("run")
    save_toy(root / "model")
    for name, count in (("forget", 4), ("retain", 5)):
        rows = [{"question": f"Who is {name} {i}?", "answer": f"Number {i}."} for i in range(count)]
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = {
        "trainer": {"accelerator": "cpu", "max_steps": 1, "logger": False, "enable_progress_bar": False,
                    "enable_model_summary": False, "default_root_dir": str(root)},
        "model": {"class_path": "dipo_lightning.GradDiffModule", "init_args": {"pretrained": str(root / "model")}},
        "data": {"class_path": "dipo_lightning.UnlearningDataModule",
                 "init_args": {"forget": str(root / "forget.jsonl"), "retain": str(root / "retain.jsonl"),
                               "prompt": "plain", "batch_size": 2}},
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(root / "config.yaml")]) == 0
    return root


def refused(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must end in a sentence and exit code 2; returns the sentence."""
    capsys.readouterr()
    assert main(args) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors[errors.index("error: ") :]


def test_the_payload_runs_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    torch.save(payload(tmp_path, "ran"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "ran").exists(), "else the tests below show nothing"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_a_folder_of_pickled_weights(run: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(run / "model", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(payload(tmp_path, "ran"), folder / name)
    config, model = str(run / "config.yaml"), str(folder)
    assert "pickled weights only" in refused(["fit", "--config", config, f"--model.pretrained={model}"], capsys)
    assert "pickled weights only" in refused(["chat", model, model], capsys)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(run: Path, tmp_path: Path) -> None:
    from dipo_lightning.models.loading import load_policy, load_tokenizer

    folder = shutil.copytree(run / "model", tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        torch.save(payload(tmp_path, "ran"), folder / name)
    load_policy(str(folder))
    load_tokenizer(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["hyper_parameters", "callbacks", "state_dict", "loops"])
def test_a_payload_in_a_checkpoint(run: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(last(run), weights_only=True)
    content[place]["x"] = payload(tmp_path, "ran")
    path = tmp_path / "bad.ckpt"
    torch.save(content, path)
    for command in (["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(path)], ["export", str(path)]):
        assert "more than tensors and plain values" in refused(command, capsys)
    assert not (tmp_path / "ran").exists()


def test_a_bare_pickle_as_a_checkpoint(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.ckpt"
    path.write_bytes(pickle.dumps(payload(tmp_path, "ran")))
    for command in (["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(path)], ["export", str(path)]):
        assert str(path) in refused(command, capsys)
    assert not (tmp_path / "ran").exists()


def sharded(run: Path, folder: Path, **optimizer: Any) -> Path:
    """The honest checkpoint as a folder of shards, with values of an optimiser."""
    content = torch.load(last(run), weights_only=True)
    state = {"state_dict": content.pop("state_dict"), "optimizer_0": {"param_groups": {"lr": 0.1} | optimizer}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that it writes without processes
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    torch.save(content, folder / "meta.pt")
    return folder


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # what reads it here
def test_an_honest_folder_of_shards_is_read(run: Path, tmp_path: Path) -> None:
    folder = sharded(run, tmp_path / "good.ckpt", betas=(0.9, 0.99), fused=None, params=["a"])
    check_shards(folder)
    assert read_checkpoint(folder).step == 1
    assert read_settled(folder)["global_step"] == 1


@pytest.mark.parametrize("where", ["table of contents", "value", "beside"])
def test_a_payload_in_a_folder_of_shards(
    run: Path, tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"x": payload(tmp_path, "ran")} if where == "value" else {}
    folder = sharded(run, tmp_path / "bad.ckpt", **values)
    if where == "table of contents":
        contents = pickle.loads((folder / ".metadata").read_bytes())
        contents.planner_data = payload(tmp_path, "ran")
        (folder / ".metadata").write_bytes(pickle.dumps(contents))
    elif where == "beside":
        torch.save({"hyper_parameters": payload(tmp_path, "ran")}, folder / "meta.pt")
    for command in (["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(folder)], ["export", str(folder)]):
        assert str(folder) in refused(command, capsys)
    with pytest.raises(InputError, match="so it is not loaded"):
        read_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"junk", pickle.dumps(3), pickle.dumps({"a": 1})])
def test_a_broken_table_of_contents(run: Path, tmp_path: Path, content: bytes) -> None:
    folder = sharded(run, tmp_path / "bad.ckpt")
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match=r"\.metadata"):
        read_checkpoint(folder)


def last(run: Path) -> Path:
    return next(run.rglob("last.ckpt"))
