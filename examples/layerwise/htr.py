"""Trace regularisation (Sankar et al. 2020): gaps, flatness and their rank correlation, over arms with paired seeds.

python -m examples.layerwise.htr --data MNIST_DIR --out docs/results/layerwise
"""

from __future__ import annotations

import contextlib
import functools
import math
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.experiment import Criterion, Judgement, judge, new_figure, parse, write
from examples.paired import Paired, paired, rank_correlation
from examples.store import Run, run_all
from pyhessian_spectra import EmpiricalRisk, HessianOperator, eigsh, ggn_gram
from pyhessian_spectra.errors import ConvergenceError, NonFiniteError
from pyhessian_spectra.plots.style import theme
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


# ------------------------------------------------------------------------------------------------------------ one run


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


# --------------------------------------------------------------------------------------------------------- what decides


Quantity = Callable[[Run], float]


def accuracy_gap(run: Run) -> float:
    return run["train_accuracy"] - run["test_accuracy"]


def loss_gap(run: Run) -> float:
    return run["test_loss"] - run["train_loss"]


def log_of(name: str) -> Quantity:
    """The logarithm of a quantity, whose paired differences are logarithms of ratios."""
    return lambda run: math.log(run[name])


def counted(numbers: dict[str, Any]) -> list[Run]:
    return [run for run in numbers["runs"] if run["counts"]]


def of_arm(numbers: dict[str, Any], arm: str, quantity: Quantity) -> dict[int, float]:
    """The quantity by seed."""
    return {run["seed"]: quantity(run) for run in counted(numbers) if run["arm"] == arm}


def fewest(numbers: dict[str, Any]) -> int:
    """The smallest number of runs that count of any arm."""
    return min(len(of_arm(numbers, arm, accuracy_gap)) for arm in ARMS)


def against(numbers: dict[str, Any], first: str, second: str, quantity: Quantity) -> Paired:
    """Paired differences, first arm minus second."""
    return paired(of_arm(numbers, first, quantity), of_arm(numbers, second, quantity))


def lower(first: str, second: str, quantity: Quantity) -> Judgement:
    """The judgement that the interval of the paired differences lies below zero."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = against(numbers, first, second, quantity)
        return apart.below, str(apart)

    return decide


def higher(first: str, second: str, quantity: Quantity) -> Judgement:
    """The judgement that it lies above zero."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart = against(numbers, first, second, quantity)
        return apart.above, str(apart)

    return decide


def ordered(quantity: Quantity) -> Judgement:
    """The judgement that the means are in the published order, HTR < L2 < SGD, over the seeds that all three have."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        values = [of_arm(numbers, arm, quantity) for arm in ("HTR", "L2", "SGD")]
        seeds = set.intersection(*(set(each) for each in values))
        means = [float(np.mean([each[seed] for seed in seeds])) for each in values]
        told = " < ".join(f"{mean:.3f}" for mean in means) if means == sorted(means) else "not so:"
        if means != sorted(means):
            told += " " + ", ".join(f"{mean:.3f}" for mean in means)
        return means[0] < means[1] < means[2], f"{told} (HTR, L2, SGD; {len(seeds)} seeds)"

    return decide


def comparable(numbers: dict[str, Any]) -> tuple[bool, str]:
    margin = float(np.mean([*of_arm(numbers, "SGD", accuracy_gap).values()])) / 10
    apart = against(numbers, "HTR middle", "HTR", accuracy_gap)
    return apart.upper < margin, f"{apart}, margin {margin:.3g}"


def flatter(name: str, quantity: Quantity, *, centred: bool) -> Judgement:
    """The judgement that a flatness measure and a gap are rank-correlated, within arms if both are ``centred``."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        runs = [run for run in counted(numbers) if run.get(name)]
        x, y = (np.array([value(run) for run in runs]) for value in (log_of(name), quantity))
        arms = np.array([run["arm"] for run in runs])
        if centred:
            for arm in np.unique(arms):
                x[arms == arm] -= x[arms == arm].mean()
                y[arms == arm] -= y[arms == arm].mean()
        found = rank_correlation(x, y, [run["seed"] for run in runs])
        return found.lower > 0, str(found)

    return decide


GAPS: Mapping[str, Quantity] = {
    "gap of accuracy (train - test, points)": accuracy_gap,
    "gap of loss (test - train)": loss_gap,
}
BELOW = "the 95 % interval of the paired differences lies below zero"
MEASURES = ("lambda_1", "trace", *(f"trace_{layer}" for layer in LAYERS))
CRITERIA = (
    *(
        Criterion("gap", f"{arm} has a smaller {words} than SGD", BELOW, lower(arm, "SGD", quantity))
        for arm in ARMS
        if arm != "SGD"
        for words, quantity in GAPS.items()
    ),
    *(
        Criterion("order", f"{words}: HTR < L2 < SGD", "the means are in this order", ordered(quantity))
        for words, quantity in GAPS.items()
    ),
    Criterion(
        "middle",
        "penalising the middle layers alone does comparably or better than all",
        "the 95 % interval of the paired differences of the accuracy gap, middle - all, ends below a tenth of SGD's",
        comparable,
    ),
    Criterion(
        "middle",
        "the middle layers do better than random ones",
        BELOW + " (accuracy gap, middle - random)",
        lower("HTR middle", "HTR random", accuracy_gap),
    ),
    *(
        Criterion(
            "test",
            f"{arm} has a higher test accuracy than SGD",
            "the 95 % interval of the paired differences lies above zero",
            higher(arm, "SGD", lambda run: run["test_accuracy"]),
        )
        for arm in ARMS
        if arm != "SGD"
    ),
    *(
        Criterion(
            "flat",
            f"flatter generalises better {where}: the {words} grows with {name}",
            "the 95 % interval of Spearman's rank correlation, bootstrapped over seeds, lies above zero",
            flatter(name, quantity, centred=centred),
        )
        for words, quantity in GAPS.items()
        for centred, where in ((False, "over all runs"), (True, "within arms"))
        for name in MEASURES
    ),
    *(
        Criterion(
            "trace",
            f"{arm} ends with a lower {name} than SGD",
            "the 95 % interval of the paired differences of its logarithm lies below zero",
            lower(arm, "SGD", log_of(name)),
        )
        for arm in TRACED
        for name in ("trace", "lambda_1")
    ),
)


# --------------------------------------------------------------------------------------------------------- all together


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train all arms on all seeds, measure, judge, draw."""

    def more(parser: ArgumentParser) -> None:
        parser.add_argument("--processes", type=int, default=1, help="runs side by side")
        parser.add_argument("--seeds", type=int, help="how many; the runs are in their order")

    options = parse(__doc__, argv, more)
    setting = FAST if options.fast else Setting()
    setting = replace(setting, seeds=options.seeds or setting.seeds)
    name = "htr_" + Path(options.data or "digits").name.split("-")[0]
    seeds = range(options.seed, options.seed + setting.seeds)
    runs = [{"arm": arm, "seed": seed} for seed in seeds for arm in ARMS]
    task = functools.partial(once, data=options.data, setting=setting)
    store = options.out / f"{name}{'_fast' * options.fast}.jsonl"
    found = run_all(task, runs, store, processes=options.processes)
    numbers = {
        "data": images(options.data, setting.images)[2],
        "rule": RULE,
        "setting": asdict(setting) | {"drops": list(setting.drops)},
        "arms": {arm: asdict(each) for arm, each in ARMS.items()},
        "runs": [run | each for run, each in zip(runs, found, strict=True)],
    }
    numbers["set_aside"] = len(runs) - len(counted(numbers))
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=fewest(numbers))
    figures = {name: draw(numbers)} if fewest(numbers) > 1 else {}
    shortened = (
        f"{setting.images:,} training images and batches of {setting.batch}, not 60,000 and 256: "
        f"{setting.epochs * math.ceil(setting.images / setting.batch):,} steps, not 7,050; {setting.seeds} seeds; the "
        "rest is the recipe for LeNet on MNIST, whatever the data"
    )
    write(options, __file__, numbers, findings, figures, {}, shortened=shortened, name=name)


COLOURS = dict(zip(ARMS, ("#24292f", "#8c8c8c", "#cc78bc", "#0173b2", "#de8f05", "#029e73", "#d55e00"), strict=True))


def draw(numbers: dict[str, Any]) -> Figure:
    """Paired differences of the gap and ratios of the trace to plain SGD; the gap against flatness, a point a run."""
    figure, axes = new_figure(1, 4, width=11.5, height=3.3)
    others = [arm for arm in ARMS if arm != "SGD"]
    shown: list[tuple[str, Quantity, str]] = [
        ("accuracy gap", accuracy_gap, "difference to SGD  [points]"),
        ("final trace", log_of("trace"), "ratio to SGD"),
    ]
    for ax, (title, quantity, label) in zip(axes[0], shown, strict=False):
        for place, arm in enumerate(others):
            each = against(numbers, arm, "SGD", quantity)
            ends = np.array([each.lower, each.mean, each.upper])
            low, middle, high = np.exp(ends) if label.startswith("ratio") else ends
            ax.plot([low, high], [place, place], color=COLOURS[arm], linewidth=1.6)
            ax.plot(middle, place, "o", color=COLOURS[arm], markersize=4.5)
        ax.axvline(1.0 if label.startswith("ratio") else 0.0, color="#8c8c8c", linewidth=0.8)
        ax.set(yticks=range(len(others)), yticklabels=others, xlabel=label, title=title)
        ax.invert_yaxis()
    axes[0, 1].set_yticklabels([])
    for ax, (name, label) in zip(
        axes[0, 2:], (("trace", "final trace"), ("lambda_1", r"final $\lambda_1$")), strict=True
    ):
        for arm in ARMS:
            runs = [run for run in counted(numbers) if run["arm"] == arm]
            ax.plot(
                [run[name] for run in runs],
                [*map(accuracy_gap, runs)],
                "o",
                color=COLOURS[arm],
                markersize=3.5,
                label=arm,
                alpha=0.8,
            )
        ax.set(xscale="log", xlabel=f"{label}  [loss / parameter$^2$]", ylabel="accuracy gap  [points]")
    axes[0, 3].set_ylabel("")
    axes[0, 3].legend(fontsize=6.5, loc="best")
    return figure


if __name__ == "__main__":
    main()
