"""The top eigenvalues as the blobs' standard deviation grows from separable to overlapping.

python examples/singularity/growing_blobs.py --out docs/results/singularity
"""

from __future__ import annotations

import numpy as np
import torch
from common import LEARNED, LOSS, Finding, blobs, mode, network, new_figure, parse, quantiles, radius, size, write

from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.ensembles import ensemble_eigenvalues, sphere_starts, train_ensemble


def main(argv: list[str] | None = None) -> None:
    """Train at each standard deviation, diagonalise, draw."""
    options = parse(__doc__, argv)
    deviations = (0.3, 0.6) if options.fast else (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    starts, points, limit = (6, 20, 100) if options.fast else (20, 200, 10_000)
    model = network(2, 6, 2)
    n = size(model)
    figure, axes = new_figure(1, 1, width=4.8, height=3.2)
    entries: dict = {}
    for deviation in deviations:
        data = blobs(points, deviation, options.seed)
        generator = torch.Generator().manual_seed(options.seed)
        begin = sphere_starts(starts, n, radius=radius(n), generator=generator, dtype=torch.float32)
        trained = train_ensemble(model, LOSS, data, begin, step=0.5, max_iterations=limit)
        spectra = ensemble_eigenvalues(model, LOSS, data, trained.parameters.double())
        learned = spectra.finite & (trained.losses < LEARNED)
        print(f"standard deviation {deviation}: {trained}; {int(learned.sum())} learned the classes", flush=True)
        if not learned.any():
            continue
        values = spectra.eigenvalues[learned]
        for k, colour in ((1, "#0173b2"), (2, "#de8f05"), (3, "#8c8c8c")):
            label = rf"$\lambda_{k}$" if deviation == deviations[0] else None
            axes[0, 0].plot(np.full(len(values), deviation), values[:, -k], ".", color=colour, alpha=0.5, label=label)
        entries[str(deviation)] = {
            "learned": int(learned.sum()),
            "converged": int(trained.converged.sum()),
            "diverged": trained.num_diverged,
            "loss": quantiles(trained.losses[learned]),
            "largest": [quantiles(values[:, -k]) for k in (1, 2, 3)],
            "smallest": quantiles(values[:, 0]),
            "edges_above": [split_bulk(row).num_above for row in values],
        }
    for k, colour in ((1, "#0173b2"), (2, "#de8f05"), (3, "#8c8c8c")):
        middles = [entry["largest"][k - 1]["median"] for entry in entries.values()]
        axes[0, 0].plot([float(key) for key in entries], middles, color=colour, linewidth=1)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set(
        xlabel="standard deviation of the blobs",
        ylabel="eigenvalue  [loss / parameter$^2$]",
        title="Top eigenvalues, a point for each initial point",
    )
    axes[0, 0].legend()
    numbers = {
        "parameters": n,
        "starts": starts,
        "points_a_class": points,
        "step": 0.5,
        "max_iterations": limit,
        "standard_deviations": entries,
    }
    write(options, __file__, "growing_blobs", figure, numbers, findings(entries))


def findings(entries: dict) -> list[Finding]:
    """What the numbers say about statement (c), for each of the two eigenvalues."""
    edges = {key: mode(entry["edges_above"]) for key, entry in entries.items()}
    return [growth(entries, k, edges) for k in (1, 2)]


def growth(entries: dict, k: int, edges: dict[str, int]) -> Finding:
    """Whether the k-th largest eigenvalue grows, and by more than the initial point changes it."""
    medians = np.array([entry["largest"][k - 1]["median"] for entry in entries.values()])
    spread = max(entry["largest"][k - 1]["p90"] / entry["largest"][k - 1]["p10"] for entry in entries.values())
    factor = medians[-1] / medians[0]
    return Finding(
        "c",
        f"lambda_{k} grows with the blobs' standard deviation, beyond the spread over initial points",
        bool((np.diff(medians) > 0).all() and factor > spread),
        f"at {', '.join(entries)} its median is {', '.join(f'{v:.2g}' for v in medians)}: a factor {factor:.3g}, the "
        f"spread at one standard deviation (p90 / p10) is at most {spread:.3g}; most frequent number of edges "
        f"{', '.join(map(str, edges.values()))}",
    )


if __name__ == "__main__":
    main()
