"""One run of the reproduction of trace regularisation: recipe, arms, training, and what is measured at the end."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.store import Run
from pyhessian_spectra import EmpiricalRisk, HessianOperator, eigsh, ggn_gram
from pyhessian_spectra.errors import ConvergenceError, NonFiniteError
from pyhessian_spectra.problems import load_data
from pyhessian_spectra.problems.architectures.lenet import LeNet
from pyhessian_spectra.regularisers import trace_penalty

LOSS = nn.CrossEntropyLoss()
RULE = (
    "A run counts if its final training loss is finite and below 0.5 ln C (C classes); every other run is set aside "
    "with all pairs that it would be in, and counted."
)


@dataclass(frozen=True)
class Setting:
    """The recipe for LeNet on MNIST; fewer images and smaller batches than published (60,000 and 256)."""

    images: int = 5000
    batch: int = 32
    epochs: int = 30
    drops: tuple[int, ...] = (10, 20)  # epochs at which the step becomes a quarter
    step: float = 1e-2
    momentum: float = 0.9
    start: int = 10  # epoch of the first penalty
    every: int = 50  # steps
    probes: int = 10
    weight_decay: float = 5e-4
    measured: int = 300  # training images on which the largest eigenvalue is taken
    traced: int = 200  # training images on which the traces are, exactly
    seeds: int = 8


FAST = Setting(images=64, epochs=2, batch=16, drops=(1,), start=1, every=2, probes=2, measured=20, traced=10, seeds=1)


@dataclass(frozen=True)
class Arm:
    """What is added to the loss: ``weight`` times a penalty on ``groups``, or on the squared norm of the gradient."""

    groups: str = ""  # of the trace; "gradient" for the squared gradient norm
    weight: float = 0.0
    more_often: int = 1  # that many times as many steps have a penalty
    decays: bool = False


# The weights of HTR are the recipe's. That of the gradient norm makes its size about that of HTR, some four times the
# loss, for one seed on CIFAR-10 that is not among those judged.
ARMS = {
    "SGD": Arm(),
    "L2": Arm(decays=True),
    "gradient norm": Arm("gradient", 1e-1),
    "HTR": Arm("all", 1e-3),
    "HTR middle": Arm("middle", 1e-4),
    "HTR random": Arm("random", 1e-4),
    "HTR tenfold": Arm("all", 1e-3, more_often=10),
}
TRACED = ("HTR", "HTR middle", "HTR random", "HTR tenfold")
LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


Images = tuple[Tensor, Tensor]


@functools.cache
def images(data: str | None, count: int) -> tuple[Images, Images, str]:
    """Training images of 28x28 or 32x32 and their labels, all test ones, and what they are."""
    train, test = (load_data(data or "digits", split=split) for split in ("train", "test"))
    description = load_data(data or "digits", num_examples=count).description

    def shaped(x: Tensor) -> Tensor:
        return x if data else F.interpolate(x.reshape(len(x), 1, 8, 8), 32)

    return (
        (shaped(train.inputs[:count]), train.targets[:count]),
        (shaped(test.inputs), test.targets),
        f"{description}; tested on {len(test.targets):,} images",
    )


def squared_gradient_norm(model: nn.Module, batch: Images) -> Tensor:
    """``||grad L||^2`` on a batch, with a graph."""
    x, y = batch
    parts = torch.autograd.grad(LOSS(model(x), y), list(model.parameters()), create_graph=True)
    return torch.stack([part.square().sum() for part in parts]).sum()


def penalty_of(arm: Arm, model: nn.Module, setting: Setting, seed: int) -> Callable[[Images], Tensor] | None:
    """The arm's penalty; the same probes, and the same random layers, for the same seed."""
    if arm.groups == "gradient":
        return functools.partial(squared_gradient_norm, model)
    if not arm.groups:
        return None
    probes = max(1, setting.probes // arm.more_often)
    generator = torch.Generator().manual_seed(10_000 + seed)
    return trace_penalty(model, LOSS, groups=arm.groups, num_probes=probes, generator=generator)


def once(run: Run, *, data: str | None, setting: Setting) -> Run:
    """Train one network: all arms of a seed share the start and the order of batches."""
    arm, seed = ARMS[run["arm"]], run["seed"]
    (x, y), test, _ = images(data, setting.images)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LeNet(channels=x.shape[1])
    decay = setting.weight_decay if arm.decays else 0.0
    sgd = torch.optim.SGD(model.parameters(), lr=setting.step, momentum=setting.momentum, weight_decay=decay)
    steps = torch.optim.lr_scheduler.MultiStepLR(sgd, [*setting.drops], gamma=0.25)
    penalty, every = penalty_of(arm, model, setting, seed), max(1, setting.every // arm.more_often)
    order, shares, count = torch.Generator().manual_seed(seed), [], 0
    with contextlib.suppress(NonFiniteError):  # of a run that diverged, which the rule sets aside
        for epoch in range(setting.epochs):
            for batch in torch.randperm(len(x), generator=order).split(setting.batch):
                loss = LOSS(model(x[batch]), y[batch])
                added = loss.new_zeros(())
                if penalty is not None and epoch >= setting.start:
                    if count % every == 0:
                        added = arm.weight * penalty((x[batch], y[batch]))
                        shares.append(float(added.detach() / loss.detach()))
                    count += 1
                sgd.zero_grad()
                (loss + added).backward()
                sgd.step()
            steps.step()
    found: Run = {"penalised_steps": len(shares), "penalty_over_loss": float(np.median(shares)) if shares else 0.0}
    found |= evaluated(model, (x, y), test)
    return found | flatness(model, (x, y), setting) if found["counts"] else found


@torch.no_grad()
def evaluated(model: nn.Module, train: Images, test: Images) -> Run:
    """Losses and accuracies in per cent; ``counts`` is the rule's answer."""
    found: Run = {}
    for name, (x, y) in (("train", train), ("test", test)):
        outputs = torch.cat([model(part) for part in x.split(1000)])
        found[f"{name}_loss"] = float(LOSS(outputs, y))
        found[f"{name}_accuracy"] = 100 * float((outputs.argmax(dim=1) == y).double().mean())
    found["counts"] = math.isfinite(found["train_loss"]) and found["train_loss"] < 0.5 * math.log(outputs.shape[1])
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def flatness(model: nn.Module, train: Images, setting: Setting) -> Run:
    """The largest eigenvalue of the Hessian with its certified interval, and exact traces of its blocks.

    The network is piecewise linear in each layer, so that a layer's block of the Hessian is that of the Gauss-Newton
    matrix, and so is its trace. Both are of the first training images.
    """
    x, y = train
    risk = EmpiricalRisk(model, LOSS, (x[: setting.measured], y[: setting.measured]))
    try:
        pairs = eigsh(HessianOperator(risk), 1, tol=1e-3, generator=torch.Generator().manual_seed(0))
    except ConvergenceError as error:
        pairs = error.partial
    found: Run = {"lambda_1_converged": bool(len(pairs) and pairs.converged[0])}
    if len(pairs):
        found["lambda_1"] = float(pairs.eigenvalues[0])
        found["lambda_1_residual"] = float(pairs.residuals[0])
    gram = ggn_gram(risk.replace(data=(x[: setting.traced], y[: setting.traced])))
    traces = {label: group.trace() for label, group in gram.groups.items()}
    found["trace"] = sum(float(trace) for trace in traces.values())
    found["trace_rounding"] = sum(trace.rounding for trace in traces.values())
    return found | {f"trace_{label}": float(trace) for label, trace in traces.items()}
