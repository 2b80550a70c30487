"""Re-initialising the weights of the largest Hessian scores after each epoch (Rahimi et al. 2020), paired by seed.

python -m examples.layerwise.reinitialisation --data MNIST_DIR --out docs/results/layerwise
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from examples.experiment import Criterion, Judgement, judge, new_figure, parse, write
from examples.layerwise.resetting import ARMS, BATCH, CURVES, MAIN, MOMENTUM, RATE, Setting, images, train
from examples.paired import LEVEL, Paired, paired
from examples.store import finished, run_all
from pyhessian_spectra.plots.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, theme

#: A run is dead if its test accuracy before the last reset is below this, in per cent, or a loss is not finite.
ALIVE = 50.0
#: Epochs at the end that "ends with" is the mean of, and the fall of accuracy between epochs, in points, that counts.
LAST, FALL = 5, 1.0
#: Test accuracies in per cent that convergence is timed by.
LEVELS = (95, 96, 97)

RULE = (
    f"a run is dead if its test accuracy at the last epoch is below {ALIVE:g} % or a loss is not finite; dead runs "
    f"count in no pair. Measured before each reset; final values are means of the last {LAST} epochs; a run that never "
    "reaches an accuracy counts as reaching it one epoch after the last"
)


def summary(found: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """What the criteria are about, of one run; accuracies, gaps and areas in per cent, from ``CURVES``."""
    curve = {f"{when}_{name}": np.array(found[f"{when}_{name}"]) for when in ("before", "after") for name in CURVES}
    test, trained = 100 * curve["before_test_accuracy"], 100 * curve["before_train_accuracy"]
    reached = {str(level): np.flatnonzero(test >= level) for level in LEVELS}
    if test[-1] < ALIVE or not all(np.isfinite(each).all() for each in curve.values()):
        return {"dead": True}
    return {
        "dead": False,
        "accuracy": float(test[-LAST:].mean()),
        "accuracy_after": float(100 * curve["after_test_accuracy"][-LAST:].mean()),
        "area": float(test.mean()),
        "gap": float((trained - test)[-LAST:].mean()),
        "loss_gap": float((curve["before_test_loss"] - curve["before_train_loss"])[-LAST:].mean()),
        "train_loss": float(curve["before_train_loss"][-LAST:].mean()),
        "test_loss": float(curve["before_test_loss"][-LAST:].mean()),
        "falls": int((np.diff(test) < -FALL).sum()),
        "reset_costs": float(100 * (curve["before_test_accuracy"] - curve["after_test_accuracy"]).mean()),
        "epochs_to": {level: int(where[0]) + 1 if len(where) else epochs + 1 for level, where in reached.items()},
    }


def values(numbers: dict[str, Any], arm: str, quantity: str) -> dict[int, float]:
    """One quantity of an arm's counted runs by seed; ``epochs_to 95`` is an entry of ``epochs_to``."""
    name, _, entry = quantity.partition(" ")
    runs = {int(seed): run for seed, run in numbers["arms"][arm].items() if not run["dead"]}
    return {seed: float(run[name][entry] if entry else run[name]) for seed, run in runs.items()}


def apart(numbers: dict[str, Any], arm: str, other: str, quantity: str) -> Paired:
    """The paired difference of two arms."""
    return paired(values(numbers, arm, quantity), values(numbers, other, quantity))


def differs(arm: str, other: str, quantity: str, *more: str, higher: bool) -> Judgement:
    """Decides by the interval of one quantity; others are told."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        each = {name: apart(numbers, arm, other, name) for name in (quantity, *more)}
        told = "; ".join(f"{name.replace('_', ' ')} {found}" for name, found in each.items())
        return each[quantity].above if higher else each[quantity].below, told

    return decide


def faster(numbers: dict[str, Any]) -> tuple[bool, str]:
    last, holds, told = numbers["epochs"], [], []
    for level in LEVELS:
        plain, top = (values(numbers, arm, f"epochs_to {level}") for arm in ("plain", "top 10"))
        difference = paired(top, plain)
        reached = [sum(v <= last for v in each.values()) for each in (plain, top)]
        told.append(f"{level} %: {difference}, reached by {reached[0]} of {len(plain)} and {reached[1]} of {len(top)}")
        if 2 * reached[0] >= len(plain):
            holds.append(difference.below)
    return bool(holds) and all(holds), "; ".join(told)


def no_impact(numbers: dict[str, Any]) -> tuple[bool, str]:
    rise = {
        select: {int(seed): each[f"{select} 10"] for seed, each in numbers["zeroed"].items()}
        for select in ("top", "random", "bottom")
    }
    losses = {select: {seed: each["train_loss"] for seed, each in found.items()} for select, found in rise.items()}
    difference = paired(losses["top"], losses["random"])
    told = ", ".join(
        f"{select} {np.mean(list(losses[select].values())):+.3g} "
        f"(test accuracy {100 * np.mean([each['test_accuracy'] for each in found.values()]):+.2f} points)"
        for select, found in rise.items()
    )
    return not difference.above, f"mean rise of the training loss: {told}; top - random {difference}"


INTERVAL = f"the paired {LEVEL:.0%} interval over seeds"
CRITERIA = (
    Criterion(
        "accuracy",
        "k = 10 ends with a higher accuracy than plain training",
        f"{INTERVAL} of the final test accuracy lies above zero",
        differs("top 10", "plain", "accuracy", "accuracy_after", higher=True),
    ),
    Criterion(
        "area",
        "k = 10 has more area under the accuracy curve than plain training",
        f"{INTERVAL} of the test accuracy's mean over all epochs lies above zero",
        differs("top 10", "plain", "area", higher=True),
    ),
    Criterion(
        "control",
        "k = 10 ends with a higher accuracy than a random 10 % re-initialised",
        f"{INTERVAL} of the final test accuracy lies above zero",
        differs("top 10", "random 10", "accuracy", "area", higher=True),
    ),
    Criterion(
        "faster",
        "k = 10 converges faster than plain training",
        f"{INTERVAL} of the epochs to a test accuracy lies below zero, for each of {', '.join(map(str, LEVELS))} % "
        "that half of the plain runs reach",
        faster,
    ),
    Criterion(
        "minimum",
        "k = 10 reaches a better minimum than plain training",
        f"{INTERVAL} of the final training loss lies below zero",
        differs("top 10", "plain", "train_loss", "test_loss", higher=False),
    ),
    Criterion(
        "regularises",
        "k = 10 has a smaller gap than plain training",
        f"{INTERVAL} of the final gap between training and test accuracy lies below zero",
        differs("top 10", "plain", "gap", "loss_gap", higher=False),
    ),
    Criterion(
        "regularises",
        "k = 20 has a smaller gap than plain training",
        f"{INTERVAL} of the final gap between training and test accuracy lies below zero",
        differs("top 20", "plain", "gap", "loss_gap", "accuracy", higher=False),
    ),
    Criterion(
        "unstable",
        "k = 30 is unstable",
        f"{INTERVAL} of the number of falls of test accuracy by more than {FALL:g} point from one epoch to the next, "
        "against plain training, lies above zero",
        differs("top 30", "plain", "falls", "accuracy", higher=True),
    ),
    Criterion(
        "impact",
        "weights of a high score have no impact",
        "zeroing the top 10 % of the last layer at the end of each plain run raises the training loss no more than "
        f"zeroing a random 10 %: {INTERVAL} does not lie above zero",
        no_impact,
    ),
    Criterion(
        "exact",
        "the exact Hessian is better than its diagonal",
        f"{INTERVAL} of the final test accuracy, sums of exact rows against the diagonal, lies above zero",
        differs("top 10", "diagonal 10", "accuracy", "area", higher=True),
    ),
)


def more(parser: ArgumentParser) -> None:
    """Where finished runs are kept, and how many go side by side."""
    parser.add_argument("--runs", type=Path, help="file of finished runs; by default one in --out")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--finished", action="store_true", help="judge and draw the runs that have ended; start none")


@theme()
def main(argv: Sequence[str] | None = None) -> None:
    """Train all arms, compare them, draw."""
    options = parse(__doc__, argv, more)
    setting = Setting(options.data or "digits")
    if options.fast:
        setting = Setting(options.data or "digits", (64, 32), 1000, 8, 100, pooled_seeds=1)
    description = images(setting)[-1]
    seeds = {name: (1 + (name in MAIN)) if options.fast else arm.seeds for name, arm in ARMS.items()}
    runs = [
        {"arm": name, "seed": options.seed + seed, "images": description, "hidden": list(setting.hidden)}
        for name in ARMS
        for seed in range(seeds[name])
    ]
    path, planned = options.runs or options.out / "reinitialisation_runs.jsonl", len(runs)
    runs = finished(runs, path) if options.finished else runs
    every = run_all(functools.partial(train, setting=setting), runs, path, processes=options.processes)
    by_arm: dict[str, dict[str, Any]] = {name: {} for name in ARMS}
    for run, found in zip(runs, every, strict=True):
        by_arm[run["arm"]][str(run["seed"])] = found
    numbers: dict[str, Any] = {
        "images": description,
        "hidden": list(setting.hidden),
        "epochs": setting.epochs,
        "optimizer": f"SGD, rate {RATE:g}, momentum {MOMENTUM:g}, {BATCH} images a step",
        "rule": RULE,
        "scored_images": {
            name: BATCH if arm.scored == 0 else arm.scored or setting.scored
            for name, arm in ARMS.items()
            if arm.choices and arm.choices.get("select") != "random"
        },
        "arms": {
            name: {seed: summary(found, setting.epochs) for seed, found in some.items()}
            for name, some in by_arm.items()
        },
        "zeroed": {seed: found["zeroed"] for seed, found in by_arm["plain"].items()},
        "overlap": {seed: found["overlap"] for seed, found in by_arm["plain"].items()},
    }
    quantities = ("accuracy", "area", "gap", "train_loss", "falls")
    numbers["against_plain"] = {
        name: {q: str(apart(numbers, name, "plain", q)) for q in quantities}
        for name in ARMS
        if name != "plain" and apart(numbers, name, "plain", "accuracy").pairs
    }
    fewest = min(len(values(numbers, name, "accuracy")) for name in MAIN)
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=fewest)
    curves = {
        f"{name}/{when}_{curve}": np.array([found[f"{when}_{curve}"] for found in some.values()])
        for name, some in by_arm.items()
        for when in ("before", "after")
        for curve in CURVES
    }
    figures = {"reinitialisation": drawn_curves(by_arm, numbers), "reinitialisation_choices": drawn_choices(numbers)}
    shortened = (
        f"{description}; {setting.epochs} epochs; the Hessian sees {setting.scored:,} images, {setting.pooled[0]} for "
        f"the last two layers; exact scores of the last three layers at {setting.pooled_seeds} ends of plain training "
        f"only, on {setting.pooled[1]} images, and otherwise by the diagonal; sweeps over 3 seeds, without verdicts"
    )
    if len(runs) < planned:
        shortened += f"; {len(runs)} of {planned} runs, those that had ended"
    write(options, __file__, numbers, findings, figures, curves, shortened=shortened)


COLOURS = {"plain": INK, "random 10": MUTED, "top 10": BLUE, "top 20": ORANGE, "top 30": VERMILION}


def drawn_curves(by_arm: Mapping[str, Mapping[str, Any]], numbers: dict[str, Any]) -> Figure:
    """Test error by epoch, mean and standard error over counted runs, before and after each reset."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, squeeze=False, sharey=True)
    for ax, when in zip(axes[0], ("before", "after"), strict=True):
        for arm, colour in COLOURS.items():
            alive = values(numbers, arm, "accuracy")
            if not alive:
                continue
            rows = 100 - 100 * np.array([by_arm[arm][str(seed)][f"{when}_test_accuracy"] for seed in alive])
            epochs, mean = np.arange(1, rows.shape[1] + 1), rows.mean(axis=0)
            error = rows.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else 0 * mean
            ax.plot(epochs, mean, color=colour, lw=1.4, label=f"{arm} ({len(rows)} runs)")
            ax.fill_between(epochs, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
        ax.set(xlabel="Epoch", yscale="log", title=f"{when.capitalize()} each reset")
    axes[0, 0].set_ylabel("Test error [%]")
    for label in (axes[0, 0].yaxis.set_major_formatter, axes[0, 0].yaxis.set_minor_formatter):
        label(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 1)))
    if axes[0, 0].lines:
        axes[0, 0].legend(loc="upper right")
    return figure


def drawn_choices(numbers: dict[str, Any]) -> Figure:
    """Paired differences of all arms from plain training, and what zeroing weights does."""
    figure, axes = new_figure(1, 2, width=9.0, height=3.8)
    # fewer than two pairs have no interval
    arms = [name for name in ARMS if name != "plain" and apart(numbers, name, "plain", "accuracy").pairs > 1][::-1]
    told = {"accuracy": "final accuracy", "area": "mean over epochs"}
    for offset, quantity, colour in ((0.15, "accuracy", BLUE), (-0.15, "area", ORANGE)):
        for place, name in enumerate(arms):
            found = apart(numbers, name, "plain", quantity)
            label, reach = told.pop(quantity, None), [[found.mean - found.lower], [found.upper - found.mean]]
            axes[0, 0].errorbar(
                found.mean, place + offset, xerr=reach, fmt="o", ms=3.5, lw=1.2, color=colour, label=label
            )
    axes[0, 0].axvline(0, color=MUTED, lw=0.8)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    axes[0, 0].set(xlabel="Test accuracy minus plain [points]", title="Before resets, 95 % intervals")
    if len(told) < 2:
        axes[0, 0].legend(loc="best")
    for select, colour in (("top", VERMILION), ("random", MUTED), ("bottom", GREEN)):
        rows = np.array(
            [[each[f"{select} {k}"]["train_loss"] for k in (10, 20, 30)] for each in numbers["zeroed"].values()]
        )
        axes[0, 1].plot((10, 20, 30), rows.mean(axis=0), color=colour, lw=1.4, label=select)
        axes[0, 1].plot((10, 20, 30), rows.T, ".", color=colour, ms=4)
    axes[0, 1].set_yscale("symlog", linthresh=1e-4)
    axes[0, 1].set(xlabel="Weights of the last layer zeroed [%]", ylabel="Rise of the training loss [nats]")
    axes[0, 1].set(title="At the end of plain training", xticks=(10, 20, 30))
    axes[0, 1].legend(loc="best")
    return figure


if __name__ == "__main__":
    main()
