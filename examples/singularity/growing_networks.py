"""Eigenvalue profiles of 2-h-h-2 networks with 18 to 434 parameters on separable blobs.

python examples/singularity/growing_networks.py --out docs/results/singularity
"""

from __future__ import annotations

import numpy as np
import torch
from common import (
    LEARNED,
    LOSS,
    Finding,
    blobs,
    mode,
    network,
    new_figure,
    parse,
    quantiles,
    radius,
    risk_at,
    size,
    write,
)

from pyhessian_spectra import GGNOperator, HessianOperator
from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.analysis.symmetry import check_ggn_rank, check_relu_rescaling, check_softmax_shift
from pyhessian_spectra.ensembles import ensemble_eigenvalues, sphere_starts, train_ensemble
from pyhessian_spectra.plots import plot_matrix, plot_profiles

#: An eigenvalue below this part of the largest belongs to the mass near zero.
NEAR_ZERO = 1e-2


def main(argv: list[str] | None = None) -> None:
    """Train, diagonalise, split, draw."""
    options = parse(__doc__, argv)
    widths, starts, points, step, tolerance = (2, 6, 10, 14, 18), 10, 500, 0.2, 1e-4
    if options.fast:
        widths, starts, points, step, tolerance = (2, 6), 4, 20, 1.0, 2e-2
    drawn = (widths[-4] if len(widths) > 3 else widths[0], widths[-1])
    data = blobs(points, 0.3, options.seed)
    figure, axes = new_figure(1, 2)
    heat_figure, heat_axes = new_figure(1, 2, height=4.0)
    profiles = {}
    numbers: dict = {
        "points_a_class": points,
        "std": 0.3,
        "step": step,
        "tolerance": tolerance,
        "starts": starts,
        "networks": {},
    }
    for hidden in widths:
        model = network(2, hidden, 2)
        n = size(model)
        generator = torch.Generator().manual_seed(options.seed + hidden)
        begin = sphere_starts(starts, n, radius=radius(n), generator=generator, dtype=torch.float32)
        trained = train_ensemble(model, LOSS, data, begin, step=step, tolerance=tolerance)
        spectra = ensemble_eigenvalues(model, LOSS, data, trained.parameters.double())
        learned = spectra.finite & trained.converged & (trained.losses < LEARNED)
        print(f"h = {hidden}, n = {n}: {trained}; {int(learned.sum())} learned the classes", flush=True)
        if not learned.any():
            continue
        values = spectra.eigenvalues[learned]
        splits = [split_bulk(row) for row in values]
        # the member whose top eigenvalue is the median one is drawn
        shown = int(np.argsort(values[:, -1])[len(values) // 2])
        profiles[f"h = {hidden}, n = {n}"] = values[shown]
        risk = risk_at(model, trained.parameters[np.flatnonzero(learned)[shown]], data)
        hessian = HessianOperator(risk)
        shift = check_softmax_shift(hessian, output="4")
        scaling = check_relu_rescaling(hessian, incoming="0", outgoing="2")
        rank = check_ggn_rank(GGNOperator(risk), num_outputs=2)
        if hidden in drawn:
            ax = heat_axes[0, drawn.index(hidden)]
            plot_matrix(hessian.to_dense(), risk.layout, ax=ax)
            ax.set_title(f"h = {hidden}, n = {n}")
        numbers["networks"][str(n)] = {
            "hidden": hidden,
            "learned": int(learned.sum()),
            "diverged": trained.num_diverged,
            "iterations": quantiles(trained.iterations[learned]),
            "largest": [quantiles(values[:, -k]) for k in (1, 2, 3)],
            "smallest": quantiles(values[:, 0]),
            "second_over_third": quantiles(values[:, -2] / values[:, -3]),
            "edges_above": [split.num_above for split in splits],
            "edges_below": [split.num_below for split in splits],
            "zero_mass": quantiles(np.array([split.zero_mass for split in splits])),
            "near_zero_mass": quantiles((np.abs(values) < NEAR_ZERO * values[:, -1:]).mean(axis=1)),
            "negative_mass": quantiles(np.array([split.negative_mass for split in splits])),
            "softmax_shift": {"directions": shift.directions.shape[1], "worst_residual": shift.worst},
            "relu_rescaling": {"directions": scaling.directions.shape[1], "worst_residual": scaling.worst},
            "ggn_rank": {"bound": rank.bound, "rank": rank.rank, "residual": rank.residual},
        }
    plot_profiles(profiles, axes=tuple(axes[0]))
    write(options, __file__, "growing_networks", figure, numbers, findings(numbers["networks"]))
    write(options, __file__, "heatmaps", heat_figure, {"hidden": list(drawn)}, [])


def findings(networks: dict) -> list[Finding]:
    """What the numbers say about statements (a), (b) and (d)."""
    near = [entry["near_zero_mass"]["median"] for entry in networks.values()]
    edges = [mode(entry["edges_above"]) for entry in networks.values()]
    deep = [entry["smallest"]["median"] / entry["largest"][0]["median"] for entry in networks.values()]
    ratios = [f"{entry['second_over_third']['median']:.1f}" for entry in networks.values()]
    names = ", ".join(networks)
    return [
        Finding(
            "a",
            "a larger network sharpens the mass at zero and leaves the number of edges",
            bool(np.all(np.diff(near) > 0)) and len(set(edges)) == 1,
            f"n = {names}: mass within 1 % of the top {', '.join(f'{v:.2f}' for v in near)}; edges {edges}",
        ),
        Finding(
            "b",
            "separable blobs give two isolated eigenvalues",
            all(edge == 2 for edge in edges),
            f"most frequent number of edges {edges}; lambda_2 / lambda_3 {', '.join(ratios)}",
        ),
        Finding(
            "d",
            "small negative eigenvalues remain",
            all(-0.5 < value < 0 for value in deep),
            f"smallest / largest {', '.join(f'{v:.3f}' for v in deep)}",
        ),
    ]


if __name__ == "__main__":
    main()
