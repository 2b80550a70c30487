"""Which way of estimating a trace is off by least at equal cost, on small networks trained on the digits.

    python benchmarks/traces.py [--repeats R] [--out FILE.json]

The Hessian is built once in float64, so that its trace is known. Each method then takes the same number of products,
with ``R`` seeds: the root mean square of its errors, and how often its 95 % interval held.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, MatrixOperator, trace
from pyhessian_spectra.problems import load_data
from pyhessian_spectra.spectra.trace import METHODS

PRODUCTS, STEPS = (12, 30, 90), (0, 100, 1000)


def networks() -> Iterator[tuple[str, nn.Module]]:
    """Networks of 700 to 900 parameters, by name."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10)
    yield "MLP 64-10-10-10, ReLU", nn.Sequential(*layers)
    yield "MLP 64-10-10, tanh", nn.Sequential(nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 10))
    layers = nn.Conv2d(1, 4, 3), nn.GELU(), nn.Conv2d(4, 8, 3), nn.GELU(), nn.MaxPool2d(2), nn.Flatten()
    yield "convolutions 4-8, GELU", nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers, nn.Linear(32, 10))


def main() -> None:
    """Print a table and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    data = load_data("digits", num_examples=300)
    x, y = data.inputs.double().reshape(-1, 64), data.targets
    results = []
    for name, model in networks():
        optimizer, done = torch.optim.Adam(model.double().parameters(), lr=3e-3), 0
        for steps in STEPS:
            for _ in range(steps - done):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            done, risk = steps, EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
            dense = HessianOperator(risk).to_dense()
            matrix = MatrixOperator((dense + dense.T) / 2)  # at tiny losses rounding makes it asymmetric
            facts = {"network": name, "n": risk.n, "steps": steps, "loss": risk.loss()}
            results.append(facts | {"products": measure(matrix, options.repeats)})
            for products, methods in results[-1]["products"].items():
                errors = "  ".join(f"{m} {found['relative_error']:.3f}" for m, found in methods.items())
                print(f"{name}, {steps} steps, {products} products: {errors}", flush=True)
    least: dict[str, dict[str, int]] = {str(products): dict.fromkeys(METHODS, 0) for products in PRODUCTS}
    for row in results:
        for products, methods in row["products"].items():
            least[products][min(methods, key=lambda m: methods[m]["relative_error"])] += 1
    print(f"least error in so many of {len(results)}: {least}")
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "repeats": options.repeats}
        options.out.write_text(json.dumps({**facts, "least_error_in": least, "results": results}, indent=1) + "\n")


def measure(matrix: MatrixOperator, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """By number of products and method: root mean square error and standard error over the trace, and coverage."""
    truth = float(matrix.to_dense().trace())
    found: dict[str, dict[str, dict[str, float]]] = {}
    for products in PRODUCTS:
        for method in METHODS:
            estimates = [
                trace(matrix, num_probes=products, method=method, generator=torch.Generator().manual_seed(seed))
                for seed in range(repeats)
            ]
            errors = torch.tensor([estimate.value - truth for estimate in estimates], dtype=torch.float64)
            held = [low <= truth <= high for low, high in (estimate.interval() for estimate in estimates)]
            found.setdefault(str(products), {})[method] = {
                "relative_error": float(errors.square().mean().sqrt() / abs(truth)),
                "relative_stderr": sum(estimate.stderr for estimate in estimates) / repeats / abs(truth),
                "coverage95": sum(held) / repeats,
            }
    return found


if __name__ == "__main__":
    main()
