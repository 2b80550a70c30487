"""VectorSpace: the only place where the coordinates of vectors are added up, and where vectors are drawn.

Lanczos, eigensolvers, traces, bounds and conjugate gradients take inner products, norms and random vectors from the
operator's space. A space whose vectors lie on several processes overrides :meth:`VectorSpace.sum_over_parts` and the
two ways of drawing; nothing else changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Entries converted to float64 at a time: 8 MiB, within the caches of most machines.
_CONVERTED = 2**20

# Entries over which a sum is left to BLAS in the vectors' dtype; such sums are then added in float64. With sums of
# 2 million products in float32 a Krylov basis was orthogonal to 2e-4, with these to 6e-6.
_SUMMED = 2**13


class VectorSpace:
    """Vectors of ``n`` real coordinates in one dtype on one device, all of them in this process.

    Parameters
    ----------
    n : int
        Dimension.
    dtype : torch.dtype
    device : torch.device or str

    Attributes
    ----------
    local_n : int
        Length of the tensors that stand for vectors in this process; ``n`` unless vectors are split over processes.
    """

    def __init__(self, n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.n, self.dtype, self.device = n, dtype, torch.device(device)
        self.local_n = n

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, VectorSpace) and type(self) is type(other)
        return same and (self.n, self.dtype, self.device) == (other.n, other.dtype, other.device)  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self.n, self.dtype, self.device))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n}, dtype={self.dtype}, device='{self.device}')"

    @property
    def eps(self) -> float:
        """Rounding unit of the dtype."""
        return float(torch.finfo(self.dtype).eps)

    def sum_over_parts(self, partial: Tensor) -> Tensor:
        """The sum over all processes of what each has added up over its own coordinates; here there is only one."""
        return partial

    def inner(self, a: Tensor, b: Tensor) -> float:
        """``a^T b`` for vectors (n,), summed in float64 without a copy of more than a part of either."""
        parts = zip(a.split(_CONVERTED), b.split(_CONVERTED), strict=True)
        return float(self.sum_over_parts(torch.stack([torch.dot(x.double(), y.double()) for x, y in parts]).sum()))

    def norm(self, v: Tensor) -> float:
        """``||v||`` for a vector (n,)."""
        return self.inner(v, v) ** 0.5

    def column_inner(self, v: Tensor, w: Tensor) -> Tensor:
        """``v_i^T w_i`` for columns (n, k), shape (k,), float64."""
        return self.sum_over_parts((v.double() * w.double()).sum(dim=0))

    def section_inner(self, v: Tensor, w: Tensor, sections: list[int]) -> Tensor:
        """``v^T w`` of each section of the local coordinates, shape (s,), float64; ``sections`` are their lengths."""
        return self.sum_over_parts(torch.stack([part.sum() for part in (v.double() * w.double()).split(sections)]))

    def gram(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``R C`` for rows (b, n) and columns (n, k), shape (b, k), float64."""
        total = torch.zeros(len(rows), columns.shape[1], dtype=torch.float64, device=rows.device)
        for start in range(0, len(columns), _SUMMED):
            total += rows[:, start : start + _SUMMED] @ columns[start : start + _SUMMED]
        return self.sum_over_parts(total)

    def deviation(self, vectors: Tensor) -> float:
        """``max |V^T V - I|`` of columns (n, k)."""
        gram = self.gram(vectors.T, vectors)
        gram.diagonal().sub_(1)
        return float(gram.abs().max()) if gram.numel() else 0.0

    def orthonormal(self, block: Tensor) -> Tensor:
        """An orthonormal basis, in columns, of the numerical range of (n, k)."""
        u, sigma, _ = torch.linalg.svd(block.double(), full_matrices=False)
        rank = int((sigma > sigma.max() * max(block.shape) * torch.finfo(block.dtype).eps).sum())
        return u[:, :rank].to(block.dtype)

    def randn(self, generator: torch.Generator, k: int | None = None) -> Tensor:
        """A standard normal vector (n,), or ``k`` of them in columns, the same whatever dtype and device are."""
        shape = (self.n,) if k is None else (self.n, k)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def rademacher(self, generator: torch.Generator, k: int | None = None) -> Tensor:
        """A vector (n,) of random signs, or ``k`` of them in columns."""
        shape = (self.n,) if k is None else (self.n, k)
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
        return (2 * signs - 1).to(self.device, self.dtype)

    def sphere(self, generator: torch.Generator, against: Tensor | None = None) -> Tensor:
        """A unit vector (n,), uniform in the complement of orthonormal columns (n, k)."""
        v = self.randn(generator)
        if against is not None:
            v = v - against @ self.gram(against.T, v[:, None])[:, 0].to(v)
        return v / self.norm(v)


def fresh_generator() -> torch.Generator:
    """A CPU generator with a seed that differs from call to call."""
    generator = torch.Generator()
    generator.seed()
    return generator
