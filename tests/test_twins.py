"""A model in float64 is the same function as in float32, or there is said to be none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from functions import Apply
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, analyze, eigh
from tests.test_rounding import assert_covers


class Stubborn(nn.Linear):
    """A model that refuses float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.detach().numpy().dtype == np.float64:  # of torch's dtype nothing is told
            raise RuntimeError("float32 only")
        return torch.tanh(super().forward(x))


def test_a_model_that_cannot_run_in_float64_is_still_analysed():
    torch.manual_seed(0)
    risk = EmpiricalRisk(Stubborn(4, 2), nn.MSELoss(), (torch.randn(20, 4), torch.randn(20, 2)))
    for limit in (0, 100):
        found = analyze(risk, exact_limit=limit, num_eigenvalues=2)
        assert found.full.spectrum.dtype == "float32" and 0 < found.full.largest.rounding < 1e-3


class Single(nn.Linear):
    """A model that computes in float32, whatever its parameters are in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        single = "torch.FloatTensor"
        return torch.tanh(F.linear(x.type(single), self.weight.type(single), self.bias.type(single))).to(x.dtype)


class Careful(nn.Module):
    """A float32 model that says so in several ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x).float()).to(torch.float32)
        scale = torch.ones(6, dtype=torch.float32) * F.softmax(hidden, dim=1, dtype=torch.float32)
        return self.second(hidden.type(torch.float32) * scale.to(dtype=torch.float32)).float()


def test_a_model_that_converts_to_its_own_dtype_has_a_twin_in_float64():
    torch.manual_seed(0)
    model, x, y = Careful(), torch.randn(20, 5), torch.arange(20) % 3
    found = HessianOperator(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))).reference()
    names, values = zip(*model.named_parameters(), strict=True)
    theta = torch.cat([p.detach().flatten() for p in values]).double()

    def loss(flat):
        w, b, u, c = (part.view_as(p) for part, p in zip(flat.split([p.numel() for p in values]), values, strict=True))
        hidden = torch.tanh(x.double() @ w.T + b)
        return F.cross_entropy((hidden * hidden.softmax(1)) @ u.T + c, y)

    assert found is not None and found.dtype == torch.float64 and names[0] == "first.weight"
    expected = torch.func.hessian(loss)(theta)
    torch.testing.assert_close(found.to_dense(), expected, rtol=0, atol=1e-12)


def _drawn(like: torch.Tensor) -> list[torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = torch.randn_like(like), torch.empty_like(like).uniform_(), torch.bernoulli(torch.full_like(like, 0.4))
        named = (
            torch.randn_like(like, dtype=like.dtype),
            torch.rand(like.shape, dtype=like.dtype),
            torch.rand(like.shape),
        )
        return [*drawn, *named]


BY_DTYPE = {
    "eps": lambda h: h / (h.norm(dim=1, keepdim=True) + 1e6 * torch.finfo(h.dtype).eps),
    "branch": lambda h: 2 * h**2 if h.dtype == torch.float32 else h**2,
    "refusal": lambda h: h**2 if h.dtype == torch.float32 else {}["float32 only"],
    "size": lambda h: h**2 * h.element_size(),
    "random": lambda h: h**2 * sum(_drawn(h.detach())),
    "written": lambda h: h * torch.zeros(h.shape).scatter_add_(1, torch.zeros(h.shape, dtype=torch.long), h),
    "norm": lambda h: nn.RMSNorm(6)(1e-3 * h) + F.rms_norm(1e-3 * h, (6,), None) + F.rms_norm(h, (6,), eps=0.1),
    "bits": lambda h: h**2 * torch.tensor([1065353216], dtype=torch.int32).view(torch.float32),
}
IN_DOUBLE = {
    "eps": lambda h: h / (h.norm(dim=1, keepdim=True) + 1e6 * torch.finfo(torch.float32).eps),
    "branch": lambda h: 2 * h**2,
    "refusal": lambda h: h**2,
    "size": lambda h: 4 * h**2,
    "random": lambda h: h**2 * sum(each.double() for each in _drawn(h.detach().float())),
    "written": lambda h: h * torch.cat([h.sum(dim=1, keepdim=True), torch.zeros_like(h[:, 1:])], dim=1),
    "norm": lambda h: (
        2 * F.rms_norm(1e-3 * h, (6,), None, torch.finfo(torch.float32).eps) + F.rms_norm(h, (6,), None, 0.1)
    ),
    "bits": lambda h: h**2,
}


@pytest.mark.parametrize("how", BY_DTYPE)
def test_a_function_that_depends_on_its_dtype_keeps_to_it_in_float64(how):
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(20, 5), torch.arange(20) % 3

    class Between(nn.Module):
        def __init__(self, inner, function):
            super().__init__()
            self.inner, self.function = inner, function

        def forward(self, x):
            return self.inner[2](self.function(self.inner[1](self.inner[0](x))))

    precise = EmpiricalRisk(Between(copy.deepcopy(model).double(), IN_DOUBLE[how]), F.cross_entropy, (x.double(), y))
    truth = eigh(HessianOperator(precise)).eigenvalues
    found = analyze(EmpiricalRisk(Between(model, BY_DTYPE[how]), F.cross_entropy, (x, y)), layers=False).full
    assert_covers(found, truth)
    assert found.largest.rounding < 1e-4 * truth[-1]


def test_a_backward_that_converts_to_float32_is_no_reference():
    class Careful32(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return (3 * g.type("torch.FloatTensor") * x.type("torch.FloatTensor") ** 2).type_as(g)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), Apply(Careful32.apply), nn.Linear(3, 2))
    risk = EmpiricalRisk(model, nn.MSELoss(), (torch.randn(20, 4), torch.randn(20, 2)))
    assert not HessianOperator(risk).computes_in(torch.float64)


def test_a_twin_in_float64_that_computes_in_float32_is_no_reference():
    torch.manual_seed(0)
    risk = EmpiricalRisk(Single(4, 2), nn.MSELoss(), (torch.randn(20, 4), torch.randn(20, 2)))
    found = analyze(risk, num_eigenvalues=2)
    assert found.full.spectrum.dtype == "float32" and 0 < found.full.largest.rounding < 1e-3


@pytest.mark.parametrize("converts", [False, True])
def test_checkpointed_segments_that_convert_are_analysed_in_their_own_dtype(converts):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            segment = lambda h: (h.to(torch.float32) if converts else h) ** 2 * h  # noqa: E731
            hidden = torch.utils.checkpoint.checkpoint(segment, torch.tanh(self.first(x)), use_reentrant=False)
            return self.second(hidden)

    torch.manual_seed(0)
    model, x, y = Checkpointed(), torch.randn(8, 4), torch.arange(8) % 3
    found = analyze(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y)), layers=False).full
    plain = nn.Sequential(copy.deepcopy(model.first), nn.Tanh(), Apply(lambda h: h**3), copy.deepcopy(model.second))
    precise = EmpiricalRisk(plain.double(), nn.CrossEntropyLoss(), (x.double(), y))
    assert_covers(found, eigh(HessianOperator(precise)).eigenvalues)
    assert found.spectrum.dtype == ("float32" if converts else "float64")


def test_products_that_rounding_changes_much_are_told():
    class Cancelling(nn.Linear):
        def forward(self, x):
            return torch.tanh(super().forward(x)) + 1e6 - 1e6

    torch.manual_seed(0)
    risk = EmpiricalRisk(Cancelling(4, 2), nn.MSELoss(), (torch.randn(20, 4), torch.randn(20, 2)))
    told = [note.text for note in analyze(risk, layers=False).notes if note.kind == "verification"]
    assert any("differ from those in float64 by" in text for text in told)
