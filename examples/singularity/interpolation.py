"""The loss on the line between two networks at each step of their training: from one start, and from orthogonal ones.

python -m examples.singularity.interpolation --data MNIST_DIR --out docs/results/singularity
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import grad, vmap

from examples.experiment import MOST, Criterion, judge, new_figure, parse, quantiles, write
from examples.singularity.common import fan_in_start, flat_loss, images, network, risk_at, size
from examples.singularity.descent import LEARNED
from pyhessian_spectra import HessianOperator, eigsh
from pyhessian_spectra.plots.style import theme
from pyhessian_spectra.training import GradientDescent

LINES = ("one start: GD to SGD", "orthogonal starts: SGD to SGD")
COLOURS = {LINES[0]: "#0173b2", LINES[1]: "#de8f05"}
#: A profile is flat if it rises above the higher of its ends by at most this part of what guessing costs.
FLAT = 0.05


def shares(numbers: dict[str, Any], line: str, judged: Any) -> tuple[bool, str]:
    """Whether most of the counted runs of every step length satisfy ``judged``, and how many do."""
    told, holds = [], True
    for step, entry in numbers["step_lengths"].items():
        runs = entry[line]
        right = sum(bool(judged(run, entry)) for run in runs)
        holds &= right >= MOST * len(runs)
        told.append(f"step {step}: {right} of {len(runs)}")
    return holds, "; ".join(told)


def stays_flat(numbers: dict[str, Any]) -> tuple[bool, str]:
    limit = FLAT * math.log(numbers["classes"])
    holds, told = shares(numbers, LINES[0], lambda run, _: max(run["barrier"]) <= limit)
    worst = {key: [max(run["barrier"]) for run in entry[LINES[0]]] for key, entry in numbers["step_lengths"].items()}
    last = {key: [run["barrier"][-1] for run in entry[LINES[0]]] for key, entry in numbers["step_lengths"].items()}
    ranges = "; ".join(
        f"step {key}: highest barrier {min(values):.2g} to {max(values):.2g} nats, at the end {min(last[key]):.2g} to "
        f"{max(last[key]):.2g}"
        for key, values in worst.items()
    )
    return holds, f"{told}; {ranges}"


def falls(line: str) -> Any:
    """The judgement that the middle of a line falls along training."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        holds, told = shares(numbers, line, lambda run, _: run["middle"][-1] < run["middle"][0])
        middles = []
        for key, entry in numbers["step_lengths"].items():
            first, lowest, last = (
                [select(run["middle"]) for run in entry[line]] for select in (lambda m: m[0], min, lambda m: m[-1])
            )
            named = {"first": first, "lowest": lowest, "last": last}
            ranges = (f"{name} {min(values):.2g} to {max(values):.2g}" for name, values in named.items())
            middles.append(f"step {key}: {', '.join(ranges)}")
        return holds, f"{told}; middle, {'; '.join(middles)} nats"

    return decide


def less_flat(numbers: dict[str, Any]) -> tuple[bool, str]:
    def steeper(run: dict[str, Any], entry: dict[str, Any]) -> bool:
        paired = [other for other in entry[LINES[0]] if other["pair"] == run["pair"]]
        return bool(paired) and run["barrier"][-1] > paired[0]["barrier"][-1]

    return shares(numbers, LINES[1], steeper)


CRITERIA = (
    Criterion(
        "f",
        "from one start the profile between GD and SGD stays flat while they diverge",
        f"at each step length, {MOST:.0%} of the runs: at every recorded step the loss on the line exceeds the higher "
        f"of its ends by at most {FLAT:g} ln C",
        stays_flat,
    ),
    Criterion(
        "f",
        "from one start the middle of the line falls along training",
        f"at each step length, {MOST:.0%} of the runs: its loss is lower at the last step than at the first",
        falls(LINES[0]),
    ),
    Criterion(
        "f",
        "between orthogonal starts the middle of the line falls along training",
        f"at each step length, {MOST:.0%} of the runs: its loss is lower at the last step than at the first",
        falls(LINES[1]),
    ),
    Criterion(
        "f",
        "between orthogonal starts the line is less flat than from one start",
        f"at each step length, {MOST:.0%} of the pairs: it exceeds the higher of its ends by more, at the last step",
        less_flat,
    ),
)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train side by side, walk the line at recorded steps, judge, draw."""
    options = parse(__doc__, argv)
    hidden, count, updates, pairs, batch, records = 10, 500, 3000, 5, 50, 33
    if options.fast:
        hidden, count, updates, pairs, batch, records = 3, 60, 40, 2, 20, 6
    data, description = images(options, count)
    classes = int(data[1].max()) + 1
    model = network(data[0].shape[1], hidden, classes)
    one = torch.stack([fan_in_start(model, options.seed + 2 * pair) for pair in range(pairs)])
    other = torch.stack([fan_in_start(model, options.seed + 2 * pair + 1) for pair in range(pairs)])
    other -= one * ((one * other).sum(dim=1) / (one * one).sum(dim=1))[:, None]
    other *= (one.norm(dim=1) / other.norm(dim=1))[:, None]
    tops = [largest_eigenvalue(model, start, data) for start in one]
    at = sorted({0, *np.geomspace(1, updates, records - 1).round().astype(int).tolist()})
    positions = torch.linspace(0, 1, 25)
    surfaces, entries = {}, {}
    for step in (0.1, 0.02):
        walked = walk(model, data, one, other, step=step, batch=batch, at=at, positions=positions, seed=options.seed)
        entries[str(step)] = {line: [] for line in LINES}
        for line, (surface, distances) in walked.items():
            surfaces[f"step {step}, {line}"] = surface
            # the end of a line that did not learn sets the run aside, as everywhere
            learned = surface[:, -1, [0, -1]].max(axis=1) < LEARNED * math.log(classes)
            for pair in np.flatnonzero(learned):
                entries[str(step)][line].append(summary(int(pair), surface[pair], distances[pair]))
            print(f"step {step}, {line}: {int(learned.sum())} of {pairs} learned", flush=True)
    numbers = {
        "data": description,
        "rule": f"A run counts if both ends of its line have a loss below {LEARNED:g} ln C at the last step.",
        "classes": classes,
        "parameters": size(model),
        "pairs": pairs,
        "batch": batch,
        "updates": updates,
        "recorded_steps": at,
        "positions": positions.tolist(),
        "first_top": quantiles(np.array(tops)),
        "step_lengths": entries,
    }
    fewest = min(len(runs) for entry in entries.values() for runs in entry.values())
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=fewest)
    figures = {"interpolation": draw(surfaces, entries, at, positions.numpy())}
    shortened = f"{count} images, {updates} updates, {pairs} pairs of starts"
    write(options, __file__, numbers, findings, figures, surfaces, shortened=shortened)


def largest_eigenvalue(model: nn.Module, flat: Tensor, data: tuple[Tensor, Tensor]) -> float:
    """lambda_1 to three digits; the model is left in float32."""
    op = HessianOperator(risk_at(model, flat, data))
    top = eigsh(op, 1, which="LA", tol=1e-3, generator=torch.Generator().manual_seed(0))
    model.float()
    return float(top.eigenvalues[0])


def walk(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    one: Tensor,
    other: Tensor,
    *,
    step: float,
    batch: int,
    at: list[int],
    positions: Tensor,
    seed: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For both kinds of line: losses (pairs, recorded steps, positions), and distances of the ends (pairs, steps)."""
    x, y = data
    pairs, generator = len(one), torch.Generator().manual_seed(seed)
    gradient = vmap(grad(flat_loss(model)), (0, None, None))
    stochastic = vmap(grad(flat_loss(model)))
    orders = iter(())

    def drawn(theta: Tensor) -> Tensor:
        """Gradients on the next batch of each member's own order."""
        nonlocal orders
        chosen = next(orders, None)
        if chosen is None:
            order = torch.stack([torch.randperm(len(y), generator=generator) for _ in theta])
            orders = iter(order.split(batch, dim=1))
            chosen = next(orders)
        return stochastic(theta, x[chosen], y[chosen])

    full = GradientDescent(lambda theta: gradient(theta, x, y), one, step=step)
    # from the first starts, and in an order of their own from the orthogonal ones
    noisy = GradientDescent(drawn, torch.cat([one, other]), step=step)
    losses = vmap(flat_loss(model), (0, None, None), chunk_size=25)
    surfaces: dict[str, list[Tensor]] = {line: [] for line in LINES}
    distances: dict[str, list[Tensor]] = {line: [] for line in LINES}
    for update in range(at[-1] + 1):
        if update in at:
            ends = {LINES[0]: (full.theta, noisy.theta[:pairs]), LINES[1]: (noisy.theta[:pairs], noisy.theta[pairs:])}
            for line, (left, right) in ends.items():
                points = left[:, None] + positions[:, None] * (right - left)[:, None]
                surfaces[line].append(losses(points.flatten(0, 1), x, y).view(pairs, -1))
                distances[line].append((left - right).norm(dim=1))
        for descent in (full, noisy):
            descent.evaluate()
            descent.step()
    return {
        line: (torch.stack(surfaces[line], dim=1).numpy(), torch.stack(distances[line], dim=1).numpy())
        for line in LINES
    }


def summary(pair: int, surface: np.ndarray, distances: np.ndarray) -> dict[str, Any]:
    """The middle, the barrier and the distance of one line at each recorded step, and the losses of its ends."""
    barrier = surface.max(axis=1) - np.maximum(surface[:, 0], surface[:, -1])
    told = {"middle": surface[:, surface.shape[1] // 2], "barrier": barrier, "distance": distances}
    ends = {"left": surface[:, 0], "right": surface[:, -1]}
    return {"pair": pair, **{name: [float(f"{v:.4g}") for v in values] for name, values in {**told, **ends}.items()}}


def draw(surfaces: dict[str, np.ndarray], entries: dict[str, Any], at: list[int], positions: np.ndarray) -> Figure:
    """The surface of the first pair for both kinds of line, and the middle and the barrier of all along training."""
    figure, axes = new_figure(2, 3, width=9.0, height=5.0)
    shown = np.concatenate([surface[0] for surface in surfaces.values()])
    norm = LogNorm(max(1e-3, float(shown.min())), float(shown.max()))
    steps = np.array(at, dtype=float)
    steps[0] = 0.7  # the start, on a logarithmic axis
    for row, step in zip(axes, entries, strict=True):
        for ax, line in zip(row, LINES, strict=False):
            surface = surfaces[f"step {step}, {line}"][0]
            mesh = ax.pcolormesh(steps, positions, surface.T, norm=norm, cmap="viridis", shading="gouraud")
            lines = ax.contour(
                steps, positions, surface.T, levels=[0.03, 0.1, 0.3, 1, 3], colors="white", linewidths=0.6
            )
            ax.clabel(lines, fontsize=6, fmt="%g")
            ax.set_xscale("log")
            ax.grid(visible=False)
            ax.set_title(f"{line}, step {step}", fontsize=8.5)
            ax.set_yticks([0, 0.5, 1])
        row[0].set_ylabel("position on the line")
        figure.colorbar(mesh, ax=row[1], label="loss  [nats]")
        for line in LINES:
            for index, run in enumerate(entries[step][line]):
                row[2].plot(steps, run["middle"], color=COLOURS[line], linewidth=1, label=None if index else line)
        row[2].set(xscale="log", yscale="log")
        row[2].set_title(f"middle of the line, step {step}", fontsize=8.5)
        row[2].sharey(axes[0, 2])
    for ax in axes[-1]:
        ax.set_xlabel("update")
    if axes[0, 2].lines:
        axes[0, 2].legend(fontsize=7, loc="lower left")
    return figure


if __name__ == "__main__":
    main()
