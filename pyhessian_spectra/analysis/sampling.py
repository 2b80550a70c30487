"""How far numbers may be off because the data are a sample: the jackknife over batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pyhessian_spectra.spectra.forms import Forms
from pyhessian_spectra.spectra.results import Floats, TraceEstimate
from pyhessian_spectra.spectra.trace import mean_of

# ``v_i^T A_b v_j`` and ``v_j^T A_b v_i`` agree to the rounding of float32 products (1e-5 of the norm was measured at
# worst) when both come from the same batch; batches drawn anew differ by per cents.
_SAME_BATCH = 1e-3


def jackknife(weights: Floats, statistic: Callable[[Floats], Floats]) -> Floats:
    """Standard error of a statistic of a weighted mean over batches, by leaving out one batch at a time.

    Parameters
    ----------
    weights : ndarray, shape (b,)
        Share of each batch, of sum 1; at least two.
    statistic : callable
        Weights of sum 1, shape (b,), to values of one shape.

    Returns
    -------
    ndarray
        Of the statistic's shape: the error of having drawn these examples and not others from the same distribution,
        by the jackknife for groups of unequal size (Busing, Meijer and van der Leeden 1999, equation 6).

    Examples
    --------
    For a mean it is the standard error of the mean:

    >>> float(jackknife(np.full(4, 0.25), lambda w: w @ np.array([1.0, 2.0, 3.0, 4.0])))  # doctest: +ELLIPSIS
    0.6454...
    >>> float(np.std([1, 2, 3, 4], ddof=1) / 2)  # doctest: +ELLIPSIS
    0.6454...
    """
    whole = np.asarray(statistic(weights))
    sizes = 1 / weights
    left = []
    for b in range(len(weights)):
        rest = weights.copy()
        rest[b] = 0.0
        left.append(statistic(rest / rest.sum()))
    shape = (-1, *[1] * whole.ndim)
    pseudo = sizes.reshape(shape) * whole - (sizes - 1).reshape(shape) * np.asarray(left)
    centre = (weights.reshape(shape) * pseudo).sum(axis=0)
    return np.sqrt((((pseudo - centre) ** 2) / (sizes - 1).reshape(shape)).mean(axis=0))


def has_batches(forms: Forms) -> bool:
    """Whether the forms are of several batches, and of the same ones in each product."""
    if len(forms.weights) < 2:
        return False
    crossed = forms.compressed
    skewed = np.abs(crossed - crossed.transpose(0, 2, 1)).max(initial=0.0)
    return bool(skewed <= _SAME_BATCH * np.abs(crossed).max(initial=0.0))


def eigenvalue_errors(forms: Forms) -> Floats | None:
    """Sampling errors of the eigenvalues whose vectors the forms hold, ascending, shape (p,); None without batches.

    Leaving out a batch changes the matrix; the change is seen in the space of these eigenvectors, by Rayleigh and Ritz:
    to first order everywhere, and to all orders between eigenvalues of the list.
    """
    if not has_batches(forms):
        return None
    symmetric = (forms.compressed + forms.compressed.transpose(0, 2, 1)) / 2
    return jackknife(forms.weights, lambda w: np.linalg.eigvalsh(np.einsum("b,bij->ij", w, symmetric)))


def trace_error(forms: Forms) -> float | None:
    """Sampling error of the trace; None without batches.

    From few probes the batches seem to differ by more than they do. What the probes' spread explains of it is taken
    off, but no more than three quarters of the variance, since it is an estimate too.
    """
    return _linear_error(forms, forms.trace_samples.sum(axis=2))


def section_traces(
    forms: Forms, groups: Mapping[str, Sequence[int]], *, first_stage: int | None = None
) -> dict[str, TraceEstimate]:
    """Traces of the diagonal blocks of groups of sections, from the products of the whole matrix.

    Parameters
    ----------
    forms : Forms
    groups : mapping of str to sequence of int
        Indices of the sections that make up each block.
    first_stage : int, optional
        Probes whose spread decided how many were taken, as for :func:`mean_of`.

    Returns
    -------
    dict of str to TraceEstimate
        With their sampling errors, where there are batches; empty where fewer than two probes were taken.
    """
    samples = {name: forms.trace_samples[:, :, list(group)].sum(axis=2) for name, group in groups.items()}
    found = {}
    for name, each in samples.items():
        values, error = forms.weights @ each, _linear_error(forms, each)
        if not forms.complement:
            found[name] = TraceEstimate(float(values.mean()), 0.0, 0, data_stderr=error)
        elif len(values) > 1:
            trace = mean_of(values, 0, "Krylov pass of the whole matrix", first_stage=first_stage)
            found[name] = replace(trace, data_stderr=error)
    return found


def _linear_error(forms: Forms, samples: Floats) -> float | None:
    """Sampling error of ``sum_b w_b E x_b``, of which ``samples`` (b, r) are unbiased estimates, a column a probe."""
    if not has_batches(forms):
        return None
    probes = samples.shape[1]
    seen = float(jackknife(forms.weights, lambda w: w @ samples.mean(axis=1))) ** 2
    if probes < 2:
        return seen**0.5
    around = samples - samples.mean(axis=1, keepdims=True)
    noise = float((jackknife(forms.weights, lambda w: w @ around) ** 2).sum()) / (probes * (probes - 1))
    return max(seen - noise, seen / 4) ** 0.5
