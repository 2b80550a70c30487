"""Copies of multiple eigenvalues, which one Krylov space cannot see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.spectra.edges import wanted
from pyhessian_spectra.spectra.lanczos import Tridiagonal, lanczos
from pyhessian_spectra.spectra.meter import Meter
from pyhessian_spectra.spectra.results import Floats

# Lanczos steps of the first search of the complement. They are doubled where what it finds has not converged.
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
    """Add what the complement of the pairs found holds of the ``k`` wanted, until it holds nothing of them.

    A Lanczos process from a random vector in the complement approaches the best eigenvalues that are left there. Where
    they are better than the worst one found, or fewer than ``k`` were found, they are taken in order from the edge
    inwards, as far as they have converged: never one before those beyond it.

    Parameters
    ----------
    op : Meter
    values, vectors
        The pairs found, ascending, (p,) and (n, p).
    k, which
        See :func:`wanted`.
    residual : float
        Largest residual at which a pair is taken.
    margin : float
        By how much an eigenvalue must be better than the worst one found.
    max_products : int
        Give up after so many.
    generator : torch.Generator
    steps : int
        Lanczos steps of the first search.

    Returns
    -------
    values, vectors
        At most ``k`` pairs.
    probe : Tridiagonal or None
        The last process, whose complement holds nothing better; None where none came to that.
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
    """Whether a process in the complement of ``k`` pairs has seen one that is better than the worst of them."""
    return bool(_beyond(probe.eigh()[0], values, k, which, margin).any())


def _better(
    probe: Tridiagonal, values: Floats, k: int, which: str, residual: float, margin: float
) -> tuple[NDArray[np.intp], bool]:
    """Which Ritz pairs are to be taken, and whether there are others that would be if they had converged."""
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
    """Which Ritz values lie beyond the worst of the ``k`` found by more than a margin; all while there are fewer."""
    if len(values) < k:
        return np.ones(len(ritz), dtype=bool)
    if which == "LM":
        return np.abs(ritz) > np.abs(values).min() + margin
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    below = ritz < values[low - 1] - margin if low else np.zeros(len(ritz), dtype=bool)
    above = ritz > values[low] + margin if low < k else np.zeros(len(ritz), dtype=bool)
    return below | above
