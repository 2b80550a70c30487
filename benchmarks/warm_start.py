"""Whether a Lanczos process that starts from the eigenvectors of the checkpoint before needs fewer products.

python benchmarks/warm_start.py --json docs/results/speed/warm_start.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from pyhessian_spectra import HessianOperator
from pyhessian_spectra.problems import load_problem, train_digits
from pyhessian_spectra.spectra.edges import find_edges

EDGES = {"upper": (10, "LA"), "both": (20, "BE")}


def main() -> None:
    """Products to the ten (twenty) eigenpairs at each checkpoint of the demo, from a random and from a warm start."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, before = [], dict[str, torch.Tensor]()
    with tempfile.TemporaryDirectory() as folder:
        for path in train_digits(folder, num_checkpoints=8):
            op = HessianOperator(load_problem(path, data="digits").risk)
            entry: dict[str, object] = {"checkpoint": path.name}
            for name, (k, which) in EDGES.items():
                starts = {"random": op.space.randn(torch.Generator().manual_seed(0))}
                if name in before:
                    starts["warm"] = before[name].sum(dim=1)
                for kind, start in starts.items():
                    edges = find_edges(
                        op, start, k, which, tol=1e-4, atol=0.0, min_steps=10, max_steps=300, max_products=600
                    )
                    entry[f"{name}, {kind}"] = edges.steps
                    if kind == "random":
                        kept = edges.vectors
                before[name] = kept
            found.append(entry)
            print(entry, flush=True)
    if options.json:
        document = {"command": "python benchmarks/warm_start.py", "tolerance": 1e-4, "products": found}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
