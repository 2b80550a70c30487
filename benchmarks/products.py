"""What a product costs, in gradients (loss and backward) of the same network, medians in one run.

    python benchmarks/products.py [--data DIR] [--threads N] [--out FILE.json]

For each network: ours with the linearisation kept, rebuilt, and at a point that is new with each product (the model's
own parameters in training, or moved along a vector), the Gauss-Newton product, and three ways that other tools take: a
fresh double backward each product (hessian-eigenthings, PyHessian with a loader), double backward through a kept graph
(PyHessian with one batch), and forward over reverse. Nothing is compiled.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import problems
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator


def median_seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so that a drift of the machine's speed hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ways(risk: EmpiricalRisk) -> dict[str, Callable[[], object]]:
    """One call a way; the first is the gradient that the others are divided by."""
    model, loss_fn, (x, y) = risk.model, risk.loss_fn, risk.data[0]
    params = list(model.parameters())
    v = torch.randn(risk.n, generator=torch.Generator().manual_seed(1))
    parts = risk.layout.unflatten(v)
    kept, rebuilt, ggn = HessianOperator(risk), HessianOperator(risk, memory_budget=0), GGNOperator(risk)
    _ = kept @ v
    base, step = kept.point, 1e-3 * v / v.norm()

    def loss() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return loss_fn(model(x), y)

    graph = torch.autograd.grad(loss(), params, create_graph=True)

    def fresh() -> object:
        return torch.autograd.grad(torch.autograd.grad(loss(), params, create_graph=True), params, parts)

    def forward_over_reverse() -> object:
        names = [name for name, _ in model.named_parameters()]

        def value(tensors: tuple[Tensor, ...]) -> Tensor:
            state = dict(zip(names, tensors, strict=True)) | dict(model.named_buffers())
            with sdpa_kernel(SDPBackend.MATH):
                return loss_fn(torch.func.functional_call(model, state, (x,)), y)

        primal = tuple(p.detach() for p in params)
        return torch.func.jvp(torch.func.grad(value), (primal,), (tuple(parts),))

    return {
        "gradient": lambda: torch.autograd.grad(loss_fn(model(x), y), params),
        "ours, kept": lambda: kept @ v,
        "ours, rebuilt": lambda: rebuilt @ v,
        "ours, live, new each time": lambda: kept.at(risk.live()) @ v,
        "ours, moved, new each time": lambda: kept.at(base.moved(step)) @ v,
        "ours, Gauss-Newton kept": lambda: ggn @ v,
        "double backward, kept graph": lambda: torch.autograd.grad(graph, params, parts, retain_graph=True),
        "double backward, fresh": fresh,
        "forward over reverse": forward_over_reverse,
    }


def main() -> None:
    """Print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with mnist/ and cifar-10-batches-bin/; else random inputs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for build in (problems.small_mlp, problems.mlp, problems.resnet20, problems.gpt):
        seconds = median_seconds(ways(build(options.data)), options.rounds)
        results[build.__name__] = seconds
        print(f"{build.__doc__.splitlines()[0]}  gradient {seconds['gradient']:.4f} s", flush=True)
        for name, value in list(seconds.items())[1:]:
            print(f"    {name:30} {value / seconds['gradient']:6.2f} gradients", flush=True)
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "threads": options.threads}
        options.out.write_text(json.dumps({**facts, "seconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
