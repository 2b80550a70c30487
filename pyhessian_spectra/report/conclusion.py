"""What a report concludes: a sentence or two computed from the numbers, and the three numbers that matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.seeds import checkpoint_step
from pyhessian_spectra.analysis.trajectory import changes_between, exceeds
from pyhessian_spectra.numbers import format_headline, format_number, format_with_error
from pyhessian_spectra.report.tables import unbroken
from pyhessian_spectra.spectra import TraceEstimate

# A quantity of a checkpoint: its name in changes, and its value.
_QUANTITIES: dict[str, tuple[str, Callable[[SpectralAnalysis], float]]] = {
    "sharpness λ₁": ("lambda_1", lambda analysis: float(analysis.full.largest.eigenvalues[-1])),
    "trace": ("trace", lambda analysis: analysis.full.trace.value),
}


def conclude(found: Checkpoints) -> str:
    """Say what moved beyond its errors, of one run; of several, in how many; of one checkpoint, what it is."""
    if not found.trajectories:
        return _of_one(found.analyses[-1]) if len(found.analyses) == 1 else ""
    if len(found.runs) > 1:
        return " ".join(_of_runs(found, name) for name in _QUANTITIES)
    (run,) = found.trajectories
    members = [(found.analyses[i], _place(found, i)) for i in found.runs[run]]
    return unbroken(" ".join(_of_run(members, name) for name in _QUANTITIES))


def leading_numbers(analysis: SpectralAnalysis) -> list[dict[str, str]]:
    """Return the three numbers that matter, each with the error of the data first and then that of the computation."""
    full = analysis.full
    ends = ("Largest eigenvalue λ₁", [*full.largest][:1]), ("Smallest eigenvalue λₙ", [*full.smallest][-1:])
    known = [(name, end[0].eigenvalue, end[0].reach, end[0].data_stderr) for name, end in ends if end]
    known.append(("Trace", full.trace.value, full.trace.reach, full.trace.data_stderr))
    return [
        {
            "name": name,
            "value": format_with_error(value, reach) if data is None else format_headline(value, 0.0, data),
            "data": "error of the computation; that of the data is unknown" if data is None else "error of the data",
            "own": "" if data is None else f"computation: {_own(reach)}",
        }
        for name, value, reach, data in known
    ]


def _own(reach: float) -> str:
    return f"± {format_number(reach, digits=2)}" if reach else "exact"


def _of_one(analysis: SpectralAnalysis) -> str:
    lowest = [*analysis.full.smallest][-1:]
    if analysis.problem.get("matrix", "Hessian") != "Hessian" or not lowest:
        return ""
    if lowest[0].eigenvalue + lowest[0].reach < 0:
        return unbroken(
            f"The smallest eigenvalue, {lowest[0]}, is negative by more than the error of the computation: on these "
            "examples the loss curves downwards in some direction, so that this is no minimum of it."
        )
    return "No eigenvalue that was found is negative beyond the error of the computation: a minimum is not ruled out."


def _of_run(members: Sequence[tuple[SpectralAnalysis, str]], name: str) -> str:
    """Say where between its ends a quantity was highest or lowest, if beyond errors, or how it changed between them."""
    quantity, value = _QUANTITIES[name]
    values = [value(analysis) for analysis, _ in members]
    (first, start), (last, end) = members[0], members[-1]
    tried = len(members) - 1  # each checkpoint between the ends may be the turn, and the ends may differ
    for extreme, direction, find in (("highest", "above", np.argmax), ("lowest", "below", np.argmin)):
        turn = int(find(values))
        if not 0 < turn < tried:
            continue
        middle, at = members[turn]
        both = [changes_between(other, middle)[quantity] for other in (first, last)]
        if all(exceeds(each, tried=tried) for each in both):
            return (
                f"The {name} was {extreme} at {at}: {_by(both[0])} {direction} {start} and {_by(both[1])} {direction} "
                f"{end}; both differences exceed {_errors(*both, tried=tried)}."
            )
    whole = changes_between(first, last)[quantity]
    ends = f"from {start} to {end}"
    if exceeds(whole, tried=tried):
        moved = "rose" if whole.value > 0 else "fell"
        return f"The {name} {moved} {ends}, by {_by(whole)}; the change exceeds {_errors(whole, tried=tried)}."
    return f"The change of the {name} {ends}, {whole}, does not exceed {_errors(whole, tried=tried)}."


def _of_runs(found: Checkpoints, name: str) -> str:
    """Count the runs in which a quantity rose or fell from first to last."""
    quantity, _ = _QUANTITIES[name]
    ends = [[found.analyses[found.runs[run][i]] for i in (0, -1)] for run in found.trajectories]
    moved = [changes_between(first, last)[quantity] for first, last in ends]
    rose = sum(exceeds(each) and each.value > 0 for each in moved)
    fell = sum(exceeds(each) and each.value < 0 for each in moved)
    return (
        f"The {name} rose from the first checkpoint to the last in {rose} of {len(moved)} runs and fell in {fell}, "
        f"each time by more than {_errors(*moved)}."
    )


def _by(change: TraceEstimate) -> str:
    return format_headline(abs(change.value), change.reach, change.data_stderr)


def _errors(*changes: TraceEstimate, tried: int = 1) -> str:
    level = f"95 % for {tried} comparisons together" if tried > 1 else "95 %"
    if all(change.data_stderr is not None for change in changes):
        return f"both errors, of computation and data ({level})"
    return f"the computation’s error ({level}; that of the data is unknown)"


def _place(found: Checkpoints, index: int) -> str:
    step = checkpoint_step(found.analyses[index])
    labelled: Any = found.analyses[index].problem.get("label")
    return found.labels[index] if step is None or labelled else f"step {step:,.0f}"
