"""Trace regularisation (Sankar et al. 2020): gaps, flatness and their rank correlation, over arms with paired seeds.

python -m examples.layerwise.htr --data MNIST_DIR --out docs/results/layerwise
"""

from __future__ import annotations

import functools
import math
from argparse import ArgumentParser
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.experiment import judge, new_figure, parse, write
from examples.layerwise.htr_claims import CRITERIA, Quantity, accuracy_gap, against, counted, fewest, log_of
from examples.layerwise.htr_runs import ARMS, FAST, RULE, Setting, images, once
from examples.store import run_all
from pyhessian_spectra.plots.style import theme


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
    figure, axes = new_figure(1, 4, width=11.5, height=3.5)
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
    for ax, (name, label) in zip(axes[0, 2:], (("trace", "trace"), ("lambda_1", r"$\lambda_1$")), strict=True):
        for arm in ARMS:
            runs = [run for run in counted(numbers) if run["arm"] == arm]
            gaps = [*map(accuracy_gap, runs)]
            ax.plot([run[name] for run in runs], gaps, "o", color=COLOURS[arm], markersize=3.5, label=arm, alpha=0.8)
        ax.set(xlabel=f"final {label}  [loss / parameter$^2$]", title=f"accuracy gap and {label}")
    axes[0, 2].set_ylabel("accuracy gap  [points]")
    figure.legend(*axes[0, 3].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS), fontsize=7.5)
    return figure


if __name__ == "__main__":
    main()
