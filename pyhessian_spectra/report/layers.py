"""What a report says of layers beside one another, and of one checkpoint beside the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.seeds import OverSeeds
from pyhessian_spectra.analysis.similarity import WHOLE, SimilarityMatrix
from pyhessian_spectra.analysis.trajectory import Trajectory
from pyhessian_spectra.numbers import format_number, format_with_error
from pyhessian_spectra.report.tables import unbroken
from pyhessian_spectra.spectra import TraceEstimate

# What the usual metrics are called.
_WORDS = {
    "wasserstein": "Wasserstein-1",
    "scaled_wasserstein": "scale-free Wasserstein-1",
    "jensen_shannon": "Jensen-Shannon",
}


def describe_layers(analysis: SpectralAnalysis, found: Mapping[str, SimilarityMatrix]) -> dict[str, Any]:
    """Describe how the layers lie to the whole and to one another."""
    return {
        "similarity": [_row(analysis, found, name) for name in analysis.layers] if found else [],
        "has_null": any(matrix.null is not None for matrix in found.values()),
        "similarity_told": _told(analysis, found),
        "coupling": _coupling(analysis),
        "localised": analysis.structure is not None and analysis.structure.localisation is not None,
        "gradient": _gradient(analysis),
    }


def describe_steps(found: Trajectory, run: str = "") -> dict[str, Any]:
    """Describe what changed from each checkpoint of a run to the next."""
    return {
        "run": run,
        "rows": [_step(found, t) for t in range(1, len(found.labels))],
        "k": found.k,
        "chance": format_number(found.chance, digits=2),
        "edge": _edge(found),
        "notes": [note.text for note in found.notes],
    }


def describe_seeds(found: Sequence[OverSeeds]) -> list[dict[str, str]]:
    """Return the means over runs that differ by their seed, with the spread of a run."""
    names = {"lambda_1": "λ₁", "trace": "Trace"}
    return [
        {
            "name": mean.setting or "all runs",
            "step": "unknown" if mean.step is None else f"{mean.step:,.0f}",
            "quantity": names[mean.quantity],
            "value": format_with_error(mean.mean, mean.spread),
            "count": str(mean.count),
        }
        for mean in found
    ]


def _row(analysis: SpectralAnalysis, found: Mapping[str, SimilarityMatrix], name: str) -> dict[str, str]:
    row = {"name": name}
    for key, matrix in found.items():
        i, j = matrix.labels.index(WHOLE), matrix.labels.index(name)
        error = float(
            np.hypot(matrix.probe_stderr[i, j], 0 if matrix.data_stderr is None else matrix.data_stderr[i, j])
        )
        shown = format_with_error(float(matrix.values[i, j]), error)
        row[key] = shown if error else format_number(float(matrix.values[i, j]))
        if matrix.across is not None and matrix.exceeds is not None:
            apart, null = float(matrix.across[i, j]), float((matrix.across[j, j] + matrix.across[i, i]) / 2)
            mark = "beyond chance" if matrix.exceeds[i, j] else "within chance"
            row[f"{key}_null"] = f"{format_number(apart, digits=2)} against {format_number(null, digits=2)}: {mark}"
    ratio = analysis.layers[name].largest_beside(analysis.full)
    if ratio is not None:
        row["reach"] = bounded(*ratio)
    return row


def _told(analysis: SpectralAnalysis, found: Mapping[str, SimilarityMatrix]) -> str:
    if not found:
        return ""
    nearest = {}
    for key, matrix in found.items():
        i = matrix.labels.index(WHOLE)
        others = [j for j in range(len(matrix.labels)) if j != i]
        nearest[key] = matrix.labels[min(others, key=lambda j: matrix.values[i, j])]
    by = ", ".join(f"{name} by {_WORDS[key]}" for key, name in nearest.items())
    text = f"The layer nearest to the whole is {by}."
    if analysis.parts:
        count = len(analysis.parts)
        text += (
            f" The null is from {count} disjoint parts of the data, each with probes of its own: the distance of a "
            "spectrum from itself. A difference is beyond chance if at most one in twenty ways of exchanging the two "
            "spectra within the parts separates them as well; each pair is judged alone."
        )
        if 2.0 ** (1 - count) > 0.05:
            text += " With fewer than six parts no difference can be told from chance at that level."
    else:
        text += " Which differences exceed chance is not known: ask for data_parts (--data-parts 6)."
    return text


def _coupling(analysis: SpectralAnalysis) -> dict[str, str] | None:
    coupling = None if analysis.structure is None else analysis.structure.coupling
    if coupling is None:
        return None
    return {"error": _share(coupling.error), "cosine": _share(coupling.cosine)}


def _share(estimate: TraceEstimate) -> str:
    return format_with_error(estimate.value, estimate.reach) if estimate.reach else format_number(estimate.value)


def _gradient(analysis: SpectralAnalysis) -> str:
    gradient = None if analysis.structure is None else analysis.structure.gradient
    if gradient is None:
        return ""
    k = len(gradient.shares)
    value, error = gradient.in_top(k)
    off = max(error, 0.0 if gradient.data_stderr is None else float(gradient.data_stderr[-1]))
    chance = format_number(k / analysis.full.n, digits=2)
    return unbroken(
        f"The gradient has norm {format_number(gradient.norm, digits=3)}; of its square the space of the {k} largest "
        f"eigenvalues holds {bounded(value, off)}, where a random direction would have {chance}."
    )


def _step(found: Trajectory, t: int) -> dict[str, str]:
    overlap, error = found.persistence[t - 1]
    lost = int(((found.tracks[:, t - 1] >= 0) & (found.tracks[:, t] < 0)).sum())
    kept = int((found.tracks[:, t - 1] >= 0).sum()) - lost
    unknown = not np.isfinite(overlap)
    return {
        "name": f"{found.labels[t - 1]} to {found.labels[t]}",
        "largest": str(found.largest[t - 1]),
        "trace": str(found.trace[t - 1]),
        "followed": f"{kept} of {kept + lost}",
        "persistence": "vectors not kept" if unknown else bounded(float(overlap), float(error)),
    }


def bounded(value: float, error: float) -> str:
    """A share with its error; three digits of it where that is smaller, and a note where it says nothing."""
    if error >= 1:
        return f"{format_number(value, digits=2)} (error unknown)"
    return format_number(value, digits=3) if error < 5e-4 * abs(value) else format_with_error(value, error)


def _edge(found: Trajectory) -> str:
    """Say where the largest eigenvalue is beside the optimiser's edge of stability."""
    limit = found.thresholds[-1]
    if limit is None:
        return ""
    top = float(found.values[-1][0])
    where = "below" if top < limit else "above"
    return unbroken(
        f"With its learning rate the optimiser is stable up to a curvature of {format_number(limit, digits=4)}; at the "
        f"last checkpoint λ₁ is {where} that, at {format_number(top / limit, digits=2)} of it."
    )
