"""What is computed on an accelerator is what is computed on the CPU. On the CPU the same tests check themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from problems import CASES, mlp
from test_hessian_free import every_case, flat, halves, parameters

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, analyze, cg, slq, trace
from pyhessian_spectra.optimisers import HessianFree, Newton, levenberg_marquardt, squared_gradients


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device(request.param)


def on(device: torch.device, risk: EmpiricalRisk) -> EmpiricalRisk:
    """The same risk with a copy of the model on the device; data stay where they are."""
    other = copy.deepcopy(risk)
    moved = EmpiricalRisk(other.model.to(device), other.loss_fn, other.data, mode=other.mode)
    return moved.restrict(other.layout.names)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_case
@pytest.mark.parametrize("matrix", [HessianOperator, GGNOperator])
def test_products_gradients_and_blocks_are_the_cpus(case, matrix, device):
    here = CASES[case]()
    if any(hasattr(here.loss_fn, name) and getattr(here.loss_fn, name) is not None for name in ("weight",)):
        pytest.skip("class weights lie on the CPU, as the user has put them")
    there = on(device, here)
    op, expected = matrix(there), matrix(here)
    v = expected.space.randn(generator(), 3)
    torch.testing.assert_close((op @ v.to(device)).cpu(), expected @ v, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(there.gradient().cpu(), here.gradient(), rtol=1e-9, atol=1e-11)
    name = here.layout.names[-1]
    w = v[here.layout.slices[name], 0]
    found = op.block(name) @ w.to(device)
    torch.testing.assert_close(found.cpu(), expected.block(name) @ w, rtol=1e-9, atol=1e-11)


def test_an_analysis_is_the_cpus(device):
    here = mlp()
    settings = dict(num_eigenvalues=3, num_steps=15, max_steps=40, trace_probes=12)
    for limit in (0, 3000):
        expected, found = (
            analyze(risk, exact_limit=limit, generator=generator(), **settings).full
            for risk in (here, on(device, here))
        )
        assert found.largest.eigenvalues == pytest.approx(expected.largest.eigenvalues, rel=1e-8)
        assert found.trace.value == pytest.approx(expected.trace.value, rel=1e-8)


def test_estimates_and_solutions_are_the_cpus(device):
    here = mlp()
    there = GGNOperator(on(device, here))
    op = GGNOperator(here)
    assert float(trace(there, generator=generator()).value) == pytest.approx(
        float(trace(op, generator=generator()).value)
    )
    nodes, expected = (slq(each, num_steps=10, num_probes=2, generator=generator()).nodes for each in (there, op))
    assert nodes == pytest.approx(expected, rel=1e-6, abs=1e-9)
    b = op.space.randn(generator())
    for look_every in (1, 8):
        found = cg(there, b.to(device), shift=0.1, rtol=1e-10, look_every=look_every)
        torch.testing.assert_close(found.x.cpu(), cg(op, b, shift=0.1, rtol=1e-10).x, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("partition", [None, "module"])
def test_steps_are_the_cpus(device, partition):
    ends = []
    for risk in (mlp(), on(device, mlp())):
        optimizer = HessianFree(
            parameters(risk),
            partition=partition,
            lr=0.5,
            damping=0.3,
            cg_rtol=1e-12,
            max_cg_iterations=200,
            adapt_damping=levenberg_marquardt,
            preconditioner=squared_gradients,
            averaging=0.5,
        )
        for _ in range(3):
            optimizer.step(risk, halves(risk))
        Newton(parameters(risk), damping=2.0).step(risk)
        ends.append(flat(risk).cpu())
        state = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(state)
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-10)
