"""Writes the page of examples/tracking/edge_of_stability.py from the numbers it left, and its figure.

python -m examples.tracking.edge_page docs/results/tracking docs/reproductions/edge.rst
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples.experiment import page_template, save_figure
from examples.store import Run
from examples.tracking.edge_claims import hovering, living, ratios, reached
from examples.tracking.edge_of_stability import draw
from pyhessian_spectra.analysis.table import RESIDUAL
from pyhessian_spectra.plots.style import theme

#: Late records, from this step on, of which the page tells the median besides the criteria.
LATE = 200


def row(run: Run) -> dict[str, Any]:
    """What the page tells of one run."""
    first = reached(run)
    late = ratios(run)[np.array(run["steps"]) >= LATE]
    return {
        **{key: run[key] for key in ("activation", "loss", "optimizer", "lr", "accuracy")},
        "threshold": run["thresholds"][0],
        "first": ratios(run)[0],
        "reached": None if first is None else run["steps"][first],
        "hovering": None if len(hovering(run)) == 0 else float(np.median(hovering(run))),
        "late": [float(each) for each in np.quantile(late, [0.05, 0.5, 0.95])] if len(late) else None,
    }


def products(numbers: dict[str, Any]) -> dict[str, float]:
    """Mean products of a measurement of runs with one matrix, where it was followed, and where it was certified."""
    told = [
        (count, kind)
        for run in numbers["runs"]
        if run["optimizer"] != "Adam"
        for count, kind in zip(run["products"], run["kinds"], strict=True)
    ]
    followed = [count for count, kind in told if kind == RESIDUAL]
    certified = [count for count, kind in told if kind != RESIDUAL]
    return {"followed": float(np.mean(followed)), "certified": float(np.mean(certified)), "count": len(followed)}


def render(results: Path) -> str:
    """The page as reStructuredText, from ``edge_of_stability.json`` in the folder ``results``."""
    document = json.loads((results / "edge_of_stability.json").read_text())
    numbers = document["numbers"]
    alive = living(numbers, "gradient descent", "momentum", "Adam")
    template = page_template(Path(__file__).parent, "edge_page")
    rows, dead = [row(run) for run in numbers["runs"]], len(numbers["runs"]) - len(alive)
    return template.render(**document, rows=rows, dead=dead, products=products(numbers), late=LATE)


if __name__ == "__main__":
    results = Path(sys.argv[1])
    with theme():
        numbers = json.loads((results / "edge_of_stability.json").read_text())["numbers"]
        save_figure(draw(numbers), results / "edge_of_stability.png")
    Path(sys.argv[2]).write_text(render(results))
