"""Inner products of the rows of a Gauss-Newton matrix, separately for each group of parameters."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.features import RowFeatures
from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.spectra.basis import free_bytes

# Coordinates whose products are summed in the rows' own dtype before these are added in float64, and their bytes.
_STRIP, _BYTES = 2**13, 2**27

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
    signs : Tensor, shape (m,), float64
        Coefficients of the rows in the sum.
    memory_budget : int, optional
        Bytes of memory for the matrices, beyond which they go to disk; by default half of the free memory.

    Attributes
    ----------
    matrices : ndarray, shape (groups, m, m), float64
    sums : Tensor, shape (n,), float64
        ``A^T signs``.
    images : Tensor, shape (groups, m), float64
        ``A_g A_g^T signs``, from the sum.
    """

    def __init__(
        self,
        features: RowFeatures,
        layout: ParameterLayout,
        owner: Tensor,
        signs: Tensor,
        memory_budget: int | None = None,
    ) -> None:
        self._features, self._signs, m = features, signs, len(features)
        count = int(owner.max()) + 1
        self.matrices = _zeros((count, m, m), memory_budget)
        self.images = torch.zeros(count, m, dtype=torch.float64)
        self.sums = torch.zeros(layout.n, dtype=torch.float64)
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
        signs = self._signs.to(block)
        for group in owner.unique().tolist():
            among = owner == group
            part = block if bool(among.all()) else block[:, among.to(block.device)]
            combined = part.T @ signs
            sums[among] = combined.double().cpu()
            self.images[group] += (part @ combined).double().cpu()
            total, panels, low = torch.from_numpy(self.matrices[group]), part.tensor_split(_PANELS), 0
            for i, panel in enumerate(panels):
                start, rows = 0, total[low : low + len(panel)]
                for other in panels[: i + 1]:
                    rows[:, start : start + len(other)] += (panel @ other.T).cpu()
                    start += len(other)
                low += len(panel)

    def _add_factored(self, group: int, given: Tensor, d: Tensor, sums: Tensor) -> None:
        """Add the products of outer products ``d_k a_i^T``, ``i`` the row's example: ``(a_i . a_j) (d_k . d_l)``."""
        examples, signs = torch.from_numpy(self._features.examples).to(d.device), self._signs.to(d)
        sums += (d.T @ (given[examples] * signs[:, None])).flatten().double().cpu()
        given, d, total = given.double(), d.double(), torch.from_numpy(self.matrices[group])
        alike = given @ given.T
        for low in range(0, len(d), step := max(1, _BYTES // (8 * len(d)))):
            part = (alike[examples[low : low + step]][:, examples] * (d[low : low + step] @ d.T)).cpu()
            total[low : low + step] += part
            self.images[group][low : low + step] += part @ self._signs


def _zeros(shape: tuple[int, ...], memory_budget: int | None) -> np.ndarray:
    """Zeros in memory, or in an unnamed temporary file where they take more than the budget."""
    size = 8 * int(np.prod(shape))
    if size <= (free_bytes(torch.device("cpu")) // 2 if memory_budget is None else memory_budget) or not size:
        return np.zeros(shape)
    with tempfile.TemporaryFile() as file:  # which is freed with its mapping
        return np.memmap(file, np.float64, "w+", shape=shape)
