"""Conjugate gradients for a symmetric positive definite operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.space import VectorSpace

# Iterations between two looks at whether it is done, by device: each look waits for a GPU, and as many more products
# are taken in vain at most.
_LOOK_EVERY = {"cpu": 1, "cuda": 8}


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
    look_every: int | None = None,
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
        Called after iterations with the values so far of ``CGResult.model``; the iteration ends if it returns true.
        See :func:`relative_progress`.
    look_every : int, optional
        Iterations between two looks at whether it has ended, by default 1 on the CPU and more on a GPU, which is waited
        for at each. It changes how many products are taken, and neither the solution nor the iterations unless ``stop``
        is given, which is asked at each look only.

    Returns
    -------
    CGResult

    Raises
    ------
    InputError
        ``b`` or ``x0`` does not fit the operator, or a setting is out of range.
    NonFiniteError
        A product is NaN or infinite.

    Examples
    --------
    >>> import torch
    >>> from pyhessian_spectra import MatrixOperator
    >>> found = cg(MatrixOperator(torch.diag(torch.tensor([1.0, 2.0]))), torch.tensor([1.0, 1.0]))
    >>> found.x, found.status
    (tensor([1.0000, 0.5000]), 'converged')
    """
    require_operator(op)
    op._check(b)
    steps = conjugate_gradients(
        op.space,
        b.detach(),
        x0=x0,
        max_iterations=max_iterations,
        rtol=rtol,
        preconditioner=preconditioner,
        stop=stop,
        look_every=look_every,
    )
    try:
        p = next(steps)
        while True:
            p = steps.send(op @ p)
    except StopIteration as end:
        return end.value


def conjugate_gradients(
    space: VectorSpace,
    b: Tensor,
    *,
    x0: Tensor | None = None,
    max_iterations: int = 100,
    rtol: float = 1e-5,
    preconditioner: LinearOperator | Callable[[Tensor], Tensor] | None = None,
    stop: Callable[[Floats], bool] | None = None,
    look_every: int | None = None,
) -> Generator[Tensor, Tensor, CGResult]:
    """The method of :func:`cg`, which yields vectors, is sent their products, and returns a :class:`CGResult`.

    Several systems are solved side by side by taking the products of their vectors together. All numbers stay on the
    device between looks at them, so that a GPU is never waited for in between: what an iteration has ended, the next
    ones leave as it is.
    """
    if max_iterations < 1 or not rtol >= 0:
        raise InputError(f"cg needs max_iterations >= 1 and rtol >= 0, got {max_iterations} and {rtol}")
    look_every = look_every or _LOOK_EVERY.get(space.device.type, 8)
    apply = preconditioner.__matmul__ if isinstance(preconditioner, LinearOperator) else preconditioner
    x = torch.zeros_like(b) if x0 is None else x0.detach().clone()
    r = b.clone() if x0 is None else b - (yield x)
    z = r if apply is None else apply(r)
    p, squared = z.clone(), space.dot(r, r)
    rz = squared if z is r else space.dot(r, z)
    model = torch.zeros_like(rz) if x0 is None else -0.5 * (space.dot(x, r) + space.dot(x, b))
    goal = rtol**2 * space.dot(b, b)
    over, curved = squared <= goal, torch.ones_like(squared)  # whether it has ended, and p^T A p where it did
    history, count, stopped = [torch.stack([squared, model])], [], False
    for iteration in range(max_iterations):
        looks = (iteration + 1) % look_every == 0
        if iteration % look_every == 0 and bool(over):
            break
        ap = yield p
        curvature = space.dot(p, ap)
        curved = torch.where(over, curved, curvature)
        over = over | ~(curvature > 0)
        if looks and bool(over):
            break
        alpha = torch.where(over, 0.0, rz / curvature)
        x.addcmul_(p, alpha.to(p.dtype))
        r.addcmul_(ap, -alpha.to(p.dtype))
        count.append(~over)
        model = model - 0.5 * alpha * rz
        squared = torch.where(over, squared, space.dot(r, r))
        history.append(torch.stack([squared, model]))
        over = over | (squared <= goal)
        if looks and (bool(over) or (stop is not None and _asked(stop, history))):
            stopped = not bool(over)
            break
        z = r if apply is None else apply(r)
        before, rz = rz, torch.where(over, rz, squared if z is r else space.dot(r, z))
        onward = z if look_every == 1 else z * ~over  # with a look at each, this is not reached once it is over
        torch.addcmul(onward, p, torch.where(over, 1.0, rz / before).to(p.dtype), out=p)
    taken = int(torch.stack(count).sum()) if count else 0
    residuals, models = torch.stack(history[: taken + 1]).T.cpu().numpy()
    if not np.isfinite(models).all() or math.isnan(float(curved)):
        raise NonFiniteError(
            "conjugate gradients met a product that is NaN or infinite; look at the data, or damp more"
        )
    bent = not float(curved) > 0
    status = (
        "negative curvature"
        if bent
        else "converged"
        if residuals[-1] <= float(goal)
        else "stopped"
        if stopped
        else "max_iterations"
    )
    return CGResult(x, np.sqrt(residuals), models, status, p if bent else None)


def _asked(stop: Callable[[Floats], bool], history: list[Tensor]) -> bool:
    return stop(torch.stack(history)[:, 1].cpu().numpy())


def relative_progress(model: Floats, *, tolerance: float = 5e-4, fewest: int = 10) -> bool:
    """Whether the last ``k`` iterations lowered the model by less than ``k * tolerance`` of its value.

    A ``stop`` criterion of :func:`cg` with ``k = max(fewest, iterations // 10)`` (Martens 2010, section 4.4).
    """
    iterations = len(model) - 1
    k = max(fewest, iterations // 10)
    return bool(iterations >= k and model[-1] < 0 and (model[-1] - model[-1 - k]) / model[-1] < k * tolerance)
