"""What tracking costs while a ResNet20 trains, and how far what it followed is from what is found from the beginning.

    python benchmarks/tracking.py --data CIFAR_DIR [--width N] [--seconds S] [--threads N] [--out FILE.json]

Batches of 128; lambda_1, the trace and layers' traces on 500 probe images in ten batches, at most every 20 steps, with
the default budget. Afterwards lambda_1 of each record is found again by ``eigsh`` from a random vector to 1e-6, and all
its products are counted.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, eigsh
from pyhessian_spectra.analysis.table import RESIDUAL
from pyhessian_spectra.problems import load_data
from pyhessian_spectra.problems.architectures.resnet import ResNet
from pyhessian_spectra.tracking import SpectrumTracker

BATCH, PROBE, EVERY = 128, 500, 20


def main() -> None:
    """Train for some time with a tracker, and say what it cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage; 16 is ResNet20's")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, measurements included")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = load_data(options.data)
    x, y = data.inputs, data.targets
    probe = list(zip(x[:PROBE].split(PROBE // 10), y[:PROBE].split(PROBE // 10), strict=True))
    torch.manual_seed(0)
    widths = [options.width, 2 * options.width, 4 * options.width]
    model, loss_fn = ResNet(blocks=[3, 3, 3], widths=widths), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    tracker = SpectrumTracker(model, loss_fn, probe, every=EVERY)
    order = torch.Generator().manual_seed(0)
    kept, began = [], time.perf_counter()
    for step in itertools.count(1):
        chosen = torch.randint(len(x), (BATCH,), generator=order)
        optimizer.zero_grad()
        loss_fn(model(x[chosen]), y[chosen]).backward()
        optimizer.step()
        if (record := tracker.step(optimizer)) is not None:
            kept.append(copy.deepcopy(model.state_dict()))
            print(f"step {step}: {record.products} products, {record.seconds:.1f} s", flush=True)
        if time.perf_counter() - began > options.seconds:
            break
    total = time.perf_counter() - began
    cold = [_from_the_beginning(model, loss_fn, probe, state) for state in kept]
    records = tracker.track.records
    spent = [record.seconds for record in records]
    tops = [record.get("lambda_1") for record in records]
    followed = [i for i, top in enumerate(tops) if top is not None and top.kind == RESIDUAL]
    off = np.array([abs(tops[i].value - cold[i]["value"]) for i in followed])
    reach = np.array([tops[i].error + cold[i]["error"] for i in followed])
    found = {
        "machine": f"{torch.get_num_threads()} threads",
        "n": sum(p.numel() for p in model.parameters()),
        "steps": step,
        "seconds": total,
        "share of the training time": sum(spent) / (total - sum(spent)),
        "first measurement, seconds": spent[0],
        "share without the first": sum(spent[1:]) / (total - sum(spent)),
        "measurements": len(records),
        "products, first": records[0].products,
        "products, followed": float(np.mean([records[i].products for i in followed])) if followed else None,
        "products for lambda_1, cold": float(np.mean([each["products"] for each in cold])),
        "followed": len(followed),
        "within their error": int((off <= reach).sum()),
        "largest relative difference": float((off / [cold[i]["value"] for i in followed]).max()) if followed else None,
        "steps of records": [record.step for record in records],
        "followed values": [top.value for top in tops],
        "errors": [top.error for top in tops],
        "cold values": [each["value"] for each in cold],
    }
    print(json.dumps(found, indent=1))
    if options.out:
        command = " ".join(["python benchmarks/tracking.py", *sys.argv[1:]]).replace(options.data, "CIFAR_DIR")
        options.out.write_text(json.dumps({"command": command, **found}, indent=1) + "\n")


def _from_the_beginning(model: nn.Module, loss_fn: Any, probe: Any, state: Any) -> dict[str, Any]:
    model.load_state_dict(state)
    op = HessianOperator(EmpiricalRisk(model, loss_fn, probe))
    pairs = eigsh(op, 1, tol=1e-6, generator=torch.Generator().manual_seed(0))
    return {"value": float(pairs.eigenvalues[0]), "error": float(pairs.reach[0]), "products": pairs.num_products}


if __name__ == "__main__":
    main()
