"""BlockAnalysis: what is known of the spectrum of one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyhessian_spectra.spectra import Eigenpairs, Spectrum, TraceEstimate


@dataclass(frozen=True)
class BlockAnalysis:
    """What is known of the spectrum of one operator: of the whole matrix, or of a diagonal block of it.

    Parameters
    ----------
    n : int
        Dimension.
    spectrum : Spectrum
    largest, smallest : Eigenpairs
        The ``k`` algebraically largest and smallest eigenpairs, each ascending.
    trace, frobenius : TraceEstimate
        ``tr A`` and ``||A||_F``.
    num_products : int
        Products with this block that were spent on it.
    group_traces : mapping of str to TraceEstimate
        Traces of its own diagonal blocks, by the labels of a partition, from the same products.
    """

    n: int
    spectrum: Spectrum
    largest: Eigenpairs
    smallest: Eigenpairs
    trace: TraceEstimate
    frobenius: TraceEstimate
    num_products: int
    group_traces: Mapping[str, TraceEstimate] = field(default_factory=dict)

    def largest_beside(self, whole: BlockAnalysis) -> tuple[float, float] | None:
        """``lambda_1`` over that of another block, and how far that may be off; None where the other may be zero."""
        if not (len(self.largest) and len(whole.largest)):
            return None
        own, top = self.largest.eigenvalues[-1], whole.largest.eigenvalues[-1]
        least = abs(top) - whole.largest.reach[-1]
        if not least > 0:
            return None
        return float(own / top), float((self.largest.reach[-1] + abs(own / top) * whole.largest.reach[-1]) / least)

    @property
    def unconverged(self) -> int:
        """How many of the eigenpairs did not meet the tolerance."""
        return int((~self.largest.converged).sum() + (~self.smallest.converged).sum())
