"""The command that compares checkpoints: what is missing is analysed, by as many processes as share the folder."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from pyhessian_spectra.analysis.comparison import Comparison, compare_checkpoints
from pyhessian_spectra.analysis.correlation import RankCorrelation, correlate
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.saved import SavedAnalyses, StoredAnalyses
from pyhessian_spectra.analysis.similarity import WHOLE
from pyhessian_spectra.analysis.table import compared_rows
from pyhessian_spectra.cli.inputs import Given, read_given
from pyhessian_spectra.cli.request import Request, reason_of
from pyhessian_spectra.cli.shared import SharedFolder
from pyhessian_spectra.errors import InputError, SpectraError
from pyhessian_spectra.report import write_comparison

# Without --correlate these are correlated, with what the checkpoints or a table of runs say of test performance.
_QUANTITIES, _COLUMNS = ("lambda_1", "trace"), "test_"


class IncompleteError(SpectraError):
    """The page was written, without some checkpoints."""


@dataclass(frozen=True)
class _Job:
    """An analysis to be made."""

    given: Given
    request: Request
    key: str


@dataclass(frozen=True)
class _Finished:
    """One of the analyses in a file, and what a table of runs says of it."""

    given: Given
    saved: SavedAnalyses
    place: int
    key: str = ""  # of an analysis in the folder that is filled

    def load(self) -> SpectralAnalysis:
        try:
            analysis = self.saved[self.place]
        except InputError as error:
            raise _UnreadableError(self, error) from error
        return replace(analysis, problem={**analysis.problem, **self.given.told})


class _UnreadableError(SpectraError):
    """A file that was whole when it was opened is not."""

    def __init__(self, finished: _Finished, error: InputError) -> None:
        super().__init__(str(error))
        self.finished = finished


class _Analyses(StoredAnalyses):
    """Finished analyses, read when they are asked for."""

    def __init__(self, finished: Sequence[_Finished]) -> None:
        self._finished = finished

    def __len__(self) -> int:
        return len(self._finished)

    def load(self, place: int) -> SpectralAnalysis:
        return self._finished[place].load()


def compare(
    arguments: Sequence[str],
    request: Request,
    out: Path,
    *,
    reference: str | None,
    correlations: Sequence[str],
    title: str | None,
) -> None:
    """Analyse what is not analysed yet and, once nothing is missing, write the page.

    Raises IncompleteError if some checkpoints have failed; those that were finished are compared.
    """
    given, remarks = read_given(arguments)
    folder = SharedFolder(out, request)
    jobs = [
        _Job(each, part, folder.key(each.path, part.told.get("split", "")))
        for each in given
        if each.results is None
        for part in request.parts()
    ]
    _work(jobs, folder)
    missing = [job for job in jobs if not folder.finished(job.key) and folder.reason(job.key) is None]
    if missing:
        click.echo(f"{len(missing)} of {len(jobs)} analyses are with other processes; the last to finish writes {out}")
        return
    with folder.writing():
        failed = _write(given, jobs, folder, reference, correlations, title, remarks)
    if failed:
        told = "; ".join(f"{name}: {reason}" for name, reason in list(failed.items())[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise IncompleteError(f"{out / 'report.html'} was written without {told}{more}")
    click.echo(f"{out / 'report.html'}: {len(given)} input{'s' * (len(given) > 1)} compared")


def _work(jobs: Sequence[_Job], folder: SharedFolder) -> None:
    """Take whatever no other process is at, until there is nothing left to take."""
    taken = True
    while taken:
        taken = False
        for number, job in enumerate(jobs, start=1):
            if folder.settled(job.key):
                continue
            with folder.claim(job.key) as mine:
                if not mine:
                    continue
                taken = True
                where = f"{job.given.path.name} ({number} of {len(jobs)})"
                try:
                    journal, threads = folder.journal(job.key), folder.threads
                    analysis = job.request.analyse(job.given.path, where, journal=journal, threads=threads)
                    folder.finish(job.key, analysis)
                except Exception as error:
                    folder.fail(job.key, reason_of(error))
                    click.echo(f"{where}: {reason_of(error)}", err=True)


def _write(
    given: Sequence[Given],
    jobs: Sequence[_Job],
    folder: SharedFolder,
    reference: str | None,
    correlations: Sequence[str],
    title: str | None,
    remarks: list[str],
) -> dict[str, str]:
    """Write the page; return which inputs failed, and why."""
    finished, failed = _collect(given, jobs, folder)
    while True:
        if len(finished) < 2:
            told = "; ".join(f"{name}: {reason}" for name, reason in failed.items()) or "there is one"
            raise InputError(f"a comparison needs at least two analyses: {told}")
        try:
            found = compare_checkpoints(_Analyses(finished), reference=_place(finished, failed, reference))
            break
        except _UnreadableError as error:
            finished = [each for each in finished if each is not error.finished]
            unread = folder.removed(error.finished.key, error) if error.finished.key else error
            failed[str(error.finished.given.path)] = str(unread)
    remarks = [*remarks, *_alike(found)]
    correlated = _correlate(found, correlations, remarks)
    command = ["pyhessian-spectra " + shlex.join(sys.argv[1:])]
    write_comparison(
        found, folder.out, failed=failed, correlations=correlated, remarks=remarks, reproduce=command, title=title
    )
    return failed


def _collect(
    given: Sequence[Given], jobs: Sequence[_Job], folder: SharedFolder
) -> tuple[list[_Finished], dict[str, str]]:
    """All analyses in the order given, and what has none."""
    finished: list[_Finished] = []
    failed: dict[str, str] = {}
    made: dict[Path, list[_Job]] = {}
    for job in jobs:
        made.setdefault(job.given.path, []).append(job)
    for each in given:
        try:
            if each.results is not None:
                saved = SavedAnalyses(*each.results)
                finished += [_Finished(each, saved, place) for place in range(len(saved))]
                continue
            for job in made[each.path]:
                finished.append(_Finished(each, folder.load(job.key), 0, job.key))
        except InputError as error:
            failed[str(each.path)] = str(error)
    return finished, failed


def _place(finished: Sequence[_Finished], failed: Mapping[str, str], wanted: str | None) -> int:
    """The place of the one whose label, or the end of whose path, is what is wanted; by default the first."""
    if wanted is None:
        return 0
    labelled = [place for place, each in enumerate(finished) if each.given.told.get("label") == wanted]
    places = labelled or [place for place, each in enumerate(finished) if each.given.path.match(wanted)]
    if len(places) > 1:
        told = ", ".join(str(finished[place].given.path) for place in places[:3])
        raise InputError(f"{len(places)} of those given are called {wanted}, such as {told}; name more of the path")
    if places:
        return places[0]
    reason = next((why for name, why in failed.items() if Path(name).match(wanted)), "it is none of those given")
    raise InputError(f"there is no analysis of the reference {wanted}: {reason}")


def _alike(found: Comparison) -> list[str]:
    """Sentences about checkpoints whose files hold the same bytes."""
    seen: dict[Any, str] = {}
    told = []
    for label, analysis in zip(found.labels, found.analyses, strict=True):
        key = analysis.problem.get("sha256"), analysis.problem.get("split")
        if key[0] is not None and (first := seen.setdefault(key, label)) != label:
            told.append(f"{label} holds the same bytes as {first}; correlations count both.")
    return told


def _correlate(found: Comparison, asked: Sequence[str], remarks: list[str]) -> list[RankCorrelation]:
    """The correlations asked for; what cannot be correlated becomes a remark."""
    rows, pairs = compared_rows(found), []
    for each in asked:
        column, _, quantity = each.partition(":")
        pairs += [(column, each) for each in ([quantity] if quantity else _QUANTITIES)]
    if not asked:
        known = dict.fromkeys(row.quantity for row in rows if row.block == "given" and _COLUMNS in row.quantity)
        pairs = [(column, quantity) for column in known for quantity in _QUANTITIES]
    correlated = []
    for column, what in pairs:
        quantity, _, block = what.partition("@")
        try:
            correlated.append(correlate(rows, column, quantity, block=block or WHOLE))
        except InputError as error:
            remarks.append(f"No correlation of {what} with {column}: {error}.")
    return correlated
