"""Tables of a report have these rows: every number comes with its error and with what is certified of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.bulk import BulkEdge, Gap, split_bulk
from pyhessian_spectra.analysis.fits import fit_marchenko_pastur, fit_semicircle
from pyhessian_spectra.analysis.resolution import WIDEST_SHARE, known_others, narrowest_interval
from pyhessian_spectra.analysis.result import BlockAnalysis
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import (
    format_duration,
    format_number,
    format_with_error,
)
from pyhessian_spectra.spectra.results import TraceEstimate


def unbroken(text: str) -> str:
    """Return the text with no line end beside a sign, such as that of ``value ± error`` or ``name = value``."""
    return re.sub(" ([±=≤<]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def key_numbers(block: BlockAnalysis, bulk: BulkEdge) -> dict[str, str]:
    """Return the numbers that stand for a checkpoint or a layer, each with the largest of its errors."""
    ends = {"largest": [*block.largest][:1], "smallest": [*block.smallest][-1:]}
    shares = {"zero": (bulk.zero_mass, bulk.zero_bounds), "negative": (bulk.negative_mass, bulk.negative_bounds)}
    return {
        **{end: str(pairs[0]) if pairs else "not computed" for end, pairs in ends.items()},
        "trace": str(block.trace),
        "frobenius": str(block.frobenius),
        **{name: share_text(block, *share) for name, share in shares.items()},
    }


def sums(block: BlockAnalysis) -> list[tuple[str, str]]:
    """Return trace and norm with half their 95 % confidence intervals, and the error of the data if it is known."""
    named = ("Trace ± 95 %", block.trace), ("Frobenius norm ± 95 %", block.frobenius)
    return [*((name, estimate_text(estimate)) for name, estimate in named), ("Trace found by", block.trace.method)]


def estimate_text(estimate: TraceEstimate) -> str:
    """Write an estimate with half its 95 % interval, and the error of the data if it is known."""
    shown, data = format_with_error(estimate.value, estimate.reach), _data_text(estimate.data_stderr)
    return f"{shown} (data: {data})" if data else shown


def _data_text(error: float | None) -> str:
    return "" if error is None else f"± {format_number(error, digits=2)}"


def share_known(bounds: tuple[float, float]) -> bool:
    """Return whether bounds on a share are near enough to one another for it to be a number."""
    return bounds[1] - bounds[0] <= WIDEST_SHARE


def known_shares(bulk: BulkEdge) -> dict[str, bool]:
    """Return for each column of shares whether it has a number to print."""
    return {"zero_known": share_known(bulk.zero_bounds), "negative_known": share_known(bulk.negative_bounds)}


def share_text(block: BlockAnalysis, mass: float, bounds: tuple[float, float]) -> str:
    """Write a fraction of the eigenvalues in per cent, an estimate with its bounds, or say what is known instead."""
    if block.spectrum.exact:
        return f"{_percent(mass)} % (exact)"
    if not share_known(bounds):
        return f"not resolved: {unresolved(block, bounds[1] - bounds[0])}"
    estimate, low, high = (_percent(share, digits=2) for share in (mass, *bounds))
    return f"{estimate} % (between {low} and {high} %)"


def unresolved(block: BlockAnalysis, share: float) -> str:
    """Say where that share of the eigenvalues lies whose places are not resolved."""
    others, held = known_others(block.spectrum, (block.smallest, block.largest)), math.floor(100 * share)
    low, high = narrowest_interval(block.spectrum, held / 100, others=others)
    return f"{held} % lie between {format_number(low, digits=2)} and {format_number(high, digits=2)}"


def proposal(block: BlockAnalysis, bulk: BulkEdge, seconds: float | None) -> str:
    """Say what it costs to resolve more, where a share is not resolved; ``seconds`` is the time of a product."""
    if share_known(bulk.zero_bounds) and share_known(bulk.negative_bounds):
        return ""
    steps = max(1, int(block.spectrum.facts.get("steps_per_probe", block.spectrum.facts.get("steps", 1))))
    cost = steps * block.spectrum.num_probes
    time = "" if not seconds else f", about {format_duration(cost * seconds)}"
    told = f"To narrow this, --resolve {cost} makes the probes twice as long: {cost} further products{time}."
    return f"{told} More steps never resolve eigenvalues that are equal to rounding."


def _percent(share: float, *, digits: int = 3) -> str:
    """Write a share in per cent; near 100, the digits are those of what is missing, down to a ten-thousandth."""
    percent, missing = 100 * share, 100 - 100 * share
    if 0 < missing < 1:
        return f"{percent:.{min(digits - 1 - math.floor(math.log10(missing)), 4)}f}"
    return format_number(percent, digits=digits)


def eigenvalue_rows(block: BlockAnalysis, *, from_top: bool) -> list[dict[str, Any]]:
    """Return one edge, the most extreme eigenvalue first, with what is known of each."""
    pairs = block.largest.take(slice(None, None, -1)) if from_top else block.smallest
    placed = pairs.placed(from_top=from_top) | (block.spectrum.exact and pairs.lower is not None)
    unplaced = "not certified" if pairs.lower is None else "position not certified"
    statuses = np.where(pairs.converged, np.where(placed, "certified", unplaced), "not converged").tolist()
    known = zip(pairs.eigenvalues.tolist(), pairs.reach.tolist(), strict=True)
    values = [format_with_error(value, error) for value, error in known]
    data = [""] * len(pairs) if pairs.data_stderr is None else list(map(_data_text, pairs.data_stderr.tolist()))
    return [
        {
            "rank": index + 1,
            "value": values[index],
            "data": data[index],
            "residual": format_number(float(pairs.residuals[index]), digits=2),
            "converged": bool(pairs.converged[index]),
            "status": status,
            "certified": status == "certified",
        }
        for index, status in enumerate(statuses)
    ]


def count_pairs(blocks: Iterable[BlockAnalysis]) -> dict[str, int]:
    """Count eigenpairs: how many there are, did not converge, and did converge but are not certified."""
    rows = [row for block in blocks for from_top in (True, False) for row in eigenvalue_rows(block, from_top=from_top)]
    return {
        "pairs": len(rows),
        "unconverged": sum(not row["converged"] for row in rows),
        "uncertified": sum(row["converged"] and not row["certified"] for row in rows),
    }


def missed(block: BlockAnalysis) -> str:
    """Say what is known of eigenvalues other than those in the tables."""
    if block.spectrum.exact:
        return "All eigenvalues of the matrix were computed: there is none beyond those listed."
    others = block.largest.others if len(block.largest) else block.smallest.others
    if others is None:
        known = "Each value is an eigenvalue within its error"
        return f"{known}, but that there is no larger or smaller one besides is not certified."
    low, high = (format_number(end, digits=4) for end in others)
    # ``Eigenpairs.others`` holds with this confidence.
    known = f"With 99 % confidence no further eigenvalue lies above {high} or below {low}. A value between these two is"
    return f"{known} an eigenvalue within its error, but its position is not certified: further ones may lie beyond it."


def layer_row(name: str, block: BlockAnalysis) -> dict[str, Any]:
    """Return what the tables say of one layer's block."""
    bulk = split_bulk(block)
    return {
        "name": name,
        "size": f"{block.n:,}",
        "per_parameter": format_number(block.trace.value / block.n),
        "bulk": _interval(bulk.bulk),
        "above": _edge_count(bulk, bulk.num_above),
        "below": _edge_count(bulk, bulk.num_below),
        **key_numbers(block, bulk),
        **known_shares(bulk),
        **count_pairs([block]),
    }


def layer_trace_rows(full: BlockAnalysis) -> list[dict[str, str]]:
    """Return the traces of layers that the products of the whole matrix gave."""
    rows = []
    for name, trace in full.group_traces.items():
        share = f"{_percent(trace.value / full.trace.value)} %" if full.trace.value > 0 else ""
        rows.append({"name": name, "trace": estimate_text(trace), "share": share})
    return rows


def unconverged_row(name: str, block: BlockAnalysis) -> dict[str, str]:
    """Return how many pairs of a block did not converge, and the worst of them."""
    failed = [pairs.take(~pairs.converged) for pairs in (block.largest, block.smallest)]
    residuals = np.concatenate([pairs.residuals for pairs in failed])
    value = np.concatenate([pairs.eigenvalues for pairs in failed])[residuals.argmax()]
    return {
        "block": name,
        "count": f"{block.unconverged} of {len(block.largest) + len(block.smallest)}",
        "worst": format_with_error(float(value), float(residuals.max())),
    }


def bulk_facts(bulk: BulkEdge, numbers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Describe the division into bulk and edges and its evidence; ``numbers`` has the shares of zero and below."""
    rows = [("Bulk", _interval(bulk.bulk))]
    if not bulk.separable:
        rows = [("Division", f"not separable: {bulk.reason}")]
    elif bulk.reason:
        rows.append(("No edges on one side", bulk.reason))
    for side, edges, gap in (("above", bulk.above, bulk.gap_above), ("below", bulk.below, bulk.gap_below)):
        if len(edges):
            reach = _interval((edges[0], edges[-1])) if len(edges) > 1 else format_number(edges[0])
            rows.append((f"Edges {side} the bulk", f"{_edge_count(bulk, len(edges))}: {reach}"))
            if gap is not None:
                rows.append((f"Gap {side} the bulk", _evidence(gap)))
    near = format_number(bulk.zero_threshold, digits=2)
    rows.append((unbroken(f"Zero (|λ| ≤ {near})"), numbers["zero"]))
    return [*rows, (unbroken(f"Negative (λ < −{near})"), numbers["negative"])]


def fit_facts(block: BlockAnalysis) -> list[tuple[str, str]]:
    """Say how far laws of random matrices, fitted to the bulk, are from it, or why one cannot be fitted."""
    rows = []
    for law, fit in (("Marchenko-Pastur", fit_marchenko_pastur), ("Semicircle", fit_semicircle)):
        try:
            found = fit(block)
            distance = format_number(found.distance, digits=2)
            text = f"Kolmogorov distance {distance} from the bulk, edges {_interval(found.edges)}"
        except InputError as error:
            text = f"none: {error}"
        rows.append((f"{law} fit", text))
    return rows


def _evidence(gap: Gap) -> str:
    """Say how wide a gap is, and beside what."""
    words = f"{_interval((gap.lower, gap.upper))}, {_times(gap.over_inside)} the largest inside the bulk"
    if gap.over_residual is None:
        return f"{words}; no residual is known of its ends"
    return f"{words} and {_times(gap.over_residual)} the residuals of its ends"


def _times(ratio: float) -> str:
    return f"{format_number(ratio, digits=2)} times" if math.isfinite(ratio) else "infinitely many times"


def _interval(ends: tuple[float, float]) -> str:
    return " to ".join(format_number(end) for end in ends)


def _edge_count(bulk: BulkEdge, count: int) -> str:
    """Say how many edges there are; an estimate has distinct ones, where a multiple eigenvalue counts once."""
    return f"{count}" if bulk.exact or not count else f"{count} distinct"
