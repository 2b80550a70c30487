"""Bulk and edges: which eigenvalues stand apart from the rest, and on what evidence."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from pyhessian_spectra.analysis.merged import MergedNodes, merge_nodes
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra.bounds import FAILURE
from pyhessian_spectra.spectra.edges import ROUNDING
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# A gap must exceed the largest one inside the bulk by this factor. With nothing planted, at most 0.3 % of Wigner and
# 3 % of Wishart matrices of order 20 to 400 (400 to 2,000 each) were split at this value.
_FACTOR = 3.0

# A bulk narrower than this part of the whole range counts as this wide. Without it the step from the smallest nonzero
# eigenvalue to those that are zero to rounding would be the largest relative gap of every singular matrix.
_NARROWEST = 1e-2


@dataclass(frozen=True)
class Gap:
    """The interval without eigenvalues between the bulk and the edges on one side of it.

    Parameters
    ----------
    lower, upper : float
        The two eigenvalues it lies between.
    residual : float or None
        Sum of the residual norms of these two; None where no residual is known (a quadrature carries none).
    largest_inside : float
        Width of the largest gap inside the bulk.
    """

    lower: float
    upper: float
    residual: float | None
    largest_inside: float

    @property
    def width(self) -> float:
        """``upper - lower``, in eigenvalue units."""
        return self.upper - self.lower

    @property
    def over_inside(self) -> float:
        """How many times wider it is than the largest gap inside the bulk."""
        return self.width / self.largest_inside if self.largest_inside > 0 else math.inf

    @property
    def over_residual(self) -> float | None:
        """How many times wider it is than the residuals of its two ends; None where no residual is known."""
        if self.residual is None:
            return None
        return self.width / self.residual if self.residual > 0 else math.inf


@dataclass(frozen=True, repr=False)
class BulkEdge(Shown):
    """A spectrum divided into bulk and edges.

    Parameters
    ----------
    n : int
        Number of eigenvalues.
    bulk : tuple of float
        Smallest and largest eigenvalue of the bulk.
    above, below : ndarray, float64, ascending
        The edges: eigenvalues above and below the bulk. Where the spectrum is an estimate these are distinct Ritz
        values, in which a multiple eigenvalue counts once.
    gap_above, gap_below : Gap or None
        The largest relative gap on each side, whether it was accepted as the boundary or not; None where all
        eigenvalues of that half coincide.
    zero_mass, negative_mass : float
        Fractions of eigenvalues of magnitude at most ``zero_threshold``, and below ``-zero_threshold``.
    zero_threshold : float
        ``n eps max |eigenvalue|``, what the rank of a matrix is decided by (Press et al. 2007, section 2.6.1). Of an
        estimate ``100 eps max |eigenvalue|`` where that is less: what the rounding of products comes to, which does not
        grow with ``n``.
    zero_bounds, negative_bounds : tuple of float
        Bounds on these two fractions, which hold with 99 % confidence each. A quadrature sees what lies near zero as a
        few nodes, so the bounds of an estimate are wide; those of an exact spectrum coincide.
    exact : bool
        True when all eigenvalues are known; otherwise masses are estimates.
    reason : str
        Why there is no edge above, below, or at all; empty when both sides have edges.
    """

    n: int
    bulk: tuple[float, float]
    above: Floats
    below: Floats
    gap_above: Gap | None
    gap_below: Gap | None
    zero_mass: float
    zero_threshold: float
    negative_mass: float
    zero_bounds: tuple[float, float]
    negative_bounds: tuple[float, float]
    exact: bool
    reason: str

    @property
    def num_above(self) -> int:
        """Number of edges above the bulk."""
        return len(self.above)

    @property
    def num_below(self) -> int:
        """Number of edges below the bulk."""
        return len(self.below)

    @property
    def separable(self) -> bool:
        """Whether any eigenvalue stands apart from the bulk."""
        return bool(self.num_above or self.num_below)

    def __str__(self) -> str:
        zero, negative = _percent(self.zero_bounds), _percent(self.negative_bounds)
        bulk = f"bulk [{self.bulk[0]:.3g}, {self.bulk[1]:.3g}]"
        edges = f"{bulk}, {self.num_above} edges above and {self.num_below} below"
        head = edges if self.separable else f"not separable: {self.reason}"
        return f"{head}; {zero} at zero (|x| <= {self.zero_threshold:.2g}), {negative} negative"

    def to_json(self) -> dict[str, Any]:
        """The fields and ``separable`` as JSON scalars and lists; ratios that are infinite become null."""
        return {"separable": self.separable, **{f.name: _to_json(getattr(self, f.name)) for f in fields(self)}}


def split_bulk(
    source: Spectrum | BlockAnalysis | SpectralAnalysis | ArrayLike,
    *,
    dtype: str | torch.dtype | None = None,
    factor: float = _FACTOR,
) -> BulkEdge:
    """Divide a spectrum into bulk and edges at its largest relative gaps.

    On each side the candidates are the gaps beyond the median. Each is measured relative to the bulk it would leave:
    its width over the distance from the bulk's far quartile to the gap. The largest is the boundary if it exceeds the
    largest gap inside that bulk ``factor`` times and the residuals of its ends; else that side has no edges, and the
    result says why. The bulk always holds more than half of the eigenvalues.

    Parameters
    ----------
    source : Spectrum, BlockAnalysis, SpectralAnalysis or array_like
        Exact or estimated; eigenvalues in any order. Of an analysis that is not exact, converged eigenpairs from each
        end inwards replace the quadrature there; of a SpectralAnalysis the full Hessian is taken.
    dtype : str or torch.dtype, optional
        Precision of the products, whose ``eps`` sets ``zero_threshold``; by default that of the spectrum. Where the
        rounding that was measured is larger, that sets it.
    factor : float
        How many times the boundary must exceed the largest gap inside the bulk.

    Raises
    ------
    InputError
        No or non-finite eigenvalues, or ``factor`` not above 1.

    Examples
    --------
    >>> split = split_bulk([-0.1, 0.0, 0.0, 0.0, 0.05, 0.1, 5.0, 9.0])
    >>> split.num_above, split.num_below, split.bulk
    (2, 0, (-0.1, 0.1))
    """
    if not factor > 1:
        raise InputError(f"factor must be above 1, got {factor}: a gap must exceed those inside the bulk")
    if isinstance(source, SpectralAnalysis):
        source = source.full
    measured = merge_nodes(source)
    values, weights, spectrum = measured.values, measured.weights, measured.spectrum
    units = spectrum.n if spectrum.exact else min(spectrum.n, ROUNDING)
    resolution = max(units * _eps(dtype or spectrum.dtype) * float(np.abs(values).max()), spectrum.rounding)
    gaps, refusals = _boundaries(measured, resolution, factor)
    low = float(values[0]) if "below" in refusals else gaps["below"].upper
    high = float(values[-1]) if "above" in refusals else gaps["above"].lower
    ends = [np.nextafter(-resolution, -np.inf), resolution]
    least, most = (bounds.tolist() for bounds in spectrum.cdf_bounds(ends, level=1 - FAILURE))
    return BulkEdge(
        n=spectrum.n,
        bulk=(low, high),
        above=measured.distinct(values > high),
        below=measured.distinct(values < low),
        gap_above=gaps.get("above"),
        gap_below=gaps.get("below"),
        zero_mass=float(weights[np.abs(values) <= resolution].sum()),
        zero_threshold=resolution,
        negative_mass=float(weights[values < -resolution].sum()),
        zero_bounds=(max(least[1] - most[0], 0.0), most[1] - least[0]),
        negative_bounds=(least[0], most[0]),
        exact=spectrum.exact,
        reason="; ".join(dict.fromkeys(refusals[side] for side in sorted(refusals))),
    )


def _boundaries(measured: MergedNodes, resolution: float, factor: float) -> tuple[dict[str, Gap], dict[str, str]]:
    """The largest relative gap on each side, and the reason for each side where it is no boundary."""
    values, weights, residuals = measured.values, measured.weights, measured.residuals
    if values[-1] - values[0] <= resolution:
        return {}, dict.fromkeys(("above", "below"), f"all {measured.spectrum.n} eigenvalues are equal to rounding")
    standing = {}
    if (index := _largest_gap(values, weights)) is not None:
        standing["above"] = index
    if (index := _largest_gap(-values[::-1], weights[::-1])) is not None:
        standing["below"] = len(values) - 2 - index
    refusals = {side: f"no eigenvalue {side} the median" for side in ("above", "below") if side not in standing}
    gaps: dict[str, Gap] = {}
    while standing:
        bulk = slice(standing.get("below", -1) + 1, standing.get("above", len(values) - 1) + 1)
        inside = float(np.diff(values[bulk]).max(initial=0.0))
        held = float(weights[bulk].sum() / weights.sum())
        refused = {}
        for side, index in standing.items():
            ends = residuals[index : index + 2]
            residual = None if np.isnan(ends).all() else float(np.nansum(ends))
            gap = gaps[side] = Gap(float(values[index]), float(values[index + 1]), residual, inside)
            error, largest = max(resolution, residual or 0.0), f"the largest gap {side}"
            if gap.width <= error:
                refused[side] = f"{largest} is {gap.width:.3g}, within the error {error:.3g} of its ends"
            elif gap.over_inside < factor:
                refused[side] = f"{largest} is {gap.over_inside:.1f} times the largest inside the bulk, not {factor:g}"
            elif held <= 0.5:
                refused[side] = f"beyond {largest} the bulk would hold {held:.0%}, not a majority"
        if not refused:
            break
        # what is refused rejoins the bulk, whose largest gap may then refuse the other side
        narrower = min(refused, key=lambda side: gaps[side].width)
        refusals[narrower] = refused[narrower]
        del standing[narrower]
    return gaps, refusals


def _largest_gap(values: Floats, weights: Floats) -> int | None:
    """Index below the largest relative gap beyond the median; None when nothing lies beyond it."""
    cumulative = np.cumsum(weights) / weights.sum()
    quartile, median = np.searchsorted(cumulative, (0.25 - 1e-9, 0.5 - 1e-9))
    gaps = np.diff(values)[median:]
    if not len(gaps):
        return None
    reach = np.maximum(values[median:-1] - values[quartile], _NARROWEST * (values[-1] - values[0]))
    return int(median + np.argmax(gaps / reach))


def _percent(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"{low:.1%}" if high - low < 1e-9 else f"{low:.1%} to {high:.1%}"


def _eps(dtype: str | torch.dtype) -> float:
    named = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise InputError(f"dtype must name a floating type such as 'float32', got {dtype!r}")
    return float(torch.finfo(named).eps)


def _to_json(value: Any) -> Any:
    """Turn a field of a BulkEdge into JSON scalars and lists."""
    if isinstance(value, Gap):
        ratios = {"over_inside": value.over_inside, "over_residual": value.over_residual}
        finite = {key: None if ratio == math.inf else ratio for key, ratio in ratios.items()}
        return {**asdict(value), "width": value.width, **finite}
    return np.asarray(value).tolist() if isinstance(value, (tuple, np.ndarray)) else value
