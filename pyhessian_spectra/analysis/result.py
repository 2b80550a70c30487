"""SpectralAnalysis: everything a report on one checkpoint is drawn from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyhessian_spectra.analysis.block import BlockAnalysis as BlockAnalysis
from pyhessian_spectra.analysis.block import html_of
from pyhessian_spectra.analysis.carriers import Carriers
from pyhessian_spectra.analysis.classes import ClassStructure
from pyhessian_spectra.analysis.data_curve import DataCurve
from pyhessian_spectra.analysis.structure import Structure
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.shown import Shown, one_line
from pyhessian_spectra.spectra import Spectrum

if TYPE_CHECKING:
    import pandas

#: The inputs of so many examples are kept, to be seen.
NUM_THUMBNAILS = 12


@dataclass(frozen=True, repr=False)
class GaussNewton(Shown):
    """The Gauss-Newton part ``G`` of an analysis, exact from its Gram matrix, and how far ``H`` is from it.

    Parameters
    ----------
    block : BlockAnalysis
        The whole of ``G``; ``group_traces`` are its layers'.
    rows : int
        Rows of the Gram matrix: ``N (C - 1)`` for cross-entropy over ``C`` classes.
    apart : mapping of str to float
        By layer, the Frobenius norm of ``H_ll - G_ll``: exactly zero, an estimate from a product with a random vector,
        or, where that is near zero beside ``G_ll``, a bound from three.
    own : tuple of str
        Layers whose block of ``H`` is that of ``G`` to rounding, so that the analysis of the layer is that of ``G_ll``.
    residual : (float, float), optional
        Interval that holds all eigenvalues of ``H - G``, except with probability 0.01; None if it was not found.
    curve : DataCurve, optional
        Eigenvalues as a function of the number of examples; None for fewer than four, or a loss that is a sum.
    carriers : Carriers, optional
        The examples that carry the largest eigenvalue.
    classes : ClassStructure, optional
        What class means explain; None where the loss is not softmax cross-entropy, or rows are many.
    thumbnails : ndarray, shape (p, C, H, W), uint8, optional
        The inputs of the first examples of ``carriers``, where they are images.
    """

    block: BlockAnalysis
    rows: int
    apart: Mapping[str, float] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    residual: tuple[float, float] | None = None
    curve: DataCurve | None = None
    carriers: Carriers | None = None
    classes: ClassStructure | None = None
    thumbnails: NDArray[np.uint8] | None = None

    def counts_above(self, threshold: float) -> tuple[int, int]:
        """The least and the greatest number of eigenvalues of ``H`` above a threshold, by Weyl's inequalities.

        Raises InputError if the eigenvalues of ``H - G`` are not bounded.
        """
        low, high = self.shifts
        values = self.block.spectrum.nodes[0]
        return int((values + low > threshold).sum()), int((values + high > threshold).sum())

    @property
    def shifts(self) -> tuple[float, float]:
        """How far below and above those of ``G`` the eigenvalues of ``H`` of the same rank may lie."""
        if self.residual is None:
            raise InputError("the eigenvalues of H - G are not bounded, so those of H are not either")
        off = self.block.spectrum.off
        return self.residual[0] - off, self.residual[1] + off


@dataclass(frozen=True)
class SpectralAnalysis:
    """The analysis of one checkpoint.

    Parameters
    ----------
    problem : mapping
        JSON scalars that say what was analysed: ``checkpoint``, ``sha256``, ``model``, ``n``, ``N``, ``loss``,
        ``mode``, ``dtype``, ``device``, ``seed`` and whatever else is known (``step``, ``accuracy``, ...).
    full : BlockAnalysis
        The whole matrix.
    layers : mapping of str to BlockAnalysis
        Diagonal blocks by layer name, in the order of the model.
    timing : mapping
        ``seconds``, ``num_products``, ``seconds_per_product``, ``seconds_per_gradient``.
    notes : sequence of Note
        What a reader of the report must see: what was not converged, not kept, or not finished.
    gauss_newton : GaussNewton, optional
        What the Gram matrix says, if it was taken.
    structure : Structure, optional
        How layers, eigenvectors and the gradient lie to one another.
    parts : sequence of mapping of str to Spectrum
        Spectra of the whole matrix, called ``"whole"``, and of each layer from disjoint parts of the data, each with
        random probes of its own.
    """

    problem: Mapping[str, Any]
    full: BlockAnalysis
    layers: Mapping[str, BlockAnalysis] = field(default_factory=dict)
    timing: Mapping[str, float] = field(default_factory=dict)
    notes: Sequence[Note] = ()
    gauss_newton: GaussNewton | None = None
    structure: Structure | None = None
    parts: Sequence[Mapping[str, Spectrum]] = ()

    def __repr__(self) -> str:
        counts = ((len(self.layers), "layer"), (len(self.notes), "note"))
        held = [f"{count} {what}{'s' * (count > 1)}" for count, what in counts if count]
        return one_line(self, [*self._subject, *self.full.in_brief(), *held])

    def _repr_html_(self) -> str:
        return html_of({"whole": self.full, **self.layers}, ", ".join(["Spectral analysis", *self._subject]))

    @property
    def _subject(self) -> list[str]:
        """The checkpoint without its folder, and the matrix, as far as they are known."""
        file, matrix = self.problem.get("checkpoint"), self.problem.get("matrix")
        return [*([] if file is None else [PurePath(str(file)).name]), *([] if matrix is None else [str(matrix)])]

    def to_json(self) -> dict[str, Any]:
        """The entry of ``results.json`` (schema version 2) for this checkpoint."""
        from pyhessian_spectra.analysis.saved import entry_of

        return entry_of(self)

    def to_frame(self) -> pandas.DataFrame:
        """Every number as a row of a pandas DataFrame, with its error and the kind of error; see :func:`tidy`."""
        from pyhessian_spectra.analysis.table import tidy, to_frame

        return to_frame(tidy([self]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` with the suffixes ``.json`` (numbers) and ``.npz`` (quadrature and eigenvectors)."""
        from pyhessian_spectra.analysis.saved import save_analyses

        save_analyses([self], json_path=_with(path, ".json"), npz_path=_with(path, ".npz"))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SpectralAnalysis:
        """Read what :meth:`save` wrote; nothing is unpickled."""
        from pyhessian_spectra.analysis.saved import load_analyses

        return load_analyses(json_path=_with(path, ".json"), npz_path=_with(path, ".npz"))[0]


def _with(path: str | os.PathLike[str], suffix: str) -> Path:
    """The path with a suffix, in place of ``.json`` or ``.npz`` only: ``lr0.1`` has none."""
    whole = Path(path)
    stem = whole.with_suffix("") if whole.suffix in (".json", ".npz") else whole
    return stem.with_name(stem.name + suffix)
