"""Rows of a report's tables, every number with its error and with what is certified of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.bulk import BulkEdge, Gap
from pyhessian_spectra.analysis.fits import BulkFit
from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.plots.numbers import eigenvalue_errors, format_number, format_with_error, trace_error
from pyhessian_spectra.spectra.results import Eigenpairs, TraceEstimate

_ABSENT = "not computed"
_SPACE = "\N{NO-BREAK SPACE}"
# With which ``Eigenpairs.others`` holds.
_CONFIDENCE = "99 % confidence"


def key_numbers(full: BlockAnalysis, bulk: BulkEdge) -> dict[str, str]:
    """The numbers that stand for a checkpoint."""
    return {
        "trace": estimate_text(full.trace),
        "frobenius": estimate_text(full.frobenius),
        "negative": share_text(bulk.negative_mass, bulk.negative_bounds, exact=bulk.exact),
        "largest": end_text(full.largest, -1),
        "smallest": end_text(full.smallest, 0),
    }


def pair_text(pairs: Eigenpairs, index: int) -> str:
    """``value ± error``, the error that of its certified interval or else its residual."""
    return format_with_error(float(pairs.eigenvalues[index]), float(eigenvalue_errors(pairs)[index]))


def end_text(pairs: Eigenpairs, index: int) -> str:
    """An eigenvalue with its error and the error of the data, or that there is none."""
    if not len(pairs):
        return _ABSENT
    error = None if pairs.data_stderr is None else float(pairs.data_stderr[index])
    return _with_data(pair_text(pairs, index), error)


def estimate_text(estimate: TraceEstimate) -> str:
    """``value ± error``, the error half the 95 % confidence interval, and the error of the data."""
    return _with_data(format_with_error(estimate.value, trace_error(estimate)), estimate.data_stderr)


def _with_data(text: str, error: float | None) -> str:
    return text if error is None else f"{text} (data: {_data_text(error)})"


def _data_text(error: float) -> str:
    return f"± {format_number(error, digits=2)}"


def share_text(mass: float, bounds: tuple[float, float], *, exact: bool) -> str:
    """A fraction of the eigenvalues in per cent, with the bounds of an estimate."""
    if exact:
        return f"{_percent(mass)} % (exact)"
    return (
        f"{_percent(mass, digits=2)} % (between {_percent(bounds[0], digits=2)} and {_percent(bounds[1], digits=2)} %)"
    )


def _percent(share: float, *, digits: int = 3) -> str:
    """A share in per cent; near 100, the digits are those of what is missing, down to a ten-thousandth."""
    percent, missing = 100 * share, 100 - 100 * share
    if 0 < missing < 1:
        return f"{percent:.{min(digits - 1 - math.floor(math.log10(missing)), 4)}f}"
    return format_number(percent, digits=digits)


def eigenvalue_rows(block: BlockAnalysis, *, from_top: bool) -> list[dict[str, Any]]:
    """One edge, the most extreme eigenvalue first."""
    pairs = block.largest if from_top else block.smallest
    order = range(len(pairs) - 1, -1, -1) if from_top else range(len(pairs))
    statuses = _statuses(block, from_top=from_top)
    return [
        {
            "rank": rank,
            "value": pair_text(pairs, index),
            "residual": format_number(float(pairs.residuals[index]), digits=2),
            "data": "" if pairs.data_stderr is None else _data_text(float(pairs.data_stderr[index])),
            "converged": bool(pairs.converged[index]),
            "status": statuses[index],
            "certified": statuses[index] == "certified",
        }
        for rank, index in enumerate(order, start=1)
    ]


def num_uncertified(block: BlockAnalysis) -> int:
    """How many converged eigenvalues lack an interval, or the certainty that none beyond them was missed."""
    statuses = _statuses(block, from_top=True) + _statuses(block, from_top=False)
    return sum(status not in ("certified", "not converged") for status in statuses)


def _statuses(block: BlockAnalysis, *, from_top: bool) -> list[str]:
    """What is known of each eigenvalue of an edge, in ascending order."""
    pairs = block.largest if from_top else block.smallest
    if pairs.lower is None or pairs.upper is None:
        placed = np.zeros(len(pairs), dtype=bool)
    elif block.spectrum.exact:
        placed = np.ones(len(pairs), dtype=bool)
    elif pairs.others is None:
        placed = np.zeros(len(pairs), dtype=bool)
    else:
        placed = pairs.lower > pairs.others[1] if from_top else pairs.upper < pairs.others[0]
    known = "not certified" if pairs.lower is None else "position not certified"
    return [
        "not converged" if not done else "certified" if sure else known
        for done, sure in zip(pairs.converged, placed, strict=True)
    ]


def missed(block: BlockAnalysis) -> str:
    """What is known of eigenvalues other than those in the tables."""
    if block.spectrum.exact:
        return "All eigenvalues of the matrix were computed: there is none beyond those listed."
    others = block.largest.others if len(block.largest) else block.smallest.others
    if others is None:
        return (
            "Each value is an eigenvalue within its error, but that there is no larger or smaller one besides is not "
            "certified."
        )
    low, high = (format_number(end, digits=4) for end in others)
    return (
        f"With {_CONFIDENCE} no further eigenvalue lies above {high} or below {low}. A value between these two is an "
        "eigenvalue within its error, but its position is not certified: further ones may lie beyond it."
    )


def layer_row(name: str, block: BlockAnalysis, bulk: BulkEdge) -> dict[str, Any]:
    """One layer's block."""
    return {
        "name": name,
        "size": f"{block.n:,}",
        "largest": end_text(block.largest, -1),
        "smallest": end_text(block.smallest, 0),
        "trace": estimate_text(block.trace),
        "per_parameter": format_number(block.trace.value / block.n),
        "unconverged": block.unconverged,
        "uncertified": num_uncertified(block),
        "pairs": num_pairs(block),
        "bulk": _interval(bulk.bulk),
        "above": _edge_count(bulk, bulk.num_above),
        "below": _edge_count(bulk, bulk.num_below),
        "zero": share_text(bulk.zero_mass, bulk.zero_bounds, exact=bulk.exact),
        "negative": share_text(bulk.negative_mass, bulk.negative_bounds, exact=bulk.exact),
    }


def layer_trace_rows(full: BlockAnalysis) -> list[dict[str, str]]:
    """Traces of layers from the products of the whole matrix."""
    return [
        {
            "name": name,
            "trace": estimate_text(trace),
            "share": f"{_percent(trace.value / full.trace.value)} %" if full.trace.value > 0 else "",
        }
        for name, trace in full.group_traces.items()
    ]


def num_pairs(block: BlockAnalysis) -> int:
    """Eigenpairs that were computed one by one."""
    return len(block.largest) + len(block.smallest)


def unconverged_row(label: str, identifier: str, name: str, block: BlockAnalysis) -> dict[str, Any]:
    """A block in which some pair did not converge, and the worst of them."""
    both = [block.largest, block.smallest]
    residuals = np.concatenate([pairs.residuals[~pairs.converged] for pairs in both])
    values = np.concatenate([pairs.eigenvalues[~pairs.converged] for pairs in both])
    worst = int(residuals.argmax())
    return {
        "label": label,
        "id": identifier,
        "block": name,
        "count": f"{block.unconverged} of {num_pairs(block)}",
        "worst": format_with_error(float(values[worst]), float(residuals[worst])),
    }


def bulk_facts(bulk: BulkEdge) -> list[tuple[str, str]]:
    """The division into bulk and edges, the evidence for it, and the masses at and below zero."""
    rows = [("Bulk", _interval(bulk.bulk))]
    if not bulk.separable:
        rows = [("Division", f"not separable: {bulk.reason}")]
    elif bulk.reason:
        rows.append(("No edges on one side", bulk.reason))
    for side, edges, gap in (("above", bulk.above, bulk.gap_above), ("below", bulk.below, bulk.gap_below)):
        if len(edges):
            ends = format_number(float(edges[0])), format_number(float(edges[-1]))
            reach = ends[0] if len(edges) == 1 else " to ".join(ends)
            rows.append((f"Edges {side} the bulk", f"{_edge_count(bulk, len(edges))}: {reach}"))
        if gap is not None and len(edges):
            rows.append((f"Gap {side} the bulk", _evidence(gap)))
    near = format_number(bulk.zero_threshold, digits=2)
    zero = share_text(bulk.zero_mass, bulk.zero_bounds, exact=bulk.exact)
    negative = share_text(bulk.negative_mass, bulk.negative_bounds, exact=bulk.exact)
    return [*rows, (f"Zero (|λ|{_SPACE}≤{_SPACE}{near})", zero), (f"Negative (λ{_SPACE}<{_SPACE}−{near})", negative)]


def fit_fact(name: str, fit: BulkFit | str) -> tuple[str, str]:
    """A law fitted to the bulk and how far it is from it, or the reason why there is none."""
    if isinstance(fit, str):
        return f"{name} fit", f"none: {fit}"
    words = f"Kolmogorov distance {format_number(fit.distance, digits=2)} from the bulk, edges {_interval(fit.edges)}"
    return f"{name} fit", words


def _evidence(gap: Gap) -> str:
    """How wide a gap is, and beside what."""
    words = f"{_interval((gap.lower, gap.upper))}, {_times(gap.over_inside)} the largest inside the bulk"
    if gap.over_residual is None:
        return f"{words}; no residual is known of its ends"
    return f"{words} and {_times(gap.over_residual)} the residuals of its ends"


def _times(ratio: float) -> str:
    return f"{format_number(ratio, digits=2)} times" if math.isfinite(ratio) else "infinitely many times"


def _interval(ends: tuple[float, float]) -> str:
    return " to ".join(format_number(end) for end in ends)


def _edge_count(bulk: BulkEdge, count: int) -> str:
    """How many edges; of an estimate distinct ones, among which a multiple eigenvalue counts once."""
    return f"{count}" if bulk.exact or not count else f"{count} distinct"
