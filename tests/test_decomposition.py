"""H = G + R: the residual, and the three over one graph."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from problems import CASES, mean_squared_error, mlp, relu_mlp, uneven_last_batch
from torch import nn

from pyhessian_spectra import (
    Decomposition,
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Linearised,
    ResidualOperator,
    analyze,
    trace,
)
from pyhessian_spectra.errors import InputError

# As for the other matrices: 1e-10 relative to the Hessian in float64.
TOLERANCE = 1e-10
every_case = pytest.mark.parametrize("case", CASES)
kept_or_rebuilt = pytest.mark.parametrize("memory_budget", [None, 0], ids=["kept", "rebuilt"])


def columns(risk: EmpiricalRisk, count: int = 3) -> torch.Tensor:
    return torch.randn(risk.n, count, generator=torch.Generator().manual_seed(0), dtype=risk.dtype)


@every_case
@kept_or_rebuilt
def test_the_residual_is_the_difference_of_the_oracles(case, memory_budget):
    risk = CASES[case]()
    hessian, ggn = Oracle(risk).hessian(), Oracle(risk).ggn()
    found = ResidualOperator(risk, memory_budget=memory_budget).to_dense()
    assert float((found - (hessian - ggn)).abs().max() / hessian.abs().max()) < TOLERANCE


@every_case
@kept_or_rebuilt
def test_parts_over_one_graph_equal_the_oracles_in_any_order(case, memory_budget):
    """Each after the others, since they stop and free different parts of the graph."""
    risk = CASES[case]()
    hessian, ggn = Oracle(risk).hessian(), Oracle(risk).ggn()
    v = columns(risk)
    expected = {"hessian": hessian @ v, "ggn": ggn @ v, "residual": (hessian - ggn) @ v}
    scale = float(hessian.abs().max() * v.abs().max())
    parts = Decomposition(risk.replace(memory_budget=memory_budget))
    for name in ("ggn", "residual", "hessian", "residual", "ggn"):
        op = getattr(parts, name)
        assert float((op @ v - expected[name]).abs().max()) < TOLERANCE * scale
        assert float((op @ v[:, 0] - expected[name][:, 0]).abs().max()) < TOLERANCE * scale
        for found, wanted in zip(parts.products(v[:, 1]), expected.values(), strict=True):
            assert float((found - wanted[:, 1]).abs().max()) < TOLERANCE * scale
    kept = Linearised.KEPT if memory_budget is None else Linearised.REBUILT
    assert parts.linearised is parts.ggn.linearised is kept


def test_of_a_linear_network_nothing_remains_between_hessian_and_gauss_newton_matrix():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    risk = EmpiricalRisk(
        nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), (x, torch.randint(3, (9,), generator=generator))
    )
    assert torch.equal(ResidualOperator(risk).to_dense(), torch.zeros(risk.n, risk.n, dtype=torch.float64))


def test_the_residual_of_two_linear_layers_with_squared_error_is_between_them_and_known():
    """z = B A x: d2 z / dB_ij dA_kl = [j = k] e_i x_l, so R[B_ij, A_kl] = [j = k] mean over x of slope_i x_l."""
    inputs, hidden, outputs, count = 3, 2, 2, 7
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, outputs, bias=False)).double()
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    y = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    risk = EmpiricalRisk(model, nn.MSELoss(), (x, y))
    slopes = 2 * (model(x).detach() - y) / (count * outputs)
    expected = torch.zeros(risk.n, risk.n, dtype=torch.float64)
    first, second = hidden * inputs, outputs * hidden
    block = torch.einsum("jk,ni,nl->ijkl", torch.eye(hidden, dtype=torch.float64), slopes, x).reshape(second, first)
    expected[first:, :first], expected[:first, first:] = block, block.T
    torch.testing.assert_close(ResidualOperator(risk).to_dense(), expected, rtol=1e-12, atol=1e-13)


def test_a_loss_that_is_linear_in_the_outputs_has_no_gauss_newton_part():
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    risk = EmpiricalRisk(
        nn.Sequential(nn.Linear(2, 3), nn.Tanh()).double(), lambda z, y: (z * y).mean(), (x, torch.ones(4, 3).double())
    )
    parts = Decomposition(risk)
    v = columns(risk, 1)[:, 0]
    hessian, ggn, residual = parts.products(v)
    assert torch.equal(ggn, torch.zeros_like(v)) and torch.equal(parts.ggn @ v, ggn)
    torch.testing.assert_close(residual, Oracle(risk).hessian() @ v)
    torch.testing.assert_close(parts.hessian @ v, hessian)


def test_a_small_residual_keeps_the_digits_that_a_difference_loses():
    """Small outputs close to their targets: R is 1e-4 of G, so that in H - G four digits cancel."""
    risk = mean_squared_error()
    with torch.no_grad():
        for p in risk.model[2].parameters():
            p.mul_(1e-4)
    data = [(x, torch.zeros_like(y)) for x, y in risk.data]
    v = columns(risk)
    exact = ResidualOperator(EmpiricalRisk(risk.model, risk.loss_fn, data)) @ v
    single = EmpiricalRisk(risk.model.float(), risk.loss_fn, data)

    def error(op) -> float:
        return float(((op @ v.float()).double() - exact).abs().max() / exact.abs().max())

    eps = torch.finfo(torch.float32).eps
    difference = error(HessianOperator(single) - GGNOperator(single))
    assert error(ResidualOperator(single)) < 10 * eps < 100 * eps < difference
    assert error(Decomposition(single).residual) < 10 * eps


def test_traces_add_up_from_the_same_probes():
    parts = Decomposition(relu_mlp())
    found = {
        name: trace(getattr(parts, name), num_probes=5, generator=torch.Generator().manual_seed(3)).value
        for name in ("hessian", "ggn", "residual")
    }
    assert found["hessian"] == pytest.approx(found["ggn"] + found["residual"], rel=1e-12)
    dense = {name: float(getattr(parts, name).to_dense().trace()) for name in found}
    assert dense["hessian"] == pytest.approx(dense["ggn"], rel=1e-12)  # of a ReLU network
    assert abs(dense["residual"]) < 1e-12 * dense["ggn"]


def test_one_forward_pass_a_batch_serves_all_products():
    risk = uneven_last_batch()
    calls = []
    handle = risk.model.register_forward_hook(lambda *_: calls.append(1))
    parts = Decomposition(risk)
    v = columns(risk)
    for op in (parts.hessian, parts.ggn, parts.residual):
        assert (op @ v).shape == v.shape
    parts.products(v[:, 0])
    handle.remove()
    assert len(calls) == risk.num_batches


def kept_bytes(op) -> int:
    _ = op @ torch.zeros(op.shape[0], dtype=op.dtype)
    assert op.linearised is Linearised.KEPT
    return op.linearised_bytes


@pytest.mark.parametrize("case", ["mlp", "batchnorm_eval", "attention", "lstm"])
def test_shared_linearisations_take_the_memory_of_one(case):
    """At most that of the Hessian's own."""
    risk = CASES[case]()
    apart = [kept_bytes(operator(risk)) for operator in (HessianOperator, GGNOperator, ResidualOperator)]
    parts = Decomposition(risk)
    shared = [kept_bytes(op) for op in (parts.hessian, parts.ggn, parts.residual)]
    assert len(set(shared)) == 1
    assert shared[0] <= max(apart) < sum(apart) / 2


def test_residual_is_analysed_like_any_matrix():
    found = analyze(mlp(), matrix=ResidualOperator, layers=False, generator=torch.Generator().manual_seed(0))
    dense = ResidualOperator(mlp()).to_dense()
    assert found.problem["matrix"] == "Residual"
    assert found.full.largest.eigenvalues[-1] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-10)
    assert found.full.trace.value == pytest.approx(float(dense.trace()), rel=1e-10, abs=1e-12)


class _Named(nn.Module):
    """A model that returns a mapping, as many of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"hidden": hidden, "logits": self.head(hidden)}


def test_outputs_that_are_no_tensor_need_to_be_told_what_the_loss_is_taken_of():
    model, generator = _Named().double(), torch.Generator().manual_seed(3)
    data = (torch.randn(5, 2, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1]))
    loss = nn.CrossEntropyLoss()
    risk = EmpiricalRisk(model, lambda z, y: loss(z["logits"], y), data)
    with pytest.raises(InputError, match=r"needs the tensor that the loss is taken of.*select=lambda outputs"):
        _ = Decomposition(risk).ggn @ torch.ones(risk.n, dtype=risk.dtype)
    named = EmpiricalRisk(model, risk.loss_fn, data, select=lambda outputs: outputs["logits"])
    plain = EmpiricalRisk(nn.Sequential(model.body, nn.Tanh(), model.head), loss, data)
    for operator in (HessianOperator, GGNOperator, ResidualOperator, EmpiricalFisherOperator):
        torch.testing.assert_close(operator(named).to_dense(), operator(plain).to_dense(), rtol=0, atol=1e-14)
