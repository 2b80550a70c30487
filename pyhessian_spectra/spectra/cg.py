"""Conjugate gradients for a symmetric positive definite operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.space import VectorSpace

# Iterations between two looks at whether it is done, by device: each look waits for a GPU, and as many more products
# are taken in vain at most.
_LOOK_EVERY = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True, repr=False)
class CGResult(Shown):
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
    shift: float = 0.0,
    max_iterations: int = 100,
    rtol: float = 1e-5,
    preconditioner: LinearOperator | Callable[[Tensor], Tensor] | None = None,
    stop: Callable[[Floats], bool] | None = None,
    look_every: int | None = None,
) -> CGResult:
    """Solve ``(A + shift I) x = b`` by the method of conjugate gradients (Hestenes and Stiefel 1952).

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
        With the shift positive definite; the iteration ends at the first direction in which it is not.
    b : Tensor, shape (n,)
    x0 : Tensor, shape (n,), optional
        Initial guess, by default zero; its residual costs one more product.
    shift : float
        Added to the diagonal, as damping is. ``A`` stands below for the matrix with it.
    max_iterations : int
    rtol : float
        The iteration ends when the residual's norm is at most ``rtol ||b||``, or the square of the dtype's eps times
        that.
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
    if max_iterations < 1 or not rtol >= 0 or not math.isfinite(shift):
        raise InputError(
            f"cg needs max_iterations >= 1, rtol >= 0 and a finite shift, got {max_iterations}, {rtol} and {shift}"
        )
    if look_every is not None and look_every < 1:
        raise InputError(f"cg needs look_every of at least 1 iteration, got {look_every}; leave it out for the default")
    op._check(b)
    space, b = op.space, b.detach()
    look_every = look_every or _LOOK_EVERY.get(space.device.type, 8)
    apply = preconditioner.__matmul__ if isinstance(preconditioner, LinearOperator) else preconditioner
    # Numbers stay on the device from one look to the next: what one iteration has ended, the others leave as it is.
    # The system is solved for b / ||b||, whose squares neither vanish nor overflow.
    size = space.length(b)
    unit = torch.where(size > 0, size, 1.0).to(b.dtype)
    b = b / unit
    x = torch.zeros_like(b) if x0 is None else x0.detach() / unit
    r = b.clone() if x0 is None else b - op @ x - shift * x
    z = r if apply is None else apply(r)
    p, squared = z.clone(), space.dot(r, r)
    rz = squared if z is r else space.dot(r, z)
    model = torch.zeros_like(rz) if x0 is None else -0.5 * (space.dot(x, r) + space.dot(x, b))
    # of residuals below eps^2 the recurrence says nothing, and squares of smaller ones may vanish
    goal = max(rtol, space.eps**2) ** 2 * space.dot(b, b)
    over, curved = squared <= goal, torch.ones_like(squared)  # whether it has ended, and p^T A p where it did
    history, count, stopped = [torch.stack([squared, model])], [], False
    for iteration in range(max_iterations):
        looks = (iteration + 1) % look_every == 0
        if iteration % look_every == 0 and bool(over):
            break
        ap = op @ p
        curvature = _curvature(space, p, ap, shift)
        curved = torch.where(over, curved, curvature)
        over = over | ~(curvature > 0)
        if looks and bool(over):
            break
        alpha = torch.where(over, 0.0, rz / curvature)
        count.append(~over)
        model = model - 0.5 * alpha * rz
        squared = torch.where(over, squared, _moved(space, x, r, p, ap, alpha, shift))
        history.append(torch.stack([squared, model]))
        over = over | (squared <= goal)
        if looks and (bool(over) or (stop is not None and _asked(stop, history, unit))):
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
    ended = "stopped" if stopped else "max_iterations"
    status = "converged" if residuals[-1] <= float(goal) else ended
    bent = not float(curved) > 0
    norm = float(unit)
    return CGResult(
        x.mul_(unit),
        norm * np.sqrt(residuals),
        norm**2 * models,
        "negative curvature" if bent else status,
        p.mul_(unit) if bent else None,
    )


def _curvature(space: VectorSpace, p: Tensor, ap: Tensor, shift: float) -> Tensor:
    """``p^T (ap + shift p)``, in one sweep through memory."""
    if not shift:
        return space.dot(p, ap)
    return space.total([torch.dot(ps, aps) + shift * torch.dot(ps, ps) for ps, aps in space.in_parts(p, ap)])


def _moved(space: VectorSpace, x: Tensor, r: Tensor, p: Tensor, ap: Tensor, alpha: Tensor, shift: float) -> Tensor:
    """Move ``x`` by ``alpha p``, ``r`` by ``-alpha (ap + shift p)``, in one sweep through memory; return ``r^T r``."""
    there, back, along, squares = alpha.to(p.dtype), -alpha.to(p.dtype), (-alpha * shift).to(p.dtype), []
    for xs, rs, ps, aps in space.in_parts(x, r, p, ap):
        xs.addcmul_(ps, there)
        rs.addcmul_(aps, back)
        if shift:
            rs.addcmul_(ps, along)
        squares.append(torch.dot(rs, rs))
    return space.total(squares)


def _asked(stop: Callable[[Floats], bool], history: list[Tensor], unit: Tensor) -> bool:
    return stop((torch.stack(history)[:, 1] * unit.double() ** 2).cpu().numpy())


def relative_progress(model: Floats, *, tolerance: float = 5e-4, fewest: int = 10) -> bool:
    """Whether the last ``k`` iterations lowered the model by less than ``k * tolerance`` of its value.

    A ``stop`` criterion of :func:`cg` with ``k = max(fewest, iterations // 10)`` (Martens 2010, section 4.4).
    """
    iterations = len(model) - 1
    k = max(fewest, iterations // 10)
    return bool(iterations >= k and model[-1] < 0 and (model[-1] - model[-1 - k]) / model[-1] < k * tolerance)
