"""Hessians in relative coordinates: what they are, and that they do not see how a network is scaled."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from oracle import Oracle
from problems import CASES, mlp, rectifier_network, relu_mlp, three_layers, uneven_last_batch
from torch import Tensor, nn
from torch.func import grad, hessian, jvp

from pyhessian_spectra import (
    EmpiricalRisk,
    HessianOperator,
    Linearised,
    LogHessianOperator,
    RelativeHessianOperator,
    analyze,
    each_weight,
    filter_norms,
    plots,
    tensor_norms,
)
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import InputError, UnverifiedError
from pyhessian_spectra.report import write_report
from pyhessian_spectra.testing import check_operator

TOLERANCE = 1e-10  # relative, in float64, as for all operators: see test_curvature.py
SCALES = [each_weight, filter_norms, tensor_norms]


def logarithms(risk: EmpiricalRisk, **how) -> LogHessianOperator:
    return LogHessianOperator(risk, **how)


def relative_to(scale):
    def build(risk: EmpiricalRisk, **how) -> RelativeHessianOperator:
        return RelativeHessianOperator(risk, scale=scale, **how)

    build.__name__ = scale.__name__
    return build


MATRICES = {build.__name__: build for build in [*map(relative_to, SCALES), logarithms]}
every_matrix = pytest.mark.parametrize("matrix", MATRICES)


def diagonal(risk: EmpiricalRisk, name: str) -> Tensor:
    """What the weights are measured in, written out by hand."""
    theta, shapes, found = Oracle(risk).theta, list(risk.layout.shapes.values()), []
    for part, shape in zip(theta.split([shape.numel() for shape in shapes]), shapes, strict=True):
        if name in ("each_weight", "logarithms"):
            found.append(part)
        elif name == "tensor_norms":
            found.append(part.norm().repeat(len(part)))
        elif len(shape) < 2:
            found.append(torch.zeros_like(part))
        else:
            rows = part.view(shape[0], -1)
            found.append(rows.norm(dim=1, keepdim=True).expand_as(rows).reshape(-1))
    return torch.cat(found)


def oracle(risk: EmpiricalRisk, name: str) -> Tensor:
    """The Hessian of the loss as a function of the relative coordinates, by torch.func."""
    by_hand, d = Oracle(risk), diagonal(risk, name)

    def along(e: Tensor) -> Tensor:
        return by_hand.loss(by_hand.theta * e.exp() if name == "logarithms" else by_hand.theta + d * e)

    zero = torch.zeros_like(d)
    if risk.mode == "train":  # see Oracle.hessian
        return torch.stack([jvp(grad(along), (zero,), (e,))[1] for e in torch.eye(len(d), dtype=d.dtype)], dim=1)
    return hessian(along)(zero)


@pytest.mark.parametrize("case", CASES)
@every_matrix
def test_it_is_the_hessian_of_the_loss_in_relative_coordinates(case, matrix):
    risk = CASES[case]()
    expected, name = oracle(risk, matrix), risk.layout.names[-1]
    place, bound = risk.layout.slices[name], TOLERANCE * expected.abs().max()
    for memory_budget, linearised in ((None, Linearised.KEPT), (0, Linearised.REBUILT)):
        op = MATRICES[matrix](risk, memory_budget=memory_budget)
        assert (op.to_dense() - expected).abs().max() < bound
        assert op.linearised is linearised
        part = op.block(name)
        assert (part.to_dense() - expected[place, place]).abs().max() < bound


@every_matrix
def test_its_products_are_linear_symmetric_and_differences_of_relative_gradients(matrix):
    risk = mlp()
    op, point = MATRICES[matrix](risk), risk.point()
    d = diagonal(risk, matrix)

    def gradient(e: Tensor) -> Tensor:
        if matrix == "logarithms":
            moved = point.moved(point.flat() * (e.exp() - 1))
            return moved.flat() * risk.gradient(moved)
        return d * risk.gradient(point.moved(d * e))

    assert check_operator(op, gradient=gradient).differences is not None


def rescaled(model: nn.Module, factors: list[Tensor]) -> nn.Module:
    """The same function: what goes into each hidden unit times a factor, what comes out of it divided by it."""
    other = copy.deepcopy(model)
    linears = [module for module in other if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for (here, there), factor in zip(itertools.pairwise(linears), factors, strict=True):
            here.weight.mul_(factor[:, None])
            if here.bias is not None:
                here.bias.mul_(factor)
            there.weight.div_(factor)
    return other


def spectra_before_and_after(factors: list[Tensor], build, bias: bool = True) -> tuple[Tensor, Tensor]:
    model, data = rectifier_network(bias=bias)
    risks = [EmpiricalRisk(each, nn.CrossEntropyLoss(), data) for each in (model, rescaled(model, factors))]
    assert risks[1].loss() == pytest.approx(risks[0].loss(), rel=1e-12)
    return tuple(torch.linalg.eigvalsh(build(risk).to_dense()) for risk in risks)


LAYERS = [torch.full((6,), 30.0, dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)]
UNITS = [torch.logspace(-1, 1.5, 6, dtype=torch.float64), torch.logspace(1, -1, 5, dtype=torch.float64)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("matrix", "factors"),
    [*((name, LAYERS) for name in MATRICES if name != "tensor_norms"), ("each_weight", UNITS), ("logarithms", UNITS)],
)
def test_rescaling_that_does_not_change_the_function_moves_no_relative_eigenvalue_but_moves_lambda_1(
    matrix, factors, bias
):
    was, became = spectra_before_and_after(factors, MATRICES[matrix], bias)
    assert (became - was).abs().max() < 1e-12 * was.abs().max()
    was, became = spectra_before_and_after(factors, HessianOperator, bias)
    assert became[-1] > 20 * was[-1]


def test_norms_of_whole_tensors_follow_layers_and_norms_of_filters_do_not_follow_single_units():
    was, became = spectra_before_and_after(LAYERS, MATRICES["tensor_norms"])
    assert (became - was).abs().max() < 1e-12 * was.abs().max()
    was, became = spectra_before_and_after(UNITS, MATRICES["filter_norms"], bias=False)
    assert (became - was).abs().max() > 0.1 * was.abs().max()


def test_at_a_stationary_point_logarithms_add_nothing_and_elsewhere_they_add_the_gradient():
    """The bend of the coordinates is weighted by the gradient."""
    x, generator = torch.eye(4, dtype=torch.float64), torch.Generator().manual_seed(0)
    model = nn.Linear(4, 2, bias=False).double()
    for shift, agree in ((0.0, True), (0.1, False)):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 4, generator=generator, dtype=torch.float64))
            fitted = model(x) + shift
        risk = EmpiricalRisk(model, nn.MSELoss(), (x, fitted))
        bend = LogHessianOperator(risk).to_dense() - RelativeHessianOperator(risk).to_dense()
        expected = torch.diag(model.weight.detach().flatten() * risk.gradient())
        assert torch.allclose(bend, expected, rtol=0, atol=1e-15)
        assert bool(bend.abs().max() < 1e-15) is agree


@every_matrix
def test_it_follows_points_and_its_product_is_differentiated_through_the_scale(matrix):
    """The live point's quadratic form against its own differences: what the weights are measured in moves too."""
    risk = mlp()
    generator = torch.Generator().manual_seed(1)
    v, u = (torch.randn(risk.n, generator=generator, dtype=torch.float64) for _ in range(2))
    live = MATRICES[matrix](risk, point=risk.live())
    found = torch.autograd.grad(v @ live.product(v), live.point.coordinates)
    slope = float(torch.cat([part.reshape(-1) for part in found]) @ u)

    def form(step: float) -> float:
        return float(v @ (live.at(risk.point().moved(u, step)) @ v))

    h = 1e-3
    differences = (form(-2 * h) - 8 * form(-h) + 8 * form(h) - form(2 * h)) / (12 * h)
    assert slope == pytest.approx(differences, rel=1e-8)
    assert not (live @ v).requires_grad
    both = live.product(torch.stack([u, v], dim=1)).detach()
    assert torch.allclose(both, torch.stack([live @ u, live @ v], dim=1), rtol=1e-12)


@every_matrix
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_verification_knows_it_and_its_rounding_is_measured_in_float64(matrix, dtype):
    model, (x, y) = rectifier_network(dtype=dtype)
    op = MATRICES[matrix](EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)))
    assert verify(op).found.startswith(f"{op.kind} on 16 examples: gradients right to")
    if dtype == torch.float32:
        other = op.reference()
        assert other.dtype == torch.float64 and other.kind == op.kind
        exact = other.to_dense()
        assert 0 < (op.to_dense() - exact).abs().max() < 1e-5 * exact.abs().max()


@every_matrix
def test_rows_for_padding_which_have_no_gradient_are_no_fault(matrix):
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=0), nn.Flatten(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].weight[0] = 1.0
    tokens = torch.tensor([[0, 1], [2, 3], [4, 0], [1, 2]])
    verify(MATRICES[matrix](EmpiricalRisk(model, nn.CrossEntropyLoss(), (tokens, torch.arange(4) % 3))))


@every_matrix
def test_verification_refuses_one_whose_products_miss_a_term(matrix, monkeypatch):
    wrong = MATRICES["each_weight" if matrix == "logarithms" else "logarithms"]
    op = MATRICES[matrix](mlp())
    monkeypatch.setattr(op, "_linearise", wrong(mlp())._linearise)
    with pytest.raises(UnverifiedError, match=f"products with the {op.kind} differ"):
        verify(op)


@every_matrix
def test_an_analysis_has_it_with_errors_of_the_data_and_of_its_layers(matrix):
    risk = three_layers()
    exact = torch.linalg.eigvalsh(oracle(risk, matrix))
    for settings in ({"data_parts": 0}, {"exact_limit": 0, "num_eigenvalues": 2, "num_steps": 10}):
        analysis = analyze(risk, matrix=MATRICES[matrix], generator=torch.Generator().manual_seed(0), **settings)
        largest = analysis.full.largest
        assert abs(largest.eigenvalues[-1] - float(exact[-1])) <= largest.reach[-1] + 1e-12 * abs(float(exact[-1]))
        assert largest.data_stderr is not None and largest.data_stderr[-1] > 0
        assert list(analysis.layers) == ["0", "2", "4"]
        assert analysis.problem["units"] == "loss"
        assert analysis.problem["matrix"] == MATRICES[matrix](risk).kind


def test_shares_of_the_gradient_are_of_the_gradient_in_the_same_coordinates():
    risk = uneven_last_batch()
    shares = analyze(risk, matrix=RelativeHessianOperator).structure.gradient
    _, vectors = torch.linalg.eigh(oracle(risk, "each_weight"))
    slopes = diagonal(risk, "each_weight") * Oracle(risk).gradient()
    assert shares.norm == pytest.approx(float(slopes.norm()), rel=1e-12)
    expected = (vectors.T @ slopes).square() / slopes.square().sum()
    assert shares.shares[:3] == pytest.approx(expected.flip(0)[:3].numpy(), rel=1e-8)


def test_figures_and_the_report_say_its_units_and_the_plain_ones_afterwards(tmp_path, monkeypatch):
    risk, labels = mlp(), []
    plain, own = (analyze(risk, matrix=each, data_parts=0) for each in (HessianOperator, RelativeHessianOperator))
    assert plots.plot_layer_traces(own).get_xlabel() == "Trace of the block [loss]"
    assert plots.plot_layer_traces(plain).get_xlabel() == "Trace of the block [loss / parameter$^2$]"
    draw = plots.plot_eigenvalues

    def drawn(block):
        ax = draw(block)
        labels.append(ax.get_ylabel())
        return ax

    monkeypatch.setattr(plots, "plot_eigenvalues", drawn)
    page = write_report([own, plain], tmp_path).read_text()
    assert [label.rpartition("[")[2] for label in labels] == ["loss]", "loss / parameter$^2$]"]
    assert "This report follows the Hessian relative to each weight" in page and "Units of eigenvalues" in page


def doubled(parameter: Tensor) -> Tensor:
    return 2 * parameter


def test_a_scale_of_ones_own_names_the_matrix_and_squares_with_it():
    risk = relu_mlp()
    op = RelativeHessianOperator(risk, scale=doubled)
    assert op.kind == "Hessian relative to doubled"
    assert torch.allclose(op.to_dense(), 4 * RelativeHessianOperator(risk).to_dense(), rtol=1e-13)


@pytest.mark.parametrize(
    ("scale", "sentence"),
    [
        (lambda w: w, "scale must be a function with a name"),
        (None, "scale must be a function with a name"),
    ],
)
def test_a_scale_without_a_name_is_refused(scale, sentence):
    with pytest.raises(InputError, match=sentence):
        RelativeHessianOperator(mlp(), scale=scale)


def too_long(parameter: Tensor) -> Tensor:
    return torch.ones(7, dtype=parameter.dtype)


def a_number(parameter: Tensor) -> float:
    return 1.0


def infinite(parameter: Tensor) -> Tensor:
    return 1 / (0 * parameter)


def of_other_dtype(parameter: Tensor) -> Tensor:
    return parameter.float()


@pytest.mark.parametrize("scale", [too_long, a_number, infinite, of_other_dtype])
def test_a_scale_that_does_not_fit_is_refused_with_the_parameters_name(scale):
    with pytest.raises(InputError, match=r"scale must return finite values .* for 0\.weight, got .*; compute them"):
        RelativeHessianOperator(mlp(), scale=scale) @ torch.ones(mlp().n, dtype=torch.float64)


@pytest.mark.parametrize("matrix", ["relative-hessian", None, lambda risk: 3, lambda risk: torch.eye(3)])
def test_what_is_no_matrix_is_refused_by_analyze(matrix):
    risk = EmpiricalRisk(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))
    with pytest.raises(InputError, match=r"matrix must be|LinearOperator is needed"):
        analyze(risk, matrix=matrix)


def test_a_scale_that_fails_is_named():
    def numpy_scale(parameter):
        return parameter.numpy()

    risk = EmpiricalRisk(nn.Linear(2, 1), nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))
    with pytest.raises(InputError, match="scale"):
        RelativeHessianOperator(risk, scale=numpy_scale) @ torch.ones(3)
