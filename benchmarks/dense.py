"""A dense Hessian and its edges: ours against torch.func's jacrev(grad) and LAPACK, each in a fresh process.

    python benchmarks/dense.py [--data DIR] [--edges 10] [--dtype float64] [--threads N] [--out FILE.json]

The network is 784-w-w-10 with cross-entropy: n = 8,070 for w = 10. Ours builds in float64 whatever the network's dtype,
and gives the eigenvectors at both edges besides the eigenvalues.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import problems
import psutil
import torch
from torch import Tensor

from pyhessian_spectra import EmpiricalRisk, HessianOperator, Meter
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.spectra.dense import build, eigenvalues_and_edges

_T = TypeVar("_T")


class Clock:
    """Seconds of wall and of processor time of each part."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}

    def time(self, part: str, call: Callable[[], _T]) -> _T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self.parts[part] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return result


def ours(risk: EmpiricalRisk, edges: int, clock: Clock) -> np.ndarray:
    """Build the matrix, then all eigenvalues, and the vectors at both edges."""
    built, _, _ = clock.time("building", lambda: build(Meter(HessianOperator(risk))))
    matrix = built.matrix
    return clock.time("eigenvalues", lambda: eigenvalues_and_edges(matrix, edges))[0]


def theirs(risk: EmpiricalRisk, edges: int, clock: Clock) -> np.ndarray:
    """256 columns at a time, which is faster and smaller than all at once; then eigenvalues in float64."""
    x, y = risk.data[0]
    theta = risk.layout.flatten([p.detach() for p in risk.model.parameters()])

    def loss(theta: Tensor) -> Tensor:
        parameters = dict(zip(risk.layout.names, risk.layout.unflatten(theta), strict=True))
        return risk.loss_fn(torch.func.functional_call(risk.model, parameters, (x,)), y)

    matrix = clock.time("building", lambda: torch.func.jacrev(torch.func.grad(loss), chunk_size=256)(theta))
    return clock.time("eigenvalues", lambda: torch.linalg.eigvalsh(matrix.double())).numpy()


def measured(way: Callable[..., np.ndarray], options: argparse.Namespace) -> tuple[dict[str, object], np.ndarray]:
    """One way's times, peak memory beyond what the process had before, and eigenvalues."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = problems._images(options.data, "mnist", options.examples, (784,))
    images = (images[0].to(getattr(torch, options.dtype)), images[1])
    model = MLP([784, options.width, options.width, 10]).to(images[0])
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), images)
    risk.gradient()
    before, clock = psutil.Process().memory_info().rss, Clock()
    eigenvalues = way(risk, options.edges, clock)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before
    return {"n": risk.n, "parts": clock.parts, "peak_bytes": peak}, eigenvalues


def main() -> None:
    """Print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with mnist/; else random inputs")
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--edges", type=int, default=10, help="at least 1")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the network")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results, spectra = {}, []
    for way in (theirs, ours):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[way.__name__], eigenvalues = pool.apply(measured, (way, options))
        spectra.append(eigenvalues)
        parts, peak = results[way.__name__]["parts"], results[way.__name__]["peak_bytes"]
        parts["both"] = {clock: sum(part[clock] for part in parts.values()) for clock in ("wall", "cpu")}
        for name, seconds in parts.items():
            print(f"{way.__name__:7} {name:12} {seconds['wall']:7.2f} s, {seconds['cpu']:7.2f} s of processor time")
        print(
            f"{way.__name__:7} {peak / 2**30:.2f} GiB, {peak / results[way.__name__]['n'] ** 2:.1f} n^2 bytes",
            flush=True,
        )
    ratios = {
        f"{part}, {clock}": results["ours"]["parts"][part][clock] / seconds[clock]
        for part, seconds in results["theirs"]["parts"].items()
        for clock in seconds
    }
    difference = float(np.abs(spectra[1] - spectra[0]).max() / np.abs(spectra[0]).max())
    print("ours / theirs: " + "; ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    print(f"eigenvalues differ by {difference:.1e} of the largest")
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "threads": options.threads}
        options.out.write_text(
            json.dumps({**facts, **results, "ratios": ratios, "difference": difference}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
