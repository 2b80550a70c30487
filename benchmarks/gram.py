"""The Gram matrix of ResNet20's Gauss-Newton rows, whole and of all layers, in gradients of the same network.

    python benchmarks/gram.py [--data DIR] [--checkpoint FILE] [--images N] [--threads N] [--out FILE.json] [--report]

With --report, the default analysis with all layers instead, with and without the Gram matrix.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from typing import Any

import problems
import torch

from pyhessian_spectra import EmpiricalRisk, GGNOperator, analyze, eigsh, ggn_gram
from pyhessian_spectra.problems import read_checkpoint


def main() -> None:
    """Measure one or the other."""
    parser = problems.resnet20_options(__doc__)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stored = read_checkpoint(options.checkpoint).state_dict if options.checkpoint else None
    risk = problems.resnet20(options.data, stored, options.images)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        risk.gradient()
        times.append(time.perf_counter() - start)
    gradient = statistics.median(times[1:])
    found = reports(risk) if options.report else gram_of(risk, gradient)
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "threads": options.threads}
        options.out.write_text(json.dumps({**facts, "gradient_seconds": gradient, **found}, indent=1) + "\n")


def reports(risk: EmpiricalRisk) -> dict[str, Any]:
    """Seconds and products of two analyses, and how far apart their layers' traces are, in intervals."""
    found: dict[str, Any] = {}
    traces = {}
    for which in ("auto", "never"):
        start = time.perf_counter()
        analysis = analyze(risk, gauss_newton=which, generator=torch.Generator().manual_seed(0))
        found[which] = {"seconds": time.perf_counter() - start, "products": analysis.timing["num_products"]}
        traces[which] = {name: block.trace for name, block in analysis.layers.items()}
        print(f"{which}: {found[which]['seconds']:.0f} s, {found[which]['products']} products", flush=True)
    exact = traces["auto"]
    inside = [t.interval()[0] <= exact[name].value <= t.interval()[1] for name, t in traces["never"].items()]
    found["ratio"] = found["auto"]["seconds"] / found["never"]["seconds"]
    found["exact_traces_inside_sampled_intervals"] = f"{sum(inside)} of {len(inside)}"
    print(f"ratio {found['ratio']:.2f}; exact traces of layers inside the sampled 95 % intervals: {sum(inside)}")
    return found


def gram_of(risk: EmpiricalRisk, gradient: float) -> dict[str, Any]:
    """Print what it took, and how far the largest eigenvalue is from that of eigsh."""
    start = time.perf_counter()
    gram = ggn_gram(risk)
    found = {
        "rows": len(gram.matrix),
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
    return found


if __name__ == "__main__":
    main()
