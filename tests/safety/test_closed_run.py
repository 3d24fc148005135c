"""One run from folders to every result, in a home that must not be named, with a token that must not be seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.helpers.small_tofu import write_tofu
from tests.helpers.toys import save_toy
from tests.safety.closed_run import HOSTILE, OBEYED

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "hf_" + "Zq7" * 11 + "k"
HOME = "jane.roe.of.nowhere"


class Run:
    """The folder of the run, and all that it printed."""

    def __init__(self, root: Path, pretrained: str) -> None:
        self.home = root / HOME
        self.folder = self.home / "project"
        self.folder.mkdir(parents=True)
        save_toy(self.folder / "model")
        write_tofu(self.folder / "tofu")
        for name, count in (("forget", 4), ("retain", 5)):
            rows = [{"question": f"Who is {name} {i}? {HOSTILE}", "answer": f"{i} {HOSTILE}"} for i in range(count)]
            text = "\n".join(json.dumps(row) for row in rows)
            (self.folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        self.inputs = set(self.files())
        names = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "LANG", "LC_ALL", "TMPDIR")
        environment = {name: os.environ[name] for name in names if name in os.environ}
        environment |= {"HOME": str(self.home), "HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": TOKEN,
                        "PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg", "PYTHONUTF8": "1"}  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "tests.safety.closed_run", pretrained.format(self.folder)],
                              cwd=self.folder, env=environment, input=f"Who? {HOSTILE}\n/x{HOSTILE}\n".encode(),
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)  # fmt: skip
        self.said = done.stdout.decode(errors="surrogateescape")
        assert done.returncode == 0, self.said[-3000:]
        assert self.said.endswith("all done\n")

    def files(self) -> list[Path]:
        """Every file below the home but what libraries keep for themselves."""
        return [path for path in self.home.rglob("*") if path.is_file() and ".cache" not in path.parts]

    def left(self) -> list[Path]:
        """Files that the run wrote."""
        return [path for path in self.files() if path not in self.inputs]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("closed"), "{}/model")


def test_all_of_it_works_without_a_network(run: Run) -> None:
    left = {str(path.relative_to(run.folder)) for path in run.left()}
    wanted = {"page.html", "exported/README.md", "run/model/README.md", "run/results.html", "run/checkpoints/last.ckpt"}
    assert wanted <= left
    assert any("tfevents" in name for name in left)


def test_no_token_and_no_home_in_anything_that_is_left(run: Run) -> None:
    assert len(run.left()) > 15
    found = {}
    needs_paths = {"config.yaml", "last.ckpt", "run.json"}  # to be run and resumed from as they are
    for path in run.left():
        content = path.read_bytes()
        for secret in (TOKEN, HOME):
            if path.name in needs_paths and secret == HOME:
                continue
            if secret.encode() in content or secret in str(path.relative_to(run.home)):
                found[str(path.relative_to(run.folder))] = secret
    assert not found
    assert TOKEN not in run.said


def test_nothing_that_a_terminal_obeys_is_printed(run: Run) -> None:
    assert "unlearned" in run.said
    assert "alert" in run.said, "what the model said is shown"
    assert not set(OBEYED) & set(run.said.replace("\r\n", "\n"))
    assert "\r" not in run.said.partition("Ask both models")[2], "before it there are progress bars"


@pytest.mark.parametrize("name", ["page.html", "run/results.html"])
def test_pages_show_it_and_run_none_of_it(run: Run, name: str) -> None:
    text = (run.folder / name).read_text(encoding="utf-8")
    tags: list[tuple[str, dict]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(text)
    assert "&lt;script&gt;alert(" in text
    assert "script" not in {tag for tag, _ in tags}
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    assert not any("javascript:" in str(value) for _, attributes in tags for value in attributes.values())
    assert not set(OBEYED) & set(text)


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")  # TensorBoard's own
def test_tensorboard_shows_it_as_text(run: Run) -> None:
    """The text is put through what TensorBoard itself makes of it, and then looked at as HTML."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugin_util import markdown_to_safe_html

    events = EventAccumulator(str(run.folder / "run"), size_guidance={"tensors": 0}).Reload()
    tables = [tag for tag in events.Tags()["tensors"] if tag.endswith("answers/text_summary")]
    assert {tag.partition("/")[0] for tag in tables} == {"user_data", "tofu"}
    for tag in tables:
        table = events.Tensors(tag)[-1].tensor_proto.string_val[0].decode()
        assert "alert" in table
        assert not set(OBEYED + "<>`") & set(table)
        assert all(line.count("|") == 5 for line in table.splitlines())
        html = markdown_to_safe_html(table)
        assert not {f"<{kind}" for kind in ("script", "img", "a ", "strong", "code", "h1")} & {
            f"<{kind}" for kind in ("script", "img", "a ", "strong", "code", "h1") if f"<{kind}" in html
        }
        assert "<script>alert" in unescape(html)


def test_cards_hold_none_of_it(run: Run) -> None:
    for name in ("exported/README.md", "run/model/README.md"):
        card = (run.folder / name).read_text(encoding="utf-8")
        assert "Measured results" in card
        assert not set(OBEYED) & set(card)
        assert "<script" not in card
