"""The loss on a line or a plane through a point, beside the quadratic model that its derivatives there give."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pyhessian_spectra.analysis.sampling import data_notes, jackknife
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, Point, RiskOperator
from pyhessian_spectra.curvature.along import batch_losses, batch_slopes
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.runs.journal import Answer, Journal, open_journal
from pyhessian_spectra.runs.watch import Progress
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.operator import observe
from pyhessian_spectra.spectra.results import Eigenpairs, Floats
from pyhessian_spectra.spectra.rounding import SAFETY

# Unit vectors whose smallest singular value is below this say nothing apart.
_DEPENDENT = 1e-3

# Least rounding of a loss, in eps of the largest.
_LEAST = 4

Directions = Eigenpairs | Tensor | NDArray[np.floating] | Sequence[Tensor | NDArray[np.floating]]


@dataclass(frozen=True, repr=False)
class LossSurface(Shown):
    """The loss at ``theta + sum_i x_i v_i``, for all positions ``x`` of a grid, and its quadratic model at ``x = 0``.

    Standard errors are those due to the data being a sample, by leaving out batches; None where there is one batch.

    Parameters
    ----------
    positions : tuple of ndarray, shape (p_i,)
        Steps ``x_i`` along each direction, in its lengths.
    loss : ndarray, shape (p_1,) or (p_1, p_2)
        NaN or infinite where the loss is.
    rise : ndarray, shape of ``loss``
        The loss less that at the centre.
    centre : float
        The loss at ``x = 0``.
    slopes : ndarray, shape (d,)
        ``v_i^T g`` with the gradient at the centre.
    curvatures : ndarray, shape (d, d)
        ``v_i^T H v_j`` with the Hessian there.
    model : ndarray, shape of ``loss``
        The rise that these say: ``x^T slopes + x^T curvatures x / 2``.
    loss_stderr, rise_stderr, centre_stderr, slopes_stderr, curvatures_stderr, model_stderr : ndarray, float or None
        Of a rise it is that of the difference on the same batches, zero at the centre.
    rounding : float
        Measured bound on the rounding error of a loss, from the centre and the ends of the grid.
    slopes_rounding, curvatures_rounding : ndarray
        Measured bounds on the rounding errors of each slope and curvature.
    gram : ndarray, shape (d, d)
        ``v_i^T v_j``: the squared lengths of the directions, and whether they are orthogonal.
    labels : tuple of str
        What the directions are called.
    notes : tuple of Note
    """

    positions: tuple[Floats, ...]
    loss: Floats
    rise: Floats
    centre: float
    slopes: Floats
    curvatures: Floats
    model: Floats
    loss_stderr: Floats | None
    rise_stderr: Floats | None
    centre_stderr: float | None
    slopes_stderr: Floats | None
    curvatures_stderr: Floats | None
    model_stderr: Floats | None
    rounding: float
    slopes_rounding: Floats
    curvatures_rounding: Floats
    gram: Floats
    labels: tuple[str, ...]
    notes: tuple[Note, ...] = ()


def loss_surface(
    risk: EmpiricalRisk,
    directions: Directions,
    *,
    positions: ArrayLike | Sequence[ArrayLike] | None = None,
    point: Point | None = None,
    labels: Sequence[str] | None = None,
    progress: Progress | None = None,
    journal: str | os.PathLike[str] | None = None,
) -> LossSurface:
    """Evaluate the loss on a line or a plane, and its slopes and curvatures along the directions at the centre.

    A position of the grid takes one pass over the data; beside these there are a gradient and a product for each
    direction, and each of the two again in float64, or at another rounding, which measures how far they are off.

    Parameters
    ----------
    risk : EmpiricalRisk
    directions : Eigenpairs, tensor or ndarray of shape (n,) or (n, d), or sequence of vectors (n,)
        One direction for a line or two for a plane, of any length; eigenvectors start at the largest eigenvalue. See
        :func:`towards` for that to another checkpoint, and :func:`random_direction`.
    positions : array_like, or one for each direction
        Ascending steps along each direction, by default 25 from -1 to 1.
    point : Point, optional
        The centre, by default the model's current parameters.
    labels : sequence of str, optional
        What the directions are called.
    progress : callable, optional
        Called as ``progress(what, done, total)`` after each pass.
    journal : path-like, optional
        Folder in which values are kept as they are found. Called again with the same arguments, it goes on from there.

    Returns
    -------
    LossSurface

    Raises
    ------
    InputError
        Directions or positions that do not fit, or derivatives that are not those of the loss.
    """
    if not isinstance(risk, EmpiricalRisk):
        raise InputError(f"loss_surface takes an EmpiricalRisk, got {type(risk).__name__}")
    if point is not None and (not isinstance(point, Point) or point.layout.shapes != risk.layout.shapes):
        raise InputError("point must be a Point of this risk, such as risk.point() or risk.point().moved(direction)")
    columns = _columns(risk, directions)
    grid = _grid(positions, columns.shape[1])
    what = "eigenvector" if isinstance(directions, Eigenpairs) else "direction"
    names = tuple(labels or (f"{what} {i + 1}" for i in range(len(grid))))
    if len(names) != len(grid):
        raise InputError(f"labels must name each of the {len(grid)} directions, got {len(names)}")
    risk = risk.held()
    op = HessianOperator(risk, point=point, memory_budget=0)
    doubts = [Note("verification", doubt) for doubt in verify(op).doubts]
    size = 8 * risk.num_batches * math.prod(map(len, grid))
    identity = ["loss surface", columns, op.point.flat()]
    kept = open_journal(None if journal is None else Path(journal), risk, identity, seed=0, drawn=False, size=size)
    places = list(itertools.product(*(x.tolist() for x in grid)))
    walk = _Walk(op, columns, kept, progress, len({(0.0,) * len(grid), *places}))
    origin = (0.0,) * len(grid)
    found = {place: walk.losses(place) for place in dict.fromkeys([origin, *places])}
    slopes, curvatures, slopes_off, curvatures_off = walk.derivatives()
    ends = {origin, *itertools.product(*((x[0].item(), x[-1].item()) for x in grid))}
    rounding = walk.rounding({place: found[place] for place in sorted(ends)})
    centre, losses = found[origin], np.stack([found[place] for place in places], axis=1)
    risk.loss()  # for the last time, should the data have changed
    weights, x = risk.sample.shares.cpu().numpy(), np.array(places)
    rises = losses - centre[:, None]
    models = slopes @ x.T + np.einsum("pi,bij,pj->bp", x, curvatures, x) / 2
    shape, several = tuple(map(len, grid)), len(weights) > 1

    def spread(values: Floats) -> Floats | None:
        """The error of the batches' mean."""
        return np.asarray(jackknife(weights, lambda w: np.tensordot(w, values, 1))) if several else None

    def laid_out(values: Floats | None) -> Floats | None:
        return None if values is None else values.reshape(shape)

    def mean(values: Floats) -> Floats:
        return np.tensordot(weights, values, 1)

    with np.errstate(invalid="ignore"):  # of what is NaN or infinite
        loss, at_centre = mean(losses), spread(centre)
        return LossSurface(
            grid,
            loss.reshape(shape),
            mean(rises).reshape(shape),
            float(mean(centre)),
            mean(slopes),
            mean(curvatures),
            mean(models).reshape(shape),
            laid_out(spread(losses)),
            laid_out(spread(rises)),
            None if at_centre is None else float(at_centre),
            spread(slopes),
            spread(curvatures),
            laid_out(spread(models)),
            rounding,
            slopes_off,
            curvatures_off,
            (columns.double().T @ columns.double()).cpu().numpy(),
            names,
            (*doubts, *data_notes(risk), *kept.notes, *_holes(loss)),
        )


class _Walk:
    """Passes over the data at points of the plane, each kept and shown."""

    def __init__(
        self, op: RiskOperator, columns: Tensor, kept: Journal, progress: Progress | None, places: int
    ) -> None:
        self._op, self._columns, self._kept, self._progress = op, columns, kept, progress
        self._reference = op.reference()
        self._done, self._total = 0, places + 2 * (1 + columns.shape[1]) + 2 ** columns.shape[1] + 1

    def losses(self, place: Sequence[float], op: RiskOperator | None = None) -> Floats:
        """The loss of each batch (b,) at a place."""
        at = op or self._op
        step = self._columns.to(at.dtype) @ torch.tensor(place, dtype=at.dtype, device=at.device)
        point = at.point.moved(step) if any(place) else at.point
        return self._take("loss", place, op, lambda: batch_losses(at.risk, point))

    def derivatives(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Slopes (b, d) and curvatures (b, d, d) of each batch, and bounds on the rounding of their means."""
        (slopes, curvatures), again = (
            (self._slopes(op), np.stack([self._bends(op, j) for j in range(self._columns.shape[1])], axis=2))
            for op in (None, self._reference)
        )
        off = [
            SAFETY * np.abs(self._mean(one) - self._mean(other))
            for one, other in zip((slopes, curvatures), again, strict=True)
        ]
        return slopes, curvatures, off[0], off[1]

    def rounding(self, found: Mapping[Sequence[float], Floats]) -> float:
        """A bound on the rounding error of a loss, from these at some places taken again."""
        off = [abs(self._mean(losses - self.losses(place, self._reference))) for place, losses in found.items()]
        measured = SAFETY * max(map(float, filter(np.isfinite, off)), default=math.nan)
        largest = max((abs(float(self._mean(each))) for each in found.values() if np.isfinite(each).all()), default=0.0)
        # the few places taken again may round to the same; values themselves are no finer than this
        return max(measured, _LEAST * self._op.space.eps * largest)

    def _slopes(self, op: RiskOperator | None) -> Floats:
        at = op or self._op
        return self._take("slopes", [], op, lambda: batch_slopes(at.risk, at.point, self._columns))

    def _bends(self, op: RiskOperator | None, j: int) -> Floats:
        """``v_i^T H_b v_j`` (b, d) for one direction."""
        at, basis = op or self._op, self._columns.double()
        v = self._columns[:, j].to(at.dtype)
        return self._take("bends", [float(j)], op, lambda: observe(at, v, lambda product: product.double() @ basis)[2])

    def _mean(self, values: Floats) -> Floats:
        return np.tensordot(self._op.risk.sample.shares.cpu().numpy(), values, 1)

    def _take(self, ask: str, about: Sequence[float], op: RiskOperator | None, call: Callable[[], Tensor]) -> Floats:
        """What a pass gives, from the journal where it is there."""

        def answer() -> Answer:
            start = time.perf_counter()
            found = call()
            return [found], {"seconds": time.perf_counter() - start}

        again = "" if op is None else " again"
        arrays, _ = self._kept.answer(ask + again, torch.tensor(about, dtype=torch.float64), answer)
        self._done += 1
        if self._progress:
            self._progress(f"{ask}{again}", self._done, max(self._done, self._total))
        return arrays[0].cpu().numpy()


def _columns(risk: EmpiricalRisk, directions: Directions) -> Tensor:
    """The directions as columns (n, d) of the risk's dtype on its device; raises InputError if they do not fit."""
    given = directions
    if not isinstance(given, (Eigenpairs, Tensor, np.ndarray, list, tuple)):
        raise InputError(f"directions must be eigenpairs, a tensor, an array or a list of vectors, got {given!r}")
    if isinstance(given, Eigenpairs):
        if given.eigenvectors is None:
            raise InputError("the eigenpairs hold no eigenvectors; pass those of an analysis that kept them")
        given = given.eigenvectors[:, ::-1]
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(np.array(given, order="C"))  # a copy: strides may be negative
    if not isinstance(given, Tensor):
        vectors = [torch.as_tensor(v if isinstance(v, Tensor) else np.array(v)) for v in given]
        if any(v.shape != (risk.n,) for v in vectors):
            shapes = ", ".join(str(tuple(v.shape)) for v in vectors)
            raise InputError(f"directions must be vectors ({risk.n},) of the risk's parameters, got {shapes}")
        given = torch.stack(vectors, dim=1) if vectors else torch.empty(risk.n, 0)
    if given.is_complex():
        raise InputError("directions are complex; parameters are real, so pass their real or imaginary parts")
    columns = given.detach().to(risk.device, risk.dtype)
    columns = columns[:, None] if columns.dim() == 1 else columns
    if columns.dim() != 2 or len(columns) != risk.n or columns.shape[1] not in (1, 2):
        raise InputError(
            f"directions must be one or two vectors of n = {risk.n}, as (n,) or (n, 2), got {tuple(columns.shape)}; "
            "of more eigenpairs take some, such as pairs.take(slice(-2, None)) for the two largest"
        )
    lengths = torch.linalg.vector_norm(columns.double(), dim=0)
    if not torch.isfinite(lengths).all() or not bool((lengths > 0).all()):
        raise InputError(f"directions must be finite and not zero, got lengths {lengths.tolist()}")
    if float(torch.linalg.svdvals(columns.double() / lengths)[-1]) < _DEPENDENT:
        raise InputError("the two directions are parallel; a plane needs two that are not, and a line is given one")
    return columns


def _grid(positions: ArrayLike | Sequence[ArrayLike] | None, count: int) -> tuple[Floats, ...]:
    """The steps along each direction; raises InputError if they are not finite and ascending."""
    given = np.linspace(-1, 1, 25) if positions is None else positions
    try:
        one = np.ndim(given[0]) == 0  # type: ignore[index]
        each = [given] * count if one else list(given)  # type: ignore[arg-type]
        grid = tuple(np.array(x, dtype=np.float64) for x in each)
    except (TypeError, ValueError, IndexError):
        grid = ()
    if len(grid) != count or not all(
        x.ndim == 1 and len(x) > 1 and np.isfinite(x).all() and (np.diff(x) > 0).all() for x in grid
    ):
        raise InputError(
            f"positions must be finite ascending numbers, two at least, once or for each of the {count} directions, "
            f"got {positions!r}; pass numpy.linspace(-1, 1, 25)"
        )
    return grid


def _holes(loss: Floats) -> list[Note]:
    """A note of where there is no loss."""
    missing = int((~np.isfinite(loss)).sum())
    if not missing:
        return []
    return [Note("data", f"The loss is NaN or infinite at {missing} of {loss.size} positions, which are left open.")]
