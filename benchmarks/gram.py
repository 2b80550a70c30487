"""The Gram matrix of ResNet20's Gauss-Newton rows, whole and of all layers, in gradients of the same network.

python benchmarks/gram.py [--data DIR] [--checkpoint FILE] [--images N] [--threads N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import problems
import torch

from pyhessian_spectra import GGNOperator, eigsh, ggn_gram
from pyhessian_spectra.problems import read_checkpoint


def main() -> None:
    """Print what it took, and how far the largest eigenvalue is from that of eigsh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar-10-batches-bin/; else random inputs")
    parser.add_argument("--checkpoint", type=Path, help="a ResNet20 state dict; else random parameters")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stored = read_checkpoint(options.checkpoint).state_dict if options.checkpoint else None
    risk = problems.resnet20(options.data, stored, options.images)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        risk.gradient()
        times.append(time.perf_counter() - start)
    gradient, start = statistics.median(times[1:]), time.perf_counter()
    gram = ggn_gram(risk)
    found = {
        "rows": len(gram.matrix),
        "gradient_seconds": gradient,
        "seconds": time.perf_counter() - start,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "largest": float(gram.eigenvalues()[-1]),
        "rounding": gram.rounding,
    }
    pairs = eigsh(GGNOperator(risk), 1, tol=1e-6, generator=torch.Generator().manual_seed(0))
    found["largest_of_eigsh"] = [float(pairs.lower[0]), float(pairs.upper[0])]
    print(f"{found['rows']} rows, all layers: {found['seconds']:.1f} s, {found['seconds'] / gradient:.0f} gradients,")
    print(f"{found['peak_bytes'] / 2**30:.1f} GiB with Python and torch; largest {found['largest']:.6f}", end=" ")
    print(f"+- {found['rounding']:.1e}, by eigsh between {pairs.lower[0]:.6f} and {pairs.upper[0]:.6f}")
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "threads": options.threads}
        options.out.write_text(json.dumps({**facts, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
