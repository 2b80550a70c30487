"""Writes the page of the three tasks from the numbers they left, so that text and numbers agree to the digit.

python -m examples.learning.page docs/results/learning docs/reproductions/learning.rst
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples.experiment import page_template, tally
from examples.learning.claims import ENOUGH
from examples.learning.judgements import at_end, counted, setting_of
from examples.learning.trainers import arms_of

#: Those of them that have been published are shown, in this order.
TITLES = {
    "autoencoder": "The deep autoencoder",
    "lstm_rows": "The stacked LSTM, row after row",
    "lstm_pixels": "The stacked LSTM, pixel after pixel",
    "resnet": "The ResNet without BatchNorm",
}


def render(results: Path) -> str:
    """The page as reStructuredText, from those JSON files that are in the folder ``results``."""
    paths = {name: results / f"{name}.json" for name in TITLES}
    documents = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    pictures = {path.stem for path in results.glob("*.png")}
    helpers = {each.__name__: each for each in (tally, arms, costs, solves)}
    template = page_template(Path(__file__).parent)
    return template.render(documents=documents, pictures=pictures, titles=TITLES, enough=ENOUGH, **helpers)


def arms(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Means over the counted runs of each arm (geometric ones of losses), at the end of the course."""
    rows = []
    for name in arms_of(setting_of(numbers)):
        runs = [*counted(numbers, name).values()]
        every = sum(run["arm"] == name for run in numbers["runs"])
        row: dict[str, Any] = {"arm": name, "counted": len(runs), "runs": every}
        if runs:
            for key in ("train_loss", "test_loss"):
                row[key] = math.exp(np.mean([at_end(key)(run) for run in runs]))
            for key in ("test_accuracy", "averaged_accuracy"):
                row[key] = np.mean([at_end(key)(run) for run in runs]) if key in runs[0]["course"] else None
            courses = [run["course"] for run in runs]
            row["updates"] = courses[0]["update"][-1]
            row["seconds"] = np.mean([course["cpu_seconds"][-1] for course in courses])
            row["wall"] = np.mean([course["seconds"][-1] for course in courses])
            row["equivalents"] = np.mean([course["equivalents"][-1] for course in courses])
            for key in ("iterations", "residual"):
                row[key] = [np.median([run[key][label] for run in runs]) for label in runs[0].get(key, ())]
        rows.append(row)
    return rows


def costs(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """What a linearisation and a product cost, in gradients of as many examples: a row a curvature batch."""
    measured = numbers["costs"]
    return [
        {
            "size": int(size),
            "linearisation": measured["linearisation"][size],
            "products": [each[size] for each in measured["product"].values()],
        }
        for size in measured["linearisation"]
    ]


def solves(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Iterations to the fixed residual along training, each seed's, a row a checkpoint; those cut off with a sign."""
    found: dict[int, dict[str, list[str]]] = {}
    for run in numbers["runs"]:
        for solve in run.get("solves", ()):
            row = found.setdefault(solve["update"], {})
            for label, count in solve["iterations"].items():
                row.setdefault(label, []).append(f"{count}" if solve["converged"][label] else f"> {count}")
    return [{"update": update, **row} for update, row in sorted(found.items())]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(Path(sys.argv[1])))
