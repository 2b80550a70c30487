"""Exact Hessians of thousands of small networks, and their eigenvalues."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, jvp, vmap

from pyhessian_spectra.ensembles.recorded import Recorded, flat_loss, in_parallel, num_workers
from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# Bytes of a group's intermediate values: Hessians are formed once and fill the vector units best in large groups.
_GROUP_BYTES = 2**28


@dataclass(frozen=True)
class EnsembleSpectra:
    """The exact eigenvalues of each member's Hessian.

    Parameters
    ----------
    eigenvalues : ndarray, shape (E, n), float64
        Ascending in each row; NaN where the Hessian is not finite.
    finite : ndarray, shape (E,), bool
    """

    eigenvalues: Floats
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.eigenvalues)

    def largest(self, k: int = 1) -> Floats:
        """The ``k`` largest eigenvalues of the finite members, shape (finite members, k), descending."""
        return self.eigenvalues[self.finite][:, : -k - 1 : -1]

    def spectrum(self, member: int) -> Spectrum:
        """The exact spectrum of one member; raises InputError when it is not finite."""
        if not self.finite[member]:
            raise InputError(f"member {member} diverged and has no spectrum; choose one where finite is true")
        return Spectrum.from_eigenvalues(self.eigenvalues[member])


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
    group, hessians = _hessians(flat_loss(model, loss_fn, data, parameters), parameters, memory_budget)
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
    loss, workers = flat_loss(model, loss_fn, data, parameters), num_workers(parameters)
    group, hessians = _hessians(loss, parameters, memory_budget // workers)
    done, lock = 0, threading.Lock()

    def diagonalise(rows: Tensor, _: threading.Event) -> Floats:
        nonlocal done
        found, matrices = np.full(tuple(rows.shape), np.nan), hessians(rows)
        finite = matrices.isfinite().all(dim=2).all(dim=1)
        matrices = matrices[finite].double()
        found[finite.cpu().numpy()] = torch.linalg.eigvalsh((matrices + matrices.mT) / 2).cpu().numpy()
        with lock:
            done += len(rows)
            if progress:
                progress(done)
        return found

    eigenvalues = np.concatenate(in_parallel(diagonalise, parameters.split(group), workers))
    return EnsembleSpectra(eigenvalues, np.isfinite(eigenvalues).all(axis=1))


def _hessians(
    loss: Callable[[Tensor], Tensor], parameters: Tensor, memory_budget: int
) -> tuple[int, Callable[[Tensor], Tensor]]:
    """How many members one group may have, and the function from their parameters to their Hessians."""
    n = parameters.shape[1]
    # a tangent doubles each intermediate value, for each column of the Hessian that is carried along
    per_column = 2 * Recorded(vmap(grad(loss))).bytes_per_member(parameters)
    dense = 2 * n * n * parameters.element_size()
    if dense + per_column > memory_budget:
        needed, budget = (f"{size / 2**20:,.1f} MiB" for size in (dense + per_column, memory_budget))
        told = f"an exact Hessian of {n:,} parameters needs {needed}, and memory_budget= leaves {budget} to each thread"
        raise OutOfMemoryError(f"{told}; raise it, or take HessianOperator with eigsh and slq, which never form it")
    columns = min(n, (memory_budget - dense) // per_column)
    group = max(1, memory_budget // (dense + columns * per_column))
    identity = torch.eye(n, dtype=parameters.dtype, device=parameters.device)

    def product(flat: Tensor, v: Tensor) -> Tensor:
        return jvp(grad(loss), (flat,), (v,))[1]

    products = Recorded(vmap(vmap(product, (None, 0)), (0, None)))
    return int(group), lambda rows: torch.cat([products(rows, part) for part in identity.split(columns)], dim=1)
