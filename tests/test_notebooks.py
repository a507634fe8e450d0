"""Every library notebook runs alone, top to bottom, in a process of its own: its asserts are the unit tests of its module."""

from pathlib import Path

import nbformat
import pytest

from xstudy.batch import WarmExecutor, cores
from xstudy.core import XstudyError
from xstudy.notebooks import run_notebook

NBS = Path(__file__).resolve().parents[1] / "nbs"
COLD = ("51_notebooks", "52_batch")  # they start warm processes of their own


def run(path: Path, folder: Path):
    "Runs a notebook by the study's engine, which asks for a parameters cell: here an empty one."
    nb = nbformat.read(path, 4)
    nb.cells.insert(0, nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}))
    nbformat.write(nb, folder / path.name)
    run_notebook(folder / path.name, folder / f"{path.stem}.run.ipynb", timeout=600, cwd=NBS, warm=False if path.stem in COLD else None)


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    "The runs of the notebooks that were asked for, as many at once as there are cores."
    asked = [item.callspec.params["path"] for item in request.session.items if item.function is test_notebook_runs]
    folder = tmp_path_factory.mktemp("notebooks")
    with WarmExecutor(cores()) as pool:
        yield {p: pool.submit(run, p, folder) for p in asked}


@pytest.mark.parametrize("path", sorted(NBS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, runs):
    try:
        runs[path].result()
    except XstudyError as e:
        pytest.fail(f"{path.name}: {str(e)[-1500:]}", pytrace=False)
