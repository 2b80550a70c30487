"""Forecasts of the cost of analysing one matrix, in products and bytes, and the choice of path that follows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyhessian_spectra.spectra.settings import Settings

# Products for the trace's error from the data being a sample, where the trace itself is exact.
DATA_PROBES = 30

#: Parts of the data that are analysed where they cost little: with six, the best of all exchanges of two spectra has a
#: probability of 1 / 32.
USUAL_PARTS = 6

# Lanczos steps per eigenvalue sought at both edges: the tenth of a trained ResNet20 took 90 to a residual of 1e-4.
_STEPS_PER_EIGENVALUE = 9


def is_dense(settings: Settings, n: int) -> bool:
    """Whether a matrix of size ``n`` is built because that is cheaper than a pass, or all eigenvalues are wanted."""
    few = min(settings.exact_limit, products_of_a_pass(settings))
    return n <= max(2 * settings.num_eigenvalues, few)


def is_built(settings: Settings, n: int) -> bool:
    """Whether the whole matrix is built if it has size ``n``; its blocks then cost no further product."""
    return n <= settings.exact_limit or is_dense(settings, n)


def forecast_products(settings: Settings, sizes: Sequence[int]) -> list[int]:
    """Expected products for the whole matrix and for each of its blocks; ``sizes`` are theirs in this order."""
    whole, *blocks = sizes
    if whole <= settings.exact_limit:
        return [products_to_build(settings, whole), *(0 for _ in blocks)]
    each = [settings, *(settings.replace(resolve=0) for _ in blocks)]
    return [
        products_to_build(s, n) if is_dense(s, n) else products_of_a_pass(s) for s, n in zip(each, sizes, strict=True)
    ]


def products_of_coupling(settings: Settings, sizes: Sequence[int]) -> int:
    """Products for the coupling of blocks; ``sizes`` are those of the whole matrix and of its blocks."""
    whole, *blocks = sizes
    count = len(blocks) + (sum(blocks) < whole)
    if is_built(settings, whole) or not settings.coupling_probes or not blocks or count < 2:
        return 0
    return settings.coupling_probes * count + 2


def products_of_a_part(settings: Settings, sizes: Sequence[int]) -> int:
    """Products that one part of the data takes, each over this part only."""
    return sizes[0] if is_built(settings, sizes[0]) else sum(forecast_products(settings, sizes)) - settings.resolve


def number_of_parts(settings: Settings, sizes: Sequence[int], num_batches: int) -> int:
    """How many parts of the data are to be analysed."""
    if len(sizes) < 2:
        return 0
    if settings.data_parts is not None:
        return settings.data_parts
    return USUAL_PARTS if num_batches >= USUAL_PARTS and is_built(settings, sizes[0]) else 0


def products_to_build(settings: Settings, n: int) -> int:
    """Products for building and diagonalising a matrix, including residuals and the trace's data error."""
    return n + 2 * min(settings.num_eigenvalues, n) + DATA_PROBES


def products_of_a_pass(settings: Settings) -> int:
    """Products that a Krylov pass is expected to take."""
    density = settings.num_probes * settings.num_steps + settings.resolve
    return _first_steps(settings) + density + 2 * settings.num_eigenvalues + settings.trace_probes


def bytes_needed(settings: Settings, n: int, dtype: torch.dtype) -> int:
    """Bytes for the dense matrix and its eigenvalues, or for the edge eigenvectors and work vectors of a Krylov pass.

    On the dense path ``8 n^2`` bytes are kept for the blocks, the largest of which may need as much as the whole. On
    the Krylov path the linearisation and the Krylov basis, see :func:`bytes_of_basis`, come on top.
    """
    k = settings.num_eigenvalues
    if is_built(settings, n):
        return 24 * n * n + 32 * n * k
    return n * dtype.itemsize * (6 * k + 12)


def bytes_of_basis(settings: Settings, n: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes of the Krylov basis: least, expected and most; all zero if the matrix is built."""
    if is_built(settings, n):
        return 0, 0, 0
    k, least = settings.num_eigenvalues, max(settings.num_steps, 2 * settings.num_eigenvalues)
    # the probes' vectors are kept where there are products to extend them by
    kept = settings.num_probes * settings.num_steps + settings.resolve if settings.resolve else 0
    most = max(settings.max_steps, least, 3 * k + 10, kept)
    fewest, expected, most = (min(n, m) for m in (least, max(least, _first_steps(settings), kept), most))
    return fewest * n * dtype.itemsize, expected * n * dtype.itemsize, most * n * dtype.itemsize


def _first_steps(settings: Settings) -> int:
    steps = max(settings.num_steps, _STEPS_PER_EIGENVALUE * settings.num_eigenvalues)
    return min(steps, max(settings.max_steps, settings.num_steps))
