"""The trace penalty: its value and gradient against dense oracles, its groups, its schedule, and what it refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from functions import Apply, CubeOnce, CubeTwice
from oracle import Oracle
from problems import CASES, batchnorm_train, lstm, mlp, relu_mlp
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Partition, RiskOperator
from pyhessian_spectra.errors import InputError, NonFiniteError, SecondDerivativeError
from pyhessian_spectra.regularisers import TracePenalty, trace_penalty

MATRICES = {HessianOperator: Oracle.hessian, GGNOperator: Oracle.ggn}
both_matrices = pytest.mark.parametrize("matrix", MATRICES, ids=lambda matrix: matrix.kind)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def penalty_of(risk: EmpiricalRisk, **options) -> TracePenalty:
    groups = options.pop("groups", list(risk.layout.names))
    return trace_penalty(risk.model, risk.loss_fn, mode=risk.mode, groups=groups, **options)


def on_its_batch(penalty: TracePenalty, risk: EmpiricalRisk) -> Tensor:
    (batch,) = risk.data
    return penalty(batch)


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


# ------------------------------------------------------------------------------------------------------------ groups


class Deep(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        for name, layer in zip(
            "abcde", (nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)), strict=True
        ):
            self.add_module(name, layer)


def deep(**options) -> TracePenalty:
    return trace_penalty(Deep(), nn.CrossEntropyLoss(), **options)


BATCH = (torch.eye(2), torch.tensor([0, 1]))


def test_the_middle_is_that_of_the_published_code():
    # ten tensors: numbers 10 // 4 = 2 to 3 * 10 // 4 = 7, both included
    assert list(deep(groups="middle").partition.groups) == ["b", "c", "d"]
    names = [name for group in deep(groups="middle").partition for name in group.names]
    assert names == [name for name, _ in Deep().named_parameters()][2:8]


def test_random_groups_are_as_many_whole_modules_as_the_middle_has_and_follow_the_generator():
    drawn = [deep(groups="random", generator=seeded(seed)).partition for seed in range(20)]
    again = [deep(groups="random", generator=seeded(seed)).partition for seed in range(20)]
    labels = [tuple(partition.groups) for partition in drawn]
    assert all(
        len(set(each)) == 3 and all(group.whole for group in each_) for each, each_ in zip(labels, drawn, strict=True)
    )
    assert len(set(labels)) > 3 and labels == [tuple(partition.groups) for partition in again]


def test_the_value_is_the_sum_of_the_traces_of_its_groups():
    penalty = deep(groups=["a", "d.weight"], num_probes=2)
    value = penalty(BATCH)
    assert list(penalty.traces) == ["a", "d.weight"]
    assert float(value.detach()) == pytest.approx(float(sum(penalty.traces.values())))
    assert not any(trace.requires_grad for trace in penalty.traces.values())


def test_parameters_outside_the_groups_are_penalised_through_the_model():
    model = Deep()
    penalty = trace_penalty(model, nn.CrossEntropyLoss(), groups="b")
    penalty(BATCH).backward()
    assert model.d.weight.grad.any() and model.e.bias.grad.any()


def test_coordinates_outside_the_groups_add_no_noise_even_in_the_same_parameter():
    risk, pair = mlp(), torch.tensor([1, 5])
    penalty = penalty_of(risk, groups=Partition(risk.layout, {"pair": pair}), generator=seeded())
    dense = Oracle(risk).ggn()[pair][:, pair]
    found = {round(float(on_its_batch(penalty, risk).detach()), 10) for _ in range(20)}
    assert found == {round(float(dense.trace() + sign * dense[0, 1]), 10) for sign in (-2, 2)}


# ------------------------------------------------------------------------------------------------- in a training loop


def test_it_is_on_at_start_and_every_so_many_calls_after_it_and_else_zero_without_a_graph():
    penalty = deep(start=2, every=3)
    values = [penalty(BATCH) for _ in range(9)]
    assert [i for i, value in enumerate(values) if value.requires_grad] == [2, 5, 8]
    assert all(float(value) == 0 and value.shape == () for value in values if not value.requires_grad)
    assert penalty.step == 9


def test_a_resumed_run_repeats_it():
    torch.manual_seed(0)
    model = Deep()
    first = trace_penalty(model, nn.CrossEntropyLoss(), groups="random", every=2, generator=seeded(1))
    for _ in range(3):
        first(BATCH)
    second = trace_penalty(model, nn.CrossEntropyLoss(), groups="random", every=2, generator=seeded(2))
    second.load_state_dict(first.state_dict())
    assert list(second.partition.groups) == list(first.partition.groups)
    assert [float(first(BATCH).detach()) for _ in range(4)] == [float(second(BATCH).detach()) for _ in range(4)]


def test_the_gauss_newton_form_is_never_negative_and_the_signed_trace_of_the_hessian_is():
    risk = mlp()
    for seed in range(30):
        assert float(on_its_batch(penalty_of(risk, generator=seeded(seed)), risk).detach()) >= 0
    signed = [
        float(on_its_batch(penalty_of(risk, matrix=HessianOperator, generator=seeded(seed)), risk).detach())
        for seed in range(30)
    ]
    assert min(signed) < 0


def test_the_model_is_not_changed_and_its_mode_decides_the_statistics():
    risk = batchnorm_train()
    model, before = risk.model, {name: t.clone() for name, t in risk.model.state_dict().items()}
    values = {}
    penalty = trace_penalty(model, risk.loss_fn, num_probes=risk.n)
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        values[training] = float(penalty(risk.data[0]).detach())
        fixed = trace_penalty(model, risk.loss_fn, num_probes=risk.n, mode="train" if training else "eval")
        assert values[training] == float(fixed(risk.data[0]).detach())
        assert all(module.training == training for module in model.modules())
    assert values[True] != pytest.approx(values[False], rel=1e-3)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_descent_on_the_penalty_lowers_the_exact_trace():
    risk = mlp()
    penalty, optimiser = penalty_of(risk, generator=seeded()), torch.optim.SGD(risk.model.parameters(), lr=0.02)
    before = Oracle(risk).ggn().trace()
    for _ in range(60):
        optimiser.zero_grad()
        on_its_batch(penalty, risk).backward()
        optimiser.step()
    assert Oracle(risk).ggn().trace() < 0.5 * before


# ------------------------------------------------------------------------------------------------------------ refusals


def test_of_an_unknown_layer_the_nearest_is_offered():
    with pytest.raises(InputError, match=r"no trainable parameter matches 'd.weigth'; did you mean 'd.weight'\?"):
        deep(groups="d.weigth")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"probes": "uniform"}, "probes must be one of rademacher, gaussian"),
        ({"num_probes": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
        ({"start": -1}, "at least 0"),
        ({"mode": "test"}, "mode must be"),
    ],
)
def test_wrong_arguments_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        deep(**options)


def test_modules_in_both_modes_are_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    penalty = trace_penalty(model, nn.CrossEntropyLoss())
    model[1].eval()
    with pytest.raises(InputError, match="in train mode and its module 1 in eval mode; pass mode="):
        penalty(BATCH)


def test_dropout_that_is_active_is_refused():
    model = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    with pytest.raises(InputError, match=r"rate 0\.5"):
        trace_penalty(model, nn.CrossEntropyLoss())
    assert trace_penalty(model, nn.CrossEntropyLoss(), mode="eval")(BATCH).requires_grad


@both_matrices
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Identity])
def test_a_piecewise_linear_loss_is_refused(activation, matrix):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), activation(), nn.Linear(8, 2))
    with pytest.raises(SecondDerivativeError, match="piecewise linear, such as L1"):
        trace_penalty(model, nn.L1Loss(), matrix=matrix)((torch.eye(2), torch.full((2, 2), 9.0)))


@both_matrices
def test_a_loss_without_third_derivative_is_refused(matrix):
    with pytest.raises(SecondDerivativeError, match="no third one"):
        trace_penalty(nn.Linear(2, 2), nn.MSELoss(), matrix=matrix)((torch.eye(2), torch.eye(2)))


def test_a_head_of_zeros_is_no_loss_without_derivatives():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    nn.init.zeros_(model[2].weight)
    assert float(trace_penalty(model, nn.CrossEntropyLoss(), groups="0")(BATCH).detach()) == 0


@both_matrices
@pytest.mark.parametrize(("function", "named"), [(CubeOnce, "CubeOnce"), (CubeTwice, "BendOnce")])
def test_an_operation_without_further_derivatives_is_named(function, named, matrix):
    model = nn.Sequential(nn.Linear(2, 3), Apply(function.apply), nn.Linear(3, 2))
    with pytest.raises(SecondDerivativeError, match=named):
        trace_penalty(model, nn.CrossEntropyLoss(), matrix=matrix)(BATCH)


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


def test_a_batch_without_a_trace_and_switched_off_derivatives_are_told_as_such():
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.ones(2, 3)
    penalty = trace_penalty(model, nn.CrossEntropyLoss())
    with torch.no_grad(), pytest.raises(InputError, match="outside of"):
        penalty((x, torch.tensor([0, 1])))
    with pytest.raises(NonFiniteError, match="whether it has any target that counts"):
        penalty((x, torch.tensor([-100, -100])))
