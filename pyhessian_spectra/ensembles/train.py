"""Training of thousands of small networks at once.

One network of a hundred parameters leaves a processor idle: each operation costs its overhead. Here the members of
an ensemble share every operation through ``torch.func.vmap``, in groups that fit the cache. What a group computes is
recorded once, so that a step pays for arithmetic and not for differentiation, and each core works on its own group.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, vmap

from pyhessian_spectra.ensembles.recorded import Recorded, flat_loss, in_parallel, num_workers
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.training import GradientDescent

# Bytes of a group's intermediate values: training repeats its step thousands of times and is fastest in the cache.
_GROUP_BYTES = 2**24

# A group with fewer bytes than this costs its overhead: splitting it among cores or recording it anew gains nothing.
_WORTHWHILE_BYTES = 2**20


@dataclass(frozen=True)
class TrainedEnsemble:
    """What gradient descent reached from each start.

    Parameters
    ----------
    parameters : Tensor, shape (E, n)
        One member a row, as the run left it.
    losses, gradient_norms : ndarray, shape (E,), float64
        At those parameters; NaN where a run diverged.
    iterations : ndarray, shape (E,), int64
        Steps each member took.
    converged : ndarray, shape (E,), bool
        The gradient norm met the tolerance.
    finite : ndarray, shape (E,), bool
        False where a run diverged to NaN or infinity: leave those members out of every average.
    """

    parameters: Tensor
    losses: Floats
    gradient_norms: Floats
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.parameters)

    def __str__(self) -> str:
        converged, stuck = int(self.converged.sum()), int((self.finite & ~self.converged).sum())
        counts = f"{converged} converged, {stuck} stopped at the iteration limit, {(~self.finite).sum()} diverged"
        return f"{len(self)} members: {counts} and are left out"


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
    memory_budget: int = _GROUP_BYTES,
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
    step, tolerance : float
        Step length, and the norm of its gradient at which a member has converged.
    max_iterations : int
        Steps after which a member is taken out unconverged.
    memory_budget : int
        Bytes that the intermediate values of a group may take.
    progress : callable, optional
        Called with the number of members finished so far, whenever it changes.

    Raises
    ------
    InputError
        ``starts`` does not fit the model, or a setting is out of range.
    """
    if not (step > 0 and tolerance > 0 and max_iterations >= 0):
        told = "step and tolerance must be positive and max_iterations not negative"
        raise InputError(f"{told}, got {step}, {tolerance} and {max_iterations}")
    loss = flat_loss(model, loss_fn, data, starts)
    gradients, count = Recorded(vmap(grad(loss))), len(starts)
    bytes_each, workers = gradients.bytes_per_member(starts), num_workers(starts)
    fewest = -(-_WORTHWHILE_BYTES // bytes_each)
    places = max(1, min(memory_budget // bytes_each, max(fewest, -(-count // workers)), count))
    workers = min(workers, -(-count // places))
    final, ages = starts.clone(), torch.zeros(count, dtype=torch.int64, device=starts.device)
    norms = torch.full((count,), torch.nan, dtype=starts.dtype, device=starts.device)
    waiting, finished, lock = iter(range(count)), 0, threading.Lock()

    def finish(member: Tensor, theta: Tensor, norm: Tensor, age: Tensor) -> Tensor:
        """Keep what the members that leave have reached; return the members that take their places, as many as wait."""
        nonlocal finished
        with lock:
            final[member], norms[member], ages[member] = theta, norm, age
            finished += len(member)
            if progress and len(member):
                progress(finished)
            following = list(itertools.islice(waiting, len(member)))
        return torch.tensor(following, dtype=torch.int64, device=starts.device)

    def descend(_: int, stopped: threading.Event) -> None:
        with lock:
            member = torch.tensor(list(itertools.islice(waiting, places)), dtype=torch.int64, device=starts.device)
        descent, age = GradientDescent(gradients, starts[member], step=step), torch.zeros_like(member)
        while len(member) and not stopped.is_set():
            norm = torch.linalg.vector_norm(descent.evaluate(), dim=1)
            # "not greater" also holds for NaN, so a diverged member leaves at once; a place nobody sits in is -1
            leaving = (~(norm > tolerance) | norm.isinf() | (age >= max_iterations)) & (member >= 0)
            if leaving.any():
                seats = leaving.nonzero()[:, 0]
                arriving = finish(member[seats], descent.theta[seats], norm[seats], age[seats])
                taken, empty = seats[: len(arriving)], seats[len(arriving) :]
                member[taken], member[empty], age[taken] = arriving, -1, -1
                descent.seat(taken, starts[arriving])
                descent.gradient[empty] = 0
                active = member >= 0
                if not active.any() or (len(member) > fewest and int(active.sum()) <= len(member) // 4):
                    descent.keep(active)
                    member, age = member[active], age[active]
            descent.step()
            age += 1

    in_parallel(descend, range(workers), workers)
    losses = torch.cat([vmap(loss)(rows) for rows in final.split(places)])
    finite = (norms.isfinite() & losses.isfinite()).cpu().numpy()
    converged = finite & (norms <= tolerance).cpu().numpy()
    numbers = (losses.double().cpu().numpy(), norms.double().cpu().numpy())
    return TrainedEnsemble(final, *numbers, ages.cpu().numpy(), converged, finite)
