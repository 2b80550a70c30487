"""Writes the page of these experiments from the numbers they left, so that text and numbers agree to the digit.

python -m examples.layerwise.page docs/results/layerwise docs/reproductions/layerwise.rst
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from examples.experiment import FEWEST, page_template, tally
from examples.layerwise.spectra_claims import NAMES, closest, counted, layers_of
from examples.layerwise.trained import METRICS, MOMENTUM

#: Those of them that have been published are shown, in this order.
EXPERIMENTS = ("layer_spectra", "htr_mnist", "htr_cifar", "reinitialisation")


def render(results: Path) -> str:
    """The page as reStructuredText, from those JSON files that are in the folder ``results``."""
    paths = {name: results / f"{name}.json" for name in EXPERIMENTS}
    documents = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    pictures = {path.stem for path in results.glob("*.png")}
    helpers = {each.__name__: each for each in (tally, course, null_of_whole, layers, control, arms, resets)}
    return page_template(Path(__file__).parent).render(documents=documents, pictures=pictures, fewest=FEWEST, **helpers)


# ------------------------------------------------------------------------------------------- layers against the whole


def course(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Medians over the counted runs, a row a network, step size and checkpoint."""
    rows = []
    for name, about in numbers["networks"].items():
        for rate in about["rates"]:
            runs = counted(numbers, name, rate)
            for place, epoch in enumerate(about["epochs"]) if runs else ():
                here = [run["checkpoints"][place] for run in runs]
                best = [max(layer["lambda_1"] for layer in each["layers"].values()) / each["lambda_1"] for each in here]
                row: dict[str, Any] = {
                    key: float(np.median([each[key] for each in here])) for key in ("loss", "lambda_1", "trace")
                }
                row |= {"network": name, "rate": rate, "epoch": epoch, "runs": len(runs), "best": np.median(best)}
                row["of_edge"] = row["lambda_1"] * rate / (2 + 2 * MOMENTUM)
                shifts = [max(map(abs, each["residual"])) / each["lambda_1"] for each in here]
                rows.append(row | {"shift": np.median(shifts)})
    return rows


def null_of_whole(numbers: dict[str, Any], network: str) -> list[float | None]:
    """The median null of the whole by each metric, None where there is a single subset."""
    found = [[run["last"]["hessian"][metric].get("null") for run in counted(numbers, network)] for metric in NAMES]
    return [float(np.median([null[0] for null in each])) if each[0] else None for each in found]


def layers(numbers: dict[str, Any], network: str) -> list[dict[str, Any]]:
    """Medians over the last checkpoints of a network, a row a layer."""
    runs, rows = counted(numbers, network), []
    for place, label in enumerate(layers_of(numbers, network)):
        here = [run["checkpoints"][-1] for run in runs]
        row: dict[str, Any] = {"label": label, "n": here[0]["layers"][label]["n"]}
        for key in ("lambda_1", "trace"):
            row[key] = float(np.median([each["layers"][label][key] / each[key] for each in here]))
        row["outliers"] = float(np.median([run["last"]["outliers"][label] for run in runs]))
        row["distances"] = []
        for metric in NAMES:
            found = [run["last"]["hessian"][metric] for run in runs]
            nulls = [each["null"][place + 1] for each in found if "null" in each]
            middle = np.median([each["distances"][place] for each in found])
            row["distances"].append((middle, np.median(nulls) if nulls else None))
        rows.append(row)
    return rows


def control(numbers: dict[str, Any], network: str) -> list[dict[str, Any]]:
    """Which layers are closest to the whole of H and of G, and in how many runs that is the largest; a row a metric."""
    runs, rows = counted(numbers, network), []
    labels = layers_of(numbers, network)
    sizes = [layer["n"] for layer in runs[0]["checkpoints"][-1]["layers"].values()]
    for metric in (each.__name__ for each in METRICS):
        row: dict[str, Any] = {"metric": metric, "runs": len(runs)}
        for matrix in ("hessian", "gauss_newton"):
            places = [closest(run["last"][matrix][metric]["distances"]) for run in runs]
            names = ["a tie" if place is None else labels[place] for place in places]
            row[matrix] = ", ".join(
                f"{each} in {names.count(each)}"
                for each in sorted({*names}, key=lambda each: (-names.count(each), each))
            )
            apart = np.median([run["last"][matrix][metric]["distances"] for run in runs], axis=0)
            row[f"{matrix}_course"] = (apart[0], apart[1:-1].mean(), apart[-1])
            row[f"{matrix}_largest"] = sum(place == int(np.argmax(sizes)) for place in places)
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------- penalties and resets


def arms(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Means over the counted runs of each arm of a penalty; medians of curvature."""
    rows = []
    for arm in numbers["arms"]:
        every = [run for run in numbers["runs"] if run["arm"] == arm]
        runs = [run for run in every if run["counts"]]
        row: dict[str, Any] = {"arm": arm, "counted": len(runs), "runs": len(every)}
        if runs:
            row |= {
                "test": np.mean([run["test_accuracy"] for run in runs]),
                "gap": np.mean([run["train_accuracy"] - run["test_accuracy"] for run in runs]),
                "loss_gap": np.mean([run["test_loss"] - run["train_loss"] for run in runs]),
                "trace": np.median([run["trace"] for run in runs]),
                "lambda_1": np.median([run["lambda_1"] for run in runs if run.get("lambda_1")]),
                "share": np.median([run["penalty_over_loss"] for run in runs]),
            }
        rows.append(row)
    return rows


def resets(numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Means over the counted runs of each arm of re-initialisation."""
    rows = []
    for arm, every in numbers["arms"].items():
        runs = [run for run in every.values() if not run["dead"]]
        row: dict[str, Any] = {"arm": arm, "counted": len(runs), "runs": len(every)}
        if runs:
            keys = ("accuracy", "accuracy_after", "area", "gap", "train_loss", "falls", "reset_costs")
            row |= {key: float(np.mean([run[key] for run in runs])) for key in keys}
        rows.append(row | {"against": numbers["against_plain"].get(arm)})
    return rows


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(Path(sys.argv[1])))
