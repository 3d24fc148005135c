"""The documentation: the site builds without a warning, links of the README lead somewhere, and every block is right.

Commands and configurations are read by the parsers that a user meets; a block marked ``gpu``, ``hub`` or ``long`` (an
HTML comment above it) is one that takes more than this to run.
"""

import ast
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import dipo_lightning
from dipo_lightning.cli.configs import find_config
from dipo_lightning.cli.main import COMMANDS, TRAINER_COMMANDS, main, spelled_out
from dipo_lightning.evaluation.scoring import BATCH_TOKENS
from dipo_lightning.metrics.functional.membership import FRACTION

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(
    r"^(?P<mark>[ ]*<!-- \w+ -->\n)?(?P<indent>[ ]*)```(?P<language>\w+)\n(?P<text>.*?)^(?P=indent)```", re.M | re.S
)
MARKS = {"gpu", "hub", "long"}
OTHER_PROGRAMS = {"pip", "source", "tensorboard", "torchrun", "git", "hf"}
CONFIG_KEYS = {"seed_everything", "trainer", "model", "data", "run", "ckpt_path"}
STAND_IN = "model: {class_path: dipo_lightning.DiPOModule, init_args: {pretrained: model}}\n"


class Block(NamedTuple):
    language: str
    mark: str
    text: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in some languages."""
    found = []
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        mark = (match["mark"] or "").strip("<!- >\n")
        assert not mark or mark in MARKS, f"{page.name}: unknown mark {mark}"
        found.append(Block(match["language"], mark, textwrap.dedent(match["text"])))
    return [block for block in found if block.language in languages]


def pages_with(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def project(here: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the page's Python blocks as ``my_project.py``, importable."""
    text = "\n\n".join(block.text for block in blocks(request.param, "python") if not block.mark)
    (here / "my_project.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(here)
    monkeypatch.delitem(sys.modules, "my_project", raising=False)
    return request.param


def parse(words: list[str]) -> None:
    """Let the command line read a command, and run nothing."""
    name, arguments = words[0], words[1:]
    if name in TRAINER_COMMANDS:
        for option, value in zip(arguments, arguments[1:], strict=False):
            if option == "--config" and not Path(find_config(value)).is_file():  # a file of the reader's
                Path(value).parent.mkdir(parents=True, exist_ok=True)
                Path(value).write_text(STAND_IN, encoding="utf-8")
        shows = any(argument.endswith((".help", "--help", "--print_config")) for argument in arguments)
        with pytest.raises(SystemExit) as end:
            main(words if shows else [*words, "--print_config"])
        assert end.value.code in (0, None), words
    elif name in COMMANDS:
        from jsonargparse import ArgumentParser

        module, function = COMMANDS[name].split(":")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        called = getattr(importlib.import_module(module), function)
        parser.add_function_arguments(called, as_positional=True)
        if arguments != ["--help"]:
            parser.parse_args(spelled_out(name, called, arguments))
    else:
        assert words[0] in ("--version", "--help"), words


@pytest.mark.parametrize("project", pages_with("bash"), ids=named, indirect=True)
def test_the_command_line_reads_every_command_of_a_page(project: Path) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for block in blocks(project, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:  # a variable for the command
                words.pop(0)
            if not words:
                continue
            if words[0] == "dipo-lightning":
                parse(words[1:])
            elif words[0] == "torchrun":
                parse(words[words.index("dipo_lightning") + 1 :])
            elif words[0] == "make":
                assert words[1] in targets, line
            elif words[:2] == [".venv/bin/python", "-m"]:
                assert importlib.util.find_spec(words[2]), line
            elif words[0] == ".venv/bin/python":
                assert (ROOT / words[1]).is_file(), line
            else:
                assert words[0].removeprefix(".venv/bin/") in OTHER_PROGRAMS | {"pre-commit"}, line


@pytest.mark.parametrize("project", pages_with("yaml"), ids=named, indirect=True)
def test_the_parser_reads_every_configuration_of_a_page(project: Path) -> None:
    for number, block in enumerate(blocks(project, "yaml")):
        path = Path(f"block{number}.yaml")
        path.write_text(block.text, encoding="utf-8")
        options = yaml.safe_load(block.text)
        if "methods" in options:
            from dipo_lightning.comparison.plan import read_comparison
            from dipo_lightning.comparison.work import Work

            comparison = read_comparison(path)
            assert comparison.methods
            if Path(comparison.base).is_file():  # not one that the reader makes first
                assert Work(comparison).planned()
        else:
            assert options.keys() <= CONFIG_KEYS, block.text
            given = "pretrained" in (options.get("model") or {}).get("init_args", {})
            parse(["fit", "--config", str(path), *([] if given else ["--model.pretrained", "model"])])


@pytest.mark.parametrize("project", pages_with("python"), ids=named, indirect=True)
def test_the_python_of_a_page_runs(project: Path) -> None:
    importlib.import_module("my_project")  # every block that is not marked
    for block in blocks(project, "python"):
        if block.mark:  # its imports, at least
            tree = ast.parse(block.text)
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(tree, named(project), "exec"), {})


@pytest.mark.parametrize("project", [ROOT / "docs" / "guides" / "extend.md"], ids=named, indirect=True)
@pytest.mark.parametrize(("name", "options"), [("MyMethod", {}), ("SofterPair", {}), ("Contrast", {"other": "second"})])
def test_the_methods_of_the_guide_train(project: Path, name: str, options: dict[str, str]) -> None:
    import lightning.pytorch as pl

    from dipo_lightning import UnlearningDataModule
    from tests.helpers.toys import save_toy

    save_toy("model")
    save_toy("second", seed=9)
    for part in ("forget", "retain"):
        row = json.dumps({"question": f"Who wrote about {part}?", "answer": "Ann did."})
        Path(f"{part}.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    module = getattr(importlib.import_module("my_project"), name)("model", chunk_size=2, **options)
    data = UnlearningDataModule("model", forget="forget.jsonl", retain="retain.jsonl", prompt="plain", batch_size=2)
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    assert trainer.global_step == 2
    assert not [key for key in module.state_dict() if not key.startswith("policy.")], "a checkpoint holds the policy"


@pytest.mark.parametrize("page", pages_with("json"), ids=named)
def test_the_json_of_a_page_is_json(page: Path) -> None:
    for block in blocks(page, "json"):
        try:
            json.loads(block.text)
        except json.JSONDecodeError:  # JSON lines
            for line in block.text.splitlines():
                json.loads(line)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=named)
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (ROOT / link).exists()]


def test_the_readme_is_a_page_that_one_reads() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Links and anchors are checked by the builder; formulas, commands and options are on their pages."""
    mkdocs = shutil.which("mkdocs", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if mkdocs is None:
        pytest.skip("the site needs mkdocs: pip install 'dipo-lightning[docs]'")
    command = [mkdocs, "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    commands = (tmp_path / "reference" / "commands.html").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f'id="{name}"' not in commands]
    options = (tmp_path / "reference" / "options.html").read_text(encoding="utf-8")
    classes = [name for name in dipo_lightning.public_classes() if not name.endswith("Error")]
    assert not [name for name in classes if f'id="{name.lower()}"' not in options]
    assert not re.findall(r"default <code>[A-Z][A-Z_]+</code>", options), "a constant without its value"
    for option, default in (("batch_tokens", BATCH_TOKENS), ("min_k_fraction", FRACTION)):
        assert re.search(rf"<code>{option}</code>[^|]*?default <code>{default}</code>", options), option
    assert "<math" in (tmp_path / "explanation" / "dipo.html").read_text(encoding="utf-8")
    assert "{{ " not in commands


def test_every_folder_is_a_package() -> None:
    """A folder without ``__init__.py`` works from the source tree but is left out of a wheel."""
    folders = {path.parent for path in (ROOT / "dipo_lightning").rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]
