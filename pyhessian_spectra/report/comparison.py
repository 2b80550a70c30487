"""The page of a comparison: many checkpoints beside one, their table, and those that failed with their reasons."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyhessian_spectra import plots
from pyhessian_spectra.analysis.comparison import Comparison, Difference
from pyhessian_spectra.analysis.correlation import RankCorrelation
from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.analysis.table import compared_rows, to_csv
from pyhessian_spectra.analysis.trajectory import both_errors, exceeds
from pyhessian_spectra.numbers import format_number, format_with_error
from pyhessian_spectra.report.layers import bounded
from pyhessian_spectra.report.page import make_figures, render, write_texts
from pyhessian_spectra.report.tables import WIDEST_SHARE, unbroken
from pyhessian_spectra.spectra import TraceEstimate

# Readers who cannot see a figure read what it shows. Its role in the page also names its file.
_ALTS = {
    "largest": "Difference of the largest eigenvalue from the reference, of each checkpoint",
    "trace": "Difference of the trace from the reference, of each checkpoint",
    "overlaid": "Smoothed densities of eigenvalues of checkpoints over one another",
    "multiples": "Smoothed density of each checkpoint in a panel of its own, over that of the reference",
    "layers": "Differences of the traces of layers from the reference, as a heatmap",
}
_NAMES = re.compile(rf"({'|'.join(_ALTS)}|correlation-[0-9]+)\.svg")
# How an analysis was run concerns no comparison.
_TOLD_ELSEWHERE = ("linearisation", "resumed", "afresh", "journal")
# So many correlations are drawn; all are in the table.
_DRAWN = 6
_SYMBOLS = {"lambda_1": "λ₁", "trace": "the trace"}


def write_comparison(
    found: Comparison,
    out_dir: str | os.PathLike[str],
    *,
    failed: Mapping[str, str] | None = None,
    correlations: Sequence[RankCorrelation] = (),
    remarks: Sequence[str] = (),
    reproduce: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Write ``report.html``, ``table.csv`` and ``figures/*.svg`` of a comparison; no product is spent.

    Parameters
    ----------
    found : Comparison
    out_dir : path
        Created if missing. In it, only files of these names and the figures of an earlier comparison are replaced.
    failed : mapping of str to str, optional
        Checkpoints that could not be analysed, and why.
    correlations : sequence of RankCorrelation
    remarks : sequence of str
        What else a reader must see, such as what was given twice.
    reproduce : sequence of str
        Commands, one a line, that lead to these analyses.
    title : str, optional

    Returns
    -------
    Path
        ``out_dir/report.html``.

    Raises
    ------
    InputError
        ``out_dir`` cannot be written.
    """
    axes = {}
    for role, quantity in (("largest", "lambda_1"), ("trace", "trace")):
        if any((WHOLE, quantity) in each.changes for _, each in found.compared):
            axes[role] = plots.plot_differences(found, quantity)
    axes["overlaid"] = plots.plot_overlaid(found)
    axes["multiples"] = plots.plot_multiples(found)
    if _shared_layers(found):
        axes["layers"] = plots.plot_layer_differences(found)
    figures = make_figures(axes, _ALTS)
    alts = {f"correlation-{i}": f"{each.names[1]} against {each.names[0]}" for i, each in enumerate(correlations)}
    drawn = {f"correlation-{i}": plots.plot_correlation(each) for i, each in enumerate(correlations[:_DRAWN])}
    scatter = make_figures(drawn, alts)
    texts = {figure["path"]: figure["svg"] for figure in [*figures.values(), *scatter.values()]}
    texts["table.csv"] = to_csv(compared_rows(found))
    runs = f" of {len(found.runs)} runs" if len(found.runs) > 1 else ""
    texts["report.html"] = render(
        "comparison.html",
        title=title or f"{len(found.labels)} checkpoints{runs} compared",
        reference=found.labels[found.reference],
        conclusion=conclude(found),
        figures=figures,
        scatter=list(scatter.values()),
        correlations=[_correlation(each) for each in correlations],
        rows=[_row(found, i, each) for i, each in found.compared],
        failed=[{"name": name, "reason": reason} for name, reason in (failed or {}).items()],
        notes=[*remarks, *_notes(found)],
        gain=_gain(found),
        k=(k := max((each.k for _, each in found.compared), default=0)),
        chance=format_number(k / found.analyses[found.reference].full.n, digits=2),
        reproduce=[str(line) for line in reproduce],
    )
    out_dir = Path(out_dir)
    write_texts(out_dir, texts, figure_names=_NAMES)
    return out_dir / "report.html"


def conclude(found: Comparison) -> str:
    """Say in how many checkpoints numbers differ by more than their errors, and which layer does most often."""
    others, told = [each for _, each in found.compared], []
    for quantity, name in _SYMBOLS.items():
        moved = [each.changes[WHOLE, quantity] for each in others if (WHOLE, quantity) in each.changes]
        if moved:
            sure = [each.value for each in moved if exceeds(each)]
            larger, smaller = sum(value > 0 for value in sure), sum(value < 0 for value in sure)
            told.append(f"{name} is larger in {larger} and smaller in {smaller}")
    if not told:
        return ""
    text = f"Of {len(others)} checkpoints, beside {found.labels[found.reference]}, {'; '.join(told)}: "
    text += "each by more than the errors of its difference, of computation and data together."
    most = Counter(name for each in others if (name := _changed_most(each)))
    if most:
        name, count = most.most_common(1)[0]
        text += f" The layer whose trace differs most is {name} in {count} of them."
    return unbroken(text)


def _changed_most(difference: Difference) -> str:
    """The layer whose trace differs most among those that differ by more than their errors, or nothing."""
    sure = {name: abs(each.value) for name, each in difference.layer_traces.items() if exceeds(each)}
    return max(sure, key=sure.__getitem__) if sure else ""


def _shared_layers(found: Comparison) -> bool:
    layers = [set(each.layer_traces) for _, each in found.compared]
    return bool(layers) and bool(set.intersection(*layers))


def _row(found: Comparison, place: int, difference: Difference) -> dict[str, Any]:
    step = found.steps[place]
    row = {"name": found.labels[place], "step": "" if step is None else f"{step:,.0f}"}
    for key, what in (("largest", "lambda_1"), ("trace", "trace"), ("negative", "share of negative eigenvalues")):
        moved = difference.changes.get((WHOLE, what))
        row[key] = "" if moved is None else _points(moved) if key == "negative" else _shown(moved)
    if difference.overlap is not None:
        row["overlap"] = bounded(*difference.overlap)
    row["layer"] = _changed_most(difference) or (
        "none beyond its errors" if difference.layer_traces else "not compared"
    )
    return row


def _shown(moved: TraceEstimate) -> str:
    """A difference with its 95 % errors together, and whether it exceeds them."""
    mark = "" if exceeds(moved) else " (within its errors)"
    return f"{format_with_error(moved.value, both_errors(moved))}{mark}"


def _points(moved: TraceEstimate) -> str:
    """A difference of shares, in points of a hundred."""
    if moved.rounding > WIDEST_SHARE:
        return "not resolved"
    return f"{format_with_error(100 * moved.value, 100 * both_errors(moved))} points"


def _correlation(found: RankCorrelation) -> dict[str, str]:
    interval = f"none: {_runs(found.num_runs)}, and five are needed"
    if found.interval is not None:
        interval = " to ".join(format_number(end, digits=2) for end in found.interval)
    return {
        "column": found.names[0],
        "name": found.names[1],
        "value": format_number(found.value, digits=2),
        "interval": interval,
        "count": f"{len(found.x)} checkpoints of {_runs(found.num_runs)}",
        "settled": "" if found.interval is None else "excludes zero" if found.settled else "zero is not excluded",
    }


def _notes(found: Comparison) -> list[str]:
    """Each note and what was left out once, with the checkpoints that it is about."""
    about: dict[str, list[str]] = {}
    for i, difference in found.compared:
        texts = [note.text.replace("'this'", "this checkpoint").replace("'the reference'", "the reference")
                 for note in difference.notes]  # fmt: skip
        for text in [*texts, *(f"Left out: {each}." for each in difference.left_out)]:
            about.setdefault(text, []).append(found.labels[i])
    for i, analysis in enumerate(found.analyses):
        for note in analysis.notes:
            if note.kind in _TOLD_ELSEWHERE:
                continue
            about.setdefault(note.text, []).append(found.labels[i])
    return [f"{_few(who)}: {text}" if len(who) < len(found.labels) else text for text, who in about.items()]


def _few(names: Sequence[str]) -> str:
    """Names, or some of them and how many more there are."""
    names = list(dict.fromkeys(names))
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _gain(found: Comparison) -> str:
    """Say how much smaller errors of differences are than those of two unrelated analyses."""
    told = []
    for quantity, name in _SYMBOLS.items():
        key = (WHOLE, quantity)
        moved = [(each.changes[key], each.alone[key]) for _, each in found.compared if key in each.alone]
        # of errors by rounding alone nothing is shared
        ratios = [both_errors(own) / alone for own, alone in moved if own.stderr or own.data_stderr]
        if ratios:
            least, middle = (format_number(float(x), digits=2) for x in (min(ratios), np.median(ratios)))
            told.append(f"of {name} {middle} times (at best {least} times)")
    if not told:
        return ""
    return (
        f"Errors of differences are, in the median, {' and '.join(told)} those of two analyses with nothing in common."
    )


def _runs(count: int) -> str:
    return f"{count} run" if count == 1 else f"{count:,} runs"
