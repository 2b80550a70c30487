"""How far numbers may be off because the data are a sample: the jackknife over batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.notes import Note
from pyhessian_spectra.spectra.forms import Forms
from pyhessian_spectra.spectra.results import Floats, TraceEstimate
from pyhessian_spectra.spectra.trace import mean_of

# ``v_i^T A_b v_j`` and ``v_j^T A_b v_i`` agree to the rounding of float32 products (1e-5 of the norm was measured at
# worst) when both come from the same batch; batches drawn anew differ by per cents.
_SAME_BATCH = 1e-3

# Share of the squared norm that may be missing where its error is told by the eigenvalues at the edges.
_UNSEEN = 0.1

# Batches from which a jackknife is worth its name: with ten its error is known to about a quarter.
_ENOUGH = 10


def influences(weights: Floats, statistic: Callable[[Floats], Floats]) -> Floats:
    """How much each batch moves a function of the batches' shares (b,), which sum to 1, by leaving out one at a time.

    The root of the sum of squares over the batches, the first axis, is the sampling error of the function; of the
    difference of two functions of the same batches it is that of their differences.
    """
    # the jackknife for groups of unequal size: Busing, Meijer and van der Leeden 1999, equation 6
    whole = np.asarray(statistic(weights))
    shares = weights.reshape(-1, *[1] * whole.ndim)
    sizes = 1 / shares
    rests = weights * (1 - np.eye(len(weights)))
    left = np.array([statistic(rest / rest.sum()) for rest in rests])
    pseudo = sizes * whole - (sizes - 1) * left
    centre = (shares * pseudo).sum(axis=0)
    return (pseudo - centre) / np.sqrt((sizes - 1) * len(weights))


def jackknife(weights: Floats, statistic: Callable[[Floats], Floats]) -> Floats:
    """Sampling error of a function of the batches' shares (b,), see :func:`influences`."""
    return np.sqrt((influences(weights, statistic) ** 2).sum(axis=0))


def data_notes(risk: EmpiricalRisk) -> list[Note]:
    """What makes the sampling errors of this risk's numbers doubtful."""
    survey, notes = risk.sample.survey, []
    batches = len(survey.weights)
    if 1 < batches < _ENOUGH:
        text = f"Errors of the data are from {batches} batches; below {_ENOUGH} they are rough: make batches smaller."
        notes.append(Note("data", text))
    if survey.by_class:
        text = "Batches are sorted by class, so errors of the data are too large: mix the examples."
        notes.append(Note("data", text))
    return notes


def has_batches(forms: Forms) -> bool:
    """Whether the forms tell several batches apart, the same ones in each product."""
    if len(forms.weights) < 2:
        return False
    crossed = forms.compressed
    skewed = np.abs(crossed - crossed.transpose(0, 2, 1)).max(initial=0.0)
    return bool(skewed <= _SAME_BATCH * np.abs(crossed).max(initial=0.0))


def eigenvalue_influences(forms: Forms) -> Floats | None:
    """Of batches on the eigenvalues whose vectors the forms hold, ascending, shape (b, p); None without batches."""
    return influences(forms.weights, _eigenvalues_from(forms)) if has_batches(forms) else None


def norm_error(forms: Forms, norm: float) -> float | None:
    """Sampling error of the Frobenius norm; None without batches, or where eigenvalues that are not known make it.

    To first order it is that of ``sum_b w_b tr(A A_b) / ||A||``, which probes tell whose images were known. Without
    these it is that of the eigenvalues at the edges, if they make up nearly all of the norm.
    """
    if not has_batches(forms):
        return None
    if not norm:
        return 0.0
    if forms.images.shape[1]:
        own = np.einsum("bii->bi", forms.compressed)[:, forms.deflated]
        exact = own @ (forms.weights @ own)
        return _linear_error(forms, (exact[:, None] + forms.complement * forms.images) / norm)
    eigenvalues = _eigenvalues_from(forms)
    rest = max(0.0, norm**2 - float((eigenvalues(forms.weights) ** 2).sum()))
    if rest > _UNSEEN * norm**2:
        return None
    return float(jackknife(forms.weights, lambda w: np.sqrt((eigenvalues(w) ** 2).sum() + rest)))


def _eigenvalues_from(forms: Forms) -> Callable[[Floats], Floats]:
    """The eigenvalues (p,) as a function of the batches' shares.

    Leaving out a batch changes the matrix. The change is seen in the space of the forms' eigenvectors, by Rayleigh and
    Ritz: to first order everywhere, and to all orders between eigenvalues of the list.
    """
    symmetric = (forms.compressed + forms.compressed.transpose(0, 2, 1)) / 2
    return lambda w: np.linalg.eigvalsh(np.einsum("b,bij->ij", w, symmetric))


def with_trace_influences(
    trace: TraceEstimate, forms: Forms, sections: Sequence[int] | slice = slice(None)
) -> TraceEstimate:
    """The trace with its sampling error and the batches' influences on it; as it is without batches.

    It is that of the whole matrix, or of the diagonal block of some sections.
    """
    samples = forms.trace_samples[:, :, sections].sum(axis=2)
    error = _linear_error(forms, samples)
    if error is None:
        return trace
    moved = influences(forms.weights, lambda w: w @ samples.mean(axis=1))
    # the influences of few probes are too large by what the probes' spread explains of them, as their norm is
    return replace(trace, data_stderr=error, data_influences=moved * (error / (float(np.linalg.norm(moved)) or 1.0)))


def section_traces(
    forms: Forms, groups: Mapping[str, Sequence[int]], *, first_stage: int | None = None, rounding: float = 0.0
) -> dict[str, TraceEstimate]:
    """The trace of each group's diagonal block, from products with the whole; fewer than two probes give none.

    ``rounding`` bounds the error of any block's trace due to the rounding of products.
    """
    found = {}
    for name, group in groups.items():
        values = forms.weights @ forms.trace_samples[:, :, list(group)].sum(axis=2)
        if not forms.complement:
            trace = TraceEstimate(float(values.mean()), 0.0, 0)
        elif len(values) > 1:
            trace = mean_of(values, 0, "Krylov pass of the whole matrix", first_stage=first_stage)
        else:
            continue
        found[name] = with_trace_influences(replace(trace, rounding=rounding), forms, list(group))
    return found


def _linear_error(forms: Forms, samples: Floats) -> float | None:
    """Sampling error of ``sum_b w_b E x_b``; ``samples`` (b, r) are unbiased estimates of ``x_b``, a column a probe."""
    if not has_batches(forms):
        return None
    probes = samples.shape[1]
    seen = float(jackknife(forms.weights, lambda w: w @ samples.mean(axis=1))) ** 2
    if probes < 2:
        return seen**0.5
    # From few probes the batches seem to differ by more than they do. What the probes' spread explains of it is taken
    # off, but no more than three quarters of the variance, since it is an estimate too.
    around = samples - samples.mean(axis=1, keepdims=True)
    noise = float((jackknife(forms.weights, lambda w: w @ around) ** 2).sum()) / (probes * (probes - 1))
    return max(seen - noise, seen / 4) ** 0.5
