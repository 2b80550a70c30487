"""Wrong derivatives, weights and changes are refused before a number is printed; right models never are."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from functions import Apply, CubeAlmost, CubeDetached, FusedCrossEntropy
from problems import CASES, mlp
from torch import Tensor, nn

from pyhessian_spectra import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    ResidualOperator,
    RiskOperator,
    analyze,
)
from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.cases import Case
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import InputError, SecondDerivativeError, UnverifiedError
from pyhessian_spectra.runs.doctor import examine

OPERATORS = [HessianOperator, GGNOperator, ResidualOperator, EmpiricalFisherOperator]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n: int, classes: int = 3) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(1))


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    model = model.double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(0.6 * drawn(*p.shape, seed=100 * seed + i))
    return model


def net(function=torch.tanh, outputs: int = 3) -> nn.Module:
    return filled(nn.Sequential(nn.Linear(3, 4), Apply(function), nn.Linear(4, outputs)))


def risk_of(model: nn.Module, loss=F.cross_entropy, y: Tensor | None = None, **how) -> EmpiricalRisk:
    return EmpiricalRisk(model, loss, (drawn(12, 3), labels(12) if y is None else y), **how)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_right_models_pass_in_either_dtype(case, dtype, operator):
    risk = CASES[case]()
    model, loss = risk.model.to(dtype), risk.loss_fn
    loss = copy.deepcopy(loss).to(dtype) if isinstance(loss, nn.Module) else loss
    risk = EmpiricalRisk(model, loss, risk.data, mode=risk.mode, params=list(risk.layout.names))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    if operator is EmpiricalFisherOperator and risk.mode == "train":
        with pytest.raises(UnverifiedError, match="statistics of the batch"):
            verify(operator(risk))
    else:
        assert "right to" in verify(operator(risk)).found
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.training and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("function", [CubeDetached, CubeAlmost])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_backward_without_right_derivative_is_named_with_its_module(function, dtype):
    with pytest.raises(
        UnverifiedError, match=rf"products with the Hessian differ .*module '1' \(Apply\).*{function.__name__}"
    ):
        verify(HessianOperator(risk_of(net(function.apply).to(dtype))))


@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator, lambda risk: 2 * HessianOperator(risk)])
def test_a_fused_loss_is_named(operator):
    with pytest.raises(UnverifiedError, match="look at the loss, which may be due to FusedCrossEntropy"):
        verify(operator(risk_of(net(), FusedCrossEntropy.apply)))


def test_each_part_of_a_combination_is_checked():
    """The Gauss-Newton matrix does not see the second derivative of the cube, the residual does."""
    risk = risk_of(net(CubeDetached.apply))
    verify(GGNOperator(risk))
    with pytest.raises(UnverifiedError, match="products with the Residual"):
        verify(GGNOperator(risk) + 0.1 * ResidualOperator(risk))


def hooked(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    if y.requires_grad:
        y.register_hook(lambda g: 2 * g)
    return y


def without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.tanh(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.tanh(x) * x.detach(),
        lambda x: x + (torch.round(4 * x) / 4 - x).detach(),
        hooked,
        without_graph,
    ],
    ids=["detach", "straight through", "hook", "no_grad"],
)
def test_a_gradient_that_is_not_the_losss_is_refused_with_its_module(function):
    with pytest.raises(UnverifiedError, match=r"the gradient differs .*look at module '1' \(Apply\)"):
        verify(HessianOperator(risk_of(net(function))))


def test_a_stop_gradient_in_the_loss_is_refused_and_can_be_accepted():
    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z, torch.softmax(2 * z.detach(), 1))

    with pytest.raises(UnverifiedError, match=r"look at the loss \(accept_unverified=True, or --accept-unverified"):
        analyze(risk_of(net(), loss), layers=False)
    found = analyze(risk_of(net(), loss), layers=False, accept_unverified=True)
    (note,) = [note for note in found.notes if note.kind == "verification"]
    assert (
        note.text.startswith("Numbers may be wrong, since the gradient differs") and found.problem["verified"] == "no"
    )
    levels = [f.level for accept in (False, True) for f in examine_with(risk_of(net(), loss), accept)]
    assert levels == ["FAIL", "WARN"]


def examine_with(risk: EmpiricalRisk, accept: bool):
    from pyhessian_spectra import Settings

    found = examine(risk, Settings(accept_unverified=accept), layers=False)
    return [finding for finding in found if "the gradient differs" in finding.sentence]


def test_a_loss_without_a_graph_is_refused():
    with pytest.raises(UnverifiedError, match="the gradient differs from differences of the loss"):
        verify(HessianOperator(risk_of(net(), lambda z, y: F.cross_entropy(z, y).detach())))


def test_float32_constants_do_not_keep_the_check_from_float64():
    weights = torch.tensor([0.2, 1.0, 3.0])
    model = net().float()
    case = Case.of(HessianOperator(risk_of(model, lambda z, y: F.cross_entropy(z, y, weight=weights))))
    assert case.op.point.dtype == torch.float64
    assert all(comparison.agrees and comparison.best < 1e-6 for comparison in case.comparisons())


def test_a_model_that_computes_in_less_than_its_dtype_is_refused():
    coarse = lambda x: torch.tanh(x.to(torch.float32)).to(x.dtype)  # noqa: E731
    with pytest.raises(UnverifiedError, match="computes in float32 while its parameters are float64"):
        verify(HessianOperator(risk_of(net(coarse))))
    verify(HessianOperator(risk_of(net(coarse).float())))


def test_rows_for_padding_are_constants():
    tokens = torch.randint(5, (9, 4), generator=torch.Generator().manual_seed(0))
    tokens[:4, 0] = 0
    model = filled(nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)))
    verify(HessianOperator(EmpiricalRisk(model, F.cross_entropy, (tokens, labels(9)))))
    by_frequency = filled(nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True), *model[1:]))
    with pytest.raises(UnverifiedError, match=r"look at module '0' \(Embedding\)"):
        verify(HessianOperator(EmpiricalRisk(by_frequency, F.cross_entropy, (tokens, labels(9)))))


def test_a_matrix_of_another_kind_must_be_symmetric_and_linear():
    class Bent(RiskOperator):
        kind = "bent"

        def __init__(self, risk, bend) -> None:
            super().__init__(risk)
            self.bend = bend

        def _linearise(self, batch):
            hessian = autodiff.hessian(self.risk.objective, self.point, batch)
            product = lambda v, **how: self.bend(hessian.matvec(v))  # noqa: E731
            return autodiff.Linearisation(self.risk.objective, self.point, batch, product)

    verify(Bent(mlp(), lambda hv: 2 * hv))
    with pytest.raises(UnverifiedError, match="not symmetric"):
        verify(Bent(mlp(), lambda hv: hv.roll(1)))
    with pytest.raises(UnverifiedError, match=r"not (linear|symmetric)"):
        verify(Bent(mlp(), lambda hv: hv.abs()))


def mixed(x: Tensor) -> Tensor:
    return torch.tanh(x - 0.5 * x.mean(0))


def test_a_fisher_matrix_of_examples_that_act_on_one_another_is_refused():
    with pytest.raises(UnverifiedError, match="examples of a batch act on one another"):
        verify(EmpiricalFisherOperator(risk_of(net(mixed))))
    verify(HessianOperator(risk_of(net(mixed))))


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.SmoothL1Loss(), lambda z, y: (z - y).square().mean()])
def test_a_column_of_outputs_against_a_row_of_targets_is_refused_though_torch_only_warns(loss):
    risk = risk_of(net(outputs=1), loss, drawn(12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"shapes \(12, 1\) and \(12,\).*targets\[:, None\]"):
            risk.loss()
        inside = EmpiricalRisk.from_batch_loss(
            risk.model, lambda model, batch: F.mse_loss(model(batch[0]), batch[1]), risk.data
        )
        with pytest.raises(InputError, match="each example meets all others"):
            inside.loss()
    assert risk_of(net(outputs=1), loss, drawn(12, 1)).loss() > 0


def test_a_parameter_that_is_used_past_the_model_is_refused_by_name():
    model = net()
    captured = [model[0].weight]
    with pytest.raises(InputError, match=r"the parameter 0\.weight through a reference of its own"):
        risk_of(model, lambda z, y: F.cross_entropy(z, y) + captured[0].square().sum()).loss()
    risk_of(model, lambda z, y: F.cross_entropy(z, y) + model[0].weight.square().sum()).loss()


def test_a_parameter_that_a_call_changes_in_place_is_refused_by_name():
    table = nn.Embedding(5, 3, max_norm=0.1)
    model = filled(nn.Sequential(table, nn.Flatten(), nn.Linear(6, 3)))
    with pytest.raises(InputError, match=r"changes its parameter 0\.weight in place.*max_norm"):
        EmpiricalRisk(model, F.cross_entropy, (labels(18, 5).view(9, 2), labels(9))).loss()


class Changing(nn.Module):
    """Its outputs are others from a number of calls on, which is set after the check."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.left = net(), None

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:
            self.left -= 1
        return self.inner(x) * (1.0 if self.left is None or self.left > 0 else 1.1)


@pytest.mark.parametrize("memory_budget", [0, None], ids=["rebuilt", "kept"])
@pytest.mark.parametrize("after", [1, 4, 20])
def test_a_model_that_changes_during_an_analysis_is_refused(after, memory_budget):
    model = Changing()

    def start(what: str, done: int, total: int) -> None:
        model.left = after if model.left is None else model.left

    how = dict(layers=False, memory_budget=memory_budget, progress=start)
    if memory_budget is None and after > 4:  # products from what was kept do not call the model
        analyze(risk_of(model), **how)
    else:
        with pytest.raises(InputError, match="values of the risk at the same parameters"):
            analyze(risk_of(model), **how)


def test_raw_messages_of_torch_become_sentences():
    from torch.utils.checkpoint import checkpoint

    again = net(lambda x: checkpoint(torch.tanh, x, use_reentrant=True))
    with pytest.raises(SecondDerivativeError, match="pass use_reentrant=False"):
        verify(HessianOperator(risk_of(again)))
    verify(HessianOperator(risk_of(net(lambda x: checkpoint(torch.tanh, x, use_reentrant=False)))))


def test_models_that_differentiate_their_inputs_pass_in_the_doctor_too():
    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = net(outputs=1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]

    risk = risk_of(Forces(), F.mse_loss, drawn(12, 3, seed=5))
    assert "FAIL" not in {finding.level for finding in examine(risk)}
    assert analyze(risk).problem["verified"].startswith("Hessian on 12 examples: gradients right to")


class DetachedFrom(nn.Module):
    """Loses the gradient of rows from some on, which the examples that are differenced one by one do not have."""

    def __init__(self, first):
        super().__init__()
        self.linear, self.first = nn.Linear(4, 3), first

    def forward(self, x):
        z = torch.tanh(self.linear(x))
        return torch.cat([z[: self.first], z[self.first :].detach()])


@pytest.mark.parametrize(("first", "sizes"), [(16, [30]), (64, [80]), (25, [20, 20, 30])])
def test_a_gradient_that_is_lost_beyond_the_first_examples_is_refused(first, sizes):
    x, y = torch.randn(sum(sizes), 4, dtype=torch.float64), torch.arange(sum(sizes)) % 3
    risk = EmpiricalRisk(
        DetachedFrom(first).double(), nn.CrossEntropyLoss(), list(zip(x.split(sizes), y.split(sizes), strict=True))
    )
    with pytest.raises(UnverifiedError, match="over all examples"):
        verify(HessianOperator(risk))


def test_kinks_tiny_losses_and_extreme_scales_are_no_faults():
    x, y = drawn(64, 3), labels(64)
    model = filled(nn.Sequential(nn.Linear(3, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3)))
    for scale in (1e-6, 1.0, 30.0):
        scaled = copy.deepcopy(model)
        with torch.no_grad():
            for p in scaled.parameters():
                p.mul_(scale)
        verify(HessianOperator(EmpiricalRisk(scaled, F.cross_entropy, (x, y))))
    with torch.no_grad():
        fitted = net()(x)
    for shift in (0.0, 1e-9, 1e-5):
        verify(HessianOperator(EmpiricalRisk(net(), nn.MSELoss(), (x, fitted + shift))))
