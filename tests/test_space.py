"""The space of vectors: a space whose vectors lie on several processes serves every algorithm unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from pyhessian_spectra import (
    LinearOperator,
    ShiftedOperator,
    VectorSpace,
    analyze_operator,
    cg,
    frobenius_norm,
    slq,
    trace,
)
from pyhessian_spectra.testing import matrix_with_spectrum

VALUES = np.sort(np.r_[np.linspace(-0.1, 0.1, 80), np.geomspace(1, 20, 8), -np.geomspace(0.5, 3, 4)])
METHODS = ("hutchinson", "hutch++", "xtrace")
SETTINGS = dict(num_eigenvalues=5, num_steps=20, max_steps=60, exact_limit=0, trace_probes=12, tol=1e-6)


class Sharded(VectorSpace):
    """Each process holds a slice of every vector."""

    def __init__(self, n: int, **kind) -> None:
        super().__init__(n, **kind)
        share = torch.arange(n).tensor_split(dist.get_world_size())[dist.get_rank()]
        self.slice, self.local_n = slice(int(share[0]), int(share[-1]) + 1), len(share)

    def sum_over_parts(self, partial: torch.Tensor) -> torch.Tensor:
        total = partial.contiguous()
        dist.all_reduce(total)
        return total

    def randn(self, generator: torch.Generator, k: int | None = None) -> torch.Tensor:
        return super().randn(generator, k)[self.slice].clone()

    def rademacher(self, generator: torch.Generator, k: int | None = None) -> torch.Tensor:
        return super().rademacher(generator, k)[self.slice].clone()

    def orthonormal(self, block: torch.Tensor) -> torch.Tensor:
        """By the Gram matrix, twice."""
        for _ in range(2):
            values, vectors = torch.linalg.eigh(self.gram(block.T, block))
            kept = values > 1e-10 * values.max()
            block = block @ (vectors[:, kept] / values[kept].sqrt())
        return block


class Rows(LinearOperator):
    """A matrix of which each process holds the rows of its coordinates."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.space = Sharded(len(matrix), dtype=matrix.dtype)
        self._columns = matrix[:, self.space.slice]

    def _matvec(self, v: torch.Tensor) -> torch.Tensor:
        return self.space.sum_over_parts(self._columns @ v)[self.space.slice].clone()


def found_of(op: LinearOperator) -> dict:
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    analysis = analyze_operator(op, generator=seeded(), **SETTINGS)
    b = op.space.randn(seeded())
    damped = cg(ShiftedOperator(op, 5.0), b, max_iterations=200, rtol=1e-10)
    return {
        "largest": analysis.largest.eigenvalues,
        "smallest": analysis.smallest.eigenvalues,
        "others": analysis.largest.others,
        "nodes": analysis.spectrum.nodes,
        "trace": analysis.trace.value,
        "frobenius": frobenius_norm(op, generator=seeded()).value,
        "slq": slq(op, num_probes=2, num_steps=10, generator=seeded()).nodes,
        **{method: trace(op, num_probes=12, method=method, generator=seeded()).value for method in METHODS},
        "cg": (damped.status, damped.num_iterations, damped.model[-1]),
    }


def _rank(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    matrix = matrix_with_spectrum(VALUES).to_dense()
    torch.save(found_of(Rows(matrix)), f"{path}.{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_vectors_on_two_processes_give_the_numbers_of_one(tmp_path):
    path = str(tmp_path / "rendezvous")
    torch.multiprocessing.spawn(_rank, args=(path,), nprocs=2)
    whole = found_of(matrix_with_spectrum(VALUES))
    np.testing.assert_allclose(whole["largest"], VALUES[-5:], rtol=1e-9)
    for rank in range(2):
        found = torch.load(f"{path}.{rank}", weights_only=False)
        assert found.keys() == whole.keys()
        for name, expected in whole.items():
            if name == "cg":
                assert found[name][:2] == expected[:2]
                assert found[name][2] == pytest.approx(expected[2], rel=1e-10)
            else:
                np.testing.assert_allclose(found[name], expected, rtol=1e-7, atol=1e-7, err_msg=name)


def test_a_space_adds_up_in_float64():
    space = VectorSpace(100_000, dtype=torch.float32)
    v = space.randn(torch.Generator().manual_seed(0))
    assert space.inner(v, v) == pytest.approx(float(v.double() @ v.double()), rel=1e-14)
    block = space.orthonormal(space.randn(torch.Generator().manual_seed(1), 3))
    assert space.deviation(block) < 1e-6 and block.dtype == torch.float32
    u = space.sphere(torch.Generator().manual_seed(2), against=block)
    assert space.norm(u) == pytest.approx(1, rel=1e-6) and float(space.gram(block.T, u[:, None]).abs().max()) < 1e-6
