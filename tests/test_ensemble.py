"""Many small networks at once must give what each gives alone."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.ensembles import (
    EnsembleSpectra,
    ensemble_eigenvalues,
    ensemble_hessians,
    sphere_starts,
    train_ensemble,
)
from pyhessian_spectra.errors import InputError, OutOfMemoryError

torch.set_num_threads(1)  # the problems are tiny; threads only add their start-up

LOSS = nn.CrossEntropyLoss()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))


def blobs(num: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Two Gaussian blobs of standard deviation 0.3 at (1, 1) and (-1, -1)."""
    x = 0.3 * torch.randn(2 * num, 2, generator=seeded(7), dtype=torch.float64)
    y = torch.arange(2).repeat(num)
    return x + (1 - 2 * y[:, None]), y


def set_parameters(model: nn.Module, row: torch.Tensor) -> nn.Module:
    nn.utils.vector_to_parameters(row, model.parameters())
    return model


def descend_alone(row: torch.Tensor, *, step: float, tolerance: float, limit: int) -> tuple[torch.Tensor, int]:
    """Gradient descent by plain autograd on one network."""
    model, (x, y) = set_parameters(network().to(row.dtype), row.clone()), blobs()
    for iteration in range(limit + 1):
        gradients = torch.autograd.grad(LOSS(model(x.to(row.dtype)), y), list(model.parameters()))
        flat = torch.cat([g.reshape(-1) for g in gradients])
        if flat.norm() <= tolerance or iteration == limit:
            break
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= step * g
    return nn.utils.parameters_to_vector(model.parameters()).detach(), iteration


@pytest.mark.parametrize("memory", [1, 30_000, 2**25], ids=["one place", "few places", "all at once"])
def test_each_member_ends_where_it_ends_alone(memory):
    starts = sphere_starts(7, 17, radius=1.5, generator=seeded())
    trained = train_ensemble(network(), LOSS, blobs(), starts, step=0.5, tolerance=2e-2, memory_budget=memory)
    for member, start in enumerate(starts):
        alone, iterations = descend_alone(start, step=0.5, tolerance=2e-2, limit=10_000)
        assert trained.iterations[member] == iterations
        torch.testing.assert_close(trained.parameters[member], alone, rtol=1e-9, atol=1e-12)
    assert trained.converged.all() and (trained.gradient_norms <= 2e-2).all()
    assert len(set(trained.iterations)) > 1  # members left at different times


def test_losses_and_gradient_norms_are_those_at_the_final_parameters():
    starts = sphere_starts(4, 17, radius=1.5, generator=seeded(1))
    trained = train_ensemble(network(), LOSS, blobs(), starts, step=0.5, max_iterations=20)
    assert (trained.iterations == 20).all() and not trained.converged.any() and trained.finite.all()
    for member, row in enumerate(trained.parameters):
        risk = EmpiricalRisk(set_parameters(network().double(), row), LOSS, blobs())
        assert trained.losses[member] == pytest.approx(risk.loss(), rel=1e-12)
        assert trained.gradient_norms[member] == pytest.approx(float(risk.gradient().norm()), rel=1e-10)


def test_a_converged_start_is_left_where_it_is():
    trained = train_ensemble(network(), LOSS, blobs(), torch.ones(1, 17).double(), step=0.5, tolerance=1e9)
    assert trained.iterations.tolist() == [0]
    torch.testing.assert_close(trained.parameters, torch.ones(1, 17).double(), rtol=0, atol=0)


def test_a_diverged_member_is_reported_and_does_not_touch_the_others():
    starts = sphere_starts(5, 17, radius=1.5, generator=seeded())
    alone = train_ensemble(network(), LOSS, blobs(), starts, step=0.5, tolerance=2e-2)
    poisoned = starts.clone()
    poisoned[2] = torch.nan
    poisoned = torch.cat([poisoned, torch.full((1, 17), 1e308, dtype=torch.float64)])
    trained = train_ensemble(network(), LOSS, blobs(), poisoned, step=0.5, tolerance=2e-2)
    assert trained.finite.tolist() == [True, True, False, True, True, False]
    assert not trained.converged[[2, 5]].any() and (~trained.finite).sum() == 2
    assert "2 diverged" in str(trained)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(trained.parameters[others], alone.parameters[others])
    spectra = ensemble_eigenvalues(network(), LOSS, blobs(), trained.parameters)
    assert (~spectra.finite).sum() == 2 and spectra.largest(3).shape == (4, 3)
    assert np.isnan(spectra.eigenvalues[2]).all() and np.isfinite(spectra.largest(3)).all()
    with pytest.raises(InputError, match="member 2 diverged"):
        spectra.spectrum(2)


@pytest.mark.parametrize("memory", [60_000, 2**28], ids=["in pieces", "at once"])
def test_hessians_equal_those_of_the_operator(memory):
    rows = sphere_starts(3, 17, radius=2.0, generator=seeded(3))
    hessians = torch.cat(list(ensemble_hessians(network(), LOSS, blobs(), rows, memory_budget=memory)))
    spectra = ensemble_eigenvalues(network(), LOSS, blobs(), rows, memory_budget=memory)
    for member, row in enumerate(rows):
        dense = HessianOperator(EmpiricalRisk(set_parameters(network().double(), row), LOSS, blobs())).to_dense()
        torch.testing.assert_close(hessians[member], dense, rtol=1e-10, atol=1e-13)
        expected = torch.linalg.eigvalsh(dense)
        np.testing.assert_allclose(spectra.eigenvalues[member], expected, rtol=0, atol=1e-12 * float(expected.max()))


class Tied(nn.Module):
    """A module that is no Sequential: a shared weight, a frozen one, a buffer and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.Parameter(torch.tensor([0.5, 2.0]), requires_grad=False)
        self.register_buffer("shift", torch.tensor([0.1, -0.1]))
        self.norm.running_var.fill_(3.0)

    def forward(self, x):
        return self.inner(torch.tanh(self.norm(self.inner(x)) * self.frozen + self.shift))


def test_any_module_can_be_an_ensemble_and_is_not_changed():
    model = Tied().train()
    before = copy.deepcopy(model.state_dict())
    rows = sphere_starts(2, 10, radius=2.0, generator=seeded(5))
    trained = train_ensemble(model, LOSS, blobs(), rows, step=0.1, max_iterations=3)
    (hessians,) = ensemble_hessians(model, LOSS, blobs(), trained.parameters)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert model.training and all(p.grad is None for p in model.parameters())

    x, y = blobs()
    twin = copy.deepcopy(model).double().eval()
    names = [name for name, p in twin.named_parameters() if p.requires_grad]
    shapes = [twin.get_parameter(name).shape for name in names]

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]
        return LOSS(functional_call(twin, dict(zip(names, parts, strict=True)), (x,)), y)

    for row, hessian in zip(trained.parameters, hessians, strict=True):
        torch.testing.assert_close(hessian, torch.autograd.functional.hessian(loss, row), rtol=1e-9, atol=1e-12)


def test_single_precision_trains_in_single_precision():
    starts = sphere_starts(3, 17, radius=1.5, generator=seeded(), dtype=torch.float32)
    trained = train_ensemble(network(), LOSS, blobs(), starts, step=0.5, tolerance=2e-2)
    assert trained.parameters.dtype == torch.float32 and trained.converged.all()


def test_starts_are_uniform_on_the_sphere_and_repeat_with_the_seed():
    starts = sphere_starts(2000, 5, radius=3.0, generator=seeded(2))
    torch.testing.assert_close(starts.norm(dim=1), torch.full((2000,), 3.0, dtype=torch.float64))
    # each coordinate has variance radius^2 / n; four standard errors of the mean
    assert (starts.mean(0).abs() < 4 * 3.0 / (5 * 2000) ** 0.5).all()
    torch.testing.assert_close(starts, sphere_starts(2000, 5, radius=3.0, generator=seeded(2)), rtol=0, atol=0)


def test_progress_is_told_and_ends_at_the_number_of_members():
    seen: list[int] = []
    starts = sphere_starts(6, 17, radius=1.5, generator=seeded())
    train_ensemble(network(), LOSS, blobs(), starts, step=0.5, tolerance=2e-2, memory_budget=1, progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == 6
    ensemble_eigenvalues(network(), LOSS, blobs(), starts, memory_budget=60_000, progress=seen.append)
    assert seen[-1] == 6


def test_an_interruption_ends_the_training():
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    starts = sphere_starts(40, 17, radius=1.5, generator=seeded())
    with pytest.raises(KeyboardInterrupt):
        train_ensemble(
            network(),
            LOSS,
            blobs(),
            starts,
            step=0.5,
            tolerance=0.1,
            memory_budget=1,
            max_iterations=10**9,
            progress=interrupt,
        )


def test_spectra_hand_out_one_member_as_an_exact_spectrum():
    spectra = EnsembleSpectra(np.array([[0.0, 1.0, 3.0]]), np.array([True]))
    assert spectra.spectrum(0).exact and spectra.spectrum(0).moment(1) == pytest.approx(4 / 3)
    np.testing.assert_array_equal(spectra.largest(2), [[3.0, 1.0]])


def test_a_network_too_large_for_dense_hessians_says_its_memory_and_the_way_out():
    wide = nn.Linear(784, 20)
    with pytest.raises(OutOfMemoryError, match=r"15,700 parameters needs 3,7\d\d\.. MiB.*HessianOperator"):
        next(
            ensemble_hessians(wide, LOSS, (torch.zeros(4, 784), torch.zeros(4).long()), torch.zeros(1, 15_700).double())
        )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: train_ensemble(network(), LOSS, blobs(), s[:, :5], step=0.1), r"\(members, 17\).*got \(2, 5\)"),
        (lambda s: train_ensemble(network(), LOSS, blobs(), s[:0], step=0.1), "at least one member"),
        (lambda s: train_ensemble(network(), LOSS, blobs(), s.half(), step=0.1), "float32 or float64"),
        (lambda s: train_ensemble(network(), LOSS, blobs(), s, step=0.0), "step and tolerance must be positive"),
        (lambda s: train_ensemble(network(), LOSS, [blobs()], s, step=0.1), r"one pair \(x, y\)"),
        (lambda s: sphere_starts(3, 4, radius=-1.0, generator=seeded()), "radius > 0"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.ones(2, 17).double())


def test_several_workers_give_what_one_gives_and_leave_the_number_of_threads_alone():
    starts = sphere_starts(5, 17, radius=1.5, generator=seeded())
    settings = {"step": 0.5, "tolerance": 0.1, "memory_budget": 1}
    single = train_ensemble(network(), LOSS, blobs(), starts, **settings)
    try:
        torch.set_num_threads(2)
        double = train_ensemble(network(), LOSS, blobs(), starts, **settings)
        assert torch.get_num_threads() == 2
        with pytest.raises(InputError):
            train_ensemble(network(), LOSS, blobs(), starts[:, :5], step=0.1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert double.converged.all()
    torch.testing.assert_close(double.parameters, single.parameters, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(double.iterations, single.iterations)
