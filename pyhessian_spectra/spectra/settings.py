"""Settings: the options of the analysis of one matrix, for the library and the command line."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from pyhessian_spectra.errors import InputError


def _setting(
    default: Any, help: str, *, minimum: float | None = None, choices: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """A field with its command-line help, its least value and its allowed values as metadata."""
    return dataclasses.field(default=default, metadata={"help": help, "minimum": minimum, "choices": choices}, **kwargs)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the analysis of one matrix, for ``analyze``, ``analyze_operator`` and the command line.

    Each field is an option of the command line: ``num_eigenvalues`` is ``--num-eigenvalues``.

    Parameters
    ----------
    num_eigenvalues : int
        Number ``k`` of eigenpairs at each edge; fewer if the matrix is too small.
    num_probes, num_steps : int
        Number of random probes of the density (stochastic Lanczos quadrature), at least 2, and Lanczos steps of each.
    exact_limit : int
        Largest ``n`` for which the whole matrix is built, by ``n`` products, and diagonalised in ``24 n^2`` bytes.
    tol : float
        Residual at which an eigenpair counts as converged, relative to its eigenvalue, or the rounding error of the
        products if that is larger.
    eigensolver : {"lanczos", "arpack"}
        What finds the edges: a thick-restart Lanczos process, or ARPACK, which needs less memory and more products.
        Errors are certified in the same way.
    max_steps : int
        Lanczos vectors held at once while the edges are sought. When they are used up, the process restarts; after
        ``max_steps`` further products, pairs that have not converged are returned and marked.
    resolve : int
        Products to spend on narrowing the bounds of the distribution, of the whole matrix where it is not built: on
        longer probes or on more of them, whichever narrows more.
    rtol, trace_probes : float, int
        The spread of the first ten samples of the trace determines how many samples its 95 % interval needs for a
        half-width of ``rtol`` times the trace; at most ``trace_probes`` are drawn. ``TraceEstimate.method`` says which
        of the two ended the sampling.
    memory_budget : int, optional
        Bytes of memory for Lanczos vectors, beyond which they go to disk, and separately for kept linearisations; by
        default half of the free memory for each. Results do not depend on it beyond rounding.
    gauss_newton : {"auto", "always", "never"}
        Whether the Gram matrix of the Gauss-Newton part is taken, from which layers come where their blocks of the
        Hessian are those of that part: ``"auto"`` if it is expected to cost a fifth of all other products at most.
    coupling_probes : int
        Random vectors in each layer from which the masses of all blocks between layers are estimated, one product each,
        where the whole matrix is not built; 0 for none.
    data_parts : int, optional
        Disjoint parts of the data, each analysed alone with probes of its own, which tell how far the spectra of layers
        differ by chance: 6 or more are needed to tell differences from chance at a level of 5 %. By default 6 where the
        whole matrix is built and there are as many batches, else none, since they cost as many products as the rest.
    accept_unverified : bool
        Go on, with a note, where a check finds that products, gradients or the weights of batches are not what
        differences of the loss say; by default such a risk is refused. Operators of other kinds are not checked.

    Raises
    ------
    InputError
        A value is out of its range.
    """

    num_eigenvalues: int = _setting(10, "Eigenpairs at each edge.", minimum=1)
    num_probes: int = _setting(2, "Random probes of the density.", minimum=2)
    num_steps: int = _setting(40, "Lanczos steps of each probe.", minimum=1)
    resolve: int = _setting(0, "Products to spend on resolving the density, where that narrows most.", minimum=0)
    exact_limit: int = _setting(3000, "Largest n for which the whole matrix is built.", minimum=0)
    tol: float = _setting(1e-4, "Residual at which an eigenpair has converged, relative to its eigenvalue.", minimum=0)
    eigensolver: str = _setting("lanczos", "What finds the edges.", choices=("lanczos", "arpack"))
    max_steps: int = _setting(300, "Lanczos vectors held at once while edges are sought.", minimum=1)
    rtol: float = _setting(0.02, "Relative half-width of the trace's 95 % interval to reach.", minimum=0)
    trace_probes: int = _setting(30, "Largest number of samples of the trace.", minimum=2)
    memory_budget: int | None = _setting(
        None,
        "Memory for Lanczos vectors, and as much for linearisations, such as 4GiB; default half of the free memory.",
        minimum=0,
        repr=False,  # not part of a journal's identity: an analysis may resume with another budget
    )
    gauss_newton: str = _setting(
        "auto", "Whether exact spectra come from the Gauss-Newton part.", choices=("auto", "always", "never")
    )
    coupling_probes: int = _setting(4, "Random vectors in each layer for the coupling of layers.", minimum=0)
    data_parts: int | None = _setting(
        None,
        "Parts of the data whose spectra tell which differences between layers exceed chance; "
        "default 6 where the matrix is built, else none.",
        minimum=0,
    )
    accept_unverified: bool = _setting(False, "Go on, with a note, where a check finds derivatives wrong.", repr=False)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, minimum = getattr(self, field.name), field.metadata["minimum"]
            if value is not None and minimum is not None and not (value >= minimum and math.isfinite(value)):
                raise InputError(f"{field.name} must be a number of at least {minimum:g}, got {value}")
            if field.metadata["choices"] and value not in field.metadata["choices"]:
                raise InputError(f"{field.name} must be one of {', '.join(field.metadata['choices'])}, got {value!r}")

        if self.coupling_probes == 1:
            raise InputError("coupling_probes must be 0, or at least 2 for a standard error, got 1")

    def replace(self, **changes: Any) -> Settings:
        """These settings with other values of some fields; raises InputError for an unknown field or a bad value."""
        known = [field.name for field in dataclasses.fields(self)]
        unknown = sorted(set(changes) - set(known))
        if unknown:
            raise InputError(f"there is no setting {unknown[0]!r}; there are {', '.join(known)}")
        return dataclasses.replace(self, **changes)
