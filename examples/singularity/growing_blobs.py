"""The top eigenvalues and the error as the blobs' standard deviation grows from separable to overlapping.

python -m examples.singularity.growing_blobs --out docs/results/singularity
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples.experiment import FEWEST, Criterion, Judgement, judge, new_figure, parse, quantiles, write
from examples.singularity.common import blobs, exact_eigenvalues, mode, network, radius, size
from examples.singularity.descent import RULE, train
from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.ensembles import sphere_starts
from pyhessian_spectra.plots.style import theme

COLOURS = {1: "#0173b2", 2: "#de8f05", 3: "#8c8c8c"}


def judged(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """At each tolerance, the standard deviations that enough runs count for; the others decide nothing."""
    return {
        tolerance: {deviation: entry for deviation, entry in entries.items() if entry["counted"] >= FEWEST}
        for tolerance, entries in numbers["tolerances"].items()
    }


def grows(k: int, place: int) -> Judgement:
    """The judgement that the k-th largest eigenvalue grows, by more than the initial point changes it."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        tolerance, entries = list(judged(numbers).items())[place]
        largest = [entry["largest"][k - 1] for entry in entries.values()]
        medians = [each["median"] for each in largest]
        spread = max(each["p90"] / each["p10"] for each in largest)
        factor = medians[-1] / medians[0]
        values = ", ".join(f"{value:.2g}" for value in medians)
        told = f"to {tolerance} at {', '.join(entries)}: medians {values}, a factor {factor:.3g}, spread {spread:.3g}"
        return bool((np.diff(medians) > 0).all()) and factor > spread, told

    return decide


def error_grows(place: int) -> Judgement:
    """The judgement that the training error grows."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        tolerance, entries = list(judged(numbers).items())[place]
        medians = [entry["error"]["median"] for entry in entries.values()]
        told = f"to {tolerance} at {', '.join(entries)}: medians {', '.join(f'{value:.1%}' for value in medians)}"
        return bool((np.diff(medians) >= 0).all()) and medians[-1] > medians[0], told

    return decide


PLACES = ("the larger tolerance", "the smaller tolerance")
CRITERIA = (
    *(
        Criterion(
            "c",
            f"lambda_{k} grows with the blobs' standard deviation, beyond the spread over initial points, at {words}",
            "the median rises with every standard deviation that enough runs count for, from first to last by a larger "
            "factor than p90 / p10 over the initial points at any of them",
            grows(k, place),
        )
        for k in (1, 2)
        for place, words in enumerate(PLACES)
    ),
    *(
        Criterion(
            "c",
            f"the training error grows as the blobs merge, at {words}",
            "the median error never falls with the standard deviation, where enough runs count, and ends higher than "
            "it begins",
            error_grows(place),
        )
        for place, words in enumerate(PLACES)
    ),
)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train at each standard deviation to two tolerances, diagonalise, draw."""
    options = parse(__doc__, argv)
    deviations, starts, points, step = (0.2, 0.3, 0.4, 0.6, 0.8, 1.0), 10, 200, 0.2
    tolerances, max_steps = (1e-2, 1e-3), 15_000
    if options.fast:
        deviations, starts, points, step, tolerances = (0.3, 0.8), 3, 20, 1.0, (5e-2, 2e-2)
        max_steps = 200
    model = network(2, 6, 2)
    n = size(model)
    entries: dict[str, dict[str, Any]] = {f"{tolerance:g}": {} for tolerance in tolerances}
    spectra: dict[str, np.ndarray] = {}
    for deviation in deviations:
        data = blobs(points, deviation, options.seed)
        generator = torch.Generator().manual_seed(options.seed)
        at = sphere_starts(starts, n, radius=radius(n), generator=generator, dtype=torch.float32)
        first = exact_eigenvalues(model, at, data)[:, -1].max()
        for tolerance in tolerances:
            # the smaller tolerance goes on from where the larger one was met
            runs = train(model, data, at, step=step, tolerance=tolerance, max_steps=max_steps)
            at = runs.parameters.float()
            print(f"standard deviation {deviation}, tolerance {tolerance:g}: {runs.summary()}", flush=True)
            if not runs.counted.any():
                continue
            values = exact_eigenvalues(model, runs.parameters[torch.as_tensor(runs.counted)], data)
            spectra[f"tolerance {tolerance:g}, std {deviation}"] = values
            edges = [split_bulk(row).num_above for row in values]
            entries[f"{tolerance:g}"][str(deviation)] = {
                **runs.summary(),
                "step_times_first_top": float(step * first),
                "step_times_last_top": float(step * values[:, -1].max()),
                "loss": quantiles(runs.losses[runs.counted]),
                "error": quantiles(runs.errors[runs.counted]),
                "largest": [quantiles(values[:, -k]) for k in (1, 2, 3)],
                "top_over_loss": quantiles(values[:, -1] / runs.losses[runs.counted]),
                "smallest": quantiles(values[:, 0]),
                "edges_above": edges,
                "most_frequent_edges": mode(edges),
            }
    numbers = {
        "rule": RULE,
        "parameters": n,
        "starts": starts,
        "points_a_class": points,
        "step": step,
        "max_steps": max_steps,
        "tolerances": entries,
    }
    # half of the standard deviations at least are needed at each tolerance
    enough = all(2 * len(each) >= len(deviations) for each in judged(numbers).values())
    counted = [
        entry["counted"] for each in (judged(numbers) if enough else entries).values() for entry in each.values()
    ]
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=min(counted, default=0))
    figures = {"growing_blobs": draw(entries, spectra), "blobs": draw_data(deviations, points, options.seed)}
    shortened = "standard deviations from 0.2 to 1.0 in six steps, 10 starts at each"
    write(options, __file__, numbers, findings, figures, spectra, shortened=shortened)


def draw(entries: dict[str, dict[str, Any]], spectra: dict[str, np.ndarray]) -> Figure:
    """Top eigenvalues, a point for each initial point, at each tolerance; and the error."""
    figure, axes = new_figure(1, 3, width=9.6, height=3.1)
    axes[0, 1].sharey(axes[0, 0])
    axes[0, 1].sharex(axes[0, 0])
    for ax, (tolerance, each) in zip(axes[0], entries.items(), strict=False):
        for k, colour in COLOURS.items():
            for deviation in each:
                values = spectra[f"tolerance {tolerance}, std {deviation}"][:, -k]
                ax.plot(np.full(len(values), float(deviation)), values, ".", color=colour, alpha=0.4, markersize=4)
            lined = {d: entry["largest"][k - 1]["median"] for d, entry in each.items() if entry["counted"] >= FEWEST}
            ax.plot([*map(float, lined)], [*lined.values()], color=colour, linewidth=1.1, label=rf"$\lambda_{k}$")
        ax.set(yscale="log", xlabel="standard deviation of the blobs")
        ax.set_title(rf"to a gradient norm of {float(tolerance):g}")
    axes[0, 0].set_ylabel("eigenvalue  [loss / parameter$^2$]")
    axes[0, 0].legend(fontsize=8)
    ax = axes[0, 2]
    for (tolerance, each), look in zip(entries.items(), ("o-", "s--"), strict=True):
        errors = {d: 100 * entry["error"]["median"] for d, entry in each.items() if entry["counted"] >= FEWEST}
        ax.plot([*map(float, errors)], [*errors.values()], look, color="#24292f", markersize=3.5, label=tolerance)
    ax.set(xlabel="standard deviation of the blobs", ylabel="training error  [%]", title="median error")
    ax.legend(title="gradient norm", fontsize=7, title_fontsize=7)
    return figure


def draw_data(deviations: tuple[float, ...], points: int, seed: int) -> Figure:
    """Figure 3: the data, from separable to overlapping."""
    chosen = [d for d in deviations if d in (0.3, 0.6, 0.8, 1.0)]
    figure, axes = new_figure(1, len(chosen), width=9.6, height=2.7)
    for ax, deviation in zip(axes[0], chosen, strict=True):
        x, y = blobs(points, deviation, seed)
        scatter(ax, x, y)
        ax.set(xlim=(-4.6, 4.6), ylim=(-4.6, 4.6), aspect="equal", title=f"standard deviation {deviation}")
    return figure


def scatter(ax: Any, x: Tensor, y: Tensor) -> None:
    """The points of both classes."""
    for label, colour in ((0, "#0173b2"), (1, "#de8f05")):
        ax.plot(*x[y == label].T, ".", color=colour, markersize=2.5, alpha=0.7)


if __name__ == "__main__":
    main()
