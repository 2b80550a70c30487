"""How many threads a command computes with: the process is its own, so it may choose; the library never does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.numbers import format_duration

# Larger networks gain from threads. Smaller ones lose where threads wait for one another, by a factor of 15 on a busy
# machine.
_SMALL = 100_000

# One thread is taken where it needs less than this part of the time; near a tie the choice would depend on chance.
_CLEARLY = 0.9


def choose_threads(risk: EmpiricalRisk, chosen: Path | None = None) -> str:
    """Compute with one thread from now on where a gradient of a small network then takes less time; say so, or nothing.

    Numbers repeat to the last bit with the same number of threads only, so the choice is kept in the file ``chosen``,
    from which a run that resumes takes it. A number that the user set in ``OMP_NUM_THREADS`` stays.
    """
    several = torch.get_num_threads()
    if chosen is not None and chosen.exists():
        torch.set_num_threads(int(chosen.read_text()))
        return ""
    if several == 1 or "OMP_NUM_THREADS" in os.environ or risk.device.type != "cpu" or risk.n > _SMALL:
        return ""
    risk.gradient()  # the first one takes longer, whatever the threads
    seconds = {}
    for threads in (1, several):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        risk.gradient()
        seconds[threads] = time.perf_counter() - start
    best = 1 if seconds[1] < _CLEARLY * seconds[several] else several
    torch.set_num_threads(best)
    if chosen is not None:
        chosen.write_text(str(best))
    one, more = (format_duration(seconds[threads]) for threads in (1, several))
    return f"a gradient takes {one} with one thread and {more} with {several}: computing with {best}"
