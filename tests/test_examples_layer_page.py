"""The page of the reproductions about layers: written from the numbers, whichever of them there are."""

import json
from pathlib import Path

import numpy as np
import pytest
from published import LAYERWISE

from examples.layerwise import page

PAGE = Path(__file__).parents[1] / "docs" / "reproductions" / "layerwise.rst"


def document(name, numbers):
    finding = {"claim": "c", "statement": "s", "rule": "r", "verdict": "came out", "evidence": "e"}
    return {"command": f"python -m {name}", "shortened": f"{name} was", "numbers": numbers, "findings": [finding]}


def runs_of_a_penalty():
    run = {"test_accuracy": 90.0, "train_loss": 0.1, "test_loss": 0.2, "trace": 7.0, "penalty_over_loss": 0.5}
    return [
        {"arm": "SGD", "counts": True, "train_accuracy": 91.0, "lambda_1": 3.0, **run},
        {"arm": "SGD", "counts": True, "train_accuracy": 93.0, **run},  # whose eigenvalue was not found
        {"arm": "SGD", "counts": False},
    ]


def test_means_are_over_the_runs_that_count():
    (row,) = page.arms({"arms": {"SGD": {}}, "runs": runs_of_a_penalty()})
    assert (row["counted"], row["runs"]) == (2, 3)
    assert row["gap"] == pytest.approx(2.0) and row["lambda_1"] == 3.0
    alive = dict.fromkeys(("accuracy", "accuracy_after", "area", "gap", "train_loss", "falls", "reset_costs"), 2.0)
    numbers = {"arms": {"plain": {"0": {"dead": False, **alive}, "1": {"dead": True}}}, "against_plain": {}}
    (row,) = page.resets(numbers)
    assert (row["counted"], row["runs"], row["accuracy"], row["against"]) == (1, 2, 2.0, None)


def test_a_result_that_is_not_there_has_no_section(tmp_path):
    assert "-----" not in page.render(tmp_path)
    numbers = {"arms": {"SGD": {}}, "runs": runs_of_a_penalty(), "data": "DATA", "rule": "RULE", "set_aside": 1}
    (tmp_path / "htr_mnist.json").write_text(json.dumps(document("htr", numbers)))
    told = page.render(tmp_path)
    assert "Penalising the trace, MNIST\n-----" in told and "CIFAR" not in told and "Re-initialising" not in told
    assert "htr was" in told and ".. image" not in told
    (tmp_path / "htr_mnist.png").touch()
    assert ".. image:: ../results/layerwise/htr_mnist.png" in page.render(tmp_path)


def test_the_control_names_the_closest_layer_of_each_matrix_and_counts_the_largest():
    def run(hessian, gauss_newton):
        sizes = {"a": {"n": 5}, "b": {"n": 50}, "c": {"n": 7}}
        metrics = [metric.__name__ for metric in page.METRICS]
        last = {
            "hessian": {metric: {"distances": hessian} for metric in metrics},
            "gauss_newton": {metric: {"distances": gauss_newton} for metric in metrics},
        }
        return {"network": "LeNet", "rate": 0.1, "counts": True, "checkpoints": [{"layers": sizes}], "last": last}

    row = page.control({"runs": [run([1, 2, 3], [3, 1, 2]), run([2, 1, 3], [3, 1, 2])]}, "LeNet")[0]
    assert (row["hessian_largest"], row["gauss_newton_largest"], row["runs"]) == (1, 2, 2)
    assert row["gauss_newton"] == "b in 2" and set(row["hessian"].split(", ")) == {"a in 1", "b in 1"}


def test_a_course_is_of_medians_and_knows_the_edge_of_stability():
    def run(top):
        point = {"loss": 0.5, "lambda_1": top, "trace": 9.0, "residual": [-top / 2, top / 4]}
        layers = {"a": {"lambda_1": top / 4}, "b": {"lambda_1": top / 2}}
        return {"network": "N", "rate": 0.1, "counts": True, "checkpoints": [{"epoch": 0, **point, "layers": layers}]}

    numbers = {"networks": {"N": {"rates": [0.1], "epochs": [0]}}, "runs": [run(1.0), run(38.0), run(100.0)]}
    (row,) = page.course(numbers)
    assert row["lambda_1"] == 38.0 and row["of_edge"] == pytest.approx(1.0)  # (2 + 2 0.9) / 0.1 = 38
    assert row["best"] == pytest.approx(0.5) and np.isclose(row["shift"], 0.5)


def test_the_page_is_what_the_published_numbers_give():
    assert PAGE.read_text() == page.render(LAYERWISE)
