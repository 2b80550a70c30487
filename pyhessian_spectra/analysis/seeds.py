"""Which checkpoints belong to one training run, what they are called, and means over runs that differ by their seed."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np

from pyhessian_spectra.analysis.result import SpectralAnalysis

# Folders of runs that are alike but for this are runs of one setting.
_SEED = re.compile(r"[-_.]?seed[-_=.]?[0-9]+", re.IGNORECASE)


@dataclass(frozen=True)
class OverSeeds:
    """A number at one step of several runs that differ by their seed.

    Parameters
    ----------
    setting : str
        The runs' common name; empty where it is nothing but the seed.
    step : float or None
        The optimisation step, where it is known.
    quantity : str
        ``"lambda_1"`` or ``"trace"``.
    mean, spread : float
        Over the runs; the spread is the standard deviation of a run, with ``count - 1`` degrees of freedom.
    members : tuple of int
        The positions of the analyses that were taken together, one of each run, two or more.
    """

    setting: str
    step: float | None
    quantity: str
    mean: float
    spread: float
    members: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of runs."""
        return len(self.members)


def checkpoint_names(analyses: Sequence[SpectralAnalysis]) -> tuple[str, ...]:
    """A short, distinct name for each checkpoint, numbered if need be.

    It is the ``label`` that was given, or the file's name, after the folders in which files lie that lie in several,
    and the part of the data.
    """
    names = []
    for analysis, folder in zip(analyses, _folders(analyses), strict=True):
        problem = analysis.problem
        name = str(problem.get("label") or PurePath(folder, _path(analysis).name))
        names.append(name if problem.get("split") is None else f"{name}, {problem['split']}")
    shared = Counter(names)
    return tuple(f"{name} ({i})" if shared[name] > 1 else name for i, name in enumerate(names, start=1))


def checkpoint_step(analysis: SpectralAnalysis) -> float | None:
    """The optimisation step, where it is known."""
    step = analysis.problem.get("step", analysis.problem.get("global_step"))  # as Lightning calls it
    return float(step) if isinstance(step, (int, float)) else None


def runs_of(analyses: Sequence[SpectralAnalysis]) -> dict[str, tuple[int, ...]]:
    """The checkpoints (positions) of each run, by the run's name: the ``run`` that their problems say, or the folder.

    Folders with one checkpoint each that do not name a seed are those of one run's checkpoints.
    """
    said = [analysis.problem.get("run") for analysis in analyses]
    if all(run is not None for run in said):
        return {str(run): tuple(i for i, own in enumerate(said) if own == run) for run in said}
    folders = _folders(analyses)
    held = Counter(folders)
    if max(held.values()) == 1 and not all(map(_SEED.search, folders)):
        return {"": tuple(range(len(analyses)))}
    return {run: tuple(i for i, folder in enumerate(folders) if folder == run) for run in held}


def over_seeds(analyses: Sequence[SpectralAnalysis]) -> list[OverSeeds]:
    """The mean and the spread of the largest eigenvalue and of the trace, at the steps that several runs share.

    Runs are alike if their folders' names are but for a seed, as in ``lr-0.1/seed-3``. Where no steps are known,
    checkpoints of the same file name are taken together.
    """
    at: dict[tuple[str, float | str], dict[str, int]] = {}
    for run, members in runs_of(analyses).items():
        for i in members if _SEED.search(run) else ():
            step = checkpoint_step(analyses[i])
            key = (_SEED.sub("", run).strip("/"), _path(analyses[i]).name if step is None else step)
            at.setdefault(key, {})[run] = i
    rows = []
    for (setting, place), runs in at.items():
        blocks = {i: analyses[i].full for i in runs.values()}
        values = {
            "lambda_1": {i: next(iter(block.largest)).eigenvalue for i, block in blocks.items() if len(block.largest)},
            "trace": {i: block.trace.value for i, block in blocks.items()},
        }
        when = None if isinstance(place, str) else place
        for quantity, each in values.items():
            if len(each) > 1:
                of = [*each.values()]
                mean, spread = float(np.mean(of)), float(np.std(of, ddof=1))
                rows.append(OverSeeds(setting, when, quantity, mean, spread, tuple(each)))
    return rows


def _path(analysis: SpectralAnalysis) -> PurePath:
    return PurePath(str(analysis.problem.get("checkpoint", "checkpoint")))


def _folders(analyses: Sequence[SpectralAnalysis]) -> list[str]:
    """The folders in which the checkpoints lie, from where they part; empty for all where it is one folder."""
    folders = [os.path.normpath(_path(analysis).parent) for analysis in analyses]
    if len(set(folders)) == 1 or len({os.path.isabs(folder) for folder in folders}) > 1:
        return [""] * len(folders)
    below = [os.path.relpath(folder, os.path.commonpath(folders)) for folder in folders]
    return ["" if folder == os.curdir else folder for folder in below]
