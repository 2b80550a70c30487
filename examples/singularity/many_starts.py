"""The top eigenvalues of one 74-parameter network trained from thousands of initial points.

python -m examples.singularity.many_starts --out docs/results/singularity
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
import torch

from examples.experiment import MOST, Criterion, judge, new_figure, parse, quantiles, write
from examples.singularity.common import LOSS, SMALL, blobs, network, radius, size
from examples.singularity.descent import RULE, train
from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.ensembles import ensemble_eigenvalues, sphere_starts
from pyhessian_spectra.plots.style import theme

#: Of so many networks the whole spectrum is stored, of the others its ends.
STORED = 500


def two_edges(numbers: dict[str, Any]) -> tuple[bool, str]:
    two, runs = numbers["edges_above"].get("2", 0), numbers["counted"]
    return two >= MOST * runs, f"{two:,} of {runs:,} have two"


def small_negative(numbers: dict[str, Any]) -> tuple[bool, str]:
    share = numbers["small_negative_share"]
    deep = numbers["smallest_over_largest"]["median"]
    return share >= MOST, f"{share:.1%} have; the median of lambda_n / lambda_1 is {deep:.3f}"


CRITERIA = (
    Criterion(
        "b",
        "separable blobs give two isolated eigenvalues, whatever the initial point",
        f"{MOST:.0%} of the runs have exactly two edges above the bulk (split_bulk)",
        two_edges,
    ),
    Criterion(
        "d",
        "small negative eigenvalues remain",
        f"{MOST:.0%} of the runs have one below zero by more than rounding and none below -{SMALL:g} lambda_1",
        small_negative,
    ),
)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train, diagonalise, count, draw."""
    options = parse(__doc__, argv)
    starts, points, step, tolerance = (40, 10, 0.5, 1e-2) if options.fast else (2000, 50, 0.5, 1e-4)
    model, data = network(2, 6, 2), blobs(points, 0.3, options.seed)
    n = size(model)
    generator = torch.Generator().manual_seed(options.seed)
    begin = sphere_starts(starts, n, radius=radius(n), generator=generator, dtype=torch.float32)
    first = ensemble_eigenvalues(model, LOSS, data, begin.double()).eigenvalues[:, -1]
    clock = time.perf_counter()
    runs = train(model, data, begin, step=step, tolerance=tolerance, max_steps=50_000)
    training = time.perf_counter() - clock
    found = ensemble_eigenvalues(model, LOSS, data, runs.parameters[torch.as_tensor(runs.counted)])
    diagonalising = time.perf_counter() - clock - training
    values = found.eigenvalues
    print(f"{runs.summary()}; training {training:.0f} s, exact spectra {diagonalising:.0f} s", flush=True)
    if not len(values):
        raise SystemExit("no run counts; allow more steps or a larger tolerance")
    top, splits = values[:, :-4:-1], [split_bulk(row) for row in values]
    edges = Counter(split.num_above for split in splits)
    negative = np.array([split.negative_mass > 0 for split in splits]) & (values[:, 0] > -SMALL * values[:, -1])

    figure, axes = new_figure(1, 2)
    bins = np.geomspace(top[top > 0].min() / 1.1, top.max() * 1.1, 80)
    for k, colour in enumerate(("#0173b2", "#de8f05", "#8c8c8c")):
        axes[0, 0].hist(top[:, k], bins, histtype="stepfilled", alpha=0.55, color=colour, label=rf"$\lambda_{k + 1}$")
    axes[0, 0].set_xscale("log")
    title = f"{len(top):,} trained networks"
    axes[0, 0].set(xlabel="eigenvalue  [loss / parameter$^2$]", ylabel="initial points", title=title)
    axes[0, 0].legend()
    bars = axes[0, 1].bar([str(key) for key in sorted(edges)], [edges[key] for key in sorted(edges)], color="#0173b2")
    axes[0, 1].bar_label(bars, fmt="{:,.0f}", fontsize=7)
    axes[0, 1].set(xlabel="isolated eigenvalues above the bulk", ylabel="initial points", title="Edges")
    axes[0, 1].grid(visible=False, axis="x")
    numbers = {
        "rule": RULE,
        "parameters": n,
        "starts": starts,
        "points_a_class": points,
        "std": 0.3,
        "step": step,
        "tolerance": tolerance,
        **runs.summary(),
        "step_times_first_top": {**quantiles(step * first), "largest": float(step * first.max())},
        "steps": quantiles(runs.steps),
        "seconds": {"training": round(training, 1), "diagonalising": round(diagonalising, 1)},
        "threads": torch.get_num_threads(),
        "largest": [quantiles(top[:, k]) for k in range(3)],
        "top_over_loss": quantiles(top[:, 0] / runs.losses[runs.counted]),
        "second_over_third": quantiles(top[:, 1] / top[:, 2]),
        "smallest_over_largest": quantiles(values[:, 0] / values[:, -1]),
        "small_negative_share": float(negative.mean()),
        "edges_above": {str(key): edges[key] for key in sorted(edges)},
    }
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=len(values))
    spectra = {"spectra": values[:STORED], "three_largest": top, "smallest": values[:, 0]}
    shortened = (
        f"2,000 initial points where the paper has 5,000; stored are {STORED} whole spectra, and the three largest and "
        "the smallest eigenvalue of all"
    )
    write(options, __file__, numbers, findings, {"many_starts": figure}, spectra, shortened=shortened)


if __name__ == "__main__":
    main()
