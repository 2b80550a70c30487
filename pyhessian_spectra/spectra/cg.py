"""Conjugate gradients for a symmetric positive definite operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Floats


@dataclass(frozen=True)
class CGResult:
    """The approximate solution of ``A x = b`` that conjugate gradients reached.

    Parameters
    ----------
    x : Tensor, shape (n,)
    residuals : ndarray, shape (iterations + 1,), float64
        ``||b - A x||`` before each iteration and after the last, computed by the recurrence.
    model : ndarray, shape (iterations + 1,), float64
        Values of ``x^T A x / 2 - b^T x``, which fall from one iteration to the next.
    status : {"converged", "stopped", "max_iterations", "negative curvature"}
        Why it ended: the tolerance was met, ``stop`` returned true, the iterations were used up, or a search direction
        ``p`` had ``p^T A p <= 0``, so that the model has no minimum.
    direction : Tensor or None
        That direction ``p``, shape (n,), if ``status`` is ``"negative curvature"``.
    """

    x: Tensor
    residuals: Floats
    model: Floats
    status: str
    direction: Tensor | None = None

    @property
    def num_iterations(self) -> int:
        """Number of iterations; each cost one product."""
        return len(self.residuals) - 1


def cg(
    op: LinearOperator,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    max_iterations: int = 100,
    rtol: float = 1e-5,
    preconditioner: LinearOperator | Callable[[Tensor], Tensor] | None = None,
    stop: Callable[[Floats], bool] | None = None,
) -> CGResult:
    """Solve ``A x = b`` by the method of conjugate gradients (Hestenes and Stiefel 1952).

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
        Positive definite; the iteration ends at the first direction in which it is not.
    b : Tensor, shape (n,)
    x0 : Tensor, shape (n,), optional
        Initial guess, by default zero; its residual costs one more product.
    max_iterations : int
    rtol : float
        The iteration ends when the residual's norm is at most ``rtol ||b||``.
    preconditioner : LinearOperator or callable, optional
        An approximate inverse of ``A``, symmetric and positive definite, which maps a residual (n,) to a direction
        (n,).
    stop : callable, optional
        Called after each iteration with the values so far of ``CGResult.model``; the iteration ends if it returns true.
        See :func:`relative_progress`.

    Returns
    -------
    CGResult

    Raises
    ------
    InputError
        ``b`` or ``x0`` does not fit the operator, or a setting is out of range.

    Examples
    --------
    >>> import torch
    >>> from pyhessian_spectra import MatrixOperator
    >>> found = cg(MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))), torch.tensor([1.0, 1.0]))
    >>> found.x, found.status
    (tensor([1.0000, 0.5000]), 'converged')
    """
    require_operator(op)
    if max_iterations < 1 or not rtol >= 0:
        raise InputError(f"cg needs max_iterations >= 1 and rtol >= 0, got {max_iterations} and {rtol}")
    op._check(b)
    space, b = op.space, b.detach()
    x = b.new_zeros(b.shape) if x0 is None else x0.detach().clone()
    r = b.clone() if x0 is None else b - op @ x
    apply = preconditioner.__matmul__ if isinstance(preconditioner, LinearOperator) else preconditioner
    z = r if apply is None else apply(r)
    p, rz = z.clone(), space.inner(r, z)
    goal = rtol * space.norm(b)
    residuals = [space.norm(r)]
    model = [-0.5 * (space.inner(x, r) + space.inner(x, b)) if x0 is not None else 0.0]
    status = "converged" if residuals[0] <= goal else "max_iterations"
    direction = None
    while status != "converged" and len(residuals) <= max_iterations:
        ap = op @ p
        curvature = space.inner(p, ap)
        if not curvature > 0:
            status, direction = "negative curvature", p
            break
        alpha = rz / curvature
        x.add_(p, alpha=alpha)
        r = r.sub(ap, alpha=alpha)
        model.append(model[-1] - 0.5 * alpha * rz)
        residuals.append(space.norm(r))
        if residuals[-1] <= goal:
            status = "converged"
        elif stop is not None and stop(np.array(model)):
            status = "stopped"
            break
        z = r if apply is None else apply(r)
        rz, before = space.inner(r, z), rz
        p = z.add(p, alpha=rz / before)
    return CGResult(x, np.array(residuals), np.array(model), status, direction)


def relative_progress(model: Floats, *, tolerance: float = 5e-4, fewest: int = 10) -> bool:
    """Whether the last ``k`` iterations lowered the model by less than ``k * tolerance`` of its value.

    A ``stop`` criterion of :func:`cg` with ``k = max(fewest, iterations // 10)`` (Martens 2010, section 4.4).
    """
    iterations = len(model) - 1
    k = max(fewest, iterations // 10)
    return bool(iterations >= k and model[-1] < 0 and (model[-1] - model[-1 - k]) / model[-1] < k * tolerance)
