"""The eigenvalue axis is linear around zero and logarithmic away from it, on both sides.

Positions are ``asinh(eigenvalue / threshold) / ln 10``. One unit is a decade once ``|eigenvalue|`` exceeds the
threshold, and unlike the piecewise symmetric logarithm the map is smooth, so that a density drawn in it has no kink.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import ArrayLike

from pyhessian_spectra.analysis.resolution import resolved_cells, to_decades, typical_size
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

_BINS = 90
_MAX_LABELS = 9
_LN10 = np.log(10.0)


@dataclass(frozen=True)
class Profile:
    """Corners of bars at ``values``: eigenvalues per bin, estimated, and the least and the most that there may be."""

    values: Floats
    counts: Floats
    lower: Floats
    upper: Floats


@dataclass(frozen=True)
class EigenvalueAxis:
    """An axis says where eigenvalues are drawn, and how finely they are told apart there.

    Parameters
    ----------
    threshold : float
        Eigenvalue scale of the linear part.
    low, high : float
        Ends of the axis, in decades from zero.
    width : float
        Width of a bin, in decades, the same along the whole axis.
    """

    threshold: float
    low: float
    high: float
    width: float

    @classmethod
    def fit(cls, spectra: Iterable[Spectrum], *, points: ArrayLike = ()) -> EigenvalueAxis:
        """Return the axis on which all these spectra, and single eigenvalues ``points``, can be read together.

        The threshold is the median of ``|eigenvalue|``, of an estimate the end of the narrowest interval known to hold
        half of the eigenvalues, and of several spectra the middle one of theirs: so half of the mass lies in the linear
        part however narrow the bulk is beside its outliers. Numerical zeros do not take part.

        >>> axis = EigenvalueAxis.fit([Spectrum.from_eigenvalues([-0.01, 0.01, 0.01, 100.0])])
        >>> axis.threshold
        0.01
        """
        spectra = list(spectra)
        if not spectra:
            raise InputError("spectra is empty; an eigenvalue axis needs at least one spectrum")
        threshold = sorted(map(typical_size, spectra))[len(spectra) // 2]
        ends = to_decades(np.concatenate([*(each.support for each in spectra), np.ravel(points)]), threshold)
        widest = max(float(np.ptp(ends)), 1e-2) / _BINS * (1 + 1e-9)
        power = 10.0 ** np.floor(np.log10(widest))
        width = float(power * max(step for step in (1, 2, 5) if step * power <= widest))
        low = (np.floor(float(ends.min()) / width) - 2.5) * width  # zero is in the middle of a bin
        high = (np.ceil(float(ends.max()) / width) + 2.5) * width
        return cls(threshold, float(low), float(high), width)

    def decades(self, eigenvalues: ArrayLike) -> Floats:
        """Return the positions of eigenvalues on the axis, in decades from zero."""
        return to_decades(eigenvalues, self.threshold)

    def eigenvalues(self, decades: ArrayLike) -> Floats:
        """Return the eigenvalues at these positions: the inverse of :meth:`decades`."""
        return self.threshold * np.sinh(np.asarray(decades, dtype=np.float64) * _LN10)

    def profile(self, spectrum: Spectrum, *, others: tuple[float, float] | None = None) -> Profile:
        """Count eigenvalues in bars of one bin where all are known, else of as many bins as it takes to know them.

        See :func:`resolved_cells`. An eigenvalue that is alone in its bin has height 1.
        """
        edges = self.eigenvalues(np.arange(self.low, self.high + self.width / 2, self.width))
        cells = resolved_cells(spectrum, edges, others=others)
        values, share = np.repeat(cells.edges, 2)[1:-1], self.width / np.diff(self.decades(cells.edges))
        return Profile(values, *(np.repeat(share * x, 2) for x in (cells.counts, cells.lower, cells.upper)))

    def set_scale(self, ax: Axes, *, which: Literal["x", "y"] = "x") -> None:
        """Give one axis of ``ax`` this scale, its limits and ticks at powers of ten."""
        low, high = (float(end) for end in self.eigenvalues([self.low, self.high]))
        if ax.has_data():  # what is drawn already is not to be cropped
            ends = getattr(ax, f"get_{which}lim")()
            low, high = min(low, *ends), max(high, *ends)
        getattr(ax, f"set_{which}scale")("asinh", linear_width=self.threshold)
        ax.set(**{f"{which}lim": (low, high)})
        axis: Axis = getattr(ax, f"{which}axis")
        major, minor = self._ticks(low, high)
        if len(major) < 2:  # a range so narrow that the scale is a straight line
            axis.set(major_locator=MaxNLocator(5), major_formatter=ScalarFormatter())
        else:
            magnitudes = np.abs(major[major != 0])
            plain = bool(magnitudes.min() > 0.005 and magnitudes.max() < 5000)
            axis.set_ticks(major, [tick_label(value, plain=plain) for value in major])
            axis.set_ticks(minor, minor=True)

    def _ticks(self, low: float, high: float) -> tuple[Floats, Floats]:
        """Return zero and round numbers at readable distances, and the round numbers that lie between them."""
        first = int(np.floor(np.log10(self.threshold))) - 1
        last = int(np.floor(np.log10(max(abs(low), abs(high))) + 1e-9))
        decades = np.float_power(10.0, np.arange(first, last + 1))
        spacing = (self.high - self.low) / _MAX_LABELS

        def both_signs(values: Any) -> Floats:
            both = np.unique(np.concatenate([np.negative(values), [0.0], values]))
            return both[(both >= low) & (both <= high)]

        # Where powers of ten are too few, the axis shows their double and fivefold as well.
        for steps in ([1], [1, 2, 5]):
            kept: list[float] = []
            for value in np.outer(decades, steps).ravel()[::-1]:
                last_kept = self.decades(kept[-1]) if kept else np.inf
                if spacing <= self.decades(value) <= last_kept - spacing:
                    kept.append(value)
            major = both_signs(kept)
            if len(major) >= 4:
                break
        between = np.outer(decades[decades >= self.threshold], np.arange(1.0, 10.0) if spacing < 1 else [1.0])
        return major, both_signs(between.ravel())


def scale_values(ax: Axes, values: Floats) -> None:
    """Give ``ax`` a vertical axis for a few values: linear only below the smallest of them that matters."""
    magnitudes = np.abs(values[values != 0])
    scale = magnitudes.max(initial=0.0) or 1.0
    threshold = float(np.clip(magnitudes.min(initial=scale), 1e-4 * scale, scale))
    ends = to_decades(np.append(values, 0.0), threshold)
    margin = 0.08 * float(np.ptp(ends)) + 1e-3
    EigenvalueAxis(threshold, float(ends.min()) - margin, float(ends.max()) + margin, margin).set_scale(ax, which="y")


def tick_label(value: float, *, plain: bool) -> str:
    """Write a round number in full where ``plain``, else a power of ten in exponent form.

    >>> tick_label(100.0, plain=True), tick_label(-100.0, plain=False), tick_label(2e-5, plain=False)
    ('100', '$-10^{2}$', '2×10⁻⁵')
    """
    if value == 0 or plain:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    power = np.log10(abs(value))
    if abs(power - round(power)) > 1e-6:
        return format_number(value, digits=1)
    return f"${'-' if value < 0 else ''}10^{{{round(power)}}}$"
