"""The reproduction of the edge of stability: criteria decide as they say, and the page says what the numbers say."""

import json
from pathlib import Path

import pytest

from examples.tracking import edge_claims, edge_of_stability, edge_page
from pyhessian_spectra.analysis.table import CERTIFIED, RESIDUAL

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results" / "tracking", ROOT / "docs" / "reproductions" / "edge.rst"


def _run(optimizer="gradient descent", at=(0.5, 0.8, 1.0, 1.1, 1.0, 1.1, 0.9, 1.0, 1.1), losses=None):
    steps = [10 * (i + 1) for i in range(len(at))]
    below = [2.0 - 0.01 * i for i in range(25)]
    wave = [1.7 - 0.001 * i + 0.01 * (i % 2) for i in range(65)]
    return {
        "optimizer": optimizer, "ended": "", "steps": steps, "values": [20 * ratio for ratio in at],
        "errors": [0.1] * len(at), "thresholds": [20.0] * len(at), "losses": losses or below + wave,
        "activation": "tanh", "loss": "cross-entropy", "lr": 0.1, "accuracy": 0.5,
        "products": [40] + [4] * (len(at) - 1), "kinds": [CERTIFIED] + [RESIDUAL] * (len(at) - 1),
    }  # fmt: skip


def _verdicts(*runs):
    return {each.statement.split()[0]: each.decide({"runs": list(runs)})[0] for each in edge_claims.CRITERIA}


def test_a_run_that_sharpens_and_hovers_meets_every_criterion_of_gradient_descent():
    assert _verdicts(_run()) == {"Below": True, "Once": True, "With": False}
    assert edge_claims.sharpens({"runs": [_run()]})[0]
    assert edge_claims.hovers({"runs": [_run("Adam")]}, "Adam") == (
        True,
        "1 of 1 runs; medians 1.05 to 1.05 of the edge",
    )


def test_runs_that_fall_or_leave_the_edge_do_not():
    falls, leaves = _run(at=(0.8, 0.5, 0.4, 0.3)), _run(at=(0.5, 0.8, 1.0, 1.5, 1.6, 1.7, 1.6, 1.5, 1.6))
    assert not edge_claims.sharpens({"runs": [falls]})[0]
    assert not edge_claims.hovers({"runs": [leaves]}, "gradient descent")[0]
    assert not edge_claims.misbehaves({"runs": [_run(losses=[3.0 - 0.01 * i for i in range(90)])]})[0]


def test_runs_whose_loss_grew_or_became_nan_are_set_aside():
    grown, dead = _run(losses=[1.0] * 89 + [2.0]), {**_run(), "ended": "the training loss is nan"}
    assert edge_claims.living({"runs": [grown, dead, _run()]}, "gradient descent") == [_run()]


def test_records_of_fitted_data_do_not_count_as_hovering():
    fitted = _run(losses=[2.0] * 40 + [0.1] * 50)
    assert len(edge_claims.hovering(fitted)) == 1


def test_a_fast_run_gives_numbers_figures_and_no_verdict(tmp_path):
    edge_of_stability.main(["--fast", "--out", str(tmp_path)])
    document = json.loads((tmp_path / "edge_of_stability.json").read_text())
    assert len(document["numbers"]["runs"]) == 24
    assert {finding["verdict"] for finding in document["findings"]} == {"no verdict from a fast run"}
    assert (tmp_path / "edge_of_stability.png").stat().st_size > 10_000
    assert all(all(run["converged"]) for run in document["numbers"]["runs"])


def test_the_page_is_what_the_published_numbers_give():
    assert PAGE.read_text() == edge_page.render(RESULTS)


def test_the_published_verdicts_follow_from_the_published_numbers():
    document = json.loads((RESULTS / "edge_of_stability.json").read_text())
    for finding, criterion in zip(document["findings"], edge_claims.CRITERIA, strict=True):
        holds, evidence = criterion.decide(document["numbers"])
        assert finding["verdict"] == ("came out" if holds else "did NOT come out")
        assert finding["evidence"] == evidence


def test_products_are_counted_apart_where_eigenvalues_were_certified():
    told = edge_page.products({"runs": [_run()]})
    assert told == {"followed": 4.0, "certified": 40.0, "count": 8}


@pytest.mark.parametrize("optimizer", ["gradient descent", "momentum", "Adam"])
def test_every_network_is_trained_at_three_rates(optimizer):
    rates = [each for key, each in edge_of_stability.RATES.items() if key[2] == optimizer]
    assert rates and all(len(set(each)) == 3 for each in rates)
