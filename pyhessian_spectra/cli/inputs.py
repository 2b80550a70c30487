"""What a comparison is given: checkpoints, patterns, folders of results, and tables of runs."""

from __future__ import annotations

import csv
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.pretrained import is_model_folder

# The column of a table of runs that says where a checkpoint or its results are.
_PATHS = ("path", "checkpoint")

# What an analysis says of itself: a column of such a name says it of the training.
_OWN = frozenset(
    (
        "checkpoint", "sha256", "model", "model_args", "data", "split", "n", "N",
        "num_batches", "mode", "reduction", "dtype", "device", "matrix", "units", "tol",
        "seed", "loss", "weight_norm", "verified", "normalize", "params", "prefix", "problem",
        "settings",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """A checkpoint or the results of some, and what a table of runs says of it: ``label``, ``run``, other columns."""

    path: Path
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def results(self) -> tuple[Path, Path] | None:
        """The JSON and the NPZ file of results; None where the path is a checkpoint's."""
        if self.path.is_dir():
            kept = self.path / "results.json", self.path / "spectra.npz"
            return None if is_model_folder(self.path) and not kept[0].is_file() else kept
        if self.path.suffix != ".json":
            return None
        return self.path, self.path.with_name("spectra.npz") if self.path.name == "results.json" else (
            self.path.with_suffix(".npz")
        )


def read_given(arguments: Sequence[str]) -> tuple[list[Given], list[str]]:
    """All that arguments name, in their order, each once; and sentences about what was named again.

    Raises InputError for a pattern that matches nothing, a path that does not exist, or a table that names no paths.
    """
    found: dict[str, Given] = {}
    again: list[str] = []
    for argument in arguments:
        for given in _named(argument):
            where = os.path.realpath(given.path)
            if where in found:
                again.append(f"{given.path} was given more than once and is taken once.")
            else:
                found[where] = given
    return list(found.values()), list(dict.fromkeys(again))


def _named(argument: str) -> Iterator[Given]:
    path = Path(argument)
    if path.suffix.lower() == ".csv" and path.is_file():
        yield from _table(path)
    elif path.is_dir() and not (path / "results.json").is_file() and not is_model_folder(path):
        told = f"name its checkpoints with a pattern, such as '{path}/*.pt'"
        raise InputError(f"{path} is a directory without results.json; {told}")
    elif path.exists():
        yield Given(path)
    elif glob.has_magic(argument):
        matched = sorted(glob.glob(argument, recursive=True), key=_natural)
        if not matched:
            raise InputError(f"no file matches {argument!r}; check the pattern, and quote it")
        yield from (Given(Path(each)) for each in matched)
    else:
        raise InputError(f"{argument} does not exist; name checkpoints, patterns, folders of results, or a CSV of runs")


def _table(path: Path) -> Iterator[Given]:
    """A row each; paths are relative to the table, and a path that does not exist is told when it is its turn."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            header, *rows = [row for row in csv.reader(handle) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV of runs: {error}") from None
    column = next((name for name in _PATHS if name in header and rows), None)
    if column is None:
        named = ", ".join(header) if rows else "no rows"
        raise InputError(f"{path} needs a column 'path' with a checkpoint or results in each row; it has {named}")
    if twice := [name for name in header if name and header.count(name) > 1]:
        raise InputError(f"{path} has two columns {twice[0]!r}; leave one, or give them different names")
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise InputError(f"row {number} of {path} has {len(row)} cells under {len(header)} columns; quote commas")
        cells = dict(zip(header, row, strict=True))
        if not cells[column].strip():
            raise InputError(f"row {number} of {path} has no {column}; name a checkpoint or results")
        facts = {key: _value(text) for key, text in cells.items() if key and key != column and text}
        where = path.parent / cells[column]
        yield Given(where, _with_run(facts, where))


def _with_run(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Without a column ``run``, rows of one folder and seed are taken for one run: never for more than there are."""
    if "run" not in facts and "seed" in facts:
        facts["run"] = f"{path.parent.name}, seed {facts['seed']}"
    return {f"training_{key}" if key in _OWN else key: value for key, value in facts.items()}


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _natural(path: str) -> list[Any]:
    """A key that puts step-9 before step-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", path)]
