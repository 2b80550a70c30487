"""Runs that are finished stay finished: each is a line of a file as soon as it ends, and several go side by side."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

#: The JSON scalars that say what one run is, and what it found.
Run = dict[str, Any]


def run_all(once: Callable[[Run], Run], runs: Sequence[Run], path: Path, *, processes: int = 1) -> list[Run]:
    """What ``once(run)`` found for each run, in their order.

    ``path`` keeps a line for each run that has ended; given again, these are not repeated. Each process computes on
    one thread, so that numbers do not depend on how many there are. ``once`` must be a function of a module.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = dict(_lines(path))
    left = [run for run in runs if _key(run) not in known]
    if path.exists() and not path.read_bytes().endswith(b"\n"):  # a line that was cut off must not spoil the next
        path.write_bytes(path.read_bytes() + b"\n")
    with path.open("a") as file, tqdm(total=len(runs), initial=len(runs) - len(left), desc=path.stem) as bar:

        def keep(run: Run, found: Run) -> None:
            known[_key(run)] = found
            file.write(json.dumps({"run": run, "found": found}) + "\n")
            file.flush()
            bar.update()

        if processes == 1:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            for run in left:
                keep(run, once(run))
            torch.set_num_threads(before)
        else:
            with multiprocessing.get_context("spawn").Pool(processes, torch.set_num_threads, (1,)) as pool:
                for run, found in pool.imap_unordered(_Once(once), left):
                    keep(run, found)
    return [known[_key(run)] for run in runs]


def finished(runs: Sequence[Run], path: Path) -> list[Run]:
    """Those of the runs that have ended, by the lines of ``path``."""
    known = dict(_lines(path))
    return [run for run in runs if _key(run) in known]


class _Once:
    """``run -> (run, found)``, which other processes can be sent."""

    def __init__(self, once: Callable[[Run], Run]) -> None:
        self._once = once

    def __call__(self, run: Run) -> tuple[Run, Run]:
        return run, self._once(run)


def _key(run: Run) -> str:
    return json.dumps(run, sort_keys=True)


def _lines(path: Path) -> list[tuple[str, Run]]:
    """The runs in a file; a last line that was cut off when its process was killed is no run."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        found.append((_key(entry["run"]), entry["found"]))
    return found
