"""Ensembles: thousands of small networks trained and diagonalised at once.

One network of a hundred parameters leaves a processor idle: each operation costs its overhead. Here the members of
an ensemble share every operation through ``torch.func.vmap``, in groups that fit the cache. The gradient of a group is
recorded once as a list of tensor operations, so that a step of training pays for arithmetic and not for differentiation.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pyhessian_spectra.curvature.parameters import ParameterLayout, trainable_parameters
from pyhessian_spectra.errors import InputError, OutOfMemoryError
from pyhessian_spectra.spectra.results import Floats, Spectrum

# Bytes of a group's intermediate values. Training repeats its step thousands of times and is fastest in the cache;
# Hessians are formed once and fill the vector units best in larger groups.
_TRAINING_BYTES, _HESSIAN_BYTES = 2**25, 2**28


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

    @property
    def num_diverged(self) -> int:
        """How many members are not finite."""
        return int((~self.finite).sum())

    def __str__(self) -> str:
        stuck = int((self.finite & ~self.converged).sum())
        return (
            f"{len(self)} members: {int(self.converged.sum())} converged, {stuck} stopped at the iteration limit, "
            f"{self.num_diverged} diverged and are left out"
        )


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

    @property
    def num_nonfinite(self) -> int:
        """How many members have no spectrum."""
        return int((~self.finite).sum())

    def largest(self, k: int = 1) -> Floats:
        """The ``k`` largest eigenvalues of the finite members, shape (finite members, k), descending."""
        return self.eigenvalues[self.finite][:, : -k - 1 : -1]

    def spectrum(self, member: int) -> Spectrum:
        """The exact spectrum of one member; raises InputError when it is not finite."""
        if not self.finite[member]:
            raise InputError(f"member {member} diverged and has no spectrum; choose one where finite is true")
        return Spectrum.from_eigenvalues(self.eigenvalues[member])


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
    gradients, count = vmap(grad(loss)), len(starts)
    places = min(count, max(1, memory // _bytes_per_member(gradients, starts)))

    final = starts.clone()
    norms = torch.full((count,), torch.nan, dtype=starts.dtype, device=starts.device)
    iterations = torch.zeros(count, dtype=torch.int64, device=starts.device)
    theta = starts[:places].clone()
    member = torch.arange(places, device=starts.device)  # who sits in each place; -1 once nobody does
    age = torch.zeros_like(member)
    arrived = places
    descent = make_fx(gradients)(theta)
    while True:
        gradient = descent(theta)
        norm = torch.linalg.vector_norm(gradient, dim=1)
        # "not greater" also holds for NaN, so a diverged member leaves at once
        leaving = ((~(norm > tolerance) | norm.isinf() | (age >= max_iterations)) & (member >= 0)).nonzero()[:, 0]
        if len(leaving):
            who = member[leaving]
            final[who], norms[who], iterations[who] = theta[leaving], norm[leaving], age[leaving]
            taken, empty = leaving[: count - arrived], leaving[count - arrived :]
            member[taken] = torch.arange(arrived, arrived + len(taken), device=starts.device)
            member[empty] = -1
            arrived += len(taken)
            gradient[leaving] = 0
            theta[taken], age[taken] = starts[member[taken]], -1
            active = member >= 0
            seated = int(active.sum())
            if progress:
                progress(arrived - seated)
            if not seated:
                break
            if seated <= len(member) // 2:
                theta, gradient, member, age = theta[active], gradient[active], member[active], age[active]
                descent = make_fx(gradients)(theta)
        theta.sub_(gradient, alpha=step)
        age += 1

    losses = torch.cat([vmap(loss)(rows) for rows in final.split(places)])
    finite = (norms.isfinite() & losses.isfinite()).cpu().numpy()
    return TrainedEnsemble(
        parameters=final,
        losses=losses.double().cpu().numpy(),
        gradient_norms=norms.double().cpu().numpy(),
        iterations=iterations.cpu().numpy(),
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
    loss = _flat_loss(model, loss_fn, data, parameters)
    n = parameters.shape[1]
    # a tangent doubles each intermediate value, for each column of the Hessian that is carried along
    per_column = 2 * _bytes_per_member(vmap(grad(loss)), parameters)
    dense = 2 * n * n * parameters.element_size()
    if dense + per_column > memory:
        raise OutOfMemoryError(
            f"an exact Hessian of {n:,} parameters needs {(dense + per_column) / 2**20:,.1f} MiB, more than the "
            f"{memory / 2**20:,.1f} MiB of memory=; raise it, or take HessianOperator with eigsh and slq, which never "
            "form the matrix"
        )
    columns = min(n, (memory - dense) // per_column)
    group = max(1, memory // (dense + columns * per_column))
    identity = torch.eye(n, dtype=parameters.dtype, device=parameters.device)

    def products(flat: Tensor, directions: Tensor) -> Tensor:
        return vmap(lambda v: jvp(grad(loss), (flat,), (v,))[1])(directions)

    for rows in parameters.split(group):
        yield torch.cat([vmap(products, (0, None))(rows, part) for part in identity.split(columns)], dim=1)


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
    eigenvalues = np.full(tuple(parameters.shape), np.nan)
    done = 0
    for hessians in ensemble_hessians(model, loss_fn, data, parameters, memory=memory):
        finite = hessians.isfinite().all(dim=2).all(dim=1)
        symmetric = hessians[finite].double()
        symmetric = (symmetric + symmetric.mT) / 2
        rows = done + finite.nonzero()[:, 0].cpu().numpy()
        eigenvalues[rows] = torch.linalg.eigvalsh(symmetric).cpu().numpy()
        done += len(hessians)
        if progress:
            progress(done)
    return EnsembleSpectra(eigenvalues, np.isfinite(eigenvalues).all(axis=1))


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


def _bytes_per_member(function: Callable[[Tensor], Tensor], parameters: Tensor) -> int:
    """Bytes of all intermediate values of ``function`` (a vmap) for one member; counts as if none were freed."""
    graph = make_fx(function)(parameters[:1].expand(2, -1).clone()).graph
    sizes = (
        node.meta["val"].numel() * node.meta["val"].element_size()
        for node in graph.nodes
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and not _is_view(node.target)
    )
    return max(1, sum(sizes) // 2)


@functools.cache
def _is_view(target: Any) -> bool:
    """Whether an ATen operator returns an alias of an argument."""
    return any(result.alias_info is not None for result in target._schema.returns)
