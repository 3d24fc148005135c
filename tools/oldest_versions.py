"""Install the oldest versions that pyproject.toml allows, and run the tests that touch every dependency with them.

    python tools/oldest_versions.py [--folder build/oldest] [--torch-at-hand] [TESTS ...]

The oldest version is the one after ``>=``; indirect dependencies are as new as pip makes them. Warnings are not errors
here, since an old version may warn about a newer library beside it. ``--torch-at-hand`` links the torch of the Python
that runs this instead of downloading the oldest one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    *("tests/models", "tests/metrics", "tests/test_bad_input.py", "tests/benchmarks/user_data/test_command_line.py"),
    *(
        "tests/data/test_prompts.py",
        "tests/data/test_user_files.py",
        "tests/benchmarks/user_data/test_callback.py",
        "tests/evaluation/test_tensorboard.py",
    ),
]


def floors() -> dict[str, str]:
    """Each dependency with its oldest version: ``{"jsonargparse[signatures]": "4.53"}``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = {}
    for requirement in [*project["dependencies"], *extras["gguf"], *extras["test"]]:
        stated = re.match(r"([\w.-]+(?:\[\w+\])?)>=([\d.]+)", requirement)
        if stated is None:
            sys.exit(f"pyproject.toml gives {requirement} no oldest version (>=)")
        found[stated[1]] = stated[2]
    return found


def link_torch(packages: Path) -> None:
    """Make the torch at hand a package of the new environment."""
    here = Path(sysconfig.get_paths()["purelib"])
    for path in [here / "torch", here / "torchgen", here / "functorch", *here.glob("torch-*.dist-info")]:
        link = packages / path.name
        if path.exists() and not link.exists():
            link.symlink_to(path)


def build(folder: Path, torch_at_hand: bool) -> Path:
    """Make the environment; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pins = floors()
    if torch_at_hand:
        link_torch(Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)})))
        pins["torch"] = version("torch")
    # Lightning comes in two packages of one version
    wanted = [f"{name}=={lowest}" for name, lowest in pins.items()] + [f"pytorch-lightning=={pins['lightning']}"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    return python


def show(python: Path) -> None:
    """Print the floor and the installed version of every dependency; another version is an error."""
    names = [name.partition("[")[0] for name in floors()]
    code = f"from importlib.metadata import version\nfor name in {names}: print(name, version(name))"
    installed = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
    print(f"Python {sys.version.split()[0]}")
    for line, lowest in zip(installed.splitlines(), floors().values(), strict=True):
        name, found = line.split()
        print(f"  {name:<16} >= {lowest:<8} tested with {found}", flush=True)
        same = [int(part) for part in lowest.split(".")]
        if [int(part) for part in re.findall(r"\d+", found)][: len(same)] != same:
            sys.exit(f"{name} {found} is not its floor {lowest}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "oldest")
    parser.add_argument("--torch-at-hand", action="store_true")
    parser.add_argument("tests", nargs="*", default=TESTS)
    arguments = parser.parse_args()
    python = build(arguments.folder.resolve(), arguments.torch_at_hand)
    show(python)
    command = [str(python), "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "--disable-warnings"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments.tests], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
