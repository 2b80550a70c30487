"""Edges of stability: torch's own optimisers converge below them on a quadratic function, and diverge above."""

import pytest
import torch

from pyhessian_spectra import MatrixOperator
from pyhessian_spectra.analysis.stability import stability_of
from pyhessian_spectra.curvature.parameters import ParameterLayout

SGD, ADAM, ADAMW, RMSPROP = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop

CASES = {
    "gradient descent": (SGD, {}),
    "heavy ball": (SGD, {"momentum": 0.9}),
    "dampened": (SGD, {"momentum": 0.8, "dampening": 0.5}),
    "nesterov": (SGD, {"momentum": 0.7, "nesterov": True}),
    "decay": (SGD, {"momentum": 0.9, "weight_decay": 3.0}),
    "adam": (ADAM, {"betas": (0.9, 1 - 1e-13)}),
    "adam, another momentum": (ADAM, {"betas": (0.5, 1 - 1e-13), "eps": 0.01}),
    "adam with decay in the gradient": (ADAM, {"betas": (0.9, 1 - 1e-13), "weight_decay": 3.0}),
    "amsgrad": (ADAM, {"betas": (0.9, 1 - 1e-13), "amsgrad": True}),
    "adamw": (ADAMW, {"betas": (0.9, 1 - 1e-13), "weight_decay": 0.5}),
    "rmsprop": (RMSPROP, {"alpha": 1 - 1e-13}),
    "rmsprop with momentum": (RMSPROP, {"alpha": 1 - 1e-13, "momentum": 0.9}),
}


def _quadratic(optimizer, params, matrix, steps):
    """The length of the parameters after steps on w^T A w / 2, over that before."""
    start = torch.cat([p.detach() for p in params]).norm()
    for _ in range(steps):
        w = torch.cat(params)
        optimizer.zero_grad()
        (w @ matrix @ w / 2).backward()
        optimizer.step()
        if float(torch.cat([p.detach() for p in params]).norm()) > 100 * start:
            break
    return float(torch.cat([p.detach() for p in params]).norm() / start)


def _frozen(kind, settings, lr, params):
    """An optimiser whose mean squares no longer move, but for the momentum that has settled."""
    optimizer = kind([{"params": [p], "lr": rate} for p, rate in zip(params, lr, strict=True)], **settings)
    squares = [torch.tensor([0.25, 4.0], dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)]
    for p, square in zip(params, squares, strict=True):
        if kind in (ADAM, ADAMW):
            # after 10^15 steps of a beta_2 that is nearly 1, corrections for the start are 1
            optimizer.state[p] = {
                "step": torch.tensor(1e15, dtype=torch.float64),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": square.clone(),
                "max_exp_avg_sq": 2 * square,
            }
        elif kind is RMSPROP:
            optimizer.state[p] = {
                "step": torch.tensor(1e15, dtype=torch.float64),
                "square_avg": square.clone(),
                "momentum_buffer": torch.zeros_like(p),
            }
    return optimizer


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.03)], ids=["one rate", "two rates"])
@pytest.mark.parametrize("case", CASES)
def test_steps_on_a_quadratic_shrink_below_the_edge_of_stability_and_grow_above_it(case, rates):
    kind, settings = CASES[case]
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(3, dtype=torch.float64)
    for factor, grows in ((0.97, False), (1.03, True)):
        params = [
            torch.full((2,), 1e-6, dtype=torch.float64, requires_grad=True),
            torch.full((1,), 1e-6, dtype=torch.float64, requires_grad=True),
        ]
        layout = ParameterLayout({"a": params[0].shape, "b": params[1].shape})
        optimizer = _frozen(kind, settings, rates, params)
        found = stability_of(optimizer, layout, params)
        if case == "adamw" and rates[0] != rates[1]:
            assert found is None  # no matrix tells it
            return
        lowest, highest = 0.0, 1e6
        for _ in range(60):  # the multiple of the matrix whose largest eigenvalue is at the edge
            middle = (lowest + highest) / 2
            top = torch.linalg.eigvalsh(found.operator(MatrixOperator(middle * matrix)).to_dense())[-1]
            lowest, highest = (middle, highest) if top < found.threshold else (lowest, middle)
        ratio = _quadratic(optimizer, params, factor * lowest * matrix, 1500)
        assert (ratio > 100) if grows else (ratio < 0.01)


def _parameters():
    return [torch.ones(2, requires_grad=True)], ParameterLayout({"w": torch.Size([2])})


def _hooked(optimizer):
    optimizer.register_step_pre_hook(lambda *given: None)
    return optimizer


class _Other(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda p: _Other(p, lr=0.1),
        lambda p: torch.optim.Adam(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
        lambda p: torch.optim.SGD(p, lr=0.0),
        lambda p: torch.optim.NAdam(p, lr=0.1),
        lambda p: torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1),
        lambda p: torch.optim.SGD([*p, torch.ones(3, requires_grad=True)], lr=0.1),
        lambda p: _hooked(torch.optim.SGD(p, lr=0.1)),
        lambda p: torch.optim.LBFGS(p),
    ],
    ids=[
        "subclass",
        "before the first step",
        "maximize",
        "no rate",
        "another",
        "other parameters",
        "more parameters",
        "hooked",
        "closures",
    ],
)
def test_an_edge_of_stability_that_is_not_known_is_none(make):
    params, layout = _parameters()
    assert stability_of(make(params), layout, params) is None


def test_adams_edge_is_38_over_the_rate_once_it_has_taken_a_step():
    params, layout = _parameters()
    optimizer = torch.optim.Adam(params, lr=0.1)
    (params[0] ** 2).sum().backward()
    optimizer.step()
    found = stability_of(optimizer, layout, params)
    assert found.threshold == pytest.approx(380)
    # after one step the corrections leave (1 - beta_1) |g|
    assert found.scale**-2 == pytest.approx(0.1 * 2 * torch.ones(2))
