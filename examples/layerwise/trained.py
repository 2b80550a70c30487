"""Networks trained with checkpoints, and what is measured of the spectra of their layers at each."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from examples.store import Run
from pyhessian_spectra import EmpiricalRisk, SpectralAnalysis, Spectrum, analyze, split_bulk
from pyhessian_spectra.analysis.metrics import (
    Metric,
    htr_compat,
    jensen_shannon,
    kolmogorov,
    relative_largest,
    relative_trace,
    scaled_wasserstein,
    wasserstein,
)
from pyhessian_spectra.analysis.similarity import WHOLE, similarity_matrix
from pyhessian_spectra.errors import SpectraError
from pyhessian_spectra.problems.architectures.lenet import LeNet
from pyhessian_spectra.problems.architectures.resnet import cifar_resnet, resnet18
from pyhessian_spectra.problems.architectures.vgg import VGG11
from pyhessian_spectra.problems.datasets import load_data
from pyhessian_spectra.spectra import Eigenpairs

LOSS = nn.CrossEntropyLoss()
MOMENTUM, BATCH = 0.9, 128
#: A run is dead if its last training loss is not below this part of ln C, or not finite.
ALIVE = 0.8
#: Images that training losses and the statistics of BatchNorm are taken on: the first ones.
SETTLED = 1000
METRICS: tuple[Metric, ...] = (wasserstein, scaled_wasserstein, jensen_shannon, kolmogorov)
RELATIVE: tuple[Metric, ...] = (relative_largest, relative_trace)
#: Where eigenvalues are counted for the figure.
GRID = np.logspace(-5, 3, 65)

RULE = (
    f"a run is dead if its last training loss (first {SETTLED:,} images) is not below {ALIVE:g} ln C, C classes, or "
    "not finite; dead runs count in no pair"
)


@dataclass(frozen=True)
class Network:
    """How a network is built from a number of channels, trained, and analysed."""

    build: Callable[..., nn.Module]
    folder: str  # of --data
    side: int  # of the images, in pixels
    kept: tuple[int, ...]  # epochs after which it is analysed, 0 for before the first
    rates: tuple[float, ...] = (0.01, 0.05)
    seeds: int = 5
    images: int = 10_000
    subsets: int = 3  # disjoint ones that the last checkpoint is analysed on, the others on the first alone
    a_class: int = 10  # images of each class in a subset
    num_eigenvalues: int = 3
    num_steps: int = 30
    coupling: int = 2  # probes of each layer, at the last checkpoint


CIFAR = "cifar-10-batches-bin"
NETWORKS = {
    "LeNet": Network(LeNet, "mnist", 28, (0, 1, 4, 8)),
    "narrow ResNet": Network(functools.partial(cifar_resnet, 8, width=8), CIFAR, 16, (0, 1, 4, 8), images=5000),
    "VGG11_bn": Network(
        functools.partial(VGG11, batch_norm=True, widths=(16, 32, 64, 64, 128, 128, 128, 128)),
        CIFAR,
        32,
        (0, 1, 4),
        seeds=1,
        images=5000,
        subsets=1,
        num_steps=20,
        coupling=0,
    ),
    "ResNet18": Network(
        functools.partial(resnet18, width=16),
        CIFAR,
        32,
        (3,),
        rates=(0.01,),
        seeds=1,
        images=5000,
        subsets=1,
        num_steps=20,
        coupling=0,
    ),
}
#: Those with runs enough for a verdict.
JUDGED = ("LeNet", "narrow ResNet")
FAST = {
    "narrow ResNet": replace(
        NETWORKS["narrow ResNet"],
        build=functools.partial(cifar_resnet, 8, width=4),
        side=8,
        kept=(0, 12),
        rates=(0.05,),
        seeds=1,
        images=400,
        subsets=2,
        a_class=1,
        num_eigenvalues=1,
        num_steps=4,
    )
}


@functools.cache
def images(data: str | None, network: Network) -> tuple[Tensor, Tensor, str]:
    """The first training images (N, channels, side, side), averaged to that size, their labels, and what they are."""
    dataset = load_data(str(Path(data, network.folder)) if data else "digits", num_examples=network.images)
    x, told = dataset.inputs, dataset.description
    if not data:
        x = F.interpolate(x.reshape(len(x), 1, 8, 8), network.side)
    elif network.side < x.shape[-1]:
        x, told = F.avg_pool2d(x, x.shape[-1] // network.side), f"{told}, averaged to {network.side} x {network.side}"
    return x, dataset.targets, told


def train(run: Run, *, data: str | None, networks: Mapping[str, Network]) -> Run:
    """One run: its checkpoints, and comparisons of the layers with the whole at the last.

    Both step sizes of a seed share the start and the order of batches; all checkpoints of a run share the images that
    are analysed and the random probes.
    """
    network, seed = networks[run["network"]], int(run["seed"])
    x, y, _ = images(data, network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network.build(channels=x.shape[1])
    sgd = torch.optim.SGD(model.parameters(), lr=run["rate"], momentum=MOMENTUM)
    order, last = torch.Generator().manual_seed(seed), network.kept[-1]
    checkpoints: list[Run] = []
    for epoch in range(last + 1):
        for batch in torch.randperm(len(x), generator=order).split(BATCH) if epoch else ():
            sgd.zero_grad()
            LOSS(model(x[batch]), y[batch]).backward()
            sgd.step()
        if epoch not in network.kept:
            continue
        settled = with_statistics(model, x[:SETTLED])
        loss, accuracy = _evaluated(settled, x[:SETTLED], y[:SETTLED])
        if not math.isfinite(loss):
            return {"counts": False, "checkpoints": checkpoints}
        try:
            analyses = [
                analysed(settled, network, x, y, seed, subset, coupled=epoch == last)
                for subset in range(network.subsets if epoch == last else 1)
            ]
        except SpectraError as error:
            return {"counts": False, "checkpoints": checkpoints, "refused": str(error)}
        checkpoints.append({"epoch": epoch, "loss": _short(loss), "accuracy": accuracy, **summary(analyses[0])})
        spectra = [spectra_of(each) for each in analyses[:1]]
        checkpoints[-1]["distances"] = {each.__name__: beside_whole(spectra, each)["distances"] for each in METRICS}
    found = {"counts": loss < ALIVE * math.log(int(y.max()) + 1), "checkpoints": checkpoints}
    return found | {"last": compared(analyses), "profile": profile(analyses)}


def with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode whose BatchNorm statistics are those of the images, at the parameters as they are."""
    settled = copy.deepcopy(model)
    update_bn(x.split(250), settled)  # type: ignore[arg-type]  # any iterable will do
    return settled.eval()


@torch.no_grad()
def _evaluated(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    outputs = torch.cat([model(part) for part in x.split(250)])
    return float(LOSS(outputs, y)), float((outputs.argmax(dim=1) == y).float().mean())


def subset_of(y: Tensor, number: int, a_class: int) -> Tensor:
    """Indices of the subset's images: of each class the same number, and no image in two subsets."""
    classes = [torch.nonzero(y == label)[:, 0] for label in y.unique()]
    return torch.cat([each[number * a_class : (number + 1) * a_class] for each in classes])


def analysed(
    model: nn.Module, network: Network, x: Tensor, y: Tensor, seed: int, subset: int, *, coupled: bool
) -> SpectralAnalysis:
    """The analysis on one subset, with probes that depend on the seed and the subset alone."""
    chosen = subset_of(y, subset, network.a_class)
    return analyze(
        EmpiricalRisk(model, LOSS, (x[chosen], y[chosen])),
        num_eigenvalues=network.num_eigenvalues,
        num_steps=network.num_steps,
        trace_probes=2,
        tol=1e-3,
        exact_limit=0,
        coupling_probes=network.coupling if coupled and subset == 0 else 0,
        gauss_newton="always",
        generator=torch.Generator().manual_seed(1000 * seed + subset),
    )


def summary(analysis: SpectralAnalysis) -> Run:
    """Largest eigenvalue, trace and outliers of the whole and of each layer, and how far H is from G.

    ``apart`` is ``||H_ll - G_ll||_F / ||H_ll||_F``; ``residual`` bounds the eigenvalues of the whole of ``H - G``.
    """
    full, part = analysis.full, analysis.gauss_newton
    assert part is not None and part.residual is not None
    return {
        "lambda_1": _short(full.largest.eigenvalues[-1]),
        "lambda_1_error": _short(_reach(full.largest)),
        "trace": _short(full.trace.value),
        "trace_error": _short(math.hypot(full.trace.stderr, full.trace.rounding)),
        "residual": [*map(_short, part.residual)],
        "layers": {
            label: {
                "n": layer.n,
                "lambda_1": _short(layer.largest.eigenvalues[-1]),
                "lambda_1_error": _short(_reach(layer.largest)),
                "trace": _short(layer.trace.value),
                "outliers": split_bulk(layer).num_above,
                "apart": _short(part.apart[label] / layer.frobenius.value),
            }
            for label, layer in analysis.layers.items()
        },
    }


def spectra_of(analysis: SpectralAnalysis, *, whole: Spectrum | None = None) -> dict[str, Spectrum]:
    """The spectra of the whole Hessian, or another in its place, and of its layers."""
    layers = {label: layer.spectrum for label, layer in analysis.layers.items()}
    return {WHOLE: whole or analysis.full.spectrum, **layers}


def beside_whole(spectra: Sequence[Mapping[str, Spectrum]], metric: Metric) -> dict[str, list[float]]:
    """Distances (L,) of the layers from the whole and, from several subsets, the null (1 + L,) of the whole and each.

    With several subsets the two spectra are of different ones, so that a distance contains its null.
    """
    found = similarity_matrix(spectra[0], metric=metric, parts=spectra if len(spectra) > 1 else ())
    shown = found.values if found.across is None else found.across
    null = {} if found.null is None else {"null": [*map(_short, found.null)]}
    return {"distances": [*map(_short, shown[0, 1:])], **null}


def published(spectra: Sequence[Mapping[str, Spectrum]]) -> dict[str, list[float]]:
    """What ``beside_whole`` says by the published distance, which is slow, and so of two subsets only."""
    labels = [label for label in spectra[0] if label != WHOLE]
    pairs = [
        beside_whole([{WHOLE: one[WHOLE], label: one[label]} for one in spectra[:2]], htr_compat) for label in labels
    ]
    null = [pairs[0]["null"][0], *(pair["null"][1] for pair in pairs)] if "null" in pairs[0] else []
    return {"distances": [pair["distances"][0] for pair in pairs], **({"null": null} if null else {})}


def compared(analyses: Sequence[SpectralAnalysis]) -> Run:
    """The last checkpoint: distances by all metrics, of the whole Hessian and of the whole of G; coupling; outliers."""
    spectra = [spectra_of(each) for each in analyses]
    exact = [spectra_of(each, whole=each.gauss_newton.block.spectrum) for each in analyses if each.gauss_newton]
    coupling = None if analyses[0].structure is None else analyses[0].structure.coupling
    return {
        "hessian": {each.__name__: beside_whole(spectra, each) for each in (*METRICS, *RELATIVE)}
        | {htr_compat.__name__: published(spectra)},
        "gauss_newton": {each.__name__: beside_whole(exact, each) for each in METRICS},
        "outliers": {
            label: [split_bulk(each.layers[label]).num_above for each in analyses] for label in analyses[0].layers
        },
        "block_diagonal_error": None
        if coupling is None
        else [_short(coupling.error.value), _short(coupling.error.stderr)],
    }


def profile(analyses: Sequence[SpectralAnalysis]) -> dict[str, list[list[float]]]:
    """The number of eigenvalues above each point of ``GRID``, of the whole and each layer, a row a subset."""
    rows = [
        {label: [*map(_short, each.n * (1 - each.cdf(GRID)))] for label, each in spectra_of(one).items()}
        for one in analyses
    ]
    return {label: [row[label] for row in rows] for label in rows[0]}


def _reach(pairs: Eigenpairs) -> float:
    """How far the largest eigenvalue may be from what was found: its interval, or its residual."""
    value = float(pairs.eigenvalues[-1])
    if pairs.lower is None or pairs.upper is None:
        return float(pairs.residuals[-1])
    return max(value - float(pairs.lower[-1]), float(pairs.upper[-1]) - value)


def _short(value: float) -> float:
    return float(f"{value:.5g}")
