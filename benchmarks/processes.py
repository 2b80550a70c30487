"""Products on several processes against one, each with one thread and one batch.

    python benchmarks/processes.py [--data DIR] [--processes 2] [--images N] [--out FILE.json]

ResNet20, kept linearisations; the time is that of the slowest process, and the processes' first product, which builds
the linearisation, is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import problems
import torch
import torch.distributed as dist
import torch.multiprocessing

from pyhessian_spectra import HessianOperator
from pyhessian_spectra.curvature.distributed import Processes

ROUNDS = 7


def seconds(options: argparse.Namespace, processes: Processes, shares: int) -> float:
    """The median time of a product."""
    torch.set_num_threads(1)
    risk = problems.resnet20(options.data, None, options.images)
    x, y = risk.data[0]
    size = -(-len(x) // shares)
    op = HessianOperator(risk.replace(data=list(zip(x.split(size), y.split(size), strict=True))).dealt(processes))
    v = torch.randn(op.n, generator=torch.Generator().manual_seed(0))
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        _ = op @ v
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _one(rank: int, options: argparse.Namespace, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=options.processes)
    Path(folder, str(rank)).write_text(str(seconds(options, Processes(dist.group.WORLD), options.processes)))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar-10-batches-bin/; else random inputs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    alone = seconds(options, Processes(), options.processes)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_one, args=(options, folder), nprocs=options.processes)
        together = max(float(Path(folder, str(rank)).read_text()) for rank in range(options.processes))
    print(
        f"one process {alone:.3f} s a product, {options.processes} of them {together:.3f} s: {alone / together:.2f} x"
    )
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__}
        options.out.write_text(json.dumps({**facts, "one": alone, "together": together}, indent=1) + "\n")


if __name__ == "__main__":
    main()
