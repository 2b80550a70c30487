"""What a tracker recorded while a model trained, as a part of a report or as a page of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyhessian_spectra import plots
from pyhessian_spectra.analysis.table import Row, to_csv
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number, format_with_error
from pyhessian_spectra.report.page import make_figures, render, write_texts
from pyhessian_spectra.report.tables import unbroken
from pyhessian_spectra.tracking import Measured, Record, Track

# Of longer records as many rows are shown, evenly spaced and the last one too; all are in the table.
_SHOWN = 25
_CALLED = {"lambda_1": "λ₁", "lambda_n": "λₙ", "sharpness_1": "λ₁, preconditioned", "trace": "Trace"}
_LOSSES = ("loss before the step", "loss half-way", "loss after the step")


def write_training(
    tracks: Mapping[str, Track],
    out_dir: str | os.PathLike[str],
    *,
    reproduce: Sequence[str] = (),
    title: str | None = None,
) -> Path:
    """Write ``report.html``, ``table.csv`` and ``figures/*.svg`` from what trackers recorded.

    Parameters
    ----------
    tracks : mapping of str to Track
        One or more runs by their names.
    out_dir : path
        Created if missing. In it, only files of these names and the figures of an earlier report are replaced.
    reproduce : sequence of str
        Commands, one a line.
    title : str, optional

    Returns
    -------
    Path
        ``out_dir/report.html``.

    Raises
    ------
    InputError
        There is no record, or ``out_dir`` cannot be written.
    """
    section, out_dir = describe_training(tracks), Path(out_dir)
    texts = {figure["path"]: figure["svg"] for figure in section["figures"]}
    texts["table.csv"] = to_csv(training_rows(tracks))
    name = next(iter(tracks.values())).about.get("model", "training")
    texts["report.html"] = render(
        "training.html",
        title=title or f"{name} while it trained" + (f", {len(tracks)} runs" if len(tracks) > 1 else ""),
        conclusion=section["conclusion"],
        section=section,
        reproduce=[str(line) for line in reproduce],
    )
    write_texts(out_dir, texts, figure_names=re.compile(r"training-[0-9]+\.svg"))
    return out_dir / "report.html"


def training_rows(tracks: Mapping[str, Track]) -> list[Row]:
    """All rows of all tracks, each with the name of its run."""
    return [row._replace(run=name) for name, track in tracks.items() for row in track.rows()]


_SUBSCRIPTS = str.maketrans("0123456789n-", "₀₁₂₃₄₅₆₇₈₉ₙ₋")


def describe_training(tracks: Mapping[str, Track]) -> dict[str, Any]:
    """What a page says of tracks: a conclusion, figures, a table, and why those ended that did; InputError if empty."""
    if not tracks or not all(track.records for track in tracks.values()):
        empty = next((name for name, track in tracks.items() if not track.records), "the list")
        raise InputError(f"{empty} has no record; track at least one step")
    several = len(tracks) > 1
    known = [name for track in tracks.values() for name in track.quantities()]
    drawn = [name for name in dict.fromkeys(known) if _has_values(tracks, name) and name not in _LOSSES]
    shown = tracks if several else next(iter(tracks.values()))
    having = {name: {run: track for run, track in tracks.items() if _has_values({run: track}, name)} for name in drawn}
    axes = {
        f"training-{i}": plots.plot_track(having[name] if several else shown, name)
        for i, name in enumerate(drawn, start=1)
    }
    alts = {f"training-{i}": f"{_called(name)} along training" for i, name in enumerate(drawn, start=1)}
    return {
        "figures": list(make_figures(axes, alts).values()),
        "conclusion": unbroken(" ".join(_concluded(run if several else "", track) for run, track in tracks.items())),
        "columns": _columns(tracks),
        "rows": [row for run, track in tracks.items() for row in _rows(run, track)],
        "about": [(run, _about(track)) for run, track in tracks.items()],
        "ended": [(run, ended) for run, track in tracks.items() if (ended := track.records[-1].ended)],
    }


def _called(name: str) -> str:
    """A quantity in words; ranks are subscripts."""
    kind, _, rank = name.partition("_")
    if kind in ("lambda", "sharpness") and rank:
        symbol = "λ" + rank.translate(_SUBSCRIPTS)
        return _CALLED.get(name, symbol if kind == "lambda" else f"Preconditioned {symbol}")
    return _CALLED.get(name, name[:1].upper() + name[1:])


def _has_values(tracks: Mapping[str, Track], name: str) -> bool:
    found = [each for track in tracks.values() for record in track.records if (each := record.get(name)) is not None]
    return any(np.isfinite(each.value) for each in found)


def _sharpness(track: Track) -> str:
    """The quantity that is compared with the edge of stability."""
    return "sharpness_1" if "sharpness_1" in track.quantities() else "lambda_1"


def _concluded(run: str, track: Track) -> str:
    """Where the sharpness began, where it was highest, where it ended, and how often it was at the edge."""
    name = _sharpness(track)
    found = [(record, each) for record in track.records if (each := record.get(name)) is not None and each.converged]
    if not found:
        return ""
    top = max(found, key=lambda pair: pair[1].value)
    begun = (
        f"{run + ': the' if run else 'The'} largest eigenvalue was {_value(found[0][1])} at step {found[0][0].step:,}"
    )
    ends = f"{begun} and {_value(found[-1][1])} at step {found[-1][0].step:,}"
    highest = f"; it was highest, {_value(top[1])}, at step {top[0].step:,}"
    compared = [(each, record.threshold) for record, each in found if record.threshold is not None]
    if not compared:
        return f"{ends}{highest}."
    at = sum(each.value + (each.error or 0.0) >= edge for each, edge in compared)
    edge = "the optimiser’s edge of stability"
    return f"{ends}{highest}. It was at {edge}, within its error, or above in {at} of {len(compared)} records."


def _value(each: Measured) -> str:
    return format_number(each.value) if each.error is None else format_with_error(each.value, each.error)


def _columns(tracks: Mapping[str, Track]) -> list[tuple[str, str]]:
    known = {name for track in tracks.values() for name in track.quantities()}
    chosen = [(name, called) for name, called in _CALLED.items() if name in known]
    run = [("name", "Run")] if len(tracks) > 1 else []
    return [
        *run,
        ("step", "Step"),
        *chosen,
        ("edge", "Edge of stability"),
        ("loss", "Training loss"),
        ("cost", "Products"),
    ]


def _rows(run: str, track: Track) -> list[dict[str, Any]]:
    places = np.unique(np.linspace(0, len(track.records) - 1, min(_SHOWN, len(track.records))).round().astype(int))
    return [_row(run, track.records[i]) for i in places]


def _row(run: str, record: Record) -> dict[str, Any]:
    numbers = {name: each for name in _CALLED if (each := record.get(name)) is not None}
    return {
        "name": run,
        "step": f"{record.step:,}",
        **{name: _value(each) if each.converged else "not converged" for name, each in numbers.items()},
        "edge": "unknown" if record.threshold is None else format_number(record.threshold),
        "loss": "" if record.loss is None else format_number(record.loss),
        "cost": f"{record.products:,}",
        "unconverged": not all(each.converged for each in numbers.values()),
    }


def _about(track: Track) -> str:
    spent, total = sum(record.seconds for record in track.records), track.records[-1].elapsed
    parts = (
        [f"{track.about['n']:,} parameters", f"{track.about['examples']:,} probe examples"]
        if "n" in track.about
        else []
    )
    parts.append(f"{sum(record.products for record in track.records):,} products in {len(track.records):,} records")
    parts += [f"{100 * spent / total:.2g} % of the time"] if total else []
    return ", ".join(parts)
