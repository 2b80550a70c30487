"""Exact spectra of 784-h-h-10 networks before and after training, on MNIST and on random inputs.

python examples/singularity/mnist.py --data MNIST_DIR --out docs/results/singularity
"""

from __future__ import annotations

import time

import numpy as np
import torch
from common import LOSS, Finding, fan_in_start, images, network, new_figure, parse, risk_at, size, write
from torch import Tensor

from pyhessian_spectra import HessianOperator, Spectrum
from pyhessian_spectra.analysis.bulk import BulkEdge, split_bulk
from pyhessian_spectra.ensembles import train_ensemble

INPUTS, MOMENTS = ("images", "random inputs"), ("before", "after")


def main(argv: list[str] | None = None) -> None:
    """Train on both kinds of input, diagonalise before and after, compare, draw."""
    options = parse(__doc__, argv)
    widths, count, limit, step = ((2, 3), 60, 30, 0.1) if options.fast else ((4, 7, 10), 1000, 2000, 0.1)
    (x, y), description = images(options, count)
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(x.shape, generator=generator) * x.std() + x.mean()
    data = {INPUTS[0]: (x, y), INPUTS[1]: (noise, y)}
    classes = int(y.max()) + 1

    figure, axes = new_figure(2, 2, height=5.4)
    spectra: dict[tuple[int, str, str, int], np.ndarray] = {}
    entries = []
    for hidden in widths:
        model = network(x.shape[1], hidden, classes)
        # a second start on the narrower networks measures how much the start alone changes
        for start in range(1 if hidden == widths[-1] else 2):
            for kind in INPUTS:
                flat = fan_in_start(model, options.seed + start)
                trained = train_ensemble(
                    model,
                    LOSS,
                    data[kind],
                    flat[None],
                    step=step,
                    tolerance=1e-3,
                    max_iterations=limit,
                    memory_budget=2**30,
                )
                for moment, at in zip(MOMENTS, (flat, trained.parameters[0]), strict=True):
                    clock = time.perf_counter()
                    risk = risk_at(network(x.shape[1], hidden, classes), at, data[kind])
                    values = exact_eigenvalues(risk)
                    spectra[hidden, kind, moment, start] = values
                    split = split_bulk(values)
                    entries.append(
                        {
                            "hidden": hidden,
                            "parameters": size(model),
                            "inputs": kind,
                            "moment": moment,
                            "start": start,
                            "loss": risk.loss(),
                            "gradient_norm": float(risk.gradient().norm()),
                            "iterations": int(trained.iterations[0]) if moment == "after" else 0,
                            "largest": values[: -classes - 3 : -1].tolist(),
                            "smallest": values[:3].tolist(),
                            "trace": float(values.sum()),
                            "split": split.to_json(),
                            "seconds": round(time.perf_counter() - clock, 1),
                        }
                    )
                    print(f"h = {hidden}, n = {size(model)}, {kind}, {moment} training: {split}", flush=True)
    for row, kind in enumerate(INPUTS):
        for column, moment in enumerate(MOMENTS):
            draw(axes[row, column], {h: spectra[h, kind, moment, 0] for h in widths})
            axes[row, column].set_title(f"{kind}, {moment} training")
    for ax in axes.flat:
        ax.sharex(axes[0, 0])
        ax.sharey(axes[0, 0])
        ax.label_outer()
    axes[0, 0].set_ylim(1e-8, None)
    axes[0, 0].legend(fontsize=7)
    numbers = {"data": description, "step": step, "max_iterations": limit, "networks": entries}
    write(options, __file__, "mnist", figure, numbers, findings(spectra, widths))


def exact_eigenvalues(risk) -> np.ndarray:
    """All eigenvalues (n,), ascending, of the exact Hessian in float64."""
    dense: Tensor = HessianOperator(risk).to_dense()
    return torch.linalg.eigvalsh((dense + dense.T) / 2).numpy()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov distance of two spectra, each divided by its largest eigenvalue."""
    grid = np.sort(np.concatenate([one / one[-1], other / other[-1]]))
    first, second = (Spectrum.from_eigenvalues(values / values[-1]) for values in (one, other))
    return float(np.abs(first.cdf(grid) - second.cdf(grid)).max())


def findings(spectra: dict, widths: tuple[int, ...]) -> list[Finding]:
    """What the numbers say about statements (a), (d) and (e)."""
    near = {}
    for moment in MOMENTS:
        near[moment] = [
            float((np.abs(v) < 1e-2 * v[-1]).mean()) for v in (spectra[h, INPUTS[0], moment, 0] for h in widths)
        ]
    edges: list[BulkEdge] = [split_bulk(spectra[h, INPUTS[0], "after", 0]) for h in widths]
    deep = [float(v[0] / v[-1]) for v in (spectra[h, INPUTS[0], "after", 0] for h in widths)]
    changes, spreads = {}, {}
    for moment in MOMENTS:
        changes[moment] = [distance(spectra[h, INPUTS[0], moment, 0], spectra[h, INPUTS[1], moment, 0]) for h in widths]
        spreads[moment] = [
            distance(spectra[h, kind, moment, 0], spectra[h, kind, moment, 1]) for h in widths[:-1] for kind in INPUTS
        ]
    return [
        Finding(
            "a",
            "a larger network sharpens the mass at zero and leaves the number of edges",
            bool(np.all(np.diff(near["after"]) > 0)) and len({edge.num_above for edge in edges}) == 1,
            f"h = {list(widths)}: mass within 1 % of the top {', '.join(f'{v:.3f}' for v in near['after'])}; edges "
            f"{[edge.num_above for edge in edges]}",
        ),
        Finding(
            "d",
            "small negative eigenvalues remain after training",
            all(-0.5 < value < 0 for value in deep),
            f"smallest / largest {', '.join(f'{v:.3f}' for v in deep)}",
        ),
        *(
            Finding(
                "e",
                f"random inputs change the profile {moment} training, by more than another start does",
                min(changes[moment]) > max(spreads[moment]),
                f"Kolmogorov distance between inputs {', '.join(f'{v:.2f}' for v in changes[moment])}, between two "
                f"starts at most {max(spreads[moment]):.2f}",
            )
            for moment in MOMENTS
        ),
    ]


def draw(ax, spectra: dict[int, np.ndarray]) -> None:
    """Sorted eigenvalues against rank, largest first; what is negative dotted by magnitude from the right."""
    for (hidden, values), colour in zip(spectra.items(), ("#8c8c8c", "#de8f05", "#0173b2"), strict=False):
        positive, negative = values[values > 0][::-1], -values[values < 0]
        ax.plot(
            np.arange(1, len(positive) + 1),
            positive,
            color=colour,
            linewidth=1.2,
            label=f"h = {hidden}, n = {len(values)}",
        )
        ax.plot(np.arange(1, len(negative) + 1), negative, ":", color=colour, linewidth=1.2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set(xlabel="rank (dotted: negative eigenvalues)", ylabel="|eigenvalue|  [loss / parameter$^2$]")


if __name__ == "__main__":
    main()
