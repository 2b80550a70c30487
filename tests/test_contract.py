"""Imports run one way, between rooms and between the files of the two lowest ones; and loading the package is quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not (ROOT / "setup.cfg").exists(), reason="the contract is not part of this installation")
def test_imports_keep_the_contract():
    command = [
        sys.executable,
        "-c",
        "import sys; from importlinter.cli import lint_imports_command as c; sys.exit(c())",
    ]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_package_loads_neither_drawing_nor_statistics_nor_built_in_models():
    code = "import sys, pyhessian_spectra; print([m for m in sys.modules if m.startswith(('matplotlib', 'seaborn', "
    code += "'scipy.', 'pandas', 'sklearn', 'pyhessian_spectra.problems'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
