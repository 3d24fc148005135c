"""The reference pages build, all of them, and pdoc has nothing to complain of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_folder_is_a_package():
    """A folder without ``__init__.py`` works from the source tree but is left out of a wheel, and of the pages."""
    folders = {path.parent for path in (ROOT / "dipo_lightning").rglob("*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").is_file()]


@pytest.mark.slow
def test_the_reference_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "docs/build.py", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Warn" not in done.stderr
    modules = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "dipo_lightning").rglob("[!_]*.py")]
    missing = [str(module) for module in modules if not (tmp_path / module.with_suffix(".html")).is_file()]
    assert not missing, "a module without a page"
    index = (tmp_path / "dipo_lightning.html").read_text(encoding="utf-8")
    assert 'id="DiPOModule"' in index, "a public name that is loaded on first use"
    assert str(ROOT) not in index
