"""Every fault once, at a random moment of a toy study; `make faults` does each twenty times."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).parent / "faults" / "faults.py"
NAMES = ("worker", "scheduler", "whole", "damage", "two", "disk", "clock", "hang", "memory")


@pytest.fixture(scope="module")
def trials():
    "One trial of every fault, all in one process that imports once."
    done = subprocess.run([sys.executable, FAULTS, "--times", "1", "--seed", "1", "--json", "--plain-clock", "--late"], capture_output=True, text=True, timeout=900)
    assert done.stdout, done.stderr[-3000:]
    return {t["fault"]: t for t in json.loads(done.stdout)["trials"]}


@pytest.mark.parametrize("name", NAMES)
def test_fault_ends_in_equal_bytes(name, trials):
    if name == "disk" and (os.geteuid() or not shutil.which("mount")):
        pytest.skip("mounting a small disk needs root")
    assert trials[name]["recovered"] and trials[name]["equal"], trials[name]
