"""Where Krylov vectors lie: the same numbers in memory and on disk, and no file is left behind."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from passes import run_pass

from pyhessian_spectra import DiagonalOperator, LinearOperator, VectorSpace, lanczos
from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra import basis as basis_module
from pyhessian_spectra.spectra.basis import KrylovBasis


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four vectors, so that small cases have many of them."""
    monkeypatch.setattr(basis_module, "_MOST_ROWS", 4)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def diagonal(n: int = 5000, dtype: torch.dtype = torch.float32) -> DiagonalOperator:
    return DiagonalOperator(torch.randn(n, generator=generator(), dtype=torch.float64).to(dtype) ** 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kept", [0, 1, 9, 30, 100])
def test_vectors_come_back_as_they_were_wherever_they_lie(dtype, kept):
    vectors = torch.randn(31, 50, generator=generator()).to(dtype)
    basis = KrylovBasis(VectorSpace(50, dtype=dtype), memory_budget=kept * 50 * dtype.itemsize)
    for v in vectors:
        basis.append(v, 1.0)
    assert torch.equal(basis.rows(31), vectors) and torch.equal(basis.rows(10), vectors[:10])
    row = 50 * dtype.itemsize
    assert basis.bytes_in_memory <= kept * row + 4 * row  # the block being filled
    held = min(kept // 4 * 4, 28)  # whole blocks of four within the budget; the last three are being filled
    assert basis.bytes_on_disk == (28 - held) * row
    assert ("on disk" in basis.place) == (held < 28)


@pytest.mark.parametrize("against", [None, 3])
def test_lanczos_gives_the_same_bits_in_memory_and_on_disk(against):
    op = diagonal()
    locked = None if against is None else torch.linalg.qr(torch.randn(5000, against, generator=generator(7)))[0]
    start = torch.randn(5000, generator=generator(1), dtype=torch.float64)
    memory, disk = (lanczos(op, start, 42, against=locked, memory_budget=budget) for budget in (None, 10 * 5000 * 4))
    assert memory.vectors.bytes_on_disk == 0 and disk.vectors.bytes_on_disk == 32 * 5000 * 4
    assert np.array_equal(memory.alphas, disk.alphas) and np.array_equal(memory.betas, disk.betas)
    assert torch.equal(memory.basis, disk.basis) and memory.orthogonality == disk.orthogonality
    coefficients = memory.eigh()[1][:, [0, 3, -1]]
    assert torch.equal(memory.combine(coefficients), disk.combine(coefficients))
    gram = memory.basis.double() @ memory.basis.double().T - torch.eye(42)
    rounding = 10 * torch.finfo(torch.float32).eps  # of inner products of unit vectors in float32
    assert memory.orthogonality == pytest.approx(float(gram.abs().max()), abs=rounding)


def test_a_pass_over_an_operator_gives_the_same_bits_in_memory_and_on_disk_and_says_where():
    def found(budget):
        return run_pass(
            diagonal(dtype=torch.float64),
            k=3,
            num_probes=2,
            num_steps=20,
            tol=1e-6,
            max_steps=80,
            memory_budget=budget,
            generator=generator(2),
        )

    memory, disk = found(None), found(5 * 5000 * 8)
    assert np.array_equal(memory.spectrum.nodes, disk.spectrum.nodes)
    assert np.array_equal(memory.largest.eigenvectors, disk.largest.eigenvectors)
    assert memory.trace == disk.trace
    assert memory.spectrum.facts["basis"].startswith("kept in memory: ")
    assert re.fullmatch(r"\d+ KiB in memory, \d.\d MiB on disk", disk.spectrum.facts["basis"])


def test_vectors_that_were_dropped_are_missed_in_one_sentence():
    found = lanczos(diagonal(), torch.ones(5000), 5)
    with pytest.raises(InputError, match="not kept"):
        dataclasses.replace(found, vectors=None).combine(np.eye(5))


def test_a_full_disk_is_said_in_one_sentence_with_the_remedy(monkeypatch):
    def full(descriptor, start, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(basis_module.os, "posix_fallocate", full)
    with pytest.raises(OutOfMemoryError, match=r"No space left on device.*lower max_steps"):
        lanczos(diagonal(), torch.ones(5000), 20, memory_budget=0)


_SPILLS = """
import os, signal, sys, torch
from pyhessian_spectra import lanczos
from pyhessian_spectra.spectra.lanczos import LanczosProcess
from test_basis import diagonal
process = LanczosProcess(diagonal(), torch.randn(5000), memory_budget=0)
process.extend(200)
assert process.vectors.bytes_on_disk > 0
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
raise RuntimeError("while vectors are on disk")
"""


@pytest.mark.skipif(os.name != "posix", reason="a file without a name needs POSIX")
@pytest.mark.parametrize("end", ["kill", "raise"])
def test_no_file_is_left_behind_however_the_process_ends(tmp_path, end):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent)])
    child = subprocess.run(
        [sys.executable, "-c", _SPILLS, end],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == (-signal.SIGKILL if end == "kill" else 1), child.stderr
    assert "while vectors are on disk" in child.stderr or end == "kill"
    assert list(tmp_path.iterdir()) == []


def test_an_operator_may_return_the_vector_it_was_given():
    class Identity(LinearOperator):
        def _matvec(self, v):
            return v

    start = torch.arange(1.0, 51.0, dtype=torch.float64)
    found = lanczos(Identity(50, dtype=torch.float64), start, 3)
    assert found.alphas == pytest.approx([1.0]) and found.betas[-1] == 0
    assert torch.equal(start, torch.arange(1.0, 51.0, dtype=torch.float64))
