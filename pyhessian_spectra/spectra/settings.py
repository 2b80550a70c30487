"""Settings: all that may be asked of the analysis of one matrix, named once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pyhessian_spectra.errors import InputError


def _setting(
    default: Any, help: str, *, minimum: float | None = None, choices: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """A field with what the command line and the documentation need to know of it."""
    return dataclasses.field(default=default, metadata={"help": help, "minimum": minimum, "choices": choices}, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a matrix is analysed, for ``analyze``, ``analyze_operator`` and the command line.

    Each field is an option of the command line, ``--num-eigenvalues`` for ``num_eigenvalues``.

    Parameters
    ----------
    num_eigenvalues : int
        Eigenpairs ``k`` at each edge; fewer where the matrix is too small.
    num_probes, num_steps : int
        Random probes of the density (stochastic Lanczos quadrature), at least 2, and Lanczos steps of each.
    exact_limit : int
        Largest ``n`` for which the whole matrix is built, by ``n`` products, and diagonalised in ``24 n^2`` bytes.
    tol : float
        Residual at which an eigenpair has converged, relative to its eigenvalue; what the rounding of products allows
        where that is more.
    max_steps : int
        Lanczos vectors held at once while edges are sought. Beyond them the process is restarted; after as many
        products again, pairs that have not converged are given as they are, marked.
    rtol, trace_probes : float, int
        So many samples of the trace are taken as the spread of the first ten says that its 95 % interval needs to have
        a half-width of ``rtol`` of its value, and at most ``trace_probes``; the result says which.
    memory_budget : int, optional
        Bytes that Lanczos vectors may take in memory, beyond which they go to disk, and as many that kept
        linearisations may; by default half of what is free, each. No number depends on it.

    Raises
    ------
    InputError
        A value out of its range.
    """

    num_eigenvalues: int = _setting(10, "Eigenpairs at each edge.", minimum=1)
    num_probes: int = _setting(2, "Random probes of the density.", minimum=2)
    num_steps: int = _setting(40, "Lanczos steps of each probe.", minimum=1)
    exact_limit: int = _setting(3000, "Largest n for which the whole matrix is built.", minimum=0)
    tol: float = _setting(1e-4, "Residual at which an eigenpair has converged, relative to its eigenvalue.", minimum=0)
    max_steps: int = _setting(300, "Lanczos vectors held at once while edges are sought.", minimum=1)
    rtol: float = _setting(0.02, "Half-width of the trace's 95 % interval to stop at, relative to it.", minimum=0)
    trace_probes: int = _setting(30, "Samples of the trace at most.", minimum=2)
    memory_budget: int | None = _setting(
        None,
        "For kept linearisations, and as much for Lanczos vectors, such as 4GiB; by default half of what is free.",
        minimum=0,
        repr=False,  # an analysis may go on with another one: it is not part of what identifies it
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, minimum = getattr(self, field.name), field.metadata["minimum"]
            if value is not None and minimum is not None and not (value >= minimum and math.isfinite(value)):
                raise InputError(f"{field.name} must be a number of at least {minimum:g}, got {value}")
            if field.metadata["choices"] and value not in field.metadata["choices"]:
                raise InputError(f"{field.name} must be one of {', '.join(field.metadata['choices'])}, got {value!r}")

    def replace(self, **changes: Any) -> Settings:
        """These settings with other values of some fields.

        Raises
        ------
        InputError
            There is no such field, or its value is out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InputError(f"there is no setting {unknown[0]!r}; there are {', '.join(known)}")
        return dataclasses.replace(self, **changes)
