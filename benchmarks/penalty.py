"""What a trace penalty costs, in gradients (loss and backward) of the same network, medians in one run.

    python benchmarks/penalty.py [--threads N] [--rounds N] [--out FILE.json]

One penalty and its backward pass, for one, three and ten probes, over all and over the middle parameters, of the
Gauss-Newton matrix and of the Hessian; and of the last layer, exactly. Random images. What a run costs follows: with a
penalty every 50 steps, a fiftieth of it a step.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from products import median_seconds
from torch import nn

from pyhessian_spectra import GGNOperator, HessianOperator
from pyhessian_spectra.problems.architectures.lenet import LeNet
from pyhessian_spectra.problems.architectures.resnet import cifar_resnet
from pyhessian_spectra.regularisers import trace_penalty

LOSS = nn.CrossEntropyLoss()
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LeNet, 64 images of 28x28": (LeNet, (64, 1, 28, 28)),
    "ResNet20 of width 8, 16 images of 32x32": (lambda: cifar_resnet(20, width=8), (16, 3, 32, 32)),
}


def ways(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One call a way; the first is the gradient that the others are divided by."""
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)

    def gradient() -> None:
        LOSS(model(batch[0]), batch[1]).backward()

    calls: dict[str, Callable[[], object]] = {"gradient": gradient}
    for matrix in (GGNOperator, HessianOperator):
        for groups in ("all", "middle"):
            for count in (1, 3, 10):
                penalty = trace_penalty(model, LOSS, groups=groups, matrix=matrix, num_probes=count)
                label = f"{matrix.kind}, {groups}, {count} probe{'s' * (count > 1)}"
                calls[label] = lambda penalty=penalty: penalty(batch).backward()
    *_, last = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    head = trace_penalty(model, LOSS, groups=last)
    return calls | {"last layer, exact": lambda: head(batch).backward()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, dict[str, float]] = {}
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        seconds[name] = median_seconds(ways(build(), shape), options.rounds)
        gradient = seconds[name]["gradient"]
        print(f"{name}: a gradient takes {1e3 * gradient:.1f} ms")
        for way, taken in seconds[name].items():
            print(f"  {way:30} {taken / gradient:6.2f}", flush=True)
    if options.out is not None:
        flags = f"--threads {options.threads} --rounds {options.rounds}"
        document = {
            "command": f"python {Path(sys.argv[0]).parent.name}/{Path(sys.argv[0]).name} {flags}",
            "torch": torch.__version__,
            "threads": options.threads,
            "seconds": seconds,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
