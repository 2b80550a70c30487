"""The examples of Newton's method: their digits, what decides their claims, and what they have published."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from examples import experiment
from examples.learning import newton, newton_page
from examples.learning.newton_claims import CRITERIA

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "docs" / "results" / "learning", ROOT / "docs" / "reproductions" / "newton.rst"


def reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@pytest.fixture(scope="module")
def published():
    return json.loads((RESULTS / "newton.json").read_text(), parse_constant=reject_constant)


def test_the_fast_setting_writes_its_results_and_gives_no_verdict(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(newton, "CONDITIONS", (10.0, newton.SHOWN))
    newton.main(["--fast", "--out", str(tmp_path)])
    figures = {"newton.png", "newton_conditioning.png", "newton_saddle.png"}
    assert {path.name for path in tmp_path.iterdir()} == {"newton.json", *figures}
    document = json.loads((tmp_path / "newton.json").read_text(), parse_constant=reject_constant)
    assert document["command"] == "python -m examples.learning.newton --fast --seed 0"
    assert {finding["verdict"] for finding in document["findings"]} == {"no verdict from a fast run"}
    assert capsys.readouterr().out.count("no verdict from a fast run") == len(CRITERIA)


def test_published_verdicts_follow_from_the_published_numbers(published):
    numbers = published["numbers"]
    again = experiment.judge(CRITERIA, numbers, fast=False, fewest=numbers["starts"])
    assert [vars(finding) for finding in again] == published["findings"]
    assert " --fast" not in published["command"]


def test_the_page_is_what_the_published_numbers_give():
    assert PAGE.read_text() == newton_page.render(RESULTS)


def test_the_losses_of_the_documents_start_are_its_own_whatever_the_seed():
    (run,) = newton.example(1, 7)["runs"]
    seen = {name: [run[name][at] for at in (0, 10, 20, 30, 39, 40)] for name in ("gradient descent", "Newton")}
    told = [0.1445857, 0.12313, 0.10486, 0.08929, 0.07727, 0.07604]
    assert seen["gradient descent"] == pytest.approx(told, abs=5e-6)
    assert seen["Newton"] == pytest.approx([0.1445857, 0.017578, 0.002137, 2.598e-4, 3.900e-5, 3.16e-5], rel=5e-4)


def test_the_global_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    newton.example(2, 3)
    newton.circle(3, 3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_hessian_by_loops_and_the_operators_are_that_of_another_oracle_where_it_is_no_multiple_of_the_identity():
    def loss(w):
        return (w[0] * w[1]).sin() + (w**4).sum() + w.prod()

    w = torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64, requires_grad=True)
    truth = torch.func.hessian(loss)(w.detach())
    for found in (newton.hessian_by_loops(loss, w), newton.hessian_by_operator(loss, w)):
        torch.testing.assert_close(found, truth, rtol=1e-13, atol=1e-13)


def test_newton_by_loops_and_the_optimiser_part_from_gradient_descent_where_the_function_is_curved():
    def loss(w):
        return (w**4).sum() + 3 * w[0] ** 2 + w[1] ** 2 + w[0] * w[1]

    start = torch.tensor([1.0, -0.5], dtype=torch.float64)
    loops, package, plain = (
        newton.walk(loss, start, method, 5).points
        for method in (newton.newton_by_loops(0.5), newton.newton(0.5), newton.gradient_descent(0.05))
    )
    torch.testing.assert_close(loops, package, rtol=1e-12, atol=1e-12)
    assert (loops[1] - plain[1]).norm() > 0.01


def test_a_walk_ends_where_the_loss_is_solved_or_after_its_updates():
    def loss(w):
        return (w**2).sum()

    start = torch.tensor([1.0, 2.0], dtype=torch.float64)
    walked = newton.walk(loss, start, newton.newton(0.5), 100, until=0.1)
    assert walked.losses.tolist() == pytest.approx([5.0, 1.25, 0.3125])
    assert len(newton.walk(loss, start, newton.newton(0.5), 3).points) == 4


@pytest.mark.parametrize(
    ("claim", "path", "value"),
    [
        ("that row is iteration 30", ("example", "runs", 0, "Newton", 30), 3.6e-4),
        ("gradient descent multiplies", ("example", "runs", 3, "gradient descent ratios", 1), 0.984065),
        ("with lr 1 Newton's", ("example", "runs", 4, "one_step", 1), 1e-20),
        ("Newton's step adapts", ("conditioning", "Newton", "times", 2), 1.000001),
        ("Newton's method is not slowed", ("conditioning", "updates", "100", "Newton"), [67, 67, 67]),
        ("the Hessian built entry", ("example", "runs", 9, "hessians_apart"), 1e-8),
        ("the Hessian built entry", ("example", "runs", 9, "hessian_from_exact"), 1e-8),
        ("so are the trajectories", ("example", "runs", 9, "by loops apart"), 1e-8),
        ("gradient descent with lr 1.25", ("example", "runs", 9, "longer steps apart"), 1e-8),
    ],
)
def test_a_criterion_fails_where_one_number_is_spoilt(published, claim, path, value):
    (criterion,) = (each for each in CRITERIA if each.statement.startswith(claim))
    numbers = copy.deepcopy(published["numbers"])
    assert criterion.decide(numbers)[0]
    *way, last = path
    at = numbers
    for key in way:
        at = at[key]
    at[last] = value
    assert not criterion.decide(numbers)[0]


def test_leaving_the_saddle_takes_most_starts(published):
    leaves = {each.statement: each for each in CRITERIA if each.claim == "saddle"}
    assert [each.decide(published["numbers"])[0] for each in leaves.values()] == [False, True, True]
    numbers = copy.deepcopy(published["numbers"])
    paths = numbers["saddle"]["Newton, |H|"]
    for path in paths[:3]:
        path[-1] = [0.0, 0.0]
    assert not leaves["with the absolute value of H in place of H it does"].decide(numbers)[0]
