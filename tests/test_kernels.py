"""Operations as rewritten equal torch's own, in value and in derivatives up to the third."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyhessian_spectra.curvature.kernels import RightDerivatives

CASES = {
    "conv1d": (nn.Conv1d(2, 3, 3, stride=2, padding=1), (2, 2, 7)),
    "conv2d": (nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 2, 6, 5)),
    "conv2d without bias": (nn.Conv2d(2, 3, 2, bias=False), (2, 2, 4, 4)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 4, 4)),
    "depthwise": (nn.Conv2d(3, 3, 3, groups=3), (2, 3, 4, 4)),
    "padding by name": (nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 4, 4)),
    "circular padding": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 4, 4)),
    "without a batch dimension": (nn.Conv2d(2, 3, 3), (2, 4, 4)),
    "conv3d": (nn.Conv3d(1, 2, 2), (2, 1, 3, 3, 3)),
    "batch norm, eval": (nn.BatchNorm2d(3).eval(), (4, 3, 2, 2)),
    "batch norm of features, eval": (nn.BatchNorm1d(3).eval(), (4, 3)),
    "batch norm without parameters, eval": (nn.BatchNorm2d(3, affine=False).eval(), (4, 3, 2, 2)),
    "batch norm without running statistics": (nn.BatchNorm2d(3, track_running_stats=False).eval(), (4, 3, 2, 2)),
    "batch norm, train": (nn.BatchNorm2d(3), (4, 3, 2, 2)),
    "batch norm of features, train": (nn.BatchNorm1d(3), (4, 3)),
    "instance norm": (nn.InstanceNorm2d(2, affine=True), (2, 2, 3, 3)),
    "instance norm without parameters": (nn.InstanceNorm1d(2), (2, 2, 4)),
    "layer norm": (nn.LayerNorm(5), (4, 3, 5)),
    "layer norm of two dimensions": (nn.LayerNorm((3, 2)), (4, 3, 2)),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), (3, 4)),
    "layer norm without parameters": (nn.LayerNorm(4, elementwise_affine=False), (3, 4)),
    "layer norm of nearly constant rows": (nn.LayerNorm(4, eps=100.0), (3, 4)),
    "layer norm of all dimensions": (nn.LayerNorm((3, 4)), (3, 4)),
    "relu": (nn.ReLU(), (4, 3)),
    "relu in place": (nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)), (4, 3)),
    "gelu": (nn.GELU(), (4, 3)),
    "gelu by tanh": (nn.GELU(approximate="tanh"), (4, 3)),
}


def derivatives(module: nn.Module, x: torch.Tensor, which: str) -> list[torch.Tensor]:
    """The value and derivatives along fixed directions up to second order, in the input, the parameters, or both.

    Each of them with its graph, and once more without one, which is another way through the code.
    """
    leaves = [*([x] if which != "parameters" else []), *(module.parameters() if which != "input" else [])]
    return directional(torch.sin(module(x)).sum(), leaves)


def directional(value: torch.Tensor, leaves: list[torch.Tensor], orders: int = 2) -> list[torch.Tensor]:
    """A value and its derivatives, each of the one before along fixed directions, with graph and without."""
    generator = torch.Generator().manual_seed(2)
    found = [value]
    for _ in range(orders):
        found += torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        grads = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        found += grads
        directions = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
        value = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    return found


def assert_third_derivatives(evaluate, leaves: list[torch.Tensor]) -> None:
    """Those of a scalar equal central differences of the second, in which torch is right."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda: [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]  # noqa: E731
    first, second, step = draw(), draw(), 1e-4

    def along_both() -> torch.Tensor:
        grads = torch.autograd.grad(evaluate(), leaves, create_graph=True, materialize_grads=True)
        slope = sum((g * d).sum() for g, d in zip(grads, first, strict=True))
        grads = torch.autograd.grad(slope, leaves, create_graph=True, materialize_grads=True)
        return sum((g * d).sum() for g, d in zip(grads, second, strict=True))

    with RightDerivatives():
        found = torch.autograd.grad(along_both(), leaves, materialize_grads=True)
    moved = draw()
    exact = sum(float((g * d).sum().detach()) for g, d in zip(found, moved, strict=True))
    values = []
    for sign in (-2, -1, 1, 2):
        with torch.no_grad():
            for leaf, d in zip(leaves, moved, strict=True):
                leaf.add_(d, alpha=sign * step)
        values.append(float(along_both().detach()))
        with torch.no_grad():
            for leaf, d in zip(leaves, moved, strict=True):
                leaf.add_(d, alpha=-sign * step)
    difference = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
    assert exact == pytest.approx(difference, rel=1e-7, abs=1e-7 * sum(abs(v) for v in values))


@pytest.mark.parametrize("which", ["input", "parameters", "both"])
@pytest.mark.parametrize("case", CASES)
def test_rewritten_operations_have_the_derivatives_of_torchs_own(case, which):
    module, shape = CASES[case]
    module = module.double()
    if which == "parameters" and not list(module.parameters()):
        pytest.skip("no parameters")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=which != "parameters")
    for p in module.parameters():
        p.requires_grad_(which != "input")
    expected = derivatives(module, x, which)
    with RightDerivatives():
        found = derivatives(module, x, which)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    leaves = [t for t in (x, *module.parameters()) if t.requires_grad]
    assert_third_derivatives(lambda: torch.sin(module(x)).sum(), leaves)


LABELS, MARKS = torch.tensor([0, 2, 1, 2]), torch.tensor([[1.0, 0.0, 0.3]] * 4, dtype=torch.float64)
LOSSES = {
    "cross entropy": lambda z: F.cross_entropy(z, LABELS),
    "weighted, with ignored labels": lambda z: F.cross_entropy(
        z, LABELS, torch.tensor([1.0, 3.0, 2.0], dtype=z.dtype), ignore_index=1, reduction="sum"
    ),
    "smoothed": lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1),
    "probabilities": lambda z: F.cross_entropy(z, MARKS.to(z).softmax(1)),
    "of one example": lambda z: F.cross_entropy(z[0], LABELS[0]),
    "of pixels": lambda z: F.cross_entropy(z.T.reshape(1, 3, 2, 2), LABELS.view(1, 2, 2)),
    "log softmax along rows": lambda z: (torch.log_softmax(z, 0) * MARKS.to(z)).sum(),
    "binary": lambda z: F.binary_cross_entropy_with_logits(z, MARKS.to(z)),
    "binary, weighted": lambda z: F.binary_cross_entropy_with_logits(
        z, MARKS.to(z), weight=MARKS.to(z) + 1, pos_weight=MARKS.to(z)[0] + 0.5, reduction="sum"
    ),
}


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("case", LOSSES)
def test_losses_have_the_derivatives_of_torchs_own(case, size):
    generator = torch.Generator().manual_seed(1)
    z = (size * torch.randn(4, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    expected = directional(LOSSES[case](z), [z], orders=3)
    with RightDerivatives():
        found = directional(LOSSES[case](z), [z], orders=3)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("confidence", [8.0, 12.0, 16.0])
@pytest.mark.parametrize("case", ["cross entropy", "log softmax", "binary"])
def test_derivatives_at_confident_predictions_lose_no_digits_in_float32(case, confidence):
    # torch computes 1 - p from a rounded p: at a confidence of 16 nothing is left of it
    right = F.one_hot(LABELS, 3) if case == "cross entropy" else (MARKS > 0.9).long()
    z = (confidence * (2 * right - 1)).double() + torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    loss = {
        "cross entropy": LOSSES["cross entropy"],
        "log softmax": lambda z: -torch.log_softmax(z, 1)[torch.arange(4), z.argmax(1)].sum(),
        "binary": lambda z: F.binary_cross_entropy_with_logits(z, right.to(z)),
    }[case]
    found = []
    with RightDerivatives():
        for dtype in (torch.float64, torch.float32):
            x = z.float().to(dtype).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
            direction = torch.randn(4, 3, generator=torch.Generator().manual_seed(3)).to(dtype)
            found.append(torch.cat([gradient, *torch.autograd.grad(gradient, x, direction)]).detach().double())
    error = (found[1] - found[0]).reshape(2, -1).norm(dim=1) / found[0].reshape(2, -1).norm(dim=1)
    assert error.max() < 1e-6


@pytest.mark.parametrize("trained", [("weight",), ("bias",), ("weight", "bias"), ()])
@pytest.mark.parametrize("which", ["input", "parameters", "both"])
def test_layer_norm_with_frozen_parameters_has_the_derivatives_of_torchs_own(trained, which):
    generator = torch.Generator().manual_seed(3)
    module = nn.LayerNorm(5).double()
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=which != "parameters")
    for name, p in module.named_parameters():
        p.requires_grad_(name in trained and which != "input")
    leaves = [t for t in (x, *module.parameters()) if t.requires_grad]
    if not leaves:
        pytest.skip("nothing to differentiate in")

    expected = directional(torch.sin(module(x)).sum(), leaves)
    with RightDerivatives():
        found = directional(torch.sin(module(x)).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert_third_derivatives(lambda: torch.sin(module(x)).sum(), leaves)


@pytest.mark.parametrize("case", CASES)
def test_several_directions_in_one_backward_pass_equal_them_one_by_one(case):
    module, shape = CASES[case]
    generator = torch.Generator().manual_seed(4)
    module = module.double()
    x = torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
    leaves = [x, *module.parameters()]
    with RightDerivatives():
        grads = torch.autograd.grad(torch.sin(module(x)).sum(), leaves, create_graph=True)
    rows = [torch.randn(3, *leaf.shape, generator=generator, dtype=torch.float64) for leaf in leaves]
    together = torch.autograd.grad(grads, leaves, rows, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        apart = torch.autograd.grad(grads, leaves, [row[i] for row in rows], retain_graph=True)
        for a, b in zip(together, apart, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-12, atol=1e-12)


def test_a_model_that_uses_torch_func_itself_runs_on_torchs_own_operations():
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv1d(1, 2, 2), nn.LayerNorm(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.func.vmap(lambda row: nn.functional.gelu(self.norm(self.conv(row[None]))))(x)

    module = Mapped().double()
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4).requires_grad_()
    expected = derivatives(module, x, "both")
    with RightDerivatives():
        found = derivatives(module, x, "both")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_operations_in_place_change_their_input_as_ever():
    x = torch.tensor([-1.0, 2.0])
    with RightDerivatives():
        y = nn.ReLU(inplace=True)(x)
    assert y is x and x.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
def test_weight_norm_has_its_own_second_derivative_where_torchs_is_wrong(wrap, dim):
    """Against the weight spelled out in simpler operations."""
    generator = torch.Generator().manual_seed(6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older interface is deprecated
        module = wrap(nn.Linear(3, 4), dim=dim).double()
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    by_name = dict(module.named_parameters())
    g, v = (
        next(p for n, p in by_name.items() if n.endswith(some)) for some in (("_g", "original0"), ("_v", "original1"))
    )
    leaves = [g, v, module.bias]

    def spelled_out() -> torch.Tensor:
        dims = [d for d in range(2) if d != dim]
        return torch.sin(x @ (g * v / v.square().sum(dims, keepdim=True).sqrt()).T + module.bias).sum()

    expected = directional(spelled_out(), leaves, orders=3)
    with RightDerivatives():
        found = directional(torch.sin(module(x)).sum(), leaves, orders=3)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
