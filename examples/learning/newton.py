"""Newton's method on three functions small enough to know everything about them, beside gradient descent.

python -m examples.learning.newton --out docs/results/learning

The first is the example of *Hessian Network Learning*: the mean squared difference of two 5 x 5 matrices. Its Hessian
is a multiple of the identity, so that it cannot show what else the document says of Newton's method, that its steps
adapt to curvature and avoid saddles. The other two can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.experiment import judge, parse, write
from examples.learning.newton_claims import CRITERIA
from examples.learning.newton_figures import FEW, draw_conditioning, draw_example, draw_saddle
from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.optimisers import Newton
from pyhessian_spectra.plots.style import theme

#: A loss at given parameters.
Loss = Callable[[Tensor], Tensor]
#: A method follows a vector and a loss: what it returns takes one step of the vector.
Method = Callable[[Tensor, Loss], Callable[[], object]]
#: As in the document: 5 x 5 numbers, 40 iterations, this step.
SIDE, UPDATES, LR = 5, 40, 0.1
#: The condition numbers of the quadratics; trajectories are of the last but one.
CONDITIONS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
SHOWN = 100.0
#: "Solved" means that the loss is this part of the first.
SOLVED = 1e-6
#: A walk that takes longer is given up.
LONGEST = 10_000


@dataclass(frozen=True)
class Walk:
    """Points (updates + 1, n) of an optimiser, from the start, and their losses (updates + 1,)."""

    points: Tensor
    losses: Tensor


def walk(loss: Loss, start: Tensor, method: Method, updates: int = UPDATES, *, until: float | None = None) -> Walk:
    """Follow a method from ``start``, until the loss is at most ``until`` of the first, if that is given."""
    w = start.clone().requires_grad_()
    points, losses, step = [start.clone()], [loss(start)], method(w, loss)
    while len(points) <= updates and (until is None or losses[-1] > until * losses[0]):
        step()
        points.append(w.detach().clone())
        losses.append(loss(points[-1]))
    return Walk(torch.stack(points), torch.stack(losses))


def gradient_descent(lr: float) -> Method:
    """Plain gradient descent."""

    def of(w: Tensor, loss: Loss) -> Callable[[], object]:
        optimizer = torch.optim.SGD([w], lr=lr)

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(w)
            value.backward()
            return value

        return lambda: optimizer.step(closure)

    return of


def newton(lr: float, solver: str = "exact") -> Method:
    """The package's optimiser."""

    def of(w: Tensor, loss: Loss) -> Callable[[], object]:
        optimizer = Newton([w], lr=lr, solver=solver)
        return lambda: optimizer.step(lambda: loss(w))

    return of


def newton_by_loops(lr: float) -> Method:
    """The document's way: the Hessian entry by entry, and its inverse."""

    def of(w: Tensor, loss: Loss) -> Callable[[], object]:
        def step() -> None:
            (gradient,) = torch.autograd.grad(loss(w), w)
            direction = torch.linalg.inv(hessian_by_loops(loss, w)) @ gradient
            w.data.sub_(direction, alpha=lr)

        return step

    return of


def hessian_by_loops(loss: Loss, w: Tensor) -> Tensor:
    """Second derivatives (n, n) of a loss of a vector, each entry of the gradient differentiated, entry by entry."""
    (gradient,) = torch.autograd.grad(loss(w), w, create_graph=True)
    hessian = torch.empty(len(w), len(w), dtype=w.dtype)
    for i in range(len(w)):
        (row,) = torch.autograd.grad(gradient[i], w, retain_graph=True)
        for j in range(len(w)):
            hessian[i, j] = row[j]
    return hessian


def hessian_by_operator(loss: Loss, w: Tensor) -> Tensor:
    """The same from the package's operator, as its optimiser takes it."""
    risk = EmpiricalRisk.from_closure({"w": w}, lambda: loss(w))
    return HessianOperator(risk, point=risk.live()).to_dense()


def example(starts: int, seed: int) -> dict[str, Any]:
    """The 5 x 5 example from several starts, of which the first is the document's."""
    exact, runs = 2 / SIDE**2, []
    methods = {
        "gradient descent": gradient_descent(LR),
        "Newton": newton(LR),
        "by loops": newton_by_loops(LR),
        "longer steps": gradient_descent(LR / exact),
    }
    for number in range(starts):
        generator = torch.Generator().manual_seed(seed + number if number else 0)
        start, target = (torch.rand(SIDE, SIDE, generator=generator).double().flatten() for _ in range(2))

        def loss(w: Tensor, target: Tensor = target) -> Tensor:
            return (w - target).square().mean()

        walks = {name: walk(loss, start, method) for name, method in methods.items()}
        w = start.clone().requires_grad_()
        loops, operator = hessian_by_loops(loss, w), hessian_by_operator(loss, w)
        run: dict[str, Any] = {
            "hessians_apart": float((loops - operator).abs().max() / loops.abs().max()),
            "hessian_from_exact": float((operator - exact * torch.eye(SIDE**2).double()).abs().max() / exact),
            "one_step": walk(loss, start, newton(1.0), 1).losses.tolist(),
        }
        for name in ("by loops", "longer steps"):
            apart = (walks[name].points - walks["Newton"].points).norm(dim=1) / walks["Newton"].points.norm(dim=1)
            run[f"{name} apart"] = float(apart.max())
        for name in ("gradient descent", "Newton"):
            losses = walks[name].losses
            ratios = losses[1:] / losses[:-1]
            run[f"{name} ratios"] = [float(ratios.min()), float(ratios.max())]
            run[name] = losses.tolist()
        runs.append(run)
    return {"lr": LR, "side": SIDE, "longer": LR / exact, "runs": runs}


def conditioning(starts: int, seed: int) -> dict[str, Any]:
    """Quadratics (w_1^2 + kappa w_2^2) / 2 of growing condition number kappa, from starts on the unit circle."""
    found: dict[str, Any] = {"solved": SOLVED, "shown": SHOWN, "lr": LR, "updates": {}}
    for condition in CONDITIONS:
        curvatures = torch.tensor([1.0, condition]).double()

        def loss(w: Tensor, curvatures: Tensor = curvatures) -> Tensor:
            return (curvatures * w**2).sum() / 2

        methods = {
            "gradient descent": gradient_descent(2 / (1 + condition)),  # the best constant step
            "Newton": newton(LR),
        }
        begin = circle(starts, seed)
        walks = {
            name: [walk(loss, start, method, until=SOLVED, updates=LONGEST) for start in begin]
            for name, method in methods.items()
        }
        found["updates"][f"{condition:g}"] = {
            name: [len(walked.losses) - 1 for walked in each] for name, each in walks.items()
        }
        if condition == SHOWN:
            for name, each in walks.items():
                parts = [(1 - walked.points[1] / walked.points[0]).tolist() for walked in each]
                shown = walk(loss, torch.tensor([-0.9, 0.25]).double(), methods[name], until=SOLVED, updates=LONGEST)
                found[name] = {
                    "times": [steep / flat for flat, steep in parts],
                    "path": shown.points[: FEW + 1].tolist(),
                    "losses": shown.losses.tolist(),
                }
    return found


def saddle(starts: int, seed: int) -> dict[str, Any]:
    """x^2 - y^2, whose one stationary point is a saddle, from starts on the unit circle."""

    def loss(w: Tensor) -> Tensor:
        return w[0] ** 2 - w[1] ** 2

    methods = {
        "gradient descent": gradient_descent(LR),
        "Newton": newton(LR),
        "Newton, |H|": newton(LR, "absolute"),
    }
    found: dict[str, Any] = {"lr": LR}
    for name, method in methods.items():
        paths = torch.stack([walk(loss, start, method).points for start in circle(starts, seed)])
        found[name] = [[[float(f"{x:.5g}") for x in point] for point in path] for path in paths.tolist()]
    return found


def circle(count: int, seed: int) -> Tensor:
    """Points (count, 2) on the unit circle at random."""
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).double()
    return points / points.norm(dim=1, keepdim=True)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Walk, judge, draw."""
    options = parse(__doc__, argv)
    starts = 2 if options.fast else 10
    numbers = {
        "starts": starts,
        "example": example(starts, options.seed),
        "conditioning": conditioning(starts, options.seed),
        "saddle": saddle(starts, options.seed),
    }
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=starts)
    figures = {
        "newton": draw_example(numbers["example"]),
        "newton_conditioning": draw_conditioning(numbers["conditioning"]),
        "newton_saddle": draw_saddle(numbers["saddle"]),
    }
    write(options, __file__, numbers, findings, figures, {}, shortened="nothing" if not options.fast else "2 starts")


if __name__ == "__main__":
    main()
