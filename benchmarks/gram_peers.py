"""Exact Gauss-Newton spectra of a LeNet, whole and of all layers, beside ViViT's, in one run.

    python benchmarks/gram_peers.py [--images N] [--repeats R] [--threads N] [--out FILE.json]

pip install backpack-for-pytorch vivit-for-pytorch. ViViT 1.0 calls Tensor.symeig, which torch has no more; it is given
``torch.linalg.eigvalsh`` in its place. ViViT's whole and layers are two runs, as its groups must not overlap.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, ggn_gram


def lenet() -> nn.Sequential:
    """LeNet with ReLU and maxima, 61,706 parameters."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def vivit(x: torch.Tensor, y: torch.Tensor) -> Callable[[bool], list[torch.Tensor]]:
    """Eigenvalues of the Gram matrix of all parameters, or of each layer."""
    from backpack import backpack, extend
    from vivit import EigvalshComputation

    torch.Tensor.symeig = lambda a, eigenvectors=False: (torch.linalg.eigvalsh(a), None)
    model, loss_fn = extend(lenet()), extend(nn.CrossEntropyLoss())
    params = list(model.parameters())

    def run(layers: bool) -> list[torch.Tensor]:
        parts = [params[i : i + 2] for i in range(0, len(params), 2)] if layers else [params]
        computation, groups = EigvalshComputation(), [{"params": part} for part in parts]
        loss = loss_fn(model(x), y)
        with backpack(computation.get_extension(), extension_hook=computation.get_extension_hook(groups)):
            loss.backward()
        return [computation.get_result(group) for group in groups]

    return run


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The last result, and the median of the seconds taken after a first call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return result, statistics.median(times)


def main() -> None:
    """Print seconds, the largest eigenvalues, and how far they are from float64."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(options.images, 1, 28, 28, generator=generator)
    y = torch.randint(10, (options.images,), generator=generator)
    risk = EmpiricalRisk(lenet(), nn.CrossEntropyLoss(), (x, y))

    def ours() -> dict[str, float]:
        gram = ggn_gram(risk)
        return {name: float(g.eigenvalues()[-1]) for name, g in {"whole": gram, **gram.groups}.items()}

    truth = float(ggn_gram(EmpiricalRisk(lenet().double(), nn.CrossEntropyLoss(), (x.double(), y))).eigenvalues()[-1])
    run = vivit(x, y)
    (mine, seconds), (whole, first), (layers, second) = (
        timed(ours, options.repeats),
        timed(lambda: run(False), options.repeats),
        timed(lambda: run(True), options.repeats),
    )
    theirs = [float(whole[0].max()), *(float(part.max()) for part in layers)]
    found = {
        "ours_seconds": seconds,
        "vivit_seconds": [first, second],
        "ours": list(mine.values()),
        "vivit": theirs,
        "float64": truth,
    }
    print(f"ours, whole and layers, with errors: {seconds:.2f} s; ViViT: {first:.2f} s whole and {second:.2f} s layers")
    off = [abs(value / truth - 1) for value in (mine["whole"], theirs[0])]
    print(f"largest eigenvalue off float64 by {off[0]:.1e} (ours) and {off[1]:.1e}, relative")
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "threads": options.threads}
        options.out.write_text(json.dumps({**facts, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
