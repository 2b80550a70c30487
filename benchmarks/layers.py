"""Products with the blocks of all layers of ResNet20, relative to as many with the whole matrix.

    python benchmarks/layers.py [--data DIR] [--images N] [--threads N]

The density of a layer's block takes the same number of products whether each is one with the block, whose backward pass
is cut down to what the layer needs, or one with the whole matrix, of which the layer's rows are kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import problems
import torch

from pyhessian_spectra import EmpiricalRisk, HessianOperator, Partition

# Of one product; the shortest counts.
REPEATS = 3


def seconds_per_product(risk: EmpiricalRisk) -> float:
    """Processor time of one product whose linearisation is kept."""
    op = HessianOperator(risk)
    v = torch.randn(risk.n, generator=torch.Generator().manual_seed(0), dtype=risk.dtype)
    op @ v  # keeps the linearisation
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        op @ v
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar-10-batches-bin/; else random inputs")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    risk = problems.resnet20(options.data, None, options.images)
    whole = seconds_per_product(risk)
    print(f"{'the whole matrix':24} {whole:7.3f} s")
    parts = []
    for layer in Partition.by_layer(risk.layout):
        parts.append(seconds_per_product(risk.restrict(layer.names)))
        print(f"{layer.label:24} {parts[-1]:7.3f} s  {parts[-1] / whole:5.2f}", flush=True)
    share = sum(parts) / (len(parts) * whole)
    print(f"{len(parts)} layers, one product each: {share:.2f} of as many products with the whole matrix")


if __name__ == "__main__":
    main()
