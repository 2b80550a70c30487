"""What the analysis of one matrix will cost: products, and bytes; and whether to build it follows from that."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyhessian_spectra.spectra.settings import Settings

# Products for the sampling error of the trace, where the trace itself is exact.
DATA_PROBES = 30

# Lanczos steps that an eigenvalue at both edges takes: the tenth of a trained ResNet20 took 90 to a residual of 1e-4.
_STEPS_PER_EIGENVALUE = 9


def is_dense(settings: Settings, n: int) -> bool:
    """Whether a matrix of this size is cheaper to build than to estimate, or every eigenvalue of it is asked for."""
    few = min(settings.exact_limit, products_of_a_pass(settings))
    return n <= max(2 * settings.num_eigenvalues, few)


def is_built(settings: Settings, n: int) -> bool:
    """Whether a whole matrix of this size is built: blocks of it then cost no further product."""
    return n <= settings.exact_limit or is_dense(settings, n)


def forecast_products(settings: Settings, sizes: Sequence[int]) -> list[int]:
    """Products expected for the whole matrix and for each of its blocks, whose sizes these are."""
    whole, *blocks = sizes
    if whole <= settings.exact_limit:
        return [products_to_build(settings, whole), *(0 for _ in blocks)]
    return [products_to_build(settings, n) if is_dense(settings, n) else products_of_a_pass(settings) for n in sizes]


def products_to_build(settings: Settings, n: int) -> int:
    """Products that building and diagonalising takes, the checks included."""
    return n + 2 * min(settings.num_eigenvalues, n) + DATA_PROBES


def products_of_a_pass(settings: Settings) -> int:
    """Products expected of a Krylov pass."""
    density = settings.num_probes * settings.num_steps
    return _first_steps(settings) + density + 2 * settings.num_eigenvalues + settings.trace_probes


def bytes_needed(settings: Settings, n: int, dtype: torch.dtype) -> int:
    """Bytes for the dense matrix and its eigenvalues, or for the edges and the vectors being worked on.

    On the dense path ``8 n^2`` are kept for the blocks, the largest of which may need as much as the whole. On the
    other, the linearisation and the Krylov basis, see :func:`bytes_of_basis`, come on top.
    """
    k = settings.num_eigenvalues
    if is_built(settings, n):
        return 24 * n * n + 32 * n * k
    return n * dtype.itemsize * (6 * k + 12)


def bytes_of_basis(settings: Settings, n: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of the Krylov basis: at least, as expected, and at most; none where the matrix is built."""
    if is_built(settings, n):
        return 0, 0, 0
    k, least = settings.num_eigenvalues, max(settings.num_steps, 2 * settings.num_eigenvalues)
    most = max(settings.max_steps, least, 3 * k + 10)
    fewest, expected, most = (min(n, m) for m in (least, max(least, _first_steps(settings)), most))
    return fewest * n * dtype.itemsize, expected * n * dtype.itemsize, most * n * dtype.itemsize


def _first_steps(settings: Settings) -> int:
    steps = max(settings.num_steps, _STEPS_PER_EIGENVALUE * settings.num_eigenvalues)
    return min(steps, max(settings.max_steps, settings.num_steps))
