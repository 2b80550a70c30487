"""What a report concludes: a sentence or two computed from the numbers, and the three numbers that matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.seeds import checkpoint_step
from pyhessian_spectra.analysis.trajectory import Trajectory, exceeds, follow_checkpoints
from pyhessian_spectra.numbers import format_headline, format_number, format_with_error
from pyhessian_spectra.report.tables import unbroken
from pyhessian_spectra.spectra import TraceEstimate

# A quantity of a checkpoint, and its changes along a trajectory.
_QUANTITIES: dict[str, tuple[Callable[[SpectralAnalysis], float], Callable[[Trajectory], Sequence[TraceEstimate]]]] = {
    "sharpness λ₁": (lambda analysis: float(analysis.full.largest.eigenvalues[-1]), lambda found: found.largest),
    "trace": (lambda analysis: analysis.full.trace.value, lambda found: found.trace),
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
    return "No eigenvalue is negative beyond the error of the computation: a minimum is not ruled out."


def _of_run(members: Sequence[tuple[SpectralAnalysis, str]], name: str) -> str:
    """Say where a quantity turned, if both changes exceed their errors, or else how it changed from first to last."""
    value, changes = _QUANTITIES[name]
    values = [value(analysis) for analysis, _ in members]
    last = len(members) - 1
    for turn in (int(np.argmax(values)), int(np.argmin(values))):
        if not 0 < turn < last:
            continue
        before, after = changes(follow_checkpoints([members[i][0] for i in (0, turn, last)]))
        if exceeds(before) and exceeds(after):
            up = before.value > 0
            return (
                f"The {name} {'rose' if up else 'fell'} until {members[turn][1]} and {'fell' if up else 'rose'} after "
                f"it, by {_by(before)} and then by {_by(after)}; both changes exceed {_errors(before, after)}."
            )
    (whole,) = changes(follow_checkpoints([members[0][0], members[-1][0]]))
    ends = f"from {members[0][1]} to {members[-1][1]}"
    if exceeds(whole):
        moved = "rose" if whole.value > 0 else "fell"
        return f"The {name} {moved} {ends}, by {_by(whole)}; the change exceeds {_errors(whole)}."
    return f"The change of the {name} {ends}, {whole}, does not exceed {_errors(whole)}."


def _of_runs(found: Checkpoints, name: str) -> str:
    """Count the runs in which a quantity rose or fell from first to last."""
    _, changes = _QUANTITIES[name]
    ends = [[found.analyses[found.runs[run][i]] for i in (0, -1)] for run in found.trajectories]
    moved = [changes(follow_checkpoints(pair))[0] for pair in ends]
    rose = sum(exceeds(each) and each.value > 0 for each in moved)
    fell = sum(exceeds(each) and each.value < 0 for each in moved)
    return (
        f"The {name} rose from the first checkpoint to the last in {rose} of {len(moved)} runs and fell in {fell}, "
        f"each time by more than {_errors(*moved)}."
    )


def _by(change: TraceEstimate) -> str:
    return format_headline(abs(change.value), change.reach, change.data_stderr)


def _errors(*changes: TraceEstimate) -> str:
    known = all(change.data_stderr is not None for change in changes)
    return "both errors, of computation and data" if known else "the computation’s error (that of the data is unknown)"


def _place(found: Checkpoints, index: int) -> str:
    step = checkpoint_step(found.analyses[index])
    labelled: Any = found.analyses[index].problem.get("label")
    return found.labels[index] if step is None or labelled else f"step {step:,.0f}"
