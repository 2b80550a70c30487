"""How often the upper end of a data curve misses where few examples weigh much, on synthetic examples.

python benchmarks/data_curve_tails.py [--out FILE.json] [--sets N]

Examples are ``w x x^T`` with Gaussian ``x`` in 30 dimensions, one of them 1.3 times as wide, and weights ``w`` that are
lognormal, or 100 for one example in a hundred and 1 else. From sets of 100, how many upper ends lie below the expected
largest eigenvalue of N' examples: the end that starts at random halves, and one that starts at the 100 themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from pyhessian_spectra.analysis.subsets import Bracket, Rows, leave_out

COUNT, DIMENSIONS, WIDER, LEVEL, HALVES = 100, 30, 1.3, 0.95, 30
SIZES = (100, 200, 1000, 3000)
TAILS = {
    "lognormal 0.3": 0.3,
    "lognormal 0.8": 0.8,
    "lognormal 1.5": 1.5,
    "lognormal 2.5": 2.5,
    "one in a hundred": None,
}


def examples(tail: float | None, count: int, rng: np.random.Generator) -> np.ndarray:
    """The rows ``sqrt(w) x``, shape (count, 30)."""
    x = rng.standard_normal((count, DIMENSIONS)) * np.array([WIDER, *[1.0] * (DIMENSIONS - 1)])
    rare = np.where(rng.random(count) < 0.01, 10.0, 1.0)
    return x * (rare if tail is None else np.exp(tail * rng.standard_normal(count) / 2))[:, None]


def ends(tail: float | None, rng: np.random.Generator, generator: torch.Generator) -> tuple[float, float]:
    """The upper end from one set: starting at halves, starting at the whole."""
    a = examples(tail, COUNT, rng)
    rows = Rows(a @ a.T / COUNT, np.arange(COUNT), np.full(COUNT, 1 / COUNT))
    start, everything = rows.start(1, generator), np.arange(COUNT)
    draws = [torch.randperm(COUNT, generator=generator)[: COUNT // 2].numpy() for _ in range(HALVES)]
    halves = np.array([rows.subset(chosen, 1, start)[0] for chosen in draws])
    left = leave_out(rows, np.array_split(rng.permutation(COUNT), 50), 1, start)
    bracket = Bracket.of(rows.subset(everything, 1, start)[0], left, halves, rows, LEVEL)
    return float(bracket.bounds[0, 1]), bracket.whole[0].end(1, LEVEL)


def main() -> None:
    """Print the share of misses, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng, generator, found = np.random.default_rng(0), torch.Generator().manual_seed(0), {}
    for name, tail in TAILS.items():
        found[name] = {}
        highs = np.array([ends(tail, rng, generator) for _ in range(options.sets)])
        for size in SIZES:
            truth = np.mean([np.linalg.norm(examples(tail, size, rng), 2) ** 2 / size for _ in range(400)])
            missed = (highs < truth).mean(axis=0)
            found[name][size] = {"truth": truth, "missed_from_halves": missed[0], "missed_from_whole": missed[1]}
            print(f"{name}, N' = {size}: from halves {missed[0]:.3f}, from the whole {missed[1]:.3f}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"command": " ".join(sys.argv), "tails": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
