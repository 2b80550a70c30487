"""What training and diagonalising an ensemble returns, one member a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.spectrum import Spectrum


@dataclass(frozen=True)
class TrainedEnsemble:
    """What gradient descent reached from each start.

    Parameters
    ----------
    parameters : Tensor, shape (E, n)
        One member a row, as the run left it.
    losses, gradient_norms : ndarray, shape (E,), float64
        At those parameters; NaN where a run diverged.
    iterations : ndarray, shape (E,), int64
        Steps each member took.
    converged : ndarray, shape (E,), bool
        The gradient norm met the tolerance.
    finite : ndarray, shape (E,), bool
        False where a run diverged to NaN or infinity: leave those members out of every average.
    """

    parameters: Tensor
    losses: Floats
    gradient_norms: Floats
    iterations: NDArray[np.int64]
    converged: NDArray[np.bool_]
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def num_diverged(self) -> int:
        """How many members are not finite."""
        return int((~self.finite).sum())

    def __str__(self) -> str:
        stuck = int((self.finite & ~self.converged).sum())
        return (
            f"{len(self)} members: {int(self.converged.sum())} converged, {stuck} stopped at the iteration limit, "
            f"{self.num_diverged} diverged and are left out"
        )


@dataclass(frozen=True)
class EnsembleSpectra:
    """The exact eigenvalues of each member's Hessian.

    Parameters
    ----------
    eigenvalues : ndarray, shape (E, n), float64
        Ascending in each row; NaN where the Hessian is not finite.
    finite : ndarray, shape (E,), bool
    """

    eigenvalues: Floats
    finite: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.eigenvalues)

    @property
    def num_nonfinite(self) -> int:
        """How many members have no spectrum."""
        return int((~self.finite).sum())

    def largest(self, k: int = 1) -> Floats:
        """The ``k`` largest eigenvalues of the finite members, shape (finite members, k), descending."""
        return self.eigenvalues[self.finite][:, : -k - 1 : -1]

    def spectrum(self, member: int) -> Spectrum:
        """The exact spectrum of one member; raises InputError when it is not finite."""
        if not self.finite[member]:
            raise InputError(f"member {member} diverged and has no spectrum; choose one where finite is true")
        return Spectrum.from_eigenvalues(self.eigenvalues[member])
