"""Products at points that are copied, live or moved, and products that are differentiated."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from problems import CASES, mlp, relu_mlp, uneven_last_batch
from test_curvature import relative_error
from torch import nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Linearised, ResidualOperator
from pyhessian_spectra.errors import InputError

every_case = pytest.mark.parametrize("case", CASES)


def vector(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved_oracle(risk: EmpiricalRisk, step: torch.Tensor) -> Oracle:
    oracle = Oracle(risk)
    oracle.theta = oracle.theta + step
    return oracle


@every_case
def test_at_a_moved_point_the_product_is_the_oracles_there_and_the_model_stays(case):
    risk = CASES[case]()
    before = {name: t.clone() for name, t in risk.model.state_dict().items()}
    op, direction, v = HessianOperator(risk), vector(risk.n, 1), vector(risk.n, 2)
    there = op.at(op.point.moved(direction, 0.1))
    expected = moved_oracle(risk, 0.1 * direction).hessian() @ v
    for _ in range(3):  # the first product at a point may be the only one, so that nothing is kept of it
        assert relative_error(there @ v, expected) < 1e-10
    assert relative_error(op @ v, Oracle(risk).hessian() @ v) < 1e-10
    assert risk.loss(there.point) == pytest.approx(float(moved_oracle(risk, 0.1 * direction).loss(there.point.flat())))
    assert all(torch.equal(before[name], t) for name, t in risk.model.state_dict().items())


@every_case
@pytest.mark.parametrize("memory_budget", [None, 0], ids=["kept", "rebuilt"])
def test_a_live_point_follows_the_model_and_a_copied_one_does_not(case, memory_budget):
    risk = CASES[case]()
    live = HessianOperator(risk, point=risk.live(), memory_budget=memory_budget)
    copied, v = HessianOperator(risk, memory_budget=memory_budget), vector(risk.n)
    then = Oracle(risk).hessian() @ v
    assert relative_error(live @ v, then) < 1e-10 and relative_error(copied @ v, then) < 1e-10
    with torch.no_grad():
        for p in risk.model.parameters():
            if p.requires_grad:
                p.mul_(1.1)
    now = Oracle(risk).hessian() @ v
    assert relative_error(live @ v, now) < 1e-10 and relative_error(copied @ v, then) < 1e-10
    assert all(p.grad is None for p in risk.model.parameters())


def test_only_what_training_changes_is_copied():
    risk = CASES["frozen_layer"]()
    copied, own = risk.point(), dict(risk.model.named_parameters())
    assert set(copied.values) == {name for name, p in own.items() if p.requires_grad}
    assert all(copied.values[name].data_ptr() != own[name].data_ptr() for name in copied.values)
    live = risk.live()
    assert not live.values and all(a is own[name] for a, name in zip(live.coordinates, risk.layout.names, strict=True))


def test_what_was_decided_at_one_point_holds_at_others():
    risk = mlp()
    op = HessianOperator(risk)
    _ = op @ vector(risk.n)
    there = op.at(op.point.moved(vector(risk.n, 1)))
    assert there.linearised is op.linearised is Linearised.KEPT
    calls = []
    handle = risk.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(4):
        _ = there @ vector(risk.n)
    handle.remove()
    assert len(calls) == 2  # once for the first product alone, once to keep


def test_a_point_of_other_coordinates_is_refused():
    risk = relu_mlp()
    with pytest.raises(InputError, match="other coordinates"):
        HessianOperator(risk).at(risk.restrict("2").point())


def composed_loss(risk: EmpiricalRisk):
    """The oracle's loss with BatchNorm spelled out: torch's own third derivative of it is wrong in train mode."""
    oracle = Oracle(risk)
    if risk.mode == "eval":
        return oracle.loss
    conv, norm, _, pool, flat, out = risk.model
    names = {id(p): name for name, p in risk.model.named_parameters()}
    x, y = risk.data[0]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        values = dict(zip(risk.layout.names, risk.layout.unflatten(theta), strict=True))
        get = lambda p: values[names[id(p)]]  # noqa: E731
        z = torch.nn.functional.conv2d(x, get(conv.weight), get(conv.bias))
        centred = z - z.mean((0, 2, 3), keepdim=True)
        z = centred / (centred.square().mean((0, 2, 3), keepdim=True) + norm.eps).sqrt()
        z = z * get(norm.weight)[:, None, None] + get(norm.bias)[:, None, None]
        return risk.loss_fn(flat(pool(z.relu())) @ get(out.weight).T + get(out.bias), y)

    return loss


@every_case
def test_the_gradient_of_a_curvature_is_that_of_triple_autograd(case):
    """d/dw of v^T H(w) v, by torch's own autograd through the oracle's loss."""
    risk = CASES[case]()
    v, loss = vector(risk.n), composed_loss(risk)
    theta = Oracle(risk).theta.clone().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        (g,) = torch.autograd.grad(loss(theta), theta, create_graph=True)
        (hv,) = torch.autograd.grad(g @ v, theta, create_graph=True)
        (expected,) = torch.autograd.grad(hv @ v, theta)
    op = HessianOperator(risk, point=risk.live())
    curvature = v @ op.product(v)
    assert float(curvature.detach()) == pytest.approx(float(hv.detach() @ v), rel=1e-10)
    found = torch.autograd.grad(curvature, op.point.coordinates, materialize_grads=True)
    assert relative_error(risk.layout.flatten(found), expected) < 1e-10


@pytest.mark.parametrize("operator", [GGNOperator, ResidualOperator])
@every_case
def test_products_of_the_parts_have_the_derivative_of_their_differences(operator, case):
    """Central differences, in the point, of exact products of second order."""
    risk = CASES[case]()
    v, direction, step = vector(risk.n), vector(risk.n, 1), 1e-5
    op = operator(risk, point=risk.live())
    found = torch.autograd.grad(v @ op.product(v), op.point.coordinates, materialize_grads=True)
    copied = operator(risk)
    values = [float(v @ (copied.at(copied.point.moved(direction, c * step)) @ v)) for c in (-2, -1, 1, 2)]
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    scale = sum(map(abs, values)) + float(direction.norm())
    assert float(risk.layout.flatten(found) @ direction) == pytest.approx(difference, rel=1e-7, abs=1e-8 * scale)


def test_a_product_can_be_differentiated_in_its_vector_too():
    risk = uneven_last_batch()
    v = vector(risk.n).requires_grad_()
    (found,) = torch.autograd.grad(v @ HessianOperator(risk).product(v), v)
    assert relative_error(found, 2 * Oracle(risk).hessian() @ v.detach()) < 1e-10


class _Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(2, 6), nn.LayerNorm(6), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def residual_of_a_differential_equation(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """u_xx + u_yy = f: the model is differentiated twice in its inputs, so its Hessian takes fourth derivatives."""
    x, f = batch
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    laplacian = sum(torch.autograd.grad(first[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
    return (laplacian - f).square().mean()


def test_the_loss_of_a_differential_equation_has_its_hessian_through_layer_norm():
    """torch's own third derivative of LayerNorm is wrong: here by differences of gradients through a composition."""
    generator = torch.Generator().manual_seed(0)
    model = _Normalised().double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    batches = [(x[:5], x[:5, 0]), (x[5:], x[5:, 1])]
    risk = EmpiricalRisk.from_batch_loss(model, residual_of_a_differential_equation, batches)

    class Plain(nn.Module):
        def __init__(self, values: dict[str, torch.Tensor]) -> None:
            super().__init__()
            self.values = values

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            v = self.values
            z = x @ v["first.weight"].T + v["first.bias"]
            z = z - z.mean(1, keepdim=True)
            z = z / (z.square().mean(1, keepdim=True) + 1e-5).sqrt() * v["norm.weight"] + v["norm.bias"]
            return torch.tanh(z) @ v["last.weight"].T + v["last.bias"]

    theta = risk.point().flat()

    def gradient(theta: torch.Tensor) -> torch.Tensor:
        theta = theta.clone().requires_grad_()
        model = Plain(dict(zip(risk.layout.names, risk.layout.unflatten(theta), strict=True)))
        total = sum(len(b[0]) * residual_of_a_differential_equation(model, b) for b in batches) / 9
        return torch.autograd.grad(total, theta)[0]

    v, step = vector(risk.n), 1e-3
    slopes = [gradient(theta + c * step * v) for c in (-2, -1, 1, 2)]
    expected = (slopes[0] - 8 * slopes[1] + 8 * slopes[2] - slopes[3]) / (12 * step)
    assert relative_error(risk.gradient(), gradient(theta)) < 1e-12
    assert relative_error(HessianOperator(risk) @ v, expected) < 1e-6
    with pytest.raises(InputError, match="loss of outputs and targets"):
        _ = GGNOperator(risk) @ v


def test_a_loss_that_uses_the_models_own_parameters_is_seen_whole():
    """An L2 term by way of the model, and a penalty on the gradient in the inputs."""
    risk = mlp()
    model, (x, y) = risk.model, risk.data[0]

    def loss(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        inputs = x[: len(y)].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(inputs).logsumexp(1).sum(), inputs, create_graph=True)
        return (
            nn.functional.cross_entropy(z, y)
            + 0.1 * sum(p.square().sum() for p in model.parameters())
            + (slope.square().mean())
        )

    penalised = EmpiricalRisk(model, loss, (x, y))
    theta = penalised.point().flat().requires_grad_()

    def whole(theta: torch.Tensor) -> torch.Tensor:
        values = dict(zip(risk.layout.names, risk.layout.unflatten(theta), strict=True))

        def forward(x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x @ values["0.weight"].T + values["0.bias"]) @ values["2.weight"].T + values["2.bias"]

        inputs = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(forward(inputs).logsumexp(1).sum(), inputs, create_graph=True)
        return nn.functional.cross_entropy(forward(x), y) + 0.1 * theta.square().sum() + slope.square().mean()

    expected = torch.autograd.functional.hessian(whole, theta.detach())
    assert relative_error(HessianOperator(penalised).to_dense(), expected) < 1e-10
    moved = HessianOperator(penalised)
    moved = moved.at(moved.point.moved(vector(risk.n, 3), 0.2))
    there = torch.autograd.functional.hessian(whole, (theta + 0.2 * vector(risk.n, 3)).detach())
    assert relative_error(moved.to_dense(), there) < 1e-10


@every_case
def test_columns_with_a_graph_are_the_products_one_by_one(case):
    risk = CASES[case]()
    op = HessianOperator(risk, point=risk.live())
    columns = torch.stack([vector(risk.n, seed) for seed in range(3)], dim=1)
    found = op.product(columns)
    assert relative_error(found.detach(), op @ columns) < 1e-12
    curvature = [float((v @ op.product(v)).detach()) for v in columns.unbind(1)]
    assert (columns * found.detach()).sum(dim=0).tolist() == pytest.approx(curvature, rel=1e-10)
