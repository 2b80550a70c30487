"""Copies of multiple eigenvalues: one Krylov space contains only one eigenvector of each eigenvalue."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.spectra.edges import wanted
from pyhessian_spectra.spectra.lanczos import Tridiagonal, lanczos
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.results import Floats

# Lanczos steps of the first search in the complement; doubled while its improving Ritz pairs have not converged.
_STEPS = 20


def add_missing_copies(
    op: Meter,
    values: Floats,
    vectors: Tensor,
    k: int,
    which: str,
    *,
    residual: float,
    margin: float,
    max_products: int,
    generator: torch.Generator,
    steps: int = _STEPS,
) -> tuple[Floats, Tensor, Tridiagonal | None]:
    """Add those of the ``k`` wanted eigenpairs that lie in the complement of the pairs found, until none is left there.

    A Lanczos process of at first ``steps`` steps, from a random vector in the complement, approximates the outermost
    eigenvalues there. A Ritz pair improves the result if it lies beyond the worst pair found by more than ``margin``,
    or if fewer than ``k`` pairs were found. Improving pairs are added from the edge inwards, up to the first whose
    residual exceeds ``residual``. Returns at most ``k`` values and vectors, and the last process, which saw no
    improving pair; None in place of the process if ``max_products`` did not suffice.
    """
    budget, n = op.num_products + max_products, op.n
    while op.num_products < budget and len(values) < n:
        steps = min(steps, budget - op.num_products)
        probe = lanczos(op, op.space.randn(generator), steps, against=vectors)
        found, unresolved = _better(probe, values, k, which, residual, margin)
        if not len(found) and not unresolved:
            return values, vectors, probe
        if not len(found):
            steps *= 2
            continue
        values = np.append(values, probe.eigh()[0][found])
        vectors = torch.cat([vectors, probe.combine(probe.eigh()[1][:, found]).to(vectors)], dim=1)
        kept = wanted(values, min(k, len(values)), which)
        values, vectors = values[kept], vectors[:, torch.from_numpy(kept).to(vectors.device)]
    return values, vectors, None


def holds_better(probe: Tridiagonal, values: Floats, k: int, which: str, margin: float) -> bool:
    """Whether a process in the complement of ``k`` pairs has a Ritz value beyond the worst by over ``margin``."""
    return bool(_beyond(probe.eigh()[0], values, k, which, margin).any())


def _better(
    probe: Tridiagonal, values: Floats, k: int, which: str, residual: float, margin: float
) -> tuple[NDArray[np.intp], bool]:
    """Indices of the Ritz pairs to add, and whether there are more improving pairs that have not converged."""
    ritz = probe.eigh()[0]
    better, converged = _beyond(ritz, values, k, which, margin), probe.ritz_residuals <= residual
    upwards = np.arange(len(ritz))
    inwards = {
        "LA": [upwards[::-1]],
        "SA": [upwards],
        "BE": [upwards, upwards[::-1]],
        "LM": [np.argsort(-np.abs(ritz), kind="stable")],
    }[which]
    taken: set[int] = set()
    for order in inwards:
        candidates = order[better[order]]
        settled = converged[candidates]
        taken.update(candidates[: len(settled) if settled.all() else int(np.argmin(settled))].tolist())
    return np.array(sorted(taken), dtype=np.intp), bool(better.sum() > len(taken))


def _beyond(ritz: Floats, values: Floats, k: int, which: str, margin: float) -> NDArray[np.bool_]:
    """Mask of the Ritz values that improve on the ``k`` found by more than ``margin``; all if fewer were found."""
    if len(values) < k:
        return np.ones(len(ritz), dtype=bool)
    if which == "LM":
        return np.abs(ritz) > np.abs(values).min() + margin
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    below = ritz < values[low - 1] - margin if low else np.zeros(len(ritz), dtype=bool)
    above = ritz > values[low] + margin if low < k else np.zeros(len(ritz), dtype=bool)
    return below | above
