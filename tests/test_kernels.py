"""Convolutions and BatchNorm as rewritten equal torch's own, in value and in derivatives up to the third."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyhessian_spectra.curvature.kernels import CheapSecondDerivatives

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
}


def derivatives(module: nn.Module, x: torch.Tensor, which: str) -> list[torch.Tensor]:
    """The value and derivatives along fixed directions up to third order, in the input, the parameters, or both."""
    leaves = [*([x] if which != "parameters" else []), *(module.parameters() if which != "input" else [])]
    generator = torch.Generator().manual_seed(2)
    value = torch.sin(module(x)).sum()
    found = [value]
    for _ in range(3):
        grads = torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)
        found += grads
        directions = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
        value = sum((g * d).sum() for g, d in zip(grads, directions, strict=True))
    return found


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
    with CheapSecondDerivatives():
        found = derivatives(module, x, which)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
