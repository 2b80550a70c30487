"""A whole analysis of ResNet20 beside the field's tools, on one problem, in one run.

    python benchmarks/report.py [--data DIR] [--checkpoint CKPT] [--images N] [--threads N] [--out FILE.json]

Asked of each: the top ten eigenvalues, the trace, and the density of 100 Lanczos steps in all, as far as the tool can.
Ours gives each with its error; the others without. The rivals come from PyPI: pip install '.[bench]'. A tool that is
not installed, or does not run on this torch, is named with the reason.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import problems
import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, Meter, Settings
from pyhessian_spectra.problems import read_checkpoint
from pyhessian_spectra.spectra.krylov import krylov_pass


def ours(risk: EmpiricalRisk) -> dict[str, Any]:
    """One Krylov pass: the top ten with certificates, density with atoms, trace with its interval."""
    op = Meter(HessianOperator(risk))
    settings = Settings(num_probes=2, num_steps=10, tol=1e-3, max_steps=200, rtol=0.1, trace_probes=20)
    found = krylov_pass(op, settings, which="LA", generator=torch.Generator().manual_seed(0))
    largest = found.largest
    return {
        "top": largest.eigenvalues[::-1].tolist(),
        "top_interval": [[float(a), float(b)] for a, b in zip(largest.lower[::-1], largest.upper[::-1], strict=True)],
        "trace": found.trace.value,
        "trace_interval95": list(found.trace.interval()),
        "density": "top ten exact, quadrature on the rest, bracketed",
        "products": op.num_products,
    }


def pyhessian(risk: EmpiricalRisk) -> dict[str, Any]:
    """Power iteration with deflation, Hutchinson's trace, one density; each a pass of its own."""
    from pyhessian import hessian

    tool = hessian(risk.model, risk.loss_fn, data=risk.data[0], cuda=False)
    out: dict[str, Any] = {"top": [float(value) for value in tool.eigenvalues(top_n=10)[0]]}
    out["trace"] = float(np.mean(tool.trace()))
    try:
        tool.density(iter=100, n_v=1)
        out["density"] = "one probe, 100 steps"
    except Exception as error:
        out["density"] = f"does not run: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return out


def eigenthings(risk: EmpiricalRisk) -> dict[str, Any]:
    """Lanczos, Hutch++ and quadrature, at its defaults but for the steps."""
    import hessian_eigenthings as tool

    op = tool.HessianOperator(risk.model, list(risk.data), tool.supervised_loss(risk.loss_fn))
    found = tool.lanczos(op, k=10, max_iter=50, which="LA", seed=0)
    trace = tool.trace(op, num_matvecs=30, seed=0)
    tool.spectral_density(op, num_runs=1, lanczos_steps=100, seed=0)
    return {
        "top": sorted(map(float, found.eigenvalues), reverse=True),
        "trace": float(trace.estimate),
        "density": "one probe, 100 steps",
        "products": 50 + 30 + 100,
    }


def curvlinops(risk: EmpiricalRisk) -> dict[str, Any]:
    """Its operator under scipy's eigsh, its Hutchinson trace, its spectrum."""
    import scipy.sparse.linalg
    from curvlinops import HessianLinearOperator, hutchinson_trace

    params = [p for p in risk.model.parameters() if p.requires_grad]
    op = HessianLinearOperator(risk.model, risk.loss_fn, params, list(risk.data), check_deterministic=False)
    values = scipy.sparse.linalg.eigsh(op.to_scipy(), k=10, which="LA", tol=1e-4, return_eigenvectors=False)
    return {
        "top": sorted(map(float, values), reverse=True),
        "trace": float(hutchinson_trace(op, num_matvecs=30)),
        "density": "not taken: its spectrum has no reorthogonalisation and wants the boundaries first",
    }


def main() -> None:
    """Run all, print and write the numbers."""
    options = problems.resnet20_options(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    state = read_checkpoint(options.checkpoint).state_dict if options.checkpoint else None
    tools: dict[str, Callable[[EmpiricalRisk], dict[str, Any]]] = {
        "pyhessian_spectra": ours,
        "PyHessian": pyhessian,
        "hessian-eigenthings": eigenthings,
        "curvlinops": curvlinops,
    }
    results: dict[str, Any] = {}
    for name, tool in tools.items():
        risk = problems.resnet20(options.data, state, options.images)
        assert isinstance(risk.loss_fn, nn.CrossEntropyLoss)
        start = time.perf_counter()
        try:
            results[name] = tool(risk)
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        results[name]["seconds"] = time.perf_counter() - start
        ratio = results[name]["seconds"] / results["pyhessian_spectra"]["seconds"]
        print(f"{name:20} {results[name]['seconds']:8.1f} s  {ratio:5.2f} x ours  ", end="")
        shown = {key: value for key, value in results[name].items() if key not in ("seconds", "top", "top_interval")}
        print(f"lambda_1 {results[name].get('top', [float('nan')])[0]:.6f}  {shown}", flush=True)
    if options.out:
        facts = {"command": " ".join(sys.argv), "torch": torch.__version__, "threads": options.threads}
        options.out.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
