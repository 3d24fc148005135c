"""Run the notebooks and store their outputs: ``python tools/execute_notebooks.py [NOTEBOOK ...]``.

A notebook's metadata names the machine that its outputs are from. Another processor or version of torch rounds
differently, and training multiplies the difference; there the test skips the cells that are tagged ``by-machine``.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SECONDS = 1800  # a cell's limit, generous for a busy machine
WIDGET = "application/vnd.jupyter.widget-view+json"


def machine() -> dict[str, str]:
    """Describe the machine as far as the rounding of a sum depends on it."""
    processor = next(
        (line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    return {"torch": torch.__version__, "processor": processor, "instructions": torch.backends.cpu.get_cpu_capability()}


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def execute(path: Path, folder: Path) -> NotebookNode:
    """Run a notebook from its first cell on one core, in ``folder``, with the package of this tree.

    Widgets, such as the bars that tqdm draws where ipywidgets is installed, are left out of its outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    search = os.pathsep.join([str(FOLDER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": search}
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        record_timing=False,
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    notebook.metadata.pop("widgets", None)
    return notebook


def main() -> None:
    """Execute the named notebooks, or all, and save them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", type=Path, nargs="*", metavar="NOTEBOOK", default=sorted(FOLDER.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        notebook.metadata["outputs_from"] = machine()
        notebook.metadata["language_info"] = {"name": "python"}  # its patch version is of no interest
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main()
