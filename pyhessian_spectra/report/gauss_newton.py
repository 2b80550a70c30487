"""What a report says of the Gauss-Newton part: its spectrum, the layers, the number of examples, the classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.data_curve import describe
from pyhessian_spectra.analysis.result import GaussNewton, SpectralAnalysis
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.report.tables import estimate_text, unbroken

# The threshold above which eigenvalues are counted, as a part of the largest of G.
_PART = 0.1


def describe_part(analysis: SpectralAnalysis) -> dict[str, Any] | None:
    """Describe the Gauss-Newton part of an analysis, or None if it was not taken."""
    part = analysis.gauss_newton
    if part is None:
        return None
    is_hessian = bool(part.apart)
    return {
        "facts": _facts(part),
        "is_hessian": is_hessian,
        "layers": _layers(part, analysis) if is_hessian else [],
        "layers_told": _layers_told(part, analysis) if is_hessian else "",
        "examples": part.curve and unbroken(_plain(describe(part.curve))),
        "who": _who(part),
        "classes": _classes(part),
    }


def outlook(part: GaussNewton | None) -> str:
    """Say what more examples would make of the largest eigenvalue, for the summary."""
    if part is None or part.curve is None:
        return ""
    curve = part.curve
    low, high = (format_number(end, digits=3) for end in curve.interval())
    now, count = format_number(float(curve.eigenvalues[0]), digits=4), curve.num_examples
    return unbroken(
        f" These are numbers of the loss on these {count:,} examples. The largest eigenvalue of its Gauss-Newton part, "
        f"{now} here, is expected between {low} and {high} from ten times as many of the same source "
        f"({100 * curve.level:g} % confidence)."
    )


def _facts(part: GaussNewton) -> list[tuple[str, str]]:
    block, rows = part.block, [("Rows of the Gram matrix", f"{part.rows:,}")]
    values, off = block.spectrum.nodes[0], block.spectrum.off
    rows.append(("Rank", f"{int((values > off).sum()):,} of n = {block.n:,} at least"))
    if len(block.largest):
        rows.append(("Largest eigenvalue", str(next(iter(block.largest)))))
    rows += [("Trace", estimate_text(block.trace)), ("Frobenius norm", estimate_text(block.frobenius))]
    if part.residual is None:
        return rows
    low, high = (format_number(end, digits=3) for end in part.residual)
    rows.append(("Eigenvalues of H − G (99 %)", f"between {low} and {high}" if part.residual[1] > 0 else "all zero"))
    threshold = _PART * float(values.max())
    least, most = part.counts_above(threshold)
    count = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    rows.append((f"Eigenvalues of H above {format_number(threshold, digits=3)}", count))
    return [*rows, ("Positive eigenvalues of H", f"{part.counts_above(0.0)[0]:,} at least")]


def _layers(part: GaussNewton, analysis: SpectralAnalysis) -> list[dict[str, str]]:
    rows = []
    for name, trace in part.block.group_traces.items():
        apart = part.apart[name]
        own = "equal to rounding" if name in part.own else f"about {format_number(apart, digits=1)}"
        rows.append({"name": name, "trace": estimate_text(trace), "apart": "zero" if not apart else own})
    return rows


def _layers_told(part: GaussNewton, analysis: SpectralAnalysis) -> str:
    own, count = len(part.own), len(analysis.layers)
    if not count:
        return ""
    if not own:
        return "No layer’s block of the Hessian is that of its Gauss-Newton part."
    spared = (
        "" if analysis.full.spectrum.exact else ", so that their numbers are exact and took no product of their own"
    )
    if own == count:
        return f"Each layer’s block of the Hessian is that of its Gauss-Newton part to rounding{spared}."
    return f"Of {count} layers {own} have the block of the Gauss-Newton part to rounding{spared}."


def _who(part: GaussNewton) -> str:
    who = part.carriers
    if who is None:
        return ""
    shares, half = np.array(who.shares), 0.5
    count = int(np.searchsorted(shares.cumsum(), half) + 1)
    examples = "one example carries" if count == 1 else f"{count:,} examples carry"
    text = f"Of {len(shares):,} examples, {examples} half of the largest eigenvalue of G or more"
    if who.misclassified_share is not None and who.misclassified_fraction:
        wrong, share = _percent(who.misclassified_fraction), _percent(who.misclassified_share)
        text += f"; the {wrong} that are misclassified carry {share}"
    if who.classes:
        name, most = max(who.classes.items(), key=lambda item: item[1])
        text += f"; the class with the largest share, {name}, has {_percent(most)}"
    error = max(who.share_error, who.class_error)
    return unbroken(f"{text}. Rounding moves a share by {format_number(100 * error, digits=1)} % at most.")


def _classes(part: GaussNewton) -> str:
    found = part.classes
    if found is None:
        return ""
    own = format_number(float(found.predicted[-1]), digits=3), format_number(float(found.measured[-1]), digits=3)
    chance = float(np.mean(found.chance))
    return unbroken(
        f"Means over the examples of a class predict {own[0]} for the largest eigenvalue, {own[1]} was measured. Of "
        f"the space of the {len(found.measured)} largest, {_percent(found.alignment)} lies in the span of these means, "
        f"and {_percent(chance)} on average where the classes are permuted. The trace is made of "
        f"{_levels(found.fractions)}."
    )


def _levels(fractions: Mapping[str, float]) -> str:
    words = {
        "own": "the examples’ own classes",
        "between": "class means",
        "cross": "means of pairs of classes",
        "within": "differences within these",
    }
    named = [f"{_percent(fractions[level])} {word}" for level, word in words.items()]
    return f"{', '.join(named[:-1])} and {named[-1]}"


def _percent(share: float) -> str:
    return f"{format_number(100 * share, digits=2)}\N{NO-BREAK SPACE}%"


def _plain(text: str) -> str:
    """Write names of eigenvalues as the page does."""
    return re.sub(
        r"lambda_(\d+)", lambda match: "λ" + match[1].translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")), text
    )
