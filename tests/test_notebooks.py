"""Every library notebook runs alone, top to bottom, in a fresh kernel: its asserts are the unit tests of its module."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NBS = Path(__file__).resolve().parents[1] / "nbs"


@pytest.mark.parametrize("path", sorted(NBS.glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs(path):
    nb = nbformat.read(path, 4)
    try:
        NotebookClient(nb, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(NBS)}}).execute()
    except CellExecutionError as e:
        pytest.fail(f"{path.name}: {str(e)[-1500:]}", pytrace=False)
