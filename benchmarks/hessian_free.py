"""What a Hessian-free step costs beside its products and its gradient, and what these cost; medians of one run.

    python benchmarks/hessian_free.py [--threads N] [--rounds N] [--out FILE.json]

The autoencoder of Zhang et al. (2017), 784-1000-500-250-30 and back, gradient on 2,000 random images, 30 iterations of
conjugate gradients on 250, 500 and 1,000 of them; one block, and encoder and decoder. The time of a step is taken apart
while it runs: gradient, products, linearisation, the loss at its end, and the rest, which is vectors. Products are
also compared with a gradient on as many images. Then a Newton step's Hessian beside the dense path's, and products of
blocks side by side in one backward pass beside one after another.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from products import median_seconds
from torch import nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Meter, Partition
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.optimisers import HessianFree
from pyhessian_spectra.spectra.dense import entries

WIDTHS = (784, 1000, 500, 250, 30)
IMAGES, CURVATURE = 2000, (250, 500, 1000)
PARTS = {
    "gradient": (EmpiricalRisk, "loss_and_gradient"),
    "products": (RiskOperator, "_matvec"),
    "linearisation": (RiskOperator, "linearise"),
    "loss after": (EmpiricalRisk, "loss"),
}


def autoencoder() -> nn.Sequential:
    """Tanh units, linear at the end."""
    torch.manual_seed(0)
    pairs = itertools.pairwise((*WIDTHS, *WIDTHS[-2::-1]))
    layers = [each for a, b in pairs for each in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


@contextlib.contextmanager
def taken_apart() -> Iterator[dict[str, float]]:
    """Seconds of this process in each part of a step, while it runs."""
    seconds = dict.fromkeys(PARTS, 0.0)
    originals = {part: getattr(owner, name) for part, (owner, name) in PARTS.items()}

    def timed(part: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return originals[part](*args, **kwargs)
            finally:
                seconds[part] += time.process_time() - start

        return call

    for part, (owner, name) in PARTS.items():
        setattr(owner, name, timed(part))
    try:
        yield seconds
    finally:
        for part, (owner, name) in PARTS.items():
            setattr(owner, name, originals[part])


def step_taken_apart(count: int, blocks: list[str] | None, rounds: int) -> dict[str, float]:
    """Median seconds of a step and of its parts."""
    model, x = autoencoder(), torch.rand(IMAGES, WIDTHS[0], generator=torch.Generator().manual_seed(1))
    risk = EmpiricalRisk(model, nn.MSELoss(), (x, x))
    subset = risk.replace(data=(x[:count], x[:count]))
    half = len(risk.layout.names) // 2
    partition = None if blocks is None else [risk.layout.names[:half], risk.layout.names[half:]]
    optimizer = HessianFree(model.named_parameters(), partition=partition, lr=0.01, cg_rtol=0.0)
    optimizer.step(risk, subset)
    assert all(solve.iterations == 30 for solve in optimizer.records[0].solves), (
        "the systems were solved before the end"
    )
    found = []
    for _ in range(rounds):
        with taken_apart() as seconds:
            start = time.process_time()
            optimizer.step(risk, subset)
            seconds["step"] = time.process_time() - start
        found.append(seconds)
    medians = {part: statistics.median(each[part] for each in found) for part in found[0]}
    medians["rest"] = medians["step"] - sum(medians[part] for part in PARTS)
    medians["ratio"] = statistics.median(each["step"] / (each["gradient"] + each["products"]) for each in found)
    return medians


def products_in_gradients(rounds: int) -> dict[str, dict[str, float]]:
    """Products with the Gauss-Newton matrix and its blocks, in gradients of as many images."""
    model, found = autoencoder(), {}
    for count in CURVATURE:
        x = torch.rand(count, WIDTHS[0], generator=torch.Generator().manual_seed(1))
        risk = EmpiricalRisk(model, nn.MSELoss(), (x, x))
        live = risk.live()
        op = GGNOperator(risk, point=live)
        half = len(risk.layout.names) // 2
        operators = {
            "whole": op,
            "encoder": op.block(risk.layout.names[:half]),
            "decoder": op.block(risk.layout.names[half:]),
        }
        calls: dict[str, Callable[[], object]] = {"gradient": lambda r=risk, p=live: r.loss_and_gradient(p)}
        for name, each in operators.items():
            v = torch.randn(each.n)
            calls[name] = lambda o=each, v=v: o @ v
        seconds = median_seconds(calls, rounds)
        found[str(count)] = {name: seconds[name] / seconds["gradient"] for name in operators}
    return found


def newton_beside_dense(rounds: int) -> dict[str, float]:
    """Seconds to build the Hessian of a small network, as a Newton step does and as the dense path does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 10)).double()
    x, y = torch.rand(500, 64, dtype=torch.float64), torch.randint(10, (500,))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    calls = {
        "Newton": lambda: HessianOperator(risk, point=risk.live()).to_dense(),
        "dense path": lambda: entries(Meter(HessianOperator(risk))),
    }
    return median_seconds(calls, rounds) | {"parameters": risk.n}


def side_by_side(rounds: int) -> dict[str, float]:
    """The time of the blocks' products taken as columns of one backward pass, over that of one after another."""
    found = {}
    for width, count in ((10, 50), (100, 100), (100, 500)):
        torch.manual_seed(0)
        sizes = (64, width, width, 10)
        layers = [each for a, b in itertools.pairwise(sizes) for each in (nn.Linear(a, b), nn.Tanh())]
        model = nn.Sequential(*layers[:-1])
        data = torch.rand(count, 64), torch.randint(10, (count,))
        op = GGNOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), data), columns=3)
        groups = list(Partition.by_layer(op.risk.layout))
        blocks, vectors = [op.block(g.names) for g in groups], [torch.randn(len(g)) for g in groups]
        columns = torch.stack([g.embed(v, op.n) for g, v in zip(groups, vectors, strict=True)], dim=1)
        calls = {
            "together": lambda o=op, c=columns: o @ c,
            "in turn": lambda b=blocks, v=vectors: [o @ w for o, w in zip(b, v, strict=True)],
        }
        seconds = median_seconds(calls, 4 * rounds)
        found[f"MLP 64-{width}-{width}-10, {count} examples"] = seconds["together"] / seconds["in turn"]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = {
        f"{label}, curvature of {count}": step_taken_apart(count, blocks, options.rounds)
        for count in CURVATURE
        for label, blocks in (("one block", None), ("two blocks", ["encoder", "decoder"]))
    }
    found = {
        "command": f"python benchmarks/hessian_free.py --threads {options.threads} --rounds {options.rounds}",
        "steps": steps,
        "products in gradients": products_in_gradients(options.rounds),
        "building a Hessian, seconds": newton_beside_dense(options.rounds),
        "side by side over in turn": side_by_side(options.rounds),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
