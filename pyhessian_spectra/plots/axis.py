"""The eigenvalue axis: linear around zero, logarithmic away from it, on both sides.

Positions are ``asinh(eigenvalue / threshold) / ln 10``. One unit is a decade once ``|eigenvalue|`` exceeds the
threshold, and unlike the piecewise symmetric logarithm the map is smooth, so that a density drawn in it has no kink.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, ScalarFormatter
from numpy.typing import ArrayLike

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots.numbers import format_number
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum

# The widest axis reaches from its linear part over eight decades, more than float32 products can tell apart.
_MAX_DECADES = 8
# Bins across the axis. Quadrature resolves the bulk less finely than a list of all eigenvalues does.
_EXACT_BINS, _SAMPLED_BINS = 90, 50
_MAX_LABELS = 9
_LN10 = np.log(10.0)


@dataclass(frozen=True)
class Profile:
    """How many eigenvalues lie around each value: a line to draw and its band.

    Attributes
    ----------
    values, counts : ndarray, shape (g,), float64
        Eigenvalues, and the number of eigenvalues in a bin of the axis around each.
    lower, upper : ndarray, shape (g,), float64
        One standard error over probes to either side; equal to ``counts`` for one probe or an exact spectrum.
    """

    values: Floats
    counts: Floats
    lower: Floats
    upper: Floats


@dataclass(frozen=True)
class EigenvalueAxis:
    """Where eigenvalues are drawn, and how finely they are told apart there.

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
        """The axis on which all these spectra, and single eigenvalues ``points``, can be read together.

        The threshold is the median of ``|eigenvalue|`` (each spectrum counting equally), so that half of the
        mass lies in the linear part however narrow the bulk is beside its outliers. Numerical zeros do not take part.

        >>> axis = EigenvalueAxis.fit([Spectrum.from_eigenvalues([-0.01, 0.01, 0.01, 100.0])])
        >>> axis.threshold
        0.01
        """
        spectra = list(spectra)
        if not spectra:
            raise InputError("spectra is empty; an eigenvalue axis needs at least one spectrum")
        nodes, weights = (np.concatenate(parts) for parts in zip(*(each.flat() for each in spectra), strict=True))
        nodes, weights = nodes[weights > 0], weights[weights > 0]
        threshold = _median_magnitude(nodes, weights)
        ends = np.arcsinh(np.concatenate([nodes, np.ravel(points)]) / threshold) / _LN10
        span = max(float(np.ptp(ends)), 1e-2)
        width = _round_down(span / (_EXACT_BINS if all(each.exact for each in spectra) else _SAMPLED_BINS))
        low = np.floor(float(ends.min()) / width - 2.5) * width
        high = np.ceil(float(ends.max()) / width + 2.5) * width
        return cls(threshold, float(low), float(high), width)

    @property
    def bandwidth(self) -> float:
        """Standard deviation in decades of the Gaussian that has the height and the area of one bin."""
        return self.width / float(np.sqrt(2 * np.pi))

    def decades(self, eigenvalues: ArrayLike) -> Floats:
        """Positions of eigenvalues on the axis, in decades from zero."""
        return np.arcsinh(np.asarray(eigenvalues, dtype=np.float64) / self.threshold) / _LN10

    def eigenvalues(self, decades: ArrayLike) -> Floats:
        """The inverse of :meth:`decades`."""
        return self.threshold * np.sinh(np.asarray(decades, dtype=np.float64) * _LN10)

    def profile(self, spectrum: Spectrum) -> Profile:
        """Eigenvalues per bin: the steps of a histogram when the spectrum is exact, else a smooth curve.

        Smoothing is Gaussian in the coordinate of the axis, so that one eigenvalue has height 1 in both forms.
        """
        positions = self.decades(spectrum.nodes)
        if spectrum.exact:
            edges = self.low + self.width * np.arange(round((self.high - self.low) / self.width) + 1)
            counts, _ = np.histogram(positions, bins=edges, weights=spectrum.weights * spectrum.n)
            counts = np.repeat(counts / spectrum.num_probes, 2)
            return Profile(self.eigenvalues(np.repeat(edges, 2)[1:-1]), counts, counts, counts)
        grid = np.arange(self.low, self.high, self.bandwidth / 3)
        rows = [
            Spectrum(nodes[None], weights[None], spectrum.n, num_atoms=0, dtype=spectrum.dtype).density(
                grid, bandwidth=self.bandwidth
            )
            for nodes, weights in zip(positions, spectrum.weights, strict=True)
        ]
        per_probe = spectrum.n * self.width * np.stack(rows)
        mean = per_probe.mean(axis=0)
        probes = spectrum.num_probes
        error = per_probe.std(axis=0, ddof=1) / np.sqrt(probes) if probes > 1 else np.zeros_like(mean)
        return Profile(self.eigenvalues(grid), mean, np.maximum(mean - error, 0.0), mean + error)

    def bounds(
        self, spectrum: Spectrum, values: ArrayLike, *, level: float, others: tuple[float, float] | None = None
    ) -> tuple[Floats, Floats]:
        """Bounds on the smooth curve of :meth:`profile` at ``values``, by :meth:`Spectrum.density_bounds`."""
        lower, upper = spectrum.density_bounds(
            values, bandwidth=self.bandwidth, level=level, others=others, coordinate=self.decades
        )
        return spectrum.n * self.width * lower, spectrum.n * self.width * upper

    def set_scale(self, ax: Axes, *, which: Literal["x", "y"] = "x") -> None:
        """Give one axis of ``ax`` this scale, its limits and ticks at powers of ten."""
        low, high = (float(end) for end in self.eigenvalues([self.low, self.high]))
        if which == "x":
            ax.set_xscale("asinh", linear_width=self.threshold)
            ax.set_xlim(low, high)
        else:
            ax.set_yscale("asinh", linear_width=self.threshold)
            ax.set_ylim(low, high)
        axis: Axis = ax.xaxis if which == "x" else ax.yaxis
        major, minor = self._ticks(low, high)
        if len(major) < 2:  # a range so narrow that the scale is a straight line
            axis.set_major_locator(MaxNLocator(5))
            axis.set_major_formatter(ScalarFormatter())
            return
        magnitudes = np.abs(major[major != 0])
        plain = bool(magnitudes.min() > 0.005 and magnitudes.max() < 5000)
        axis.set_major_locator(FixedLocator(major.tolist()))
        axis.set_minor_locator(FixedLocator(minor.tolist()))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick_label(value, plain=plain)))
        axis.set_minor_formatter(NullFormatter())

    def _ticks(self, low: float, high: float) -> tuple[Floats, Floats]:
        """Zero and round numbers at readable distances, and what lies between them.

        Powers of ten, evenly thinned; where they would be fewer than four, also their double and fivefold.
        """
        first = int(np.floor(np.log10(self.threshold))) - 1
        last = int(np.floor(np.log10(max(abs(low), abs(high))) + 1e-9))
        spacing = (self.high - self.low) / _MAX_LABELS
        decades = np.float_power(10.0, np.arange(first, last + 1))
        powers = decades[:: -max(1, int(np.ceil(spacing)))]
        major = _within(_both_signs(powers[self.decades(powers) >= spacing]), low, high)
        if len(major) < 4:
            major = _within(_both_signs(self._thinned(np.outer(decades, [1, 2, 5]).ravel(), spacing)), low, high)
        steps = np.arange(1.0, 10.0) if spacing < 1 else np.ones(1)
        return major, _within(_both_signs(np.outer(decades[decades >= self.threshold], steps).ravel()), low, high)

    def _thinned(self, values: Floats, spacing: float) -> Floats:
        """Of ascending positive values, outermost first, those at least ``spacing`` from the last and from zero."""
        kept: list[float] = []
        for value, position in zip(values[::-1], self.decades(values)[::-1], strict=True):
            if position >= spacing and (not kept or self.decades(kept[-1]) - position >= spacing):
                kept.append(float(value))
        return np.array(kept)


def tick_label(value: float, *, plain: bool) -> str:
    """A round number, in full where ``plain``, powers of ten else in exponent form.

    >>> tick_label(100.0, plain=True), tick_label(-100.0, plain=False), tick_label(2e-5, plain=False)
    ('100', '$-10^{2}$', '2×10⁻⁵')
    """
    if value == 0 or plain:
        return f"{value:g}".replace("-", "\N{MINUS SIGN}")
    power = np.log10(abs(value))
    if abs(power - round(power)) > 1e-6:
        return format_number(value, digits=1)
    return f"${'-' if value < 0 else ''}10^{{{round(power)}}}$"


def _median_magnitude(nodes: Floats, weights: Floats) -> float:
    magnitudes = np.abs(nodes)
    scale = float(magnitudes.max())
    if scale == 0:
        return 1.0
    floor = scale * 10.0**-_MAX_DECADES
    kept = magnitudes > floor
    order = np.argsort(magnitudes[kept])
    cumulative = np.cumsum(weights[kept][order])
    return float(magnitudes[kept][order][np.searchsorted(cumulative, cumulative[-1] / 2)])


def _round_down(width: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most ``width``."""
    power = 10.0 ** np.floor(np.log10(width))
    return float(power * max(step for step in (1, 2, 5) if step * power <= width * (1 + 1e-9)))


def _both_signs(values: Floats) -> Floats:
    return np.unique(np.concatenate([-values, [0.0], values]))


def _within(values: Floats, low: float, high: float) -> Floats:
    return values[(values >= low) & (values <= high)]
