"""What the commands do."""

from __future__ import annotations

import contextlib
import dataclasses
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
from pyhessian_spectra.analysis.result import SpectralAnalysis, save_analyses
from pyhessian_spectra.cli.output import Stage, check_free, staged
from pyhessian_spectra.curvature import EmpiricalFisherOperator, GGNOperator, HessianOperator, ResidualOperator
from pyhessian_spectra.curvature.distributed import Processes, launched
from pyhessian_spectra.errors import InputError, Interrupted, SpectraError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.plots.numbers import eigenvalue_errors, format_number, format_with_error, trace_error
from pyhessian_spectra.problems.factory import Problem, load_problem
from pyhessian_spectra.problems.training import train_digits
from pyhessian_spectra.report import write_report
from pyhessian_spectra.runs.doctor import examine
from pyhessian_spectra.spectra.settings import Settings

_MATRICES = {
    "hessian": HessianOperator,
    "ggn": GGNOperator,
    "residual": ResidualOperator,
    "fisher": EmpiricalFisherOperator,
}


@dataclass(frozen=True)
class Request:
    """What a command was asked: arguments of ``load_problem``, the settings, and the other arguments of ``analyze``."""

    problem: Mapping[str, Any]
    settings: Settings
    matrix: Callable[..., Any]
    layers: bool | Sequence[str]
    seed: int

    @classmethod
    def of(
        cls,
        *,
        matrix: str,
        layers: tuple[str, ...],
        seed: int,
        model_args: tuple[str, ...],
        params: tuple[str, ...],
        **others: Any,
    ) -> Request:
        """Sort the command line's options."""
        settings = {field.name: others.pop(field.name) for field in dataclasses.fields(Settings)}
        special: dict[tuple[str, ...], bool | Sequence[str]] = {(): True, ("all",): ("*",), ("none",): False}
        problem = {**others, "model_args": _key_values(model_args) or None, "params": params or None}
        return cls(problem, Settings(**settings), _MATRICES[matrix], special.get(layers, layers), seed)

    def load(self, path: Path, processes: Processes | None = None) -> Problem:
        """The problem of a checkpoint, its batches dealt out among processes."""
        problem, failure = None, None
        try:
            problem = load_problem(path, **self.problem)
        except Exception as error:
            failure = error
        (processes or Processes()).agree(failure)
        assert problem is not None
        return replace(problem, risk=problem.risk.dealt(processes)) if processes else problem


class StoppedError(SpectraError):
    """Something ended the analysis of several checkpoints or layers; the report of what was finished is written."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        interrupted = 130 if isinstance(cause, KeyboardInterrupt) else 1
        self.exit_status = getattr(cause, "exit_status", interrupted)


def demo(out: Path, *, force: bool, fresh: bool, seed: int, command: Sequence[str]) -> None:
    """Train on the digits and report on the checkpoints."""
    request = Request({"data": "digits"}, Settings(), HessianOperator, True, seed)
    with staged(out, force=force, trained=True, fresh=fresh) as stage:
        with _bar("training on handwritten digits", "step") as advance:
            paths = train_digits(stage.new / "checkpoints", seed=seed, progress=advance)
        written = _write(paths, request, stage, Processes(), out, command)
    written.tell(out)


def report(
    checkpoints: Sequence[Path], request: Request, out: Path, *, force: bool, fresh: bool, command: Sequence[str]
) -> None:
    """Analyse checkpoints and write their report; the first of several processes writes it."""
    with launched(request.problem.get("device")) as processes:
        if processes.rank == 0:
            check_free(out, force=force)
        for path in checkpoints:  # a wrong path at the end of the list is found before the first is analysed
            request.load(path, processes)
        with _staged_together(processes, out, force=force, fresh=fresh) as stage:
            written = _write(checkpoints, request, stage, processes, out, command)
    written.tell(out)


@contextmanager
def _staged_together(processes: Processes, out: Path, **how: bool) -> Iterator[Stage | None]:
    """The stage, which the first process holds; where it cannot, all end."""
    stage, failure = None, None
    with contextlib.ExitStack() as stack:
        if processes.rank == 0:
            try:
                stage = stack.enter_context(staged(out, **how))
            except SpectraError as error:
                failure = error
        processes.agree(failure)
        yield stage


def doctor(checkpoints: Sequence[Path], request: Request) -> int:
    """Print what was found about each checkpoint; the exit status is not 0 where one cannot be analysed."""
    status = 0
    for path in checkpoints:
        click.echo(f"{path}")
        try:
            risk = request.load(path).risk
            findings = examine(risk, request.settings, layers=request.layers, matrix=request.matrix)
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
    checkpoints: Sequence[Path],
    request: Request,
    stage: Stage | None,
    processes: Processes,
    out: Path,
    command: Sequence[str],
) -> _Written:
    """Analyse, and write where there is a stage; where something stops it after the first, what was finished."""
    finished: list[SpectralAnalysis] = []
    stopped: BaseException | None = None
    where = ""
    for index, path in enumerate(checkpoints, start=1):
        where = f"{path.name} ({index} of {len(checkpoints)})" if len(checkpoints) > 1 else path.name
        shown, journal = path, None
        if stage is not None:
            shown = out / path.relative_to(stage.new) if path.is_relative_to(stage.new) else path
            journal = stage.journal(path, list(checkpoints[: index - 1]).count(path))
        try:
            finished.append(_analyze(path, shown, request, where, processes.from_first(journal), processes))
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, Interrupted):
                finished.append(error.partial)
            if not finished and isinstance(error, KeyboardInterrupt) and stage is not None and stage.resumable:
                raise StoppedError(f"{where}: interrupted; the same command goes on from there", error) from error
            if not finished:
                raise
            note = Note("interrupted", f"The analysis stopped at {where}: {_reason(error)}.")
            finished[-1] = replace(finished[-1], notes=(*finished[-1].notes, note))
            stopped = error
            break
    if stage is None:
        return _Written(finished, stopped, where, False)
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


def _analyze(
    path: Path, shown: Path, request: Request, where: str, journal: Path | None, processes: Processes
) -> SpectralAnalysis:
    problem = request.load(path, processes)
    with _bar(where, "product") as advance:
        analysis = analyze(
            problem.risk,
            request.settings,
            layers=request.layers,
            matrix=request.matrix,
            problem={**problem.description, "checkpoint": str(shown), "seed": request.seed},
            generator=torch.Generator().manual_seed(request.seed),
            progress=lambda what, done, total: advance(done, total, f"{where}, {what}"),
            journal=journal,
        )
    for note in analysis.notes:
        if note.kind in ("resumed", "afresh"):
            click.echo(f"{where}: {note.text}", err=True)
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
