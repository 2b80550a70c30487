"""Layers against the whole along training (Sankar et al. 2020): distances, falling curvature, outliers, H against G.

python -m examples.layerwise.spectra --data DATA_DIR --out docs/results/layerwise
"""

from __future__ import annotations

import functools
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from examples.experiment import parse, write
from examples.layerwise import spectra_figures as figures
from examples.layerwise.spectra_claims import NAMES, verdicts
from examples.layerwise.trained import BATCH, FAST, GRID, MOMENTUM, NETWORKS, RULE, Network, images, train
from examples.store import Run, finished, run_all
from pyhessian_spectra.plots.style import theme


def planned(networks: Mapping[str, Network], chosen: Sequence[str], data: str | None, first: int) -> list[Run]:
    """All runs of the chosen networks, both step sizes of a seed together."""
    return [
        {"network": name, "rate": rate, "seed": seed, "epochs": one.kept[-1], "images": images(data, one)[-1]}
        for name, one in networks.items()
        if name in chosen
        for seed in range(first, first + one.seeds)
        for rate in one.rates
    ]


def more(parser: ArgumentParser) -> None:
    """Which networks, where finished runs are kept, and how many go side by side."""
    parser.add_argument("--runs", type=Path, help="file of finished runs; by default one in --out")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="the others are left out"
    )
    parser.add_argument("--finished", action="store_true", help="judge and draw the runs that have ended; start none")


@theme()
def main(argv: Sequence[str] | None = None) -> None:
    """Train and analyse all runs that have not ended yet, judge, draw. --data is a folder of data folders."""
    options = parse(__doc__, argv, more)
    networks = FAST if options.fast else NETWORKS
    all_runs = planned(networks, list(networks), options.data, options.seed)
    path = options.runs or options.out / "layer_spectra_runs.jsonl"
    runs = [run for run in all_runs if run["network"] in options.networks]
    runs = finished(runs, path) if options.finished else runs
    once = functools.partial(train, data=options.data, networks=networks)
    found = run_all(once, runs, path, processes=options.processes)
    numbers: dict[str, Any] = {
        "rule": RULE,
        "optimizer": f"SGD, momentum {MOMENTUM:g}, {BATCH} images a step",
        "classes": 10,
        "networks": {name: told(one, options.data) for name, one in networks.items()},
        "runs": [
            {key: value for key, value in {**run, **each}.items() if key not in ("profile", "images", "epochs")}
            for run, each in zip(runs, found, strict=True)
        ],
        "planned": {name: sum(run["network"] == name for run in all_runs) for name in networks},
    }
    findings = verdicts(numbers, fast=options.fast)
    profiles = {
        f"{run['network']}, step {run['rate']:g}, seed {run['seed']}": each["profile"]
        for run, each in zip(runs, found, strict=True)
        if each["counts"]
    }
    arrays = {f"{run}/{label}": np.array(rows) for run, each in profiles.items() for label, rows in each.items()}
    drawn = {
        "layer_spectra": figures.draw_spectra(profiles),
        "layer_spectra_depth": figures.draw_depth(numbers, NAMES),
        "layer_spectra_training": figures.draw_training(numbers),
    }
    drawn = {name: figure for name, figure in drawn.items() if figure is not None}
    write(
        options,
        __file__,
        numbers,
        findings,
        drawn,
        {"grid": GRID, **arrays},
        shortened=shortened(numbers),
        name="layer_spectra",
    )


def told(network: Network, data: str | None) -> dict[str, Any]:
    """What a reader must know of a network."""
    x, _, description = images(data, network)
    with torch.random.fork_rng(devices=[]):
        parameters = sum(p.numel() for p in network.build(channels=x.shape[1]).parameters())
    return {
        "images": description,
        "parameters": parameters,
        "epochs": list(network.kept),
        "rates": list(network.rates),
        "seeds": network.seeds,
        "subsets": network.subsets,
        "analysed": 10 * network.a_class,
    }


def shortened(numbers: dict[str, Any]) -> str:
    """What differs from the paper, and which runs are missing."""
    done = {name: sum(run["network"] == name for run in numbers["runs"]) for name in numbers["planned"]}
    each = "; ".join(
        f"{name}: {done[name]} of {count} planned runs, {numbers['networks'][name]['epochs'][-1]} epochs"
        for name, count in numbers["planned"].items()
    )
    return (
        f"{each}. MNIST's first 10,000 images and CIFAR-10's first 5,000, no augmentation and no schedule; 30 Lanczos "
        "steps (20 in the last two networks), not 128; VGG11_bn and ResNet18 have a quarter of their channels and are "
        "single runs without a verdict. Statistics of BatchNorm are taken afresh before each analysis"
    )


if __name__ == "__main__":
    main()
