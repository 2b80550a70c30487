"""A short training of a small network, followed by a tracker, and the dense Hessian at each step."""

import functools

import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.tracking import SpectrumTracker


def small_problem(dtype=torch.float64, examples=40):
    """A small network, a loss, and probe data in five batches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
        x = torch.randn(examples, 6, dtype=dtype)
    y = torch.arange(examples) % 4
    return model, nn.CrossEntropyLoss(), list(zip(x.split(examples // 5), y.split(examples // 5), strict=True))


def train(model, loss_fn, batches, optimizer, follow, steps):
    """Steps on the mean loss of all batches; ``follow(step, loss)`` comes after each."""
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = sum(loss_fn(model(x), y) for x, y in batches) / len(batches)
        loss.backward()
        optimizer.step()
        follow(step, loss)


def dense_hessian(model, loss_fn, batches):
    return HessianOperator(EmpiricalRisk(model, loss_fn, batches)).to_dense().double()


def followed(quantities, *, lr=0.5, steps=12, dtype=torch.float64, **how):
    """The tracker of a short training, and the dense Hessian after each step."""
    model, loss_fn, batches = small_problem(dtype)
    found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None, quantities=quantities, **how)
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    train(model, loss_fn, batches, opt, lambda step, loss: found.step(opt, loss=loss), steps)
    return found, truths(lr, dtype)[:steps]


@functools.cache
def truths(lr, dtype):
    """The dense Hessian after each step of gradient descent."""
    model, loss_fn, batches = small_problem(dtype)
    found = []
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    train(model, loss_fn, batches, opt, lambda step, loss: found.append(dense_hessian(model, loss_fn, batches)), 12)
    return found
