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

from examples.experiment import judge, new_figure, parse, write
from examples.layerwise.reinitialisation_claims import CRITERIA, RULE, apart, summary, values
from examples.layerwise.resetting import ARMS, BATCH, CURVES, MAIN, MOMENTUM, RATE, Setting, images, train
from examples.store import finished, run_all
from pyhessian_spectra.plots.style import BLUE, GREEN, INK, MUTED, ORANGE, VERMILION, theme


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
