"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # two workers of two threads on two cores are many times slower than of one
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


LONG = ("test_study", "test_faults", "test_runs", "test_provenance", "test_attack_commands", "test_perturbations", "test_store")


def pytest_collection_modifyitems(items):
    "`make test` runs on two processes: a file stays on one, for its fixtures are dear; the longest begin, notebooks fill in at the end."
    order = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda x: len(LONG) + 1 if x.path.stem == "test_notebooks" else order.get(x.path.stem, len(LONG)))
    for item in items:
        if item.path.stem != "test_notebooks":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def data_root() -> Path:
    "The folder with real task files. Tests that need it are skipped where there is none, and fail where CI=true says that it must be there."
    root = os.environ.get("XSTUDY_DATA", "")
    if root and Path(root).is_dir():
        return Path(root)
    why = f"XSTUDY_DATA names no folder with task files ({root!r})" if root else "XSTUDY_DATA is not set: no real task files to read"
    if root or os.environ.get("CI", "").lower() == "true":
        pytest.fail(why)
    pytest.skip(why)
