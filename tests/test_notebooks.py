"""The notebooks run from the first cell to the last, and their stored outputs are what the code gives today."""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip(
    "nbformat", reason="the notebooks need nbformat: pip install 'dipo-lightning[notebooks]'"
)
pytest.importorskip("nbclient", reason="the notebooks need nbclient: pip install 'dipo-lightning[notebooks]'")
pytest.importorskip("ipykernel", reason="the notebooks need ipykernel: pip install 'dipo-lightning[notebooks]'")

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = ["tour", "how_dipo_works", "a_new_method", "reading_results"]
LARGEST = 300_000  # bytes; pictures are small
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")


def texts(cell: Any) -> list[str]:
    """Texts that a cell printed or returned, and a note of each picture."""
    found = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            found.append(f"{output['name']}: {output['text']}")
        elif output["output_type"] in ("display_data", "execute_result"):
            data = output["data"]
            found.append("a picture" if "image/png" in data else data["text/plain"])
        else:
            found.append(output["output_type"])
    return found


def coarse(text: str) -> str:
    """The text with its numbers to three significant digits."""
    return NUMBER.sub(lambda match: f"{float(match[0]):.3g}", text)


def test_every_notebook_is_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_small_and_without_errors_or_chatter(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run tools/execute_notebooks.py"
    outputs = [text for cell in code for text in texts(cell)]
    assert not [text for text in outputs if text.startswith(("stderr", "error"))]
    assert not [text for text in outputs if re.search(r"/(tmp|home|root|work)/", text)], "a path of one machine"


@pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")  # pyzmq under Windows
@pytest.mark.filterwarnings("ignore:.*event loop:DeprecationWarning")  # jupyter_core asks asyncio by an old name
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_stored_outputs_are_what_the_code_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.execute_notebooks import execute, machine

    for variable in ("IPYTHONDIR", "JUPYTER_DATA_DIR"):  # neither profiles nor kernels of the user
        monkeypatch.setenv(variable, str(tmp_path / variable))
    path = FOLDER / f"{name}.ipynb"
    stored = nbformat.read(path, as_version=4)
    (tmp_path / "run").mkdir()
    fresh = execute(path, tmp_path / "run")
    same_machine = stored.metadata["outputs_from"] == machine()
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        if same_machine or "by-machine" not in old.metadata.get("tags", []):
            assert [coarse(text) for text in texts(new)] == [coarse(text) for text in texts(old)], (
                f"cell {old.id} of {name}.ipynb gives something else than it shows; run tools/execute_notebooks.py"
            )


def test_the_comparison_sees_a_stale_number() -> None:
    assert coarse("p = 0.12345 at step 20") == coarse("p = 0.12349 at step 20")
    assert coarse("p = 0.12345 at step 20") != coarse("p = 0.12445 at step 20")
    assert coarse("log10 p = -3.21e-05") != coarse("log10 p = -3.25e-05")
    assert coarse("Author7 has 16 rows") == "Author7 has 16 rows"
