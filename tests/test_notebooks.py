"""Every library notebook runs alone, top to bottom, in a process of its own: its asserts are the unit tests of its module."""

from pathlib import Path

import nbformat
import pytest

from xstudy.core import XstudyError
from xstudy.notebooks import run_notebook

NBS = Path(__file__).resolve().parents[1] / "nbs"
COLD = ("51_notebooks", "52_batch")  # they start warm processes of their own


@pytest.mark.parametrize("path", sorted(NBS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path):
    "By the study's engine, which asks for a parameters cell: here an empty one."
    nb = nbformat.read(path, 4)
    nb.cells.insert(0, nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]}))
    nbformat.write(nb, tmp_path / path.name)
    try:
        run_notebook(tmp_path / path.name, tmp_path / f"{path.stem}.run.ipynb", timeout=600, cwd=NBS, warm=False if path.stem in COLD else None)
    except XstudyError as e:
        pytest.fail(f"{path.name}: {str(e)[-1500:]}", pytrace=False)
