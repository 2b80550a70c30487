"""What a command was asked, and one analysis of it with its progress."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from pyhessian_spectra.analysis.analyze import analyze
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.cli.main import unforeseen
from pyhessian_spectra.cli.threads import choose_threads
from pyhessian_spectra.curvature import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    LogHessianOperator,
    RelativeHessianOperator,
    ResidualOperator,
    filter_norms,
)
from pyhessian_spectra.curvature.distributed import Processes
from pyhessian_spectra.errors import InputError, Interrupted, SpectraError
from pyhessian_spectra.numbers import format_duration
from pyhessian_spectra.problems.datasets import SPLITS
from pyhessian_spectra.problems.factory import Problem, load_problem
from pyhessian_spectra.runs.journal import agreed
from pyhessian_spectra.spectra import LinearOperator
from pyhessian_spectra.spectra.settings import Settings

_MATRICES: Mapping[str, Callable[[EmpiricalRisk], LinearOperator]] = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "residual": ResidualOperator,
    "fisher": EmpiricalFisherOperator,
    "relative-hessian": RelativeHessianOperator,
    "filter-hessian": functools.partial(RelativeHessianOperator, scale=filter_norms),
    "log-hessian": LogHessianOperator,
}
_LAYERS: dict[tuple[str, ...], bool | Sequence[str]] = {(): True, ("all",): ("*",), ("none",): False}


@dataclass(frozen=True)
class Request:
    """What a command was asked: arguments of ``load_problem``, those of ``analyze`` and ``examine``, and the seed."""

    problem: Mapping[str, Any]
    how: Mapping[str, Any]
    seed: int
    told: Mapping[str, Any] = field(default_factory=dict)  # facts for the report that the problem does not know

    @classmethod
    def of(cls, *, matrix: str, layers: tuple[str, ...], seed: int, **given: Any) -> Request:
        """Sort the command line's options."""
        settings = Settings(**{field.name: given.pop(field.name) for field in dataclasses.fields(Settings)})
        given.update(model_args=_key_values(given["model_args"]) or None, params=given["params"] or None)
        how = {"settings": settings, "matrix": _MATRICES[matrix], "layers": _LAYERS.get(layers, layers)}
        return cls(given, how, seed)

    def parts(self) -> list[Request]:
        """One request for each part of the data asked for."""
        if self.problem.get("split") != "both":
            return [self]
        return [replace(self, problem={**self.problem, "split": split}, told={"split": split}) for split in SPLITS]

    def load(self, path: Path, processes: Processes) -> Problem:
        """The problem of a checkpoint, its batches dealt out among processes."""
        with agreed(processes):
            problem = load_problem(path, **self.problem)
        return replace(problem, risk=problem.risk.dealt(processes)) if processes else problem

    def analyse(
        self,
        path: Path,
        where: str,
        *,
        shown: Path | None = None,
        journal: Path | None = None,
        threads: Path | None = None,
        processes: Processes | None = None,
    ) -> SpectralAnalysis:
        """The analysis of a checkpoint, which progress calls ``where`` and its facts call ``shown``.

        A choice of threads is kept in the file ``threads``; without one none is made.
        """
        problem = self.load(path, processes or Processes())
        if threads is not None and (told := choose_threads(problem.risk, threads)):
            click.echo(f"{where}: {told}", err=True)
        with progress_bar(where, "product") as advance:
            analysis = analyze(
                problem.risk,
                problem={**problem.description, **self.told, "checkpoint": str(shown or path), "seed": self.seed},
                generator=torch.Generator().manual_seed(self.seed),
                progress=lambda what, done, total: advance(done, total, f"{where}, {what}"),
                journal=journal,
                **self.how,
            )
        for note in analysis.notes:
            if note.kind in ("resumed", "afresh"):
                click.echo(f"{where}: {note.text}", err=True)
        return analysis


def reason_of(error: BaseException) -> str:
    """What an error says, as part of a sentence."""
    if isinstance(error, SpectraError):
        return f"interrupted, {error}" if isinstance(error, Interrupted) else str(error)
    return "interrupted" if isinstance(error, KeyboardInterrupt) else unforeseen(error)


def _key_values(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` options, values read as JSON where they are JSON."""
    found = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise InputError(f"--model-arg takes KEY=VALUE, got {pair!r}")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return found


# Seconds between lines where there is no terminal.
_EVERY = 60.0


@contextlib.contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal, else a line a minute; it takes what is done, of how much, and a new label."""
    with tqdm(desc=what, unit=unit, disable=None, leave=False, dynamic_ncols=True) as bar:
        started = told = time.monotonic()

        def advance(done: int, total: int, label: str = what) -> None:
            nonlocal told
            if bar.disable:
                now = time.monotonic()
                if done and now - told >= _EVERY:
                    told, left = now, format_duration((now - started) / done * (total - done))
                    click.echo(f"{label}: {done:,} of {total:,} {unit}s, about {left} left", err=True)
                return
            bar.total = total
            bar.set_description(label, refresh=False)
            bar.update(done - bar.n)

        yield advance
