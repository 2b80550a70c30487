"""What the commands do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from pyhessian_spectra.analysis.analyze import analyze
from pyhessian_spectra.analysis.doctor import examine
from pyhessian_spectra.analysis.journal import AFRESH, RESUMED
from pyhessian_spectra.analysis.recipe import Recipe
from pyhessian_spectra.analysis.result import SpectralAnalysis, save_analyses
from pyhessian_spectra.cli.output import Stage, check_free, staged
from pyhessian_spectra.curvature import EmpiricalFisherOperator, GGNOperator, HessianOperator, ResidualOperator
from pyhessian_spectra.errors import InputError, Interrupted, SpectraError
from pyhessian_spectra.plots.numbers import eigenvalue_errors, format_number, format_with_error, trace_error
from pyhessian_spectra.problems.factory import load_problem
from pyhessian_spectra.problems.training import train_digits
from pyhessian_spectra.report import write_report

_MATRICES = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "residual": ResidualOperator,
    "fisher": EmpiricalFisherOperator,
}


@dataclass(frozen=True)
class Settings:
    """Options of a command: keyword arguments of ``load_problem`` and of ``analyze``, and the seed."""

    problem: Mapping[str, Any]
    analysis: Mapping[str, Any]
    seed: int

    @classmethod
    def of(
        cls,
        *,
        matrix: str,
        eigenvalues: int,
        probes: int,
        steps: int,
        exact_limit: int,
        tol: float,
        max_steps: int,
        rtol: float,
        trace_probes: int,
        layers: tuple[str, ...],
        memory: float | None,
        seed: int,
        model_args: tuple[str, ...],
        params: tuple[str, ...],
        **problem: Any,
    ) -> Settings:
        """Sort the command line's options."""
        analysis = {
            "num_eigenvalues": eigenvalues,
            "num_probes": probes,
            "num_steps": steps,
            "exact_limit": exact_limit,
            "tol": tol,
            "max_steps": max_steps,
            "rtol": rtol,
            "trace_probes": trace_probes,
            "layers": {(): True, ("all",): ("*",), ("none",): False}.get(layers, layers),
            "memory_budget": None if memory is None else int(memory * 2**30),
            "matrix": _MATRICES[matrix],
        }
        given = {"model_args": _key_values(model_args) or None, "params": params or None}
        return cls({**problem, **given}, analysis, seed)


class StoppedError(SpectraError):
    """Something ended the analysis of several checkpoints or layers; the report of what was finished is written."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        interrupted = 130 if isinstance(cause, KeyboardInterrupt) else 1
        self.exit_status = getattr(cause, "exit_status", interrupted)


def demo(out: Path, *, force: bool, fresh: bool, seed: int, command: Sequence[str]) -> None:
    """Train on the digits and report on the checkpoints."""
    with staged(out, force=force, trained=True, fresh=fresh) as stage:
        with _bar("training on handwritten digits", "step") as advance:
            paths = train_digits(stage.new / "checkpoints", seed=seed, progress=advance)
        written = _write(paths, Settings({"data": "digits"}, {}, seed), stage, out, command)
    written.tell(out)


def report(
    checkpoints: Sequence[Path], settings: Settings, out: Path, *, force: bool, fresh: bool, command: Sequence[str]
) -> None:
    """Analyse checkpoints and write their report."""
    check_free(out, force=force)
    for path in checkpoints:  # a wrong path at the end of the list is found before the first is analysed
        load_problem(path, **settings.problem)
    with staged(out, force=force, fresh=fresh) as stage:
        written = _write(checkpoints, settings, stage, out, command)
    written.tell(out)


def doctor(checkpoints: Sequence[Path], settings: Settings) -> int:
    """Print what was found about each checkpoint; the exit status is not 0 where one cannot be analysed."""
    status = 0
    options = dict(settings.analysis)
    elsewhere = {key: options.pop(key) for key in ("layers", "memory_budget", "matrix")}
    recipe = Recipe(*options.values())
    for path in checkpoints:
        click.echo(f"{path}")
        try:
            findings = examine(load_problem(path, **settings.problem).risk, recipe, **elsewhere)
        except SpectraError as error:
            click.echo(f"  FAIL  {error}")
            status = error.exit_status
            continue
        for finding in findings:
            click.echo(f"  {finding.level:4}  {finding.sentence}")
    return status


@dataclass(frozen=True)
class _Written:
    """What was finished, and what stopped the rest."""

    finished: Sequence[SpectralAnalysis]
    stopped: BaseException | None
    where: str
    resumable: bool

    def tell(self, out: Path) -> None:
        """Say where the report is, once it is there; raise where it is not of everything."""
        if self.stopped is None:
            click.echo(f"{out / 'report.html'}: {_summary(self.finished)}")
            return
        sentence = f"{self.where}: {_reason(self.stopped)}; what was finished is in {out}"
        if self.resumable:
            sentence += ", and the same command with --force goes on from there"
        raise StoppedError(sentence, self.stopped) from self.stopped


def _write(
    checkpoints: Sequence[Path], settings: Settings, stage: Stage, out: Path, command: Sequence[str]
) -> _Written:
    """Analyse and write; where something stops it after the first, write what was finished."""
    finished: list[SpectralAnalysis] = []
    stopped: BaseException | None = None
    where = ""
    for index, path in enumerate(checkpoints, start=1):
        where = f"{path.name} ({index} of {len(checkpoints)})" if len(checkpoints) > 1 else path.name
        shown = out / path.relative_to(stage.new) if path.is_relative_to(stage.new) else path
        journal = stage.journal(path, checkpoints[: index - 1].count(path))
        try:
            finished.append(_analyze(path, shown, settings, where, journal))
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, Interrupted):
                finished.append(error.partial)
            if not finished and isinstance(error, KeyboardInterrupt) and stage.resumable:
                raise StoppedError(f"{where}: interrupted; the same command goes on from there", error) from error
            if not finished:
                raise
            note = f"The analysis stopped at {where}: {_reason(error)}."
            finished[-1] = replace(finished[-1], notes=(*finished[-1].notes, note))
            stopped = error
            break
    save_analyses(finished, json_path=stage.new / "results.json", npz_path=stage.new / "spectra.npz")
    try:
        write_report(finished, stage.new, reproduce=command)
    except (Exception, KeyboardInterrupt) as error:  # the numbers stay
        stopped, where = stopped or error, where if stopped else "drawing the report"
    stage.unfinished = stopped is not None
    return _Written(finished, stopped, where, stage.resumable)


def _reason(error: BaseException) -> str:
    """The sentence of an error of this package; type and first line of any other."""
    if isinstance(error, SpectraError):
        return f"interrupted, {error}" if isinstance(error, Interrupted) else str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _analyze(path: Path, shown: Path, settings: Settings, where: str, journal: Path) -> SpectralAnalysis:
    problem = load_problem(path, **settings.problem)
    with _bar(where, "product") as advance:
        analysis = analyze(
            problem.risk,
            **settings.analysis,
            problem={**problem.description, "checkpoint": str(shown), "seed": settings.seed},
            generator=torch.Generator().manual_seed(settings.seed),
            progress=lambda what, done, total: advance(done, total, f"{where}, {what}"),
            journal=journal,
        )
    for note in analysis.notes:
        if note.startswith((RESUMED, AFRESH)):
            click.echo(f"{where}: {note}", err=True)
    return analysis


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


# What numbers are printed with that a terminal may not know.
_ASCII = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789") | {ord("±"): "+-"}


def _summary(finished: Sequence[SpectralAnalysis]) -> str:
    """The last checkpoint's numbers, each with its error and the data's; in ASCII, as terminals differ."""
    full = finished[-1].full
    top, trace = full.largest, full.trace
    data = None if top.data_stderr is None else float(top.data_stderr[-1])
    value = _number(float(top.eigenvalues[-1]), float(eigenvalue_errors(top)[-1]), data)
    return f"largest eigenvalue {value}, trace {_number(trace.value, trace_error(trace), trace.data_stderr)}"


def _number(value: float, error: float, data: float | None) -> str:
    shown = format_with_error(value, error) + ("" if data is None else f" (data: ± {format_number(data, digits=2)})")
    return shown.replace("×10", "e").translate(_ASCII)


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on a terminal; the function it gives takes what is done, of how much, and a new label."""
    with tqdm(desc=what, unit=unit, disable=None, leave=False, dynamic_ncols=True) as bar:

        def advance(done: int, total: int, label: str = what) -> None:
            bar.total = total
            bar.set_description(label, refresh=False)
            bar.update(done - bar.n)

        yield advance
