"""The top eigenvalues of one 74-parameter network trained from 5,000 initial points.

python examples/singularity/many_starts.py --out docs/results/singularity
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import torch
from common import LEARNED, LOSS, Finding, blobs, mode, network, new_figure, parse, quantiles, radius, size, write

from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.ensembles import ensemble_eigenvalues, sphere_starts, train_ensemble


def main(argv: list[str] | None = None) -> None:
    """Train, diagonalise, count, draw."""
    options = parse(__doc__, argv)
    starts, points, tolerance = (40, 10, 1e-2) if options.fast else (5000, 50, 1e-4)
    model, data = network(2, 6, 2), blobs(points, 0.3, options.seed)
    n = size(model)
    generator = torch.Generator().manual_seed(options.seed)
    begin = sphere_starts(starts, n, radius=radius(n), generator=generator, dtype=torch.float32)
    clock = time.perf_counter()
    trained = train_ensemble(model, LOSS, data, begin, step=1.0, tolerance=tolerance)
    training = time.perf_counter() - clock
    spectra = ensemble_eigenvalues(model, LOSS, data, trained.parameters.double())
    diagonalising = time.perf_counter() - clock - training
    learned = spectra.finite & trained.converged & (trained.losses < LEARNED)
    print(f"{trained}; {int(learned.sum())} learned the classes")
    print(f"training {training:.0f} s, {starts} exact spectra {diagonalising:.0f} s")
    top = spectra.eigenvalues[learned][:, :-4:-1]
    splits = [split_bulk(row) for row in spectra.eigenvalues[learned]]
    counts = Counter(split.num_above for split in splits)

    figure, axes = new_figure(1, 2)
    bins = np.geomspace(top[top > 0].min() / 1.1, top.max() * 1.1, 80)
    for k, colour in enumerate(("#0173b2", "#de8f05", "#8c8c8c")):
        axes[0, 0].hist(top[:, k], bins, histtype="stepfilled", alpha=0.55, color=colour, label=rf"$\lambda_{k + 1}$")
    axes[0, 0].set_xscale("log")
    axes[0, 0].set(
        xlabel="eigenvalue  [loss / parameter$^2$]", ylabel="initial points", title=f"{len(top):,} trained networks"
    )
    axes[0, 0].legend()
    keys = sorted(counts)
    axes[0, 1].bar([str(key) for key in keys], [counts[key] for key in keys], color="#0173b2", width=0.6)
    axes[0, 1].set(xlabel="isolated eigenvalues above the bulk", ylabel="initial points", title="Edges")
    axes[0, 1].grid(visible=False, axis="x")
    edges = [split.num_above for split in splits]
    numbers = {
        "parameters": n,
        "starts": starts,
        "points_a_class": points,
        "std": 0.3,
        "step": 1.0,
        "tolerance": tolerance,
        "converged": int(trained.converged.sum()),
        "diverged": trained.num_diverged,
        "learned": int(learned.sum()),
        "iterations": quantiles(trained.iterations),
        "seconds": {"training": round(training, 1), "diagonalising": round(diagonalising, 1)},
        "threads": torch.get_num_threads(),
        "largest": [quantiles(top[:, k]) for k in range(3)],
        "second_over_third": quantiles(top[:, 1] / top[:, 2]),
        "negative": quantiles(spectra.eigenvalues[learned][:, 0]),
        "edges_above": {str(key): counts[key] for key in keys},
        "not_separable": sum(not split.separable for split in splits),
    }
    share = counts[2] / len(splits)
    negative = float(np.mean([split.negative_mass > 0 for split in splits]))
    write(
        options,
        __file__,
        "many_starts",
        figure,
        numbers,
        [
            Finding(
                "b",
                "separable blobs give two isolated eigenvalues, whatever the initial point",
                mode(edges) == 2 and share > 0.5,
                f"{share:.0%} of {len(splits)} have two; lambda_2 / lambda_3 median "
                f"{numbers['second_over_third']['median']:.1f}",
            ),
            Finding(
                "d",
                "small negative eigenvalues remain",
                negative > 0.5,
                f"{negative:.0%} have one; the smallest eigenvalue's median is {numbers['negative']['median']:.2g}",
            ),
        ],
    )


if __name__ == "__main__":
    main()
