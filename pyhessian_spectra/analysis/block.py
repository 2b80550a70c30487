"""BlockAnalysis: what is known of the spectrum of one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pyhessian_spectra.shown import html_table, one_line
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

    def __repr__(self) -> str:
        return one_line(self, self.in_brief())

    def _repr_html_(self) -> str:
        return html_of({"matrix": self}, "Spectrum of one operator")

    def in_brief(self) -> list[str]:
        """Its dimension, largest eigenvalue and trace, and how many eigenpairs did not converge, if any."""
        missed = [f"{self.unconverged} eigenpairs not converged"] if self.unconverged else []
        top = [f"λ₁={next(iter(self.largest))}"] if len(self.largest) else []
        return [f"n={self.n:,}", *top, f"trace={self.trace}", *missed]

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


def html_of(blocks: Mapping[str, BlockAnalysis], caption: str) -> str:
    """A table of blocks by name, each number with the largest of its errors."""
    columns = ["", "n", "λ₁", "λₙ", "Trace", "Frobenius norm", "Eigenpairs not converged"]
    rows = []
    for name, block in blocks.items():
        ends = [*block.largest][:1], [*block.smallest][-1:]
        shown = [str(end[0]) if end else "not computed" for end in ends]
        rows.append([name, f"{block.n:,}", *shown, str(block.trace), str(block.frobenius), str(block.unconverged)])
    return html_table(caption, columns, rows)
