"""Ensembles: thousands of small networks trained and diagonalised at once.

One network of a hundred parameters leaves a processor idle: each operation costs its overhead. Here the members of
an ensemble share every operation through ``torch.func.vmap``, in groups that fit the cache. What a group computes is
recorded once as a list of tensor operations, so that a step of training pays for arithmetic and not for
differentiation, and each core works on a group of its own.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from pyhessian_spectra.curvature.ensemble_results import EnsembleSpectra, TrainedEnsemble
from pyhessian_spectra.curvature.parameters import ParameterLayout, trainable_parameters
from pyhessian_spectra.curvature.recorded import Recorded, num_workers, one_thread_each
from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra.results import Floats

# Bytes of a group's intermediate values. Training repeats its step thousands of times and is fastest in the cache;
# Hessians are formed once and fill the vector units best in larger groups.
_TRAINING_BYTES, _HESSIAN_BYTES = 2**24, 2**28

# A group with fewer bytes than this costs its overhead: splitting it among cores or recording it anew gains nothing.
_WORTHWHILE_BYTES = 2**20


def sphere_starts(
    count: int, n: int, *, radius: float, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Starting points uniform on the sphere of a given radius, shape (count, n)."""
    if count < 1 or n < 1 or not radius > 0:
        raise InputError(f"sphere_starts needs count >= 1, n >= 1 and radius > 0, got {count}, {n} and {radius}")
    points = torch.randn(count, n, generator=generator, dtype=torch.float64)
    return (points * (radius / points.norm(dim=1, keepdim=True))).to(dtype)


def train_ensemble(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Any],
    starts: Tensor,
    *,
    step: float,
    tolerance: float = 1e-4,
    max_iterations: int = 100_000,
    memory: int = _TRAINING_BYTES,
    progress: Callable[[int], None] | None = None,
) -> TrainedEnsemble:
    """Full-batch gradient descent with a constant step from every start, each until its own gradient is small.

    A group of fixed size is stepped together. A member that finishes leaves its place to the next start, and when
    none is waiting the group shrinks, so that no work is spent on members that have converged.

    Parameters
    ----------
    model : torch.nn.Module
        The architecture, taken in eval mode; its own parameters are neither read nor changed.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``, a mean over the examples.
    data : tuple (x, y)
        All training examples.
    starts : Tensor, shape (E, n)
        Flat parameters in the order of ``ParameterLayout``; their dtype and device are those of the training.
    step : float
        Step length of gradient descent.
    tolerance : float
        A member has converged when the norm of its gradient is at most this.
    max_iterations : int
        Steps after which a member is taken out unconverged.
    memory : int
        Bytes that the intermediate values of a group may take.
    progress : callable, optional
        Called with the number of members finished so far, whenever it changes.

    Raises
    ------
    InputError
        ``starts`` does not fit the model, or a setting is out of range.
    """
    if not (step > 0 and tolerance > 0 and max_iterations >= 0):
        raise InputError(
            f"step and tolerance must be positive and max_iterations not negative, got {step}, {tolerance} and "
            f"{max_iterations}"
        )
    loss = _flat_loss(model, loss_fn, data, starts)
    gradients, count = Recorded(vmap(grad(loss))), len(starts)
    bytes_each, workers = gradients.bytes_per_member(starts), num_workers(starts)
    fewest = -(-_WORTHWHILE_BYTES // bytes_each)
    places = max(1, min(memory // bytes_each, max(fewest, -(-count // workers)), count))
    workers = min(workers, -(-count // places))
    final, ages = starts.clone(), torch.zeros(count, dtype=torch.int64, device=starts.device)
    norms = torch.full((count,), torch.nan, dtype=starts.dtype, device=starts.device)
    waiting, finished = iter(range(count)), 0
    lock, stopped = threading.Lock(), threading.Event()

    def finish(member: Tensor, theta: Tensor, norm: Tensor, age: Tensor) -> Tensor:
        """Keep what left its places; the next members to sit there, as many as are waiting."""
        nonlocal finished
        with lock:
            final[member], norms[member], ages[member] = theta, norm, age
            finished += len(member)
            if progress and len(member):
                progress(finished)
            following = list(itertools.islice(waiting, len(member)))
        return torch.tensor(following, dtype=torch.int64, device=starts.device)

    def descend(_: int) -> None:
        with lock:
            member = torch.tensor(list(itertools.islice(waiting, places)), dtype=torch.int64, device=starts.device)
        theta, age = starts[member], torch.zeros_like(member)
        while len(member) and not stopped.is_set():
            gradient = gradients(theta)
            norm = torch.linalg.vector_norm(gradient, dim=1)
            # "not greater" also holds for NaN, so a diverged member leaves at once; a place nobody sits in is -1
            leaving = (~(norm > tolerance) | norm.isinf() | (age >= max_iterations)) & (member >= 0)
            if leaving.any():
                seats = leaving.nonzero()[:, 0]
                arriving = finish(member[seats], theta[seats], norm[seats], age[seats])
                taken, empty = seats[: len(arriving)], seats[len(arriving) :]
                member[taken], member[empty] = arriving, -1
                theta[taken], age[taken], gradient[seats] = starts[arriving], -1, 0
                active = member >= 0
                if not active.any() or (len(member) > fewest and int(active.sum()) <= len(member) // 4):
                    theta, gradient, member, age = theta[active], gradient[active], member[active], age[active]
            theta.sub_(gradient, alpha=step)
            age += 1

    with one_thread_each(starts) as run:
        try:
            run(descend, range(workers))
        finally:  # after an error or Ctrl-C the other workers end too
            stopped.set()
    losses = torch.cat([vmap(loss)(rows) for rows in final.split(places)])
    finite = (norms.isfinite() & losses.isfinite()).cpu().numpy()
    return TrainedEnsemble(
        parameters=final,
        losses=losses.double().cpu().numpy(),
        gradient_norms=norms.double().cpu().numpy(),
        iterations=ages.cpu().numpy(),
        converged=finite & (norms <= tolerance).cpu().numpy(),
        finite=finite,
    )


def ensemble_hessians(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Any],
    parameters: Tensor,
    *,
    memory: int = _HESSIAN_BYTES,
) -> Iterator[Tensor]:
    """Exact Hessians at the rows of ``parameters`` (E, n), in groups of shape (members, n, n), in order.

    The arguments are those of :func:`train_ensemble`; the dtype of ``parameters`` is that of the Hessians.

    Raises
    ------
    OutOfMemoryError
        One Hessian does not fit ``memory``; the sentence says what it needs.
    """
    group, hessians = _hessians(model, loss_fn, data, parameters, memory)
    return (hessians(rows) for rows in parameters.split(group))


def ensemble_eigenvalues(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    data: tuple[Tensor, Any],
    parameters: Tensor,
    *,
    memory: int = _HESSIAN_BYTES,
    progress: Callable[[int], None] | None = None,
) -> EnsembleSpectra:
    """All eigenvalues of the exact Hessian at each row of ``parameters`` (E, n), diagonalised in float64.

    The arguments are those of :func:`ensemble_hessians`; ``progress`` is called with the number of members done.
    A member whose Hessian is not finite is marked and its row is NaN.
    """
    workers = num_workers(parameters)
    group, hessians = _hessians(model, loss_fn, data, parameters, memory // workers)
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
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], data: tuple[Tensor, Any], parameters: Tensor, memory: int
) -> tuple[int, Callable[[Tensor], Tensor]]:
    """How many members one group may have, and the function from their parameters to their Hessians."""
    loss = _flat_loss(model, loss_fn, data, parameters)
    n = parameters.shape[1]
    # a tangent doubles each intermediate value, for each column of the Hessian that is carried along
    per_column = 2 * Recorded(vmap(grad(loss))).bytes_per_member(parameters)
    dense = 2 * n * n * parameters.element_size()
    if dense + per_column > memory:
        raise OutOfMemoryError(
            f"an exact Hessian of {n:,} parameters needs {(dense + per_column) / 2**20:,.1f} MiB, more than the "
            f"{memory / 2**20:,.1f} MiB of memory= for each thread; raise it, or take HessianOperator with eigsh and "
            "slq, which never form the matrix"
        )
    columns = min(n, (memory - dense) // per_column)
    group = max(1, memory // (dense + columns * per_column))
    identity = torch.eye(n, dtype=parameters.dtype, device=parameters.device)

    def product(flat: Tensor, v: Tensor) -> Tensor:
        return jvp(grad(loss), (flat,), (v,))[1]

    products = Recorded(vmap(vmap(product, (None, 0)), (0, None)))

    def hessians(rows: Tensor) -> Tensor:
        return torch.cat([products(rows, part) for part in identity.split(columns)], dim=1)

    return int(group), hessians


def _flat_loss(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], data: tuple[Tensor, Any], parameters: Tensor
) -> Callable[[Tensor], Tensor]:
    """The loss as a function of one flat parameter vector (n,), in the dtype of ``parameters``."""
    trainable, _ = trainable_parameters(model)
    layout = ParameterLayout({name: p.shape for name, p in trainable.items()})
    if parameters.dim() != 2 or parameters.shape[1] != layout.n or not len(parameters):
        raise InputError(
            f"parameters must have shape (members, {layout.n}) with at least one member, one row of flat parameters "
            f"each, got {tuple(parameters.shape)}"
        )
    if parameters.dtype not in (torch.float32, torch.float64):
        raise InputError(f"parameters must be float32 or float64, got {parameters.dtype}; convert them with .double()")
    if not (isinstance(data, tuple) and len(data) == 2):
        raise InputError("data must be one pair (x, y) holding all training examples; concatenate the batches")
    x, y = (
        part.to(parameters.device, parameters.dtype if part.is_floating_point() else None)
        if isinstance(part, Tensor)
        else part
        for part in data
    )
    frozen = copy.deepcopy(model).to(parameters).eval().requires_grad_(False)

    def loss(flat: Tensor) -> Tensor:
        values = dict(zip(layout.names, layout.unflatten(flat), strict=True))
        return loss_fn(functional_call(frozen, values, (x,)), y)

    return loss
