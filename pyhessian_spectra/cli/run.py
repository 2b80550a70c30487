"""What the commands do."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.saved import save_analyses
from pyhessian_spectra.cli.output import Stage, check_free, staged
from pyhessian_spectra.cli.request import Request, progress_bar, reason_of
from pyhessian_spectra.cli.threads import choose_threads
from pyhessian_spectra.curvature.distributed import Processes, launched
from pyhessian_spectra.errors import InputError, Interrupted, SpectraError
from pyhessian_spectra.notes import Note
from pyhessian_spectra.numbers import format_headline
from pyhessian_spectra.problems.training import train_digits
from pyhessian_spectra.report import write_report, write_training
from pyhessian_spectra.runs.doctor import examine
from pyhessian_spectra.runs.journal import agreed
from pyhessian_spectra.tracking import Track


class StoppedError(SpectraError):
    """Something ended the analysis of several checkpoints or layers; the report of what was finished is written."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.exit_status = getattr(cause, "exit_status", 130 if isinstance(cause, KeyboardInterrupt) else 1)


def demo(out: Path, *, title: str | None, force: bool, fresh: bool, seed: int) -> None:
    """Train on the digits and report on the checkpoints."""
    run = _Run(Request({"data": "digits"}, {}, seed), out, Processes(), title=title)
    with staged(out, force=force, trained=True, fresh=fresh) as stage:
        with progress_bar("training on handwritten digits", "step") as advance:
            paths = train_digits(stage.new / "checkpoints", seed=seed, progress=advance)
        run.write(paths, stage)
    run.tell()


def report(
    checkpoints: Sequence[Path],
    request: Request,
    out: Path,
    *,
    labels: Sequence[str],
    tracks: Sequence[Path],
    title: str | None,
    force: bool,
    fresh: bool,
) -> None:
    """Analyse checkpoints and write their report; the first of several processes writes it."""
    tracked = dict(zip(_names_of(tracks), map(Track.read, tracks), strict=True))
    if not checkpoints:
        with staged(out, force=force, fresh=fresh) as place:
            write_training(tracked, place.new, reproduce=[_command()], title=title)
        click.echo(f"wrote {out / 'report.html'}")
        return
    if labels and len(labels) != len(checkpoints):
        raise InputError(f"--label was given {len(labels)} times for {len(checkpoints)} checkpoints; give one for each")
    with launched(request.problem.get("device")) as processes, contextlib.ExitStack() as stack:
        run, first = _Run(request, out, processes, labels, title, tracked), processes.rank == 0
        with agreed(processes):
            if first:
                check_free(out, force=force)
        for path in checkpoints:  # a wrong path at the end of the list is found before the first is analysed
            for part in request.parts():
                part.load(path, processes)
        with agreed(processes):
            stage = stack.enter_context(staged(out, force=force, fresh=fresh)) if first else None
        run.write(checkpoints, stage)
    run.tell()


def doctor(checkpoints: Sequence[Path], request: Request) -> int:
    """Print what was found about each checkpoint; the exit status is not 0 where one cannot be analysed."""
    status = 0
    for path, part in itertools.product(checkpoints, request.parts()):
        click.echo(" ".join([str(path), *part.told.values()]))
        try:
            risk = part.load(path, Processes()).risk
            if told := choose_threads(risk):
                click.echo(f"  note  {told}")
            for finding in examine(risk, **part.how):
                click.echo(f"  {finding.level:4}  {finding.sentence}")
                status = InputError.exit_status if finding.level == "FAIL" else status
        except SpectraError as error:
            click.echo(f"  FAIL  {error}")
            status = error.exit_status
    return status


class _Run:
    """The analyses of one command: which were finished, where it is now, and what stopped it."""

    def __init__(
        self,
        request: Request,
        out: Path,
        processes: Processes,
        labels: Sequence[str] = (),
        title: str | None = None,
        tracks: Mapping[str, Track] | None = None,
    ) -> None:
        self._request, self._out, self._processes = request, out, processes
        self._labels, self._title, self._tracks = labels, title, tracks
        self._finished: list[SpectralAnalysis] = []
        self._where, self._resumable = "", False
        self._stopped: BaseException | None = None
        self._threads: Path | None = None  # where a choice of threads is kept; None where it is not to be made

    def write(self, checkpoints: Sequence[Path], stage: Stage | None) -> None:
        """Analyse the checkpoints until something stops it and, where there is a stage, write what was finished."""
        if stage is not None and not self._processes:
            self._threads = stage.threads
        called = [{"label": label} for label in self._labels] or [{}] * len(checkpoints)
        jobs = [
            (path, replace(part, told={**part.told, **label}))
            for path, label in zip(checkpoints, called, strict=True)
            for part in self._request.parts()
        ]
        for index, (path, part) in enumerate(jobs):
            number = f" ({index + 1} of {len(jobs)})" if len(jobs) > 1 else ""
            self._where, shown, journal = path.name + number, path, None
            if stage is not None:
                shown = self._out / path.relative_to(stage.new) if path.is_relative_to(stage.new) else path
                journal = stage.journal(path, [earlier for earlier, _ in jobs[:index]].count(path))
            try:
                self._finished.append(self._analyze(path, part, shown, journal))
            except (Exception, KeyboardInterrupt) as error:
                self._stop(error, stage)
                break
        if stage is None:
            return
        try:
            save_analyses(self._finished, json_path=stage.new / "results.json", npz_path=stage.new / "spectra.npz")
        except InputError as error:
            kept = "; the same command goes on from what was kept" if stage.resumable else ""
            raise StoppedError(f"{error}{kept}", error) from None
        try:
            write_report(self._finished, stage.new, reproduce=[_command()], title=self._title, tracks=self._tracks)
        except (Exception, KeyboardInterrupt) as error:  # the numbers stay
            if self._stopped is None:
                self._stopped, self._where = error, "drawing the report"
        stage.unfinished, self._resumable = self._stopped is not None, stage.resumable

    def tell(self) -> None:
        """Print where the report is; raise where something stopped it from holding everything."""
        if self._stopped is None:
            click.echo(f"{self._out / 'report.html'}: {_summary(self._finished[-1])}")
            return
        sentence = f"{self._where}: {reason_of(self._stopped)}; what was finished is in {self._out}"
        if self._resumable:
            sentence += ", and the same command with --force goes on from there"
        raise StoppedError(sentence, self._stopped) from self._stopped

    def _analyze(self, path: Path, part: Request, shown: Path, journal: Path | None) -> SpectralAnalysis:
        processes, threads = self._processes, self._threads
        journal = processes.from_first(journal)
        return part.analyse(path, self._where, shown=shown, journal=journal, threads=threads, processes=processes)

    def _stop(self, error: BaseException, stage: Stage | None) -> None:
        """Note in the last analysis that was finished what stopped the run; raise where none was."""
        if isinstance(error, Interrupted):
            self._finished.append(error.partial)
        if not self._finished:
            if isinstance(error, KeyboardInterrupt) and stage is not None and stage.resumable:
                told = f"{self._where}: interrupted; the same command goes on from there"
                raise StoppedError(told, error) from error
            raise error
        note = Note("interrupted", f"The analysis stopped at {self._where}: {reason_of(error)}.")
        last = self._finished[-1]
        self._finished[-1], self._stopped = replace(last, notes=(*last.notes, note)), error


# Characters of formatted numbers that a terminal may lack, and what stands for them.
_ASCII = str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789") | {ord("±"): "+-"}


def _summary(analysis: SpectralAnalysis) -> str:
    """The numbers of a checkpoint, each with the largest of its errors, in ASCII because terminals differ."""
    top, trace, examples = analysis.full.largest, analysis.full.trace, analysis.problem.get("N")
    data = None if top.data_stderr is None else float(top.data_stderr[-1])
    value = format_headline(float(top.eigenvalues[-1]), float(top.reach[-1]), data, examples)
    total = format_headline(trace.value, trace.reach, trace.data_stderr, examples)
    return f"largest eigenvalue {value}, trace {total}".replace("×10", "e").translate(_ASCII)


def _command() -> str:
    return "pyhessian-spectra " + shlex.join(sys.argv[1:])


def _names_of(paths: Sequence[Path]) -> list[str]:
    """A distinct name for each file: its stem, or its path where stems are the same."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
