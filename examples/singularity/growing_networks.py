"""Eigenvalue profiles, edges and zeros of 2-h-h-2 networks with 18 to 434 parameters on separable blobs.

python -m examples.singularity.growing_networks --out docs/results/singularity
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.experiment import MOST, STAYS, Criterion, judge, new_figure, parse, quantiles, stays, write
from examples.singularity.common import (
    NEAR_ZERO,
    SMALL,
    blobs,
    exact_eigenvalues,
    exact_hessian,
    mode,
    network,
    radius,
    risk_at,
    size,
)
from examples.singularity.descent import RULE, train
from examples.singularity.zeros import CAUSES, beyond, forced_zeros, rescalings
from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.ensembles import sphere_starts
from pyhessian_spectra.plots import plot_matrix, plot_profiles
from pyhessian_spectra.plots.style import theme

#: A forced direction is null if the Hessian shortens it to this part of the largest eigenvalue.
NULL = 1e-12


def sharpens(numbers: dict[str, Any]) -> tuple[bool, str]:
    near = [entry["near_zero"]["median"] for entry in numbers["networks"].values()]
    return bool(np.all(np.diff(near) > 0)), "medians " + ", ".join(f"{value:.1%}" for value in near)


def number_stays(numbers: dict[str, Any]) -> tuple[bool, str]:
    edges = [mode(entry["edges_above"]) for entry in numbers["networks"].values()]
    return len(set(edges)) == 1, f"most often {', '.join(map(str, edges))}"


def values_stay(numbers: dict[str, Any]) -> tuple[bool, str]:
    apart, told = [], []
    for k in (1, 2):
        medians = [entry["largest"][k - 1]["median"] for entry in numbers["networks"].values()]
        (holds, ratio), (_, larger) = stays(medians), stays(medians[1:])
        apart.append(holds)
        values = ", ".join(f"{value:.2g}" for value in medians)
        told.append(f"lambda_{k} {values}: a factor {ratio:.2f}, without the smallest network {larger:.2f}")
    return all(apart), "; ".join(told)


def two_edges(numbers: dict[str, Any]) -> tuple[bool, str]:
    shares = [float(np.mean(np.array(entry["edges_above"]) == 2)) for entry in numbers["networks"].values()]
    return all(share >= MOST for share in shares), "shares " + ", ".join(f"{share:.0%}" for share in shares)


def small_negative(numbers: dict[str, Any]) -> tuple[bool, str]:
    shares = [entry["small_negative_share"] for entry in numbers["networks"].values()]
    deep = [entry["smallest_over_largest"]["median"] for entry in numbers["networks"].values()]
    told = f"shares {', '.join(f'{s:.0%}' for s in shares)}; median lambda_n / lambda_1 "
    return all(share >= MOST for share in shares), told + ", ".join(f"{value:.3f}" for value in deep)


def forced_are_null(numbers: dict[str, Any]) -> tuple[bool, str]:
    zeros = [entry["zeros"] for entry in numbers["networks"].values()]
    worst = max(entry["worst_residual"] for entry in zeros)
    rescaled = all(each >= 0 for entry in zeros for each in entry["beyond_bound"])
    told = f"largest residual {worst:.1e} of lambda_1; rescaling counts met in {'all' if rescaled else 'not all'} runs"
    return worst <= NULL and rescaled, told


def nothing_else_is_zero(numbers: dict[str, Any]) -> tuple[bool, str]:
    extra = [np.array(e["zeros"]["found"]) - e["zeros"]["forced"] for e in numbers["networks"].values()]
    told = ", ".join(f"{np.median(each):g} ({each.min()} to {each.max()})" for each in extra)
    return all(float(np.mean(each == 0)) >= MOST for each in extra), f"zeros beyond those forced: medians {told}"


CRITERIA = (
    Criterion(
        "a",
        "a larger network sharpens the mass at zero",
        f"the median share of eigenvalues within {NEAR_ZERO:.0%} of lambda_1 about zero grows with every width",
        sharpens,
    ),
    Criterion(
        "a",
        "a larger network leaves the number of edges",
        "the most frequent number of edges above the bulk (split_bulk) is the same at every width",
        number_stays,
    ),
    Criterion(
        "a",
        "a larger network leaves the values of the edges",
        f"the medians of lambda_1, and those of lambda_2, lie within a factor {STAYS:g}, while n grows 24 times",
        values_stay,
    ),
    Criterion(
        "b",
        "separable blobs give two isolated eigenvalues",
        f"at every width {MOST:.0%} of the runs have exactly two edges above the bulk (split_bulk)",
        two_edges,
    ),
    Criterion(
        "d",
        "small negative eigenvalues remain, the gradient is small but not zero",
        f"at every width {MOST:.0%} of the runs have one below zero by more than rounding and none below "
        f"-{SMALL:g} lambda_1",
        small_negative,
    ),
    Criterion(
        "zeros",
        "symmetries and units that are off force the zeros they should",
        f"in every run each forced direction is null to {NULL:g} lambda_1, and at least as many eigenvalues as forced "
        "and rescaling directions together lie within the norm of H on them",
        forced_are_null,
    ),
    Criterion(
        "zeros",
        "nothing else is zero",
        f"at every width {MOST:.0%} of the runs have as many zeros as are forced",
        nothing_else_is_zero,
    ),
)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train, diagonalise, split, account for the zeros, draw."""
    options = parse(__doc__, argv)
    widths, starts, points, step, tolerance = (2, 6, 10, 14, 18), 10, 200, 0.2, 1e-4
    if options.fast:
        widths, starts, points, step, tolerance = (2, 6, 10), 3, 20, 1.0, 2e-2
    data = blobs(points, 0.3, options.seed)
    figure, axes = new_figure(1, 2)
    heat_figure, heat_axes = new_figure(1, 3, width=11.0, height=3.2)
    profiles, spectra, networks = {}, {}, {}
    for hidden in widths:
        model = network(2, hidden, 2)
        n = size(model)
        generator = torch.Generator().manual_seed(options.seed + hidden)
        begin = sphere_starts(starts, n, radius=radius(n), generator=generator, dtype=torch.float32)
        first = exact_eigenvalues(model, begin, data)[:, -1].max()
        runs = train(model, data, begin, step=step, tolerance=tolerance, max_steps=50_000)
        print(f"h = {hidden}, n = {n}: {runs.summary()}", flush=True)
        if not runs.counted.any():
            continue
        parameters, losses = runs.parameters[torch.as_tensor(runs.counted)], runs.losses[runs.counted]
        matrices = [exact_hessian(model, flat, data) for flat in parameters]
        values = np.stack([torch.linalg.eigvalsh(matrix).numpy() for matrix in matrices])
        zeros = [account(model, *each, data[0]) for each in zip(parameters, matrices, values, strict=True)]
        rounding = np.array([each["rounding"] for each in zeros])
        # the member whose top eigenvalue is the median one is drawn
        shown = int(np.argsort(values[:, -1])[len(values) // 2])
        profiles[f"h = {hidden}, n = {n}"] = values[shown]
        if hidden in widths[:3]:
            ax = heat_axes[0, widths.index(hidden)]
            plot_matrix(matrices[shown], risk_at(model, parameters[shown], data).layout, ax=ax)
            ax.set_title(f"h = {hidden}, n = {n}")
        negative = (values[:, 0] < -rounding) & (values[:, 0] > -SMALL * values[:, -1])
        spectra[f"n = {n}"] = values
        networks[str(n)] = {
            "hidden": hidden,
            **runs.summary(),
            "step_times_first_top": float(step * first),
            "step_times_last_top": float(step * values[:, -1].max()),
            "steps": quantiles(runs.steps[runs.counted]),
            "loss": quantiles(losses),
            "largest": [quantiles(values[:, -k]) for k in (1, 2, 3)],
            "top_over_loss": quantiles(values[:, -1] / losses),
            "second_over_third": quantiles(values[:, -2] / values[:, -3]),
            "smallest_over_largest": quantiles(values[:, 0] / values[:, -1]),
            "small_negative_share": float(negative.mean()),
            "near_zero": quantiles((np.abs(values) < NEAR_ZERO * values[:, -1:]).mean(axis=1)),
            "edges_above": [split_bulk(row).num_above for row in values],
            "zeros": {
                "found": [each["found"] for each in zeros],
                "forced": [each["forced"] for each in zeros],
                "causes": {cause: [each["causes"][cause] for each in zeros] for cause in CAUSES},
                "worst_residual": max(each["residual"] for each in zeros),
                "rescalings": [each["rescalings"] for each in zeros],
                "beyond_bound": [each["beyond_bound"] for each in zeros],
                "bound_over_top": quantiles(np.array([each["bound_over_top"] for each in zeros])),
            },
        }
    numbers = {
        "rule": RULE,
        "points_a_class": points,
        "std": 0.3,
        "step": step,
        "tolerance": tolerance,
        "starts": starts,
        "networks": networks,
    }
    plot_profiles(profiles, axes=tuple(axes[0]))
    fewest = min((entry["counted"] for entry in networks.values()), default=0)
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=fewest)
    figures = {"growing_networks": figure, "heatmaps": heat_figure}
    write(options, __file__, numbers, findings, figures, spectra, shortened="10 starts a width, 200 points a class")


def account(model: nn.Module, flat: Tensor, matrix: Tensor, values: np.ndarray, x: Tensor) -> dict[str, Any]:
    """The zeros of one Hessian, found and forced; zero is what rounding leaves of the forced directions, measured."""
    forced = forced_zeros(model, flat, x)
    residual = float((matrix @ forced.directions.T).norm(dim=0).max())
    rounding = max(len(values) * float(np.finfo(np.float64).eps) * float(np.abs(values).max()), residual)
    # H is at most `bound` on a space of this dimension, so that as many eigenvalues are (Courant and Fischer)
    rescaling = beyond(rescalings(model, flat), forced.directions)
    bound = float(torch.linalg.matrix_norm(matrix @ torch.cat([forced.directions, rescaling]).T, 2))
    within = int((np.abs(values) <= bound * (1 + 1e-9)).sum())
    return {
        "found": int((np.abs(values) <= rounding).sum()),
        "forced": len(forced),
        "causes": forced.causes,
        "residual": residual / values[-1],
        "rounding": rounding,
        "rescalings": len(rescaling),
        "beyond_bound": within - len(forced) - len(rescaling),
        "bound_over_top": bound / values[-1],
    }


if __name__ == "__main__":
    main()
