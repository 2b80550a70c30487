"""The reproduction of trace regularisation: what decides its claims, its fast setting, and what it has published."""

from __future__ import annotations

import json
import math

import pytest
import torch
from published import LAYERWISE, read
from torch import nn

from examples import experiment, paired
from examples.layerwise import htr, htr_claims, htr_runs
from examples.layerwise.htr_claims import CRITERIA
from examples.layerwise.htr_runs import ARMS
from pyhessian_spectra import EmpiricalRisk, HessianOperator

PUBLISHED = sorted(LAYERWISE.glob("htr_*.json"))


def test_the_fast_setting_writes_its_results_and_gives_no_verdict_and_is_resumed(tmp_path, capsys, monkeypatch):
    htr.main(["--fast", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"htr_digits.json", "htr_digits_fast.jsonl"}
    document = read(tmp_path / "htr_digits.json")
    assert document["command"] == "python -m examples.layerwise.htr --fast --seed 0"
    assert [finding["rule"] for finding in document["findings"]] == [each.rule for each in CRITERIA]
    assert {finding["verdict"] for finding in document["findings"]} == {"no verdict from a fast run"}
    assert printed.count("no verdict from a fast run") == len(CRITERIA) and "came out" not in printed
    monkeypatch.setattr(htr, "once", dict)  # what has ended is not run again
    htr.main(["--fast", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "htr_digits.json").read_text()) == document


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_verdicts_follow_from_the_published_numbers(path):
    document = read(path)
    assert " --fast" not in document["command"] and document["shortened"]
    again = experiment.judge(CRITERIA, document["numbers"], fast=False, fewest=htr_claims.fewest(document["numbers"]))
    assert [vars(finding) for finding in again] == document["findings"]
    runs = document["numbers"]["runs"]
    assert len(runs) == len(ARMS) * document["numbers"]["setting"]["seeds"]
    assert all(run["lambda_1_converged"] for run in runs if run["counts"])


# ------------------------------------------------------------------------------------------------- what decides


def numbers(sizes: dict[str, float], *, sign: float = 1.0) -> dict:
    """Eight runs an arm, whose gaps and flatness are of a size of the arm, with a common part of each seed."""
    runs = []
    for arm in ARMS:
        for seed in range(8):
            size = sizes[arm] + 0.01 * seed + 0.001 * math.sin(7 * seed + len(arm))
            flat = dict.fromkeys(htr_claims.MEASURES, math.exp(sign * size))
            found = {"train_accuracy": 100.0, "test_accuracy": 100.0 - size, "train_loss": 0.0, "test_loss": size}
            runs.append({"arm": arm, "seed": seed, "counts": True, **found, **flat})
    return {"runs": runs}


AS_CLAIMED = {"SGD": 1.0, "L2": 0.9, "gradient norm": 0.85, "HTR": 0.7, "HTR random": 0.8, "HTR middle": 0.5}
AS_CLAIMED["HTR tenfold"] = 0.4
OPPOSITE = {arm: 2 - size for arm, size in AS_CLAIMED.items()}


def test_all_criteria_hold_for_numbers_as_claimed_and_none_for_their_opposite(monkeypatch):
    monkeypatch.setattr(paired, "_RESAMPLES", 50)

    def holding(found: dict) -> list[experiment.Criterion]:
        return [each for each in CRITERIA if each.decide(found)[0]]

    assert holding(numbers(AS_CLAIMED)) == [*CRITERIA]
    # where gaps are larger than SGD's and flatness with them, that flatter is better is all that comes out
    assert {each.claim for each in holding(numbers(OPPOSITE))} == {"flat"}
    assert {each.claim for each in holding(numbers(OPPOSITE, sign=-1.0))} == {"trace"}


def test_a_run_that_is_set_aside_takes_its_pairs_along():
    some = numbers(AS_CLAIMED)
    dead = next(run for run in some["runs"] if run["arm"] == "HTR")
    dead |= {"counts": False, "train_loss": None, "lambda_1": None}
    assert htr_claims.against(some, "HTR", "SGD", htr_claims.accuracy_gap).pairs == 7
    assert htr_claims.against(some, "L2", "SGD", htr_claims.accuracy_gap).pairs == 8
    assert htr_claims.fewest(some) == 7


def test_the_figure_is_drawn_of_the_runs_that_count():
    figure = htr.draw(numbers(AS_CLAIMED))
    assert len(figure.axes) == 4


# ------------------------------------------------------------------------------------------------- what is computed


def test_traces_are_those_of_the_hessians_blocks_since_the_network_is_piecewise_linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    data = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    found = htr_runs.flatness(model, data, htr_runs.Setting(measured=12, traced=12))
    risk = EmpiricalRisk(model, htr_runs.LOSS, data)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        values = dict(zip(risk.layout.names, risk.layout.unflatten(flat), strict=True))
        return htr_runs.LOSS(torch.func.functional_call(model, values, (data[0],)), data[1])

    dense = torch.func.hessian(loss)(risk.point().flat())
    assert found["trace"] == pytest.approx(float(dense.trace()), rel=1e-9)
    assert found["trace_2"] == pytest.approx(float(dense.diagonal()[36:64].sum()), rel=1e-9)
    assert found["lambda_1"] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-5)


def test_the_squared_gradient_norm_has_the_gradient_of_twice_the_hessian_times_the_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 2
    parameters = list(model.parameters())
    value = htr_runs.squared_gradient_norm(model, batch)
    found = torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, parameters)])
    risk = EmpiricalRisk(model, htr_runs.LOSS, batch)
    from_products = 2 * (HessianOperator(risk) @ risk.gradient())
    assert torch.allclose(found, from_products, rtol=1e-10, atol=1e-12)
    assert float(value.detach()) == pytest.approx(float(risk.gradient().square().sum()))
