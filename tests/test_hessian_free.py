"""Hessian-free steps against dense oracles: what a step is, for every model, block, option and way to ask for it."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from oracle import Oracle
from problems import CASES, mlp
from reads import Reads
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Partition
from pyhessian_spectra.optimisers import HessianFree, backtracking, levenberg_marquardt, squared_gradients
from pyhessian_spectra.spectra.cg import relative_progress

DAMPING, LR = 0.05, 0.7
EXACT = dict(lr=LR, damping=DAMPING, max_cg_iterations=1000, cg_rtol=1e-13)
every_case = pytest.mark.parametrize("case", CASES)


def parameters(risk: EmpiricalRisk) -> list[tuple[str, Tensor]]:
    return [(name, risk.model.get_parameter(name)) for name in risk.layout.names]


def flat(risk: EmpiricalRisk) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for _, p in parameters(risk)]).clone()


def solved(matrix: Tensor, gradient: Tensor, blocks: list[Tensor]) -> Tensor:
    """The step of exactly solved blocks, in closed form."""
    step = torch.zeros_like(gradient)
    for indices in blocks:
        damped = matrix[indices][:, indices] + DAMPING * torch.eye(len(indices), dtype=matrix.dtype)
        step[indices] = -LR * torch.linalg.solve(damped, gradient[indices])
    return step


@every_case
def test_one_block_is_the_damped_gauss_newton_step_of_every_problem(case):
    risk = CASES[case]()
    state = {name: t.clone() for name, t in risk.model.state_dict().items()}
    oracle, before = Oracle(risk), flat(risk)
    expected = solved(oracle.ggn(), oracle.gradient(), [torch.arange(risk.n)])
    optimizer = HessianFree(parameters(risk), **EXACT)
    loss = optimizer.step(risk)
    assert float(loss) == pytest.approx(float(oracle.loss(before)), rel=1e-12)
    torch.testing.assert_close(flat(risk) - before, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    trained = {id(p) for _, p in parameters(risk)}
    for name, t in risk.model.state_dict(keep_vars=True).items():  # of frozen ones and of buffers nothing moves
        assert id(t) in trained or torch.equal(t.detach(), state[name]), name
    assert all(p.grad is None for p in risk.model.parameters())


@every_case
@pytest.mark.parametrize("blocks", ["parameter", "random"])
def test_blocks_are_solved_apart_by_the_blocks_of_the_matrix(case, blocks):
    risk = CASES[case]()
    oracle, before = Oracle(risk), flat(risk)
    make = (
        "parameter"
        if blocks == "parameter"
        else lambda layout: Partition.at_random(layout, 2, generator=torch.Generator().manual_seed(3))
    )
    optimizer = HessianFree(parameters(risk), partition=make, **EXACT)
    optimizer.step(risk)
    expected = solved(oracle.ggn(), oracle.gradient(), [block.indices for block in optimizer.partition])
    torch.testing.assert_close(flat(risk) - before, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    assert [solve.label for solve in optimizer.records[-1].solves] == list(optimizer.partition.groups)


def halves(risk: EmpiricalRisk) -> EmpiricalRisk:
    ((x, y),) = risk.data
    return risk.replace(data=(x[: len(x) // 2], y[: len(y) // 2]))


@pytest.mark.parametrize("curvature", [GGNOperator, HessianOperator])
def test_the_gradient_is_of_the_minibatch_and_the_curvature_of_its_part(curvature):
    risk = mlp()
    whole, part, before = Oracle(risk), Oracle(halves(risk)), flat(risk)
    damping = 2.0  # makes this Hessian definite
    matrix = (part.ggn() if curvature is GGNOperator else part.hessian()) + damping * torch.eye(risk.n).double()
    HessianFree(parameters(risk), curvature=curvature, **{**EXACT, "damping": damping}).step(risk, halves(risk))
    expected = -LR * torch.linalg.solve(matrix, whole.gradient())
    torch.testing.assert_close(flat(risk) - before, expected, rtol=1e-8, atol=1e-10)


def test_a_closure_takes_the_same_step_as_a_risk_bit_for_bit():
    found = []
    for as_closure in (True, False):
        risk = mlp()
        ((x, y),) = risk.data

        def closure(rows, model=risk.model, x=x, y=y):
            outputs = model(x[:rows])
            return nn.functional.cross_entropy(outputs, y[:rows]), outputs

        optimizer = HessianFree(risk.model.named_parameters(), partition="module", damping=0.1)
        for _ in range(3):
            if as_closure:
                optimizer.step(lambda c=closure: c(16), lambda c=closure: c(8))
            else:
                optimizer.step(risk, halves(risk))
        found.append(flat(risk))
    assert torch.equal(*found)


def test_the_model_of_cg_falls_and_its_end_is_the_predicted_reduction():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), lr=1.0, damping=0.1, partition="layer", max_cg_iterations=8)
    oracle = Oracle(risk)
    before = flat(risk)
    optimizer.step(risk)
    record, step = optimizer.records[-1], flat(risk) - before
    for solve in record.solves:
        assert (solve.model[1:] < solve.model[:-1]).all() and solve.num_products == solve.iterations
    matrix = torch.zeros(risk.n, risk.n, dtype=torch.float64)
    for block in optimizer.partition:
        matrix[block.indices[:, None], block.indices] = oracle.ggn()[block.indices][:, block.indices]
    expected = -(oracle.gradient() @ step + step @ matrix @ step / 2)
    assert record.predicted == pytest.approx(float(expected), rel=1e-10)
    assert record.actual == pytest.approx(float(oracle.loss(before) - oracle.loss(before + step)), rel=1e-10)
    assert record.step_norm == pytest.approx(float(step.norm())) and not record.negative_curvature


@every_case
def test_blocks_are_never_worse_conditioned_than_the_whole(case):
    risk = CASES[case]()
    op = GGNOperator(risk)
    whole = torch.linalg.eigvalsh(op.to_dense()) + DAMPING
    for name in risk.layout.names:
        block = torch.linalg.eigvalsh(op.block(name).to_dense()) + DAMPING
        assert block[-1] / block[0] <= whole[-1] / whole[0] * (1 + 1e-12)  # Cauchy's interlacing


def test_the_next_iteration_starts_from_a_share_of_the_last_solution():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), lr=0.3, damping=0.2, cg_momentum=0.5, max_cg_iterations=4)
    before = flat(risk)
    optimizer.step(risk)
    last = (flat(risk) - before) / 0.3
    oracle = Oracle(risk)
    optimizer.step(risk)
    start = 0.5 * last
    residual = oracle.gradient() + oracle.ggn() @ start + 0.2 * start
    first = optimizer.records[-1].solves[0]
    assert first.residuals[0] == pytest.approx(float(residual.norm()), rel=1e-10) and first.num_products == 5


def test_no_product_waits_for_the_device(monkeypatch):
    monkeypatch.setitem(sys.modules["pyhessian_spectra.spectra.cg"]._LOOK_EVERY, "cpu", 100)
    counts = []
    for iterations in (4, 12):
        risk = mlp()
        optimizer = HessianFree(parameters(risk), partition="layer", max_cg_iterations=iterations, cg_rtol=0.0)
        with Reads() as reads:
            optimizer.step(risk, halves(risk))
        assert [solve.iterations for solve in optimizer.records[-1].solves] == [iterations] * 2
        counts.append(reads.count)
    assert counts[0] == counts[1] > 0


def trained(risk: EmpiricalRisk, optimizer: HessianFree, scheduler: object, steps: int) -> Tensor:
    for _ in range(steps):
        optimizer.step(risk, halves(risk))
        scheduler.step()
    return flat(risk)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", ["module", "random"])
def test_a_resumed_run_goes_on_bit_for_bit(dtype, blocks, tmp_path):
    def start(seed: int) -> tuple[EmpiricalRisk, HessianFree, object]:
        risk = mlp()
        model = risk.model.to(dtype)
        ((x, y),) = risk.data
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
        generator = torch.Generator().manual_seed(seed)
        partition = "module" if blocks == "module" else lambda at: Partition.at_random(at, 3, generator=generator)
        optimizer = HessianFree(
            model.named_parameters(),
            partition=partition,
            lr=0.5,
            damping=0.3,
            adapt_damping=levenberg_marquardt,
            averaging=0.9,
        )
        return risk, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    risk, optimizer, scheduler = start(0)
    trained(risk, optimizer, scheduler, 3)
    torch.save([risk.model.state_dict(), optimizer.state_dict(), scheduler.state_dict()], tmp_path / "at3.pt")
    through = trained(risk, optimizer, scheduler, 3)
    other, resumed, again = start(1)  # whose random blocks are others
    states = torch.load(tmp_path / "at3.pt", weights_only=True)
    for each, state in zip((other.model, resumed, again), states, strict=True):
        each.load_state_dict(state)
    assert torch.equal(trained(other, resumed, again, 3), through) and through.dtype == dtype
    assert [r.step for r in resumed.records] == [4, 5, 6]
    assert optimizer.param_groups[0]["damping"] == resumed.param_groups[0]["damping"] != 0.3
    for p, q in zip(risk.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["average"], resumed.state[q]["average"])


def test_groups_have_their_own_settings():
    risk = mlp()
    oracle, before = Oracle(risk), flat(risk)
    named = parameters(risk)
    groups = [
        {"params": named[2:], "lr": 0.25, "damping": 0.5},  # in another order than the model's
        {"params": named[:2]},
    ]
    optimizer = HessianFree(groups, partition=[["0"], ["2"]], **EXACT)
    optimizer.step(risk)
    found, gradient, ggn = flat(risk) - before, oracle.gradient(), oracle.ggn()
    size = risk.layout.slices["2.weight"].start
    for own, lr, damping in ((slice(0, size), LR, DAMPING), (slice(size, None), 0.25, 0.5)):
        block = ggn[own, own] + damping * torch.eye(len(ggn[own]), dtype=torch.float64)
        expected = -lr * torch.linalg.solve(block, gradient[own])
        torch.testing.assert_close(found[own], expected, rtol=1e-8, atol=1e-10)


def test_frozen_parameters_in_the_list_stay():
    risk = CASES["frozen_layer"]()
    frozen = [p.clone() for p in risk.model[2].parameters()]
    HessianFree(risk.model.named_parameters(), damping=0.1).step(risk)
    assert all(torch.equal(p, q) for p, q in zip(risk.model[2].parameters(), frozen, strict=True))


# Options


def test_the_ratio_moves_the_damping_as_martens_says():
    assert [levenberg_marquardt(1.0, r) for r in (-1.0, 0.2, 0.25, 0.5, 0.75, 0.8)] == [1.5, 1.5, 1, 1, 1, 2 / 3]
    assert levenberg_marquardt(1.0, float("nan")) == 1.5
    risk = mlp()
    optimizer = HessianFree(parameters(risk), lr=1.0, damping=1.0, adapt_damping=levenberg_marquardt)
    optimizer.step(risk)
    ratio = optimizer.records[0].actual / optimizer.records[0].predicted
    assert optimizer.param_groups[0]["damping"] == levenberg_marquardt(1.0, ratio) != 1.0


def test_backtracking_takes_the_first_halving_that_falls_enough():
    assert backtracking(lambda t: (3 * t - 1) ** 2, 1.0, -6.0) == 0.5
    assert backtracking(lambda t: (t - 1) ** 2, 1.0, -2.0) == 1.0
    assert backtracking(lambda t: 1 + t, 1.0, 1.0) == 0.0
    assert backtracking(lambda t: float("inf") if t > 0.3 else -t, 0.0, -1.0) == 0.25


def test_a_line_search_never_lets_the_loss_rise():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), lr=64.0, damping=1e-3, line_search=backtracking)
    for _ in range(5):
        optimizer.step(risk)
    assert all(record.actual > 0 for record in optimizer.records)
    rising = HessianFree(parameters(risk), lr=64.0, damping=1e-3)
    rising.step(risk)
    assert rising.records[0].actual < 0  # so that the test can fail


@pytest.mark.parametrize("case", ["mlp", "class_weights", "tied_weights", "ignored_tokens"])
def test_the_preconditioner_has_each_examples_squared_gradient(case):
    risk = CASES[case]()
    point, damping = risk.live(), torch.full((risk.n,), 0.2, dtype=torch.float64)
    total, weights = torch.zeros_like(damping), 0.0
    for x, y in risk.data:
        for one in ((x[i : i + 1], y[i : i + 1]) for i in range(len(y))):
            weight = risk.num_terms(one[1])
            if weight:
                total, weights = total + weight * risk.replace(data=one).gradient().square(), weights + weight
    expected = (total / weights + 0.2) ** -0.75
    torch.testing.assert_close(squared_gradients(risk, point, damping), expected, rtol=1e-10, atol=0)


def test_preconditioned_and_stopped_early_the_step_goes_to_the_same_place():
    risk = mlp()
    oracle, before = Oracle(risk), flat(risk)
    expected = solved(oracle.ggn(), oracle.gradient(), [torch.arange(risk.n)])
    HessianFree(parameters(risk), preconditioner=squared_gradients, **EXACT).step(risk)
    torch.testing.assert_close(flat(risk) - before, expected, rtol=1e-7, atol=1e-9)
    early = HessianFree(parameters(risk), cg_stop=relative_progress, **{**EXACT, "cg_rtol": 0.0})
    early.step(risk)
    (solve,) = early.records[0].solves
    assert solve.status == "stopped" and relative_progress(solve.model) and not relative_progress(solve.model[:-1])


def test_the_average_is_that_of_polyak_and_the_parameters_come_back():
    risk = mlp()
    optimizer = HessianFree(parameters(risk), damping=0.1, averaging=0.8)
    seen = []
    for _ in range(3):
        optimizer.step(risk)
        seen.append(flat(risk))
    with optimizer.averaged():
        average = flat(risk)
    expected = seen[0]
    for each in seen[1:]:
        expected = 0.8 * expected + 0.2 * each
    torch.testing.assert_close(average, expected, rtol=1e-12, atol=1e-14)
    assert torch.equal(flat(risk), seen[-1])


def test_negative_curvature_ends_with_what_there_is():
    w = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
    optimizer = HessianFree([w], curvature=HessianOperator, lr=0.1)
    before = w.detach().clone()
    optimizer.step(lambda: -(w[0] ** 2) - 2 * w[1] ** 2)
    (solve,) = optimizer.records[0].solves
    assert solve.status == "negative curvature" and optimizer.records[0].negative_curvature
    gradient = torch.stack([-2 * before[0], -4 * before[1]])
    torch.testing.assert_close(w.detach() - before, -0.1 * gradient)


def test_a_whole_run_is_the_same_in_both_precisions_to_rounding():
    ends = []
    for dtype in (torch.float32, torch.float64):
        risk = mlp()
        model, ((x, y),) = copy.deepcopy(risk.model).to(dtype), risk.data
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
        optimizer = HessianFree(model.named_parameters(), partition="layer", lr=0.5, damping=0.5)
        for _ in range(5):
            optimizer.step(risk)
        ends.append(flat(risk).double())
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
