"""The loss on straight lines between solutions: gradient descent to SGD, and between two orthogonal starts.

python examples/singularity/interpolation.py --data MNIST_DIR --out docs/results/singularity
"""

from __future__ import annotations

import math

import numpy as np
import torch
from common import LOSS, Finding, fan_in_start, images, network, new_figure, parse, quantiles, size, write
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pyhessian_spectra.ensembles import train_ensemble

LINES = ("same start: GD to SGD", "orthogonal starts: GD to GD")


def main(argv: list[str] | None = None) -> None:
    """Train each pair, walk the line, draw."""
    options = parse(__doc__, argv)
    hidden, count, limit, pairs = (3, 60, 40, 2) if options.fast else (10, 1000, 2000, 5)
    step, batch = 0.1, 20 if options.fast else 50
    data, description = images(options, count)
    model = network(data[0].shape[1], hidden, int(data[1].max()) + 1)
    positions = torch.linspace(-0.25, 1.25, 61)
    starts = torch.stack([fan_in_start(model, options.seed + index) for index in range(2 * pairs)])
    for first, second in zip(starts[::2], starts[1::2], strict=True):
        second -= first * (first @ second) / (first @ first)
        second *= first.norm() / second.norm()
    descended = train_ensemble(
        model, LOSS, data, starts, step=step, tolerance=1e-3, max_iterations=limit, memory_budget=2**28
    )
    print(descended, flush=True)
    # as many updates as gradient descent takes, of the same length
    passes = max(1, limit * batch // count)
    stochastic = [
        stochastic_descent(model, data, starts[2 * i], step=step, batch=batch, passes=passes, seed=options.seed + i)
        for i in range(pairs)
    ]
    ends = {
        LINES[0]: [(descended.parameters[2 * i], stochastic[i]) for i in range(pairs)],
        LINES[1]: [(descended.parameters[2 * i], descended.parameters[2 * i + 1]) for i in range(pairs)],
    }
    losses = {
        name: np.array([along_line(model, data, one, other, positions) for one, other in lines])
        for name, lines in ends.items()
    }
    figure, axes = new_figure(1, 1, width=4.8, height=3.2)
    for (name, curves), colour in zip(losses.items(), ("#0173b2", "#de8f05"), strict=True):
        for index, curve in enumerate(curves):
            axes[0, 0].plot(positions, curve, color=colour, linewidth=1.1, label=None if index else name)
    axes[0, 0].set_yscale("log")
    axes[0, 0].set(xlabel="position on the line (0 and 1: the two solutions)", ylabel="training loss  [nats]")
    axes[0, 0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=7)
    inside = ((positions >= 0) & (positions <= 1)).numpy()
    summary = {
        name: {
            "barrier": quantiles(barriers(curves[:, inside])),
            "lowest": quantiles(curves[:, inside].min(axis=1)),
            "ends": [quantiles(curves[:, inside][:, column]) for column in (0, -1)],
            "distance": quantiles(np.array([float((one - other).norm()) for one, other in ends[name]])),
        }
        for name, curves in losses.items()
    }
    numbers = {
        "data": description,
        "parameters": size(model),
        "pairs": pairs,
        "step": step,
        "batch": batch,
        "iterations": limit,
        "passes": passes,
        "diverged": descended.num_diverged,
        "lines": summary,
        "positions": positions.tolist(),
        "losses": {name: curves.tolist() for name, curves in losses.items()},
    }
    write(options, __file__, "interpolation", figure, numbers, findings(summary, math.log(int(data[1].max()) + 1)))


def stochastic_descent(
    model: nn.Module, data: tuple[Tensor, Tensor], start: Tensor, *, step: float, batch: int, passes: int, seed: int
) -> Tensor:
    """Parameters (n,) after plain SGD without replacement."""
    x, y = data
    generator = torch.Generator().manual_seed(seed)
    gradient, flat = grad(flat_loss(model)), start.clone()
    for _ in range(passes):
        for chosen in torch.randperm(len(y), generator=generator).split(batch):
            flat = flat - step * gradient(flat, x[chosen], y[chosen])
    return flat


def along_line(
    model: nn.Module, data: tuple[Tensor, Tensor], one: Tensor, other: Tensor, positions: Tensor
) -> np.ndarray:
    """Loss at each position of the line through two points; 0 is ``one`` and 1 is ``other``."""
    points = one + positions[:, None] * (other - one)
    return vmap(flat_loss(model), (0, None, None), chunk_size=16)(points, *data).numpy()


def flat_loss(model: nn.Module):
    """The loss as a function of flat parameters, inputs and labels."""
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(flat: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return LOSS(functional_call(model, values, (x,)), y)

    return loss


def barriers(curves: np.ndarray) -> np.ndarray:
    """How far each curve rises above the higher of its ends."""
    return curves.max(axis=1) - np.maximum(curves[:, 0], curves[:, -1])


def findings(summary: dict, chance: float) -> list[Finding]:
    """What the numbers say about statement (f), in its three parts."""
    same, orthogonal = (summary[name]["barrier"]["median"] for name in LINES)
    lowest = [summary[name]["lowest"]["median"] for name in LINES]
    return [
        Finding(
            "f",
            "solutions of GD and SGD from one start are joined by a flat line",
            same < 0.05 * chance,
            f"median barrier {same:.3g} nats; a constant guess costs {chance:.2f}",
        ),
        Finding(
            "f",
            "the line between solutions of orthogonal starts is less flat",
            orthogonal > 2 * max(same, 1e-3),
            f"median barrier {orthogonal:.3g} against {same:.3g} nats",
        ),
        Finding(
            "f",
            "the line between solutions of orthogonal starts reaches lower",
            lowest[1] < lowest[0],
            f"median of the lowest loss on it {lowest[1]:.3g} against {lowest[0]:.3g} nats",
        ),
    ]


if __name__ == "__main__":
    main()
