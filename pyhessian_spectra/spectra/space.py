"""VectorSpace: inner products, norms and random vectors. No other module sums over the coordinates of vectors.

Lanczos, eigensolvers, traces, bounds and conjugate gradients take all three from the operator's space. A space whose
vectors are split over several processes overrides :meth:`VectorSpace.sum_over_parts`, ``randn`` and ``rademacher``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Entries converted to float64 at a time: 8 MiB, within the caches of most machines.
_CONVERTED = 2**20

# Entries of each of five vectors that a core's cache holds together.
_CACHED = 2**14

# Length of the partial sums that BLAS takes in the vectors' dtype; these are then added in float64. With sums of 2
# million products in float32 a Krylov basis was orthogonal to 2e-4, with partial sums to 6e-6.
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
        Number of coordinates that this process holds; ``n`` unless vectors are split over processes.
    """

    def __init__(self, n: int, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.n, self.dtype, self.device = n, dtype, torch.device(device)
        self.local_n = n

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, VectorSpace) or type(self) is not type(other):
            return False
        return (self.n, self.dtype, self.device) == (other.n, other.dtype, other.device)

    def __hash__(self) -> int:
        return hash((type(self), self.n, self.dtype, self.device))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.n}, dtype={self.dtype}, device='{self.device}')"

    @property
    def eps(self) -> float:
        """Machine epsilon of the dtype."""
        return float(torch.finfo(self.dtype).eps)

    def sum_over_parts(self, partial: Tensor) -> Tensor:
        """The sum of ``partial`` over all processes that hold coordinates; here there is only one process."""
        return partial

    def inner(self, a: Tensor, b: Tensor) -> float:
        """``a^T b`` for vectors (n,), summed in float64; only parts of the vectors are converted at a time."""
        parts = zip(a.split(_CONVERTED), b.split(_CONVERTED), strict=True)
        return float(self.sum_over_parts(torch.stack([torch.dot(x.double(), y.double()) for x, y in parts]).sum()))

    def length(self, v: Tensor) -> Tensor:
        """``||v||`` as a float64 scalar that stays on the device, whatever the size of the entries."""
        largest = self.sum_over_parts(v.abs().amax().double())
        scale = torch.where(largest > 0, largest, 1.0)
        return scale * self.sum_over_parts((v / scale.to(v.dtype)).double().square().sum()).sqrt()

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """``a^T b`` as a float64 scalar that stays on the device: partial sums in the vectors' dtype, added in float64.

        In float32 it takes a fifth of the time of :meth:`inner`, and is off by 1e-7 of ``sum |a_i b_i|`` or so.
        """
        return self.total([torch.dot(x, y) for x, y in self.in_parts(a, b)])

    def in_parts(self, *vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The same coordinates of all these vectors (n,), a part at a time: on the CPU, what its cache holds."""
        size = _CACHED if self.device.type == "cpu" else max(1, self.local_n)
        return zip(*(v.split(size) for v in vectors), strict=True)

    def total(self, sums: list[Tensor]) -> Tensor:
        """The float64 scalar that sums over :meth:`in_parts` add up to; it stays on the device."""
        return self.sum_over_parts(torch.stack(sums).sum(dtype=torch.float64))

    def norm(self, v: Tensor) -> float:
        """``||v||`` for a vector (n,)."""
        return self.inner(v, v) ** 0.5

    def column_inner(self, v: Tensor, w: Tensor) -> Tensor:
        """``v_i^T w_i`` for each pair of columns of (n, k), shape (k,), float64."""
        return self.sum_over_parts((v.double() * w.double()).sum(dim=0))

    def section_inner(self, v: Tensor, w: Tensor, sections: list[int]) -> Tensor:
        """``v^T w`` over each section of the local coordinates, shape (s,), float64; ``sections`` are lengths."""
        return self.sum_over_parts(torch.stack([part.sum() for part in (v.double() * w.double()).split(sections)]))

    def gram(self, rows: Tensor, columns: Tensor) -> Tensor:
        """``R C`` for rows (b, n) and columns (n, k), shape (b, k), float64."""
        total = torch.zeros(len(rows), columns.shape[1], dtype=torch.float64, device=rows.device)
        for start in range(0, len(columns), _SUMMED):
            total += rows[:, start : start + _SUMMED] @ columns[start : start + _SUMMED]
        return self.sum_over_parts(total)

    def deviation(self, vectors: Tensor) -> float:
        """``max |V^T V - I|`` for columns ``V`` (n, k): how far they are from orthonormal."""
        gram = self.gram(vectors.T, vectors)
        gram.diagonal().sub_(1)
        return float(gram.abs().max()) if gram.numel() else 0.0

    def orthonormal(self, block: Tensor) -> Tensor:
        """An orthonormal basis, in columns (n, rank), of the numerical range of ``block`` (n, k)."""
        u, sigma, _ = torch.linalg.svd(block.double(), full_matrices=False)
        rank = int((sigma > sigma.max() * max(block.shape) * torch.finfo(block.dtype).eps).sum())
        return u[:, :rank].to(block.dtype)

    def randn(self, generator: torch.Generator, k: int | None = None) -> Tensor:
        """A standard normal vector (n,), or ``k`` of them in columns; the same for all dtypes and devices."""
        shape = (self.n,) if k is None else (self.n, k)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device, self.dtype)

    def rademacher(self, generator: torch.Generator, k: int | None = None) -> Tensor:
        """A vector (n,) of random signs, or ``k`` of them in columns (n, k)."""
        shape = (self.n,) if k is None else (self.n, k)
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8)
        return (2 * signs - 1).to(self.device, self.dtype)

    def sphere(self, generator: torch.Generator, against: Tensor | None = None) -> Tensor:
        """A unit vector (n,), uniform in the complement of the orthonormal columns ``against`` (n, k)."""
        v = self.randn(generator)
        if against is not None:
            v = v - against @ self.gram(against.T, v[:, None])[:, 0].to(v)
        return v / self.norm(v)


def forked(generator: torch.Generator) -> torch.Generator:
    """A CPU generator whose numbers are independent of those of ``generator``, and determined by them."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))


def fresh_generator() -> torch.Generator:
    """A CPU generator with a new random seed."""
    generator = torch.Generator()
    generator.seed()
    return generator
