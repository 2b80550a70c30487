"""Exact Hessians of thousands of small networks, and their eigenvalues."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from pyhessian_spectra.ensembles.objective import flat_loss
from pyhessian_spectra.ensembles.recorded import Recorded, num_workers, one_thread_each
from pyhessian_spectra.ensembles.results import EnsembleSpectra
from pyhessian_spectra.errors import OutOfMemoryError
from pyhessian_spectra.spectra.results import Floats

# Bytes of a group's intermediate values: Hessians are formed once and fill the vector units best in large groups.
_GROUP_BYTES = 2**28


def ensemble_hessians(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Any],
    parameters: Tensor,
    *,
    memory_budget: int = _GROUP_BYTES,
) -> Iterator[Tensor]:
    """Exact Hessians at the rows of ``parameters`` (E, n), in groups of shape (members, n, n), in order.

    The arguments are those of :func:`train_ensemble`; the dtype of ``parameters`` is that of the Hessians.

    Raises
    ------
    OutOfMemoryError
        One Hessian does not fit ``memory_budget``; the sentence says what it needs.
    """
    group, hessians = _hessians(model, loss_fn, data, parameters, memory_budget)
    return (hessians(rows) for rows in parameters.split(group))


def ensemble_eigenvalues(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Any],
    parameters: Tensor,
    *,
    memory_budget: int = _GROUP_BYTES,
    progress: Callable[[int], None] | None = None,
) -> EnsembleSpectra:
    """All eigenvalues of the exact Hessian at each row of ``parameters`` (E, n), diagonalised in float64.

    The arguments are those of :func:`ensemble_hessians`; ``progress`` is called with the number of members done.
    A member whose Hessian is not finite is marked and its row is NaN.
    """
    workers = num_workers(parameters)
    group, hessians = _hessians(model, loss_fn, data, parameters, memory_budget // workers)
    done, lock, stopped = 0, threading.Lock(), threading.Event()

    def diagonalise(rows: Tensor) -> Floats:
        nonlocal done
        found = np.full(tuple(rows.shape), np.nan)
        if stopped.is_set():
            return found
        matrices = hessians(rows)
        finite = matrices.isfinite().all(dim=2).all(dim=1)
        matrices = matrices[finite].double()
        found[finite.cpu().numpy()] = torch.linalg.eigvalsh((matrices + matrices.mT) / 2).cpu().numpy()
        with lock:
            done += len(rows)
            if progress:
                progress(done)
        return found

    with one_thread_each(parameters) as run:
        try:
            eigenvalues = np.concatenate(run(diagonalise, parameters.split(group)))
        finally:  # after an error or Ctrl-C the groups still waiting are passed over
            stopped.set()
    return EnsembleSpectra(eigenvalues, np.isfinite(eigenvalues).all(axis=1))


def _hessians(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Any],
    parameters: Tensor,
    memory_budget: int,
) -> tuple[int, Callable[[Tensor], Tensor]]:
    """How many members one group may have, and the function from their parameters to their Hessians."""
    loss = flat_loss(model, loss_fn, data, parameters)
    n = parameters.shape[1]
    # a tangent doubles each intermediate value, for each column of the Hessian that is carried along
    per_column = 2 * Recorded(vmap(grad(loss))).bytes_per_member(parameters)
    dense = 2 * n * n * parameters.element_size()
    if dense + per_column > memory_budget:
        raise OutOfMemoryError(
            f"an exact Hessian of {n:,} parameters needs {(dense + per_column) / 2**20:,.1f} MiB, more than the "
            f"{memory_budget / 2**20:,.1f} MiB of memory_budget= for each thread; raise it, or take HessianOperator with "
            "eigsh and slq, which never form the matrix"
        )
    columns = min(n, (memory_budget - dense) // per_column)
    group = max(1, memory_budget // (dense + columns * per_column))
    identity = torch.eye(n, dtype=parameters.dtype, device=parameters.device)

    def product(flat: Tensor, v: Tensor) -> Tensor:
        return jvp(grad(loss), (flat,), (v,))[1]

    products = Recorded(vmap(vmap(product, (None, 0)), (0, None)))

    def hessians(rows: Tensor) -> Tensor:
        return torch.cat([products(rows, part) for part in identity.split(columns)], dim=1)

    return int(group), hessians
