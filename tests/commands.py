"""What the tests of the command line share."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import jsonschema
import torch

from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.report import results_schema

OWN = {"report.html", "results.json", "spectra.npz", "table.csv", "figures"}
FAST = ("--layers", "none", "--num-eigenvalues", 2)


class Result(NamedTuple):
    status: int
    out: str
    err: str


def small_mlp(seed: int = 0) -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLP((6, 4, 3), activation="tanh")


def results(out) -> dict:
    """What ``results.json`` holds, after checking it against the schema."""
    document = json.loads((Path(out) / "results.json").read_text())
    jsonschema.validate(document, results_schema())
    return document


def snapshot(directory: Path) -> dict[str, bytes]:
    """Everything below a directory, hidden files and empty directories included."""
    return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else b"" for p in directory.rglob("*")}


def one_sentence(result: Result, status: int) -> str:
    assert result.status == status, result
    lines = result.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pyhessian-spectra: "), result.err
    assert result.out == ""
    return lines[0].removeprefix("pyhessian-spectra: ")


def write_problem(folder: Path, loss: str = "F.cross_entropy(z, y)") -> None:
    """A module ``own`` in the current directory whose loss is this expression; ``calls`` counts its evaluations."""
    sys.modules.pop("own", None)
    (folder / "own.py").write_text(
        textwrap.dedent(
            f"""
            import os, signal
            import numpy as np, torch, torch.nn.functional as F
            from pyhessian_spectra import EmpiricalRisk
            from pyhessian_spectra.problems.architectures.mlp import MLP

            def risk(checkpoint):
                model = MLP((6, 4, 3), activation="tanh")
                model.load_state_dict(torch.load(checkpoint)["state_dict"])
                data = np.load("small.npz")
                calls = []

                def loss(z, y):
                    calls.append(checkpoint)
                    return {loss}

                return EmpiricalRisk(model, loss, (torch.from_numpy(data["x"]), torch.from_numpy(data["y"])))
            """
        )
    )
