"""The trace penalty: its value and gradient against dense oracles."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import Oracle
from penalties import MATRICES, both_matrices, on_its_batch, penalty_of, seeded
from problems import CASES, batchnorm_train, lstm, mlp, relu_mlp
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Partition, RiskOperator
from pyhessian_spectra.regularisers import trace_penalty


def layernorm() -> EmpiricalRisk:
    """torch's own third derivative of LayerNorm is wrong."""
    generator = seeded(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, torch.arange(9) % 3))


# a penalty is of one batch; the data of these cases are one
ONE_BATCH = {name: case for name, case in CASES.items() if len(case().data) == 1} | {"layernorm": layernorm}


def gradient_of(value: Tensor, risk: EmpiricalRisk) -> Tensor:
    parts = torch.autograd.grad(value, risk.live().coordinates, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def exact(risk: EmpiricalRisk, matrix: type[RiskOperator], groups: Partition | None = None) -> tuple[Tensor, Tensor]:
    """The trace, and its derivative along a direction by central differences of exact traces."""
    direction = torch.randn(risk.n, generator=seeded(9), dtype=torch.float64)
    direction /= direction.norm()
    chosen = torch.cat([g.indices for g in groups]) if groups else torch.arange(risk.n)

    def trace(step: float) -> Tensor:
        oracle = Oracle(risk)
        oracle.theta = oracle.theta + step * direction
        return MATRICES[matrix](oracle).diagonal()[chosen].sum()

    # the step's error is of order h^2 = 1e-8 in what varies over distances of one, rounding 1e-16 / h = 1e-12
    h = 1e-4
    return trace(0.0), direction, (trace(h) - trace(-h)) / (2 * h)


@both_matrices
@pytest.mark.parametrize("case", ONE_BATCH)
def test_with_enough_probes_value_and_gradient_are_exact(case, matrix):
    risk = ONE_BATCH[case]()
    value = on_its_batch(penalty_of(risk, matrix=matrix, num_probes=risk.n), risk)
    trace, direction, slope = exact(risk, matrix)
    assert float(value.detach()) == pytest.approx(float(trace), rel=1e-10)
    found = gradient_of(value, risk)
    assert float(found @ direction) == pytest.approx(float(slope), rel=1e-6, abs=1e-7 * float(found.norm()))


@both_matrices
@pytest.mark.parametrize("case", [batchnorm_train, layernorm, lstm, mlp], ids=lambda case: case.__name__)
def test_the_mean_over_all_signs_is_the_exact_trace_and_so_are_the_gradients(case, matrix):
    risk = case()
    sizes = {name: shape.numel() for name, shape in risk.layout.shapes.items()}
    first, second, *_ = sorted(sizes, key=sizes.__getitem__)
    smallest = [first, second] if sizes[first] + sizes[second] <= 8 else [first]
    partition = Partition.by_glob(risk.layout, smallest)
    chosen = torch.cat([group.indices for group in partition])
    penalty = penalty_of(risk, matrix=matrix, groups=partition)
    n = len(chosen)
    # the sign of the whole vector does not matter
    signs = [torch.tensor([1.0, *rest], dtype=torch.float64) for rest in itertools.product((1, -1), repeat=n - 1)]
    total = torch.zeros((), dtype=torch.float64)
    for v in signs:
        penalty._draw = lambda space, generator, k, v=v: v[:, None]
        total = total + on_its_batch(penalty, risk) / len(signs)
    trace, direction, slope = exact(risk, matrix, partition)
    assert len(signs) == 2 ** (n - 1)
    assert float(total.detach()) == pytest.approx(float(trace), rel=1e-10)
    found = gradient_of(total, risk)
    assert float(found @ direction) == pytest.approx(float(slope), rel=1e-6, abs=1e-7 * float(found.norm()))


HEADS = [
    ("mlp", "2"),
    ("mlp", "2.weight"),
    ("mlp", "2.bias"),
    ("batchnorm_train", "5"),
    ("lstm", "out"),
    ("attention", "out"),
]


@both_matrices
@pytest.mark.parametrize(("case", "group"), HEADS)
def test_of_a_last_linear_layer_one_probe_is_exact(case, group, matrix):
    risk = CASES[case]()
    partition = Partition.by_glob(risk.layout, group)
    value = on_its_batch(penalty_of(risk, matrix=matrix, groups=partition), risk)
    trace, direction, slope = exact(risk, matrix, partition)
    assert float(value.detach()) == pytest.approx(float(trace), rel=1e-10)
    found = gradient_of(value, risk)
    assert float(found @ direction) == pytest.approx(float(slope), rel=1e-6, abs=1e-7 * float(found.norm()))


def mixing(z: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(z, y) + z.mean() ** 2


@pytest.mark.parametrize(
    ("case", "group", "loss"), [("mlp", "0", None), ("tied_weights", "out", None), ("mlp", "2", mixing)]
)
def test_what_is_no_last_layer_or_is_mixed_by_the_loss_takes_random_probes(case, group, loss):
    risk = CASES[case]()
    penalty = trace_penalty(risk.model, loss or risk.loss_fn, mode="eval", groups=group, generator=seeded())
    assert len({float(on_its_batch(penalty, risk).detach()) for _ in range(4)}) == 4


def test_a_loss_that_uses_the_last_layer_itself_is_not_taken_for_one_of_outputs():
    risk = mlp()
    weight = risk.model[2].weight

    def decayed(z: Tensor, y: Tensor) -> Tensor:
        return risk.loss_fn(z, y) + weight.square().sum() ** 2

    penalty = trace_penalty(risk.model, decayed, matrix=HessianOperator, mode="eval", groups="2", generator=seeded())
    assert len({float(on_its_batch(penalty, risk).detach()) for _ in range(4)}) == 4


@pytest.mark.parametrize("probes", ["rademacher", "gaussian"])
def test_random_probes_are_unbiased_in_value_and_gradient(probes):
    risk, draws = relu_mlp(), 150
    penalty = penalty_of(risk, matrix=HessianOperator, probes=probes, num_probes=3, generator=seeded())
    whole = on_its_batch(penalty_of(risk, matrix=HessianOperator, num_probes=risk.n), risk)
    values = [on_its_batch(penalty, risk) for _ in range(draws)]
    rows = torch.stack([torch.cat([v.detach()[None], gradient_of(v, risk)]) for v in values])
    expected = torch.cat([whole.detach()[None], gradient_of(whole, risk)])
    off = (rows.mean(dim=0) - expected).abs() / (rows.std(dim=0) / math.sqrt(draws)).clamp_min(1e-12)
    # of 74 correlated quantities none is off by more than five standard errors
    assert float(off.max()) < 5


def test_of_a_semidefinite_matrix_one_probe_over_all_groups_has_no_more_variance_than_one_for_each():
    dense = Oracle(relu_mlp()).ggn()
    groups = [group.indices for group in Partition.by_module(relu_mlp().layout)]
    apart = sum(2 * dense[group][:, group].square().sum() for group in groups)
    assert 2 * dense.square().sum() / len(groups) <= apart


@pytest.mark.parametrize("matrix", [HessianOperator, GGNOperator])
def test_a_loss_that_mixes_examples_only_in_its_third_derivative_is_no_loss_of_each(matrix):
    """Below a head of zeros the mixing has no curvature, but its curvature changes with the head."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    x, y = torch.randn(6, 4, generator=seeded(), dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = lambda z, y: nn.functional.cross_entropy(z, y) + (z.mean(dim=0) ** 3).sum()  # noqa: E731
    penalty = trace_penalty(model, loss, groups="2", matrix=matrix, num_probes=100)
    along = torch.randn(3, 5, generator=seeded(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(penalty((x, y)), [model[2].weight])
    risk, values = EmpiricalRisk(model, loss, (x, y)).restrict("2"), []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            model[2].weight.copy_(step * along)
        values.append(float(matrix(risk).to_dense().trace()))
    assert float((found * along).sum()) == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-6)
