"""Newton's steps against closed forms and dense oracles."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from problems import CASES, mlp
from test_hessian_free import every_case, flat, parameters
from torch import Tensor

from pyhessian_spectra import HessianOperator
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers import Newton


@every_case
@pytest.mark.parametrize("solver", ["exact", "absolute", "cg"])
def test_the_step_is_the_solution_with_the_damped_hessian(case, solver):
    risk = CASES[case]()
    oracle, before = Oracle(risk), flat(risk)
    values, vectors = torch.linalg.eigh(oracle.hessian())
    damping = 0.1 if solver == "absolute" else 0.1 - float(values.min())
    used = (values.abs() if solver == "absolute" else values) + damping
    optimizer = Newton(parameters(risk), lr=0.5, damping=damping, solver=solver, max_cg_iterations=2000, cg_rtol=1e-13)
    optimizer.step(risk)
    expected = -0.5 * vectors @ ((vectors.T @ oracle.gradient()) / used)
    torch.testing.assert_close(flat(risk) - before, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    record, step = optimizer.records[0], flat(risk) - before
    predicted = -(oracle.gradient() @ step + step @ oracle.hessian() @ step / 2)
    assert record.predicted == pytest.approx(float(predicted), rel=1e-6, abs=1e-12)


def test_conjugate_gradients_take_no_product_but_their_iterations():
    risk = mlp()
    optimizer = Newton(parameters(risk), damping=5.0, solver="cg")
    optimizer.step(risk)
    (solve,) = optimizer.records[0].solves
    assert solve.num_products == solve.iterations > 1


def valley(w: Tensor) -> Tensor:
    return 50 * w[0] ** 2 + 0.5 * w[1] ** 2


def saddle(w: Tensor) -> Tensor:
    return w[0] ** 2 - w[1] ** 2


def test_one_step_ends_at_the_minimum_of_a_quadratic_whatever_its_condition():
    w = torch.tensor([1.0, -3.0], dtype=torch.float64, requires_grad=True)
    Newton([w]).step(lambda: valley(w))
    torch.testing.assert_close(w.detach(), torch.zeros(2, dtype=torch.float64), atol=1e-14, rtol=0)


def test_plain_newton_goes_to_the_saddle_and_absolute_values_leave_it():
    for solver, goal in (("exact", [0.0, 0.0]), ("absolute", [0.0, 1.0])):
        w = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        Newton([w], solver=solver).step(lambda at=w: saddle(at))
        torch.testing.assert_close(w.detach(), torch.tensor(goal, dtype=torch.float64), atol=1e-14, rtol=0)


def test_a_singular_hessian_is_refused_with_the_eigenvalue_and_a_damping_that_does():
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError, match=r"smallest \|eigenvalue\| is 0, its largest 6") as raised:
        Newton([w]).step(lambda: 3 * w[0] ** 2 - w[1] ** 2)
    assert torch.equal(w.detach(), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    damping = float(str(raised.value).split("damping=")[1].split(",")[0])
    assert damping > 2  # so that -2 becomes positive
    optimizer = Newton([w], damping=damping)
    optimizer.step(lambda: 3 * w[0] ** 2 - w[1] ** 2)
    assert optimizer.records[0].rejected is None


def test_a_damping_that_meets_a_negative_eigenvalue_is_refused():
    w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError, match="with damping 2 is singular"):
        Newton([w], damping=2.0).step(lambda: saddle(w))


def test_the_hessian_is_built_by_the_dense_path(monkeypatch):
    risk, widths = mlp(), []
    matmat = HessianOperator._matmat
    monkeypatch.setattr(HessianOperator, "_matmat", lambda op, v: widths.append(v.shape[1]) or matmat(op, v))
    Newton(parameters(risk), damping=5.0).step(risk)
    assert widths == [risk.n]


def test_what_newton_cannot_take_is_refused():
    w = torch.zeros(10_001, requires_grad=True)
    with pytest.raises(InputError, match="10,001 parameters is too large"):
        Newton([w]).step(lambda: (w**2).sum())
    with pytest.raises(InputError, match="solver must be one of exact, absolute, cg"):
        Newton([w], solver="lu")
    with pytest.raises(InputError, match="damping must be a number of at least 0"):
        Newton([w], damping=-1.0)
