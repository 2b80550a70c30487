"""For tests of operators, also of users' own: checks of an operator, and matrices with a known spectrum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyhessian_spectra.curvature import HessianOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra import LinearOperator, MatrixOperator
from pyhessian_spectra.spectra.operator import require_operator


@dataclass(frozen=True)
class OperatorCheck:
    """Deviations of an operator from a symmetric linear map, each relative to the norm of products.

    Parameters
    ----------
    asymmetry : float
        ``|u^T A v - v^T A u|``.
    nonlinearity : float
        ``||A (2 u - 3 v) - 2 A u + 3 A v||``.
    columns : float
        Largest distance between a product with several columns and the products with each.
    differences : float or None
        Distance of a product from central differences of the gradient; None if no gradient is known.
    """

    asymmetry: float
    nonlinearity: float
    columns: float
    differences: float | None


def check_operator(
    op: LinearOperator,
    *,
    gradient: Callable[[Tensor], Tensor] | None = None,
    tol: float | None = None,
    generator: torch.Generator | None = None,
) -> OperatorCheck:
    """Check that an operator is symmetric, linear and a gradient's derivative, and multiplies columns like vectors.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
    gradient : callable, optional
        Maps a displacement (n,) of the point to the gradient (n,) there, for comparison of a product with fourth-order
        central differences. By default known for a :class:`HessianOperator` only.
    tol : float, optional
        Largest deviation that passes, by default ``1e4 eps``; for ``differences`` at least ``eps ** 0.5``.
    generator : torch.Generator, optional
        Source of the vectors; by default seed 0.

    Returns
    -------
    OperatorCheck

    Raises
    ------
    AssertionError
        A deviation is larger; the message says which.

    Examples
    --------
    >>> check_operator(matrix_with_spectrum([1.0, 2.0, 3.0])).differences is None
    True
    """
    require_operator(op)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    tol, space = 1e4 * op.space.eps if tol is None else tol, op.space
    u, v = space.sphere(generator), space.sphere(generator)
    au, av = op @ u, op @ v
    scale = max(space.norm(au), space.norm(av)) or 1.0
    both = op @ torch.stack([u, v], dim=1)
    found = OperatorCheck(
        abs(space.inner(u, av) - space.inner(v, au)) / scale,
        space.norm(op @ (2 * u - 3 * v) - 2 * au + 3 * av) / scale,
        max(space.norm(both[:, 0] - au), space.norm(both[:, 1] - av)) / scale,
        _distance_from_differences(op, v, av, gradient, scale),
    )
    for name in ("asymmetry", "nonlinearity", "columns"):
        assert getattr(found, name) <= tol, f"the operator's {name} is {getattr(found, name):.1e}, more than {tol:.1e}"
    if found.differences is not None:
        allowed = max(tol, op.space.eps**0.5)
        assert found.differences <= allowed, (
            f"products differ from central differences by {found.differences:.1e}, more than {allowed:.1e}"
        )
    return found


def matrix_with_spectrum(
    eigenvalues: ArrayLike, *, dtype: torch.dtype = torch.float64, generator: torch.Generator | None = None
) -> MatrixOperator:
    """A dense symmetric operator (n, n) with these eigenvalues, up to rounding, and random eigenvectors.

    Parameters
    ----------
    eigenvalues : array_like, shape (n,)
        At least one; other shapes raise InputError.
    dtype : torch.dtype
    generator : torch.Generator, optional
        Source of the eigenvectors; by default seed 0.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    values = torch.as_tensor(eigenvalues, dtype=torch.float64)
    if values.dim() != 1 or not len(values):
        raise InputError(f"eigenvalues must be a list of at least one number, got shape {tuple(values.shape)}")
    n = len(values)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    matrix = (q * values) @ q.T
    return MatrixOperator(((matrix + matrix.T) / 2).to(dtype))


def _distance_from_differences(
    op: LinearOperator, v: Tensor, av: Tensor, gradient: Callable[[Tensor], Tensor] | None, scale: float
) -> float | None:
    if gradient is None:
        if not isinstance(op, HessianOperator):
            return None
        hessian = op
        gradient = lambda moved: hessian.risk.gradient(hessian.point.moved(moved))  # noqa: E731 - the default of one
    step = op.space.eps ** (1 / 5) * max(1.0, _size(op))
    slopes = [gradient(c * step * v) for c in (-2, -1, 1, 2)]
    differences = (slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / (12 * step)
    return op.space.norm(differences - av) / scale


def _size(op: LinearOperator) -> float:
    """Root mean square of the point's coordinates; 0 if the operator has no point."""
    point = getattr(op, "point", None)
    return 0.0 if point is None else float(point.flat().square().mean().sqrt())
