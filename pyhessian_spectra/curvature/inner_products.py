"""Inner products of the rows of a Gauss-Newton matrix, separately for each group of parameters."""

from __future__ import annotations

import math
import tempfile

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.features import RowFeatures
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.errors import NonFiniteError
from pyhessian_spectra.spectra.basis import free_bytes
from pyhessian_spectra.spectra.rounding import SAFETY

# Coordinates whose products are summed in the rows' own dtype before these are added in float64, and their bytes.
_STRIP, _BYTES = 2**13, 2**27

# Rows whose inner products are taken again: as many of the largest, and as many at random.
_TRIED = 64

# Squares of entries beyond this, or below its inverse, are out of float32's range or near its end.
_SMALLEST = 1e-12

# Parts of the rows, of whose products with one another one half is computed.
_PANELS = 3


class InnerProducts:
    """Gram matrices of rows by groups of coordinates, and a sum of the rows.

    Parameters
    ----------
    features : RowFeatures
    layout : ParameterLayout
    owner : Tensor, shape (n,), int64
        The group of each coordinate, from 0 on.
    coefficients : Tensor, shape (m, s), float64
        Those of the rows in the sums.
    memory_budget : int, optional
        Bytes of memory for the matrices, beyond which they go to disk; by default half of the free memory.

    Attributes
    ----------
    matrices : ndarray, shape (groups, m, m), float64
    sums : Tensor, shape (n, s), float64
        ``A^T coefficients``.
    off : ndarray, shape (groups,), float64
        Bounds on the Frobenius norms of the matrices' rounding errors, by inner products taken again in float64.
    """

    def __init__(
        self,
        features: RowFeatures,
        layout: ParameterLayout,
        owner: Tensor,
        coefficients: Tensor,
        memory_budget: int | None = None,
    ) -> None:
        self._features, self._coefficients, m = features, coefficients, len(features)
        count = int(owner.max()) + 1
        self.matrices, self.off = _zeros((count, m, m), memory_budget), np.zeros(count)
        self.sums = torch.zeros(layout.n, coefficients.shape[1], dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(0)
        width = max(1, min(_STRIP, _BYTES // max(1, 8 * m)))
        for number, where in enumerate(layout.slices.values() if m else ()):
            own, sums = owner[where], self.sums[where]
            if bool((own == own[0]).all()) and (factors := features.factored(number)) is not None:
                self._add_factored(int(own[0]), *factors, sums)
                continue
            for start, block in features.blocks(number, width):
                part = slice(start, start + block.shape[1])
                self._add(own[part], block, sums[part])
        for matrix in self.matrices:
            for i in range(1, m):
                matrix[:i, i] = matrix[i, :i]

    def _add(self, owner: Tensor, block: Tensor, sums: Tensor) -> None:
        """Add the products of some coordinates (m, c) of the rows."""
        sums += (block.T @ self._coefficients.to(block)).double().cpu()
        for group in owner.unique().tolist():
            among = owner == group
            part = block if bool(among.all()) else block[:, among.to(block.device)]
            size = float(part.abs().max())
            if not size:
                continue
            if not math.isfinite(size):
                raise NonFiniteError(
                    "derivatives of the outputs are NaN or infinite; look at the inputs, or use float64"
                )
            # a power of two, so that nothing is rounded; squares then neither vanish nor overflow
            scale = 1.0 if _SMALLEST < size < 1 / _SMALLEST else 2.0 ** math.floor(math.log2(size))
            part = part / scale if scale != 1.0 else part
            total, panels, low = torch.from_numpy(self.matrices[group]), part.tensor_split(_PANELS), 0
            for i, panel in enumerate(panels):
                start, rows = 0, total[low : low + len(panel)]
                for other in panels[: i + 1]:
                    product = (panel @ other.T).cpu()
                    rows[:, start : start + len(other)] += product if scale == 1.0 else product.double() * scale**2
                    start += len(other)
                low += len(panel)
            self.off[group] += scale**2 * self._rounding(part)

    def _rounding(self, part: Tensor) -> float:
        """A bound on the norm of the rounding error of ``P P^T`` (m, m), from products of some rows.

        Relative to the norms of the two rows, errors of products are alike.
        """
        norms = torch.linalg.vector_norm(part, dim=1).double()
        largest = norms.topk(min(_TRIED, len(part))).indices
        chosen = torch.cat(
            [largest, torch.randint(len(part), (_TRIED,), generator=self._generator).to(largest)]
        ).unique()
        chosen = chosen[norms[chosen] > 1e-6 * norms.max()]  # of far smaller rows, products may vanish
        some, sizes = part[chosen], norms[chosen]
        errors = ((some @ some.T).double() - some.double() @ some.double().T) / torch.outer(sizes, sizes)
        relative = float(errors.square().mean()) ** 0.5 + torch.finfo(part.dtype).eps / 2
        return SAFETY * relative * float(norms.square().sum())

    def _add_factored(self, group: int, given: Tensor, d: Tensor, sums: Tensor) -> None:
        """Add the products of outer products ``d_k a_i^T``, ``i`` the row's example: ``(a_i . a_j) (d_k . d_l)``."""
        examples = torch.from_numpy(self._features.examples).to(d.device)
        for column, coefficients in zip(sums.unbind(1), self._coefficients.to(d).unbind(1), strict=True):
            column += (d.T @ (given[examples] * coefficients[:, None])).flatten().double().cpu()
        given, d, total = given.double(), d.double(), torch.from_numpy(self.matrices[group])
        alike = given @ given.T
        for low in range(0, len(d), step := max(1, _BYTES // (8 * len(d)))):
            part = (alike[examples[low : low + step]][:, examples] * (d[low : low + step] @ d.T)).cpu()
            total[low : low + step] += part


def _zeros(shape: tuple[int, ...], memory_budget: int | None) -> np.ndarray:
    """Zeros in memory, or in an unnamed temporary file where they take more than the budget."""
    size = 8 * int(np.prod(shape))
    if size <= (free_bytes(torch.device("cpu")) // 2 if memory_budget is None else memory_budget) or not size:
        return np.zeros(shape)
    with tempfile.TemporaryFile() as file:  # which is freed with its mapping
        return np.memmap(file, np.float64, "w+", shape=shape)
