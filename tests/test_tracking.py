"""A tracker measures what a dense Hessian says at the same parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.analysis.table import CERTIFIED, RESIDUAL, UNPLACED
from pyhessian_spectra.tracking import (
    BatchEigenvalues,
    BatchSharpness,
    CriticalSharpness,
    Eigenvalues,
    GradientShare,
    MidpointLoss,
    PreconditionedEigenvalues,
    SpectrumTracker,
    Traces,
)
from tests.trainings import dense_hessian, followed, small_problem, train


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_eigenvalues_are_those_of_the_dense_matrix_within_their_errors_at_each_step(dtype):
    found, truths = followed([Eigenvalues(3, smallest=2)], certify_every=6, dtype=dtype)
    for record, dense in zip(found.track.records, truths, strict=True):
        values = torch.linalg.eigvalsh(dense).numpy()
        for each in record.values:
            rank = each.quantity.removeprefix("lambda_")
            place = int(rank.removeprefix("n") or 0) * -1 if rank.startswith("n") else -int(rank)
            assert abs(each.value - values[place]) <= each.error
            assert each.converged
            certified = (CERTIFIED,) if rank.isdigit() else (CERTIFIED, UNPLACED)  # some at the lower edge are too near
            assert each.kind in (certified if (record.step - 1) % 6 == 0 else (RESIDUAL,))
            assert each.error <= 0.011 * abs(each.value) + 1e-6
            assert each.data_error > 0


def test_following_takes_a_few_products_and_a_certificate_many():
    found, _ = followed([Eigenvalues()], certify_every=100)
    first, *others = [record.products for record in found.track.records]
    assert np.mean(others) <= 5 < first / 3


def test_traces_and_their_changes_cover_the_dense_ones_and_changes_are_known_far_better():
    inside, narrow, moved = [], [], []
    for seed in range(10):
        found, truths = followed([Traces(4, first=12, seed=seed)], steps=4)
        for record, dense, before in zip(found.track.records[1:], truths[1:], truths[:-1], strict=True):
            whole, change = record.get("trace"), record.get("change of trace")
            inside.append(abs(whole.value - float(dense.trace())) <= whole.error)
            moved.append(abs(change.value - float((dense - before).trace())) <= change.error)
            narrow.append(change.error / whole.error)
    assert np.mean(inside) >= 0.9 and np.mean(moved) >= 0.9
    assert np.median(narrow) < 0.5


def test_traces_are_known_better_the_more_eigenvalues_are_followed():
    inside, errors = [], []
    for seed in range(20):
        for quantities in ([Traces(4, first=8, seed=seed)], [Eigenvalues(8), Traces(4, first=8, seed=seed)]):
            found, truths = followed(quantities, steps=1)
            trace = found.track.records[0].get("trace")
            inside.append(abs(trace.value - float(truths[0].trace())) <= trace.error)
            errors.append(trace.error)
    assert np.mean(inside) >= 0.9  # of 95 %
    assert np.mean(errors[1::2]) < 0.8 * np.mean(errors[::2])


def test_layer_traces_add_up_to_the_whole():
    found, truths = followed([Traces(3, first=40)], steps=3)
    for record, dense in zip(found.track.records, truths, strict=True):
        layers = [record.get("trace", name).value for name in ("0", "2")]
        assert sum(layers) == pytest.approx(record.get("trace").value)
        assert abs(layers[0] - float(dense.diagonal()[:56].sum())) <= record.get("trace", "0").error


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop])
def test_preconditioned_sharpness_is_that_of_the_optimisers_own_matrix(optimizer):
    model, loss_fn, batches = small_problem()
    opt = optimizer(model.parameters(), lr=0.01)
    found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None, quantities=[PreconditionedEigenvalues()])

    def follow(step, loss):
        record = found.step(opt)
        beta, eps = opt.defaults.get("betas", (0.0, 0.0))[0], opt.defaults["eps"]
        if optimizer is torch.optim.Adam:
            roots = [(opt.state[p]["exp_avg_sq"] / (1 - 0.999**step)).sqrt() for p in model.parameters()]
        else:
            roots = [opt.state[p]["square_avg"].sqrt() for p in model.parameters()]
        scale = torch.cat([((1 - beta**step) * (root + eps)).flatten() for root in roots]) ** -0.5
        top = torch.linalg.eigvalsh(scale[:, None] * dense_hessian(model, loss_fn, batches) * scale)[-1]
        each = record.get("sharpness_1")
        assert abs(each.value - float(top)) <= each.error
        assert record.threshold == pytest.approx(3800 if beta else 200)

    train(model, loss_fn, batches, opt, follow, 8)


def test_nothing_preconditioned_is_measured_where_the_matrix_is_the_hessian():
    found, _ = followed([PreconditionedEigenvalues()], steps=2)
    assert [record.values for record in found.track.records] == [(), ()]
    assert found.track.records[0].threshold == pytest.approx(4.0)


def test_more_eigenvalues_are_followed_as_long_as_they_exceed_their_share_of_the_edge():
    found, truths = followed([Eigenvalues(above=0.05, most=4)], steps=8, lr=0.5)
    counts = [len(record.values) for record in found.track.records]
    above = [int((torch.linalg.eigvalsh(dense) > 0.05 * 4).sum()) for dense in truths]
    assert counts[0] == 1
    for before, count, many in zip(counts, counts[1:], above, strict=False):
        assert count == (min(4, before + 1) if many >= before else before)
    assert max(counts) > 1


def test_quantities_from_gradients_are_those_of_dense_matrices():
    quantities = [Eigenvalues(2), GradientShare(), BatchSharpness(), BatchEigenvalues(tol=1e-4), CriticalSharpness()]
    model, loss_fn, batches = small_problem()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    found = SpectrumTracker(
        model, loss_fn, batches, every=1, budget=None, certify_every=1, quantities=[*quantities, MidpointLoss()]
    )
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    def at(flat):
        nn.utils.vector_to_parameters(flat.clone(), model.parameters())
        return EmpiricalRisk(model, loss_fn, batches)

    def follow(step, loss):
        nonlocal before
        record = found.step(opt, loss=loss)
        now = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        risk = EmpiricalRisk(model, loss_fn, batches)
        gradient = risk.gradient()
        vectors = torch.linalg.eigh(HessianOperator(risk).to_dense()).eigenvectors[:, -2:]
        share = float((vectors.T @ gradient).square().sum() / gradient.square().sum())
        told = record.get("share of the gradient in the top 2")
        assert record.get("gradient norm").value == pytest.approx(float(gradient.norm()))
        assert told.kind == CERTIFIED and abs(told.value - share) <= told.error
        ratios = []
        for number, batch in enumerate(batches):
            own = EmpiricalRisk(model, loss_fn, [batch])
            dense, g = HessianOperator(own).to_dense(), own.gradient()
            ratios.append(float(g @ dense @ g / (g @ g)))
            top = record.get("lambda_1", f"batch {number}")
            assert abs(top.value - float(torch.linalg.eigvalsh(dense)[-1])) <= top.error
        sharpness = record.get("batch sharpness")
        assert sharpness.value == pytest.approx(np.mean(ratios))
        assert sharpness.error == pytest.approx(np.std(ratios, ddof=1) / 5**0.5)
        if step > 1:  # the step before was not kept for the first
            losses = [record.get(f"loss {name}").value for name in ("before the step", "half-way", "after the step")]
            assert losses == pytest.approx([at(flat).loss() for flat in (before, (before + now) / 2, now)])
            critical = record.get("critical sharpness")
            shortest = 2 / (critical.value + critical.error) / 0.1, 2 / (critical.value - critical.error) / 0.1
            rise = [at(before + s * (now - before)).loss() - losses[0] for s in shortest]
            assert rise[0] <= 1e-12 < rise[1]
            at(now)
        before = now

    train(model, loss_fn, batches, opt, follow, 4)


def test_critical_sharpness_of_a_quadratic_function_is_the_curvature_along_the_gradient():
    w = nn.Linear(2, 1, bias=False).double()
    x = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64))
    opt = torch.optim.SGD(w.parameters(), lr=0.01)
    data, loss_fn = (x, torch.zeros(2, 1, dtype=torch.float64)), nn.MSELoss(reduction="sum")
    found = SpectrumTracker(w, loss_fn, data, every=1, budget=None, quantities=[CriticalSharpness(rtol=1e-3)])
    hessian = 2 * x.T @ x
    found.step(opt)
    g = (hessian @ w.weight.detach().T)[:, 0]
    opt.zero_grad()
    loss_fn(w(x), data[1]).backward()
    opt.step()
    each = found.step(opt).get("critical sharpness")
    assert abs(each.value - float(g @ hessian @ g / (g @ g))) <= each.error
    assert each.error < 1e-3 * each.value


def test_errors_of_followed_eigenvalues_allow_for_rounding():
    x = torch.diag(torch.tensor([3.0, 1.0]))
    model, data = nn.Linear(2, 1, bias=False), (x / 3, torch.zeros(2, 1))
    found = SpectrumTracker(model, nn.MSELoss(), data, every=1, budget=None, quantities=[Eigenvalues()])
    found.measure()
    each = found.measure(certify=False).get("lambda_1")
    assert each.kind == RESIDUAL
    assert 0 < abs(each.value - float(((x.double() / 3) ** 2).sum(dim=0).max())) + 1e-12 <= each.error < 1e-4


class _Captured:
    """A quantity that keeps what the eigenvalues before it have left for others."""

    needs_previous = False

    def measure(self, moment):
        self.top = moment.top
        return []

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def _regression(values, seed=0, dtype=torch.float64):
    """A linear model whose Hessian has these eigenvalues, and its data."""
    n, generator = len(values), torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))[0]
    x = ((q * (values * n / 2).sqrt()) @ q.T).to(dtype)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Linear(n, 1, bias=False).to(dtype)
    return model, (x, torch.randn(n, 1, dtype=torch.float64, generator=generator).to(dtype))


@pytest.mark.parametrize("n", [3, 30, 80])
def test_a_certificate_bounds_all_eigenvalues_but_those_that_are_told(n):
    values = torch.linspace(0.1, 1, n, dtype=torch.float64)
    values[-2:] = torch.tensor([8.0, 10.0])
    model, data = _regression(values)
    seen = _Captured()
    quantities = [Eigenvalues(), seen]
    record = SpectrumTracker(model, nn.MSELoss(), data, budget=None, quantities=quantities).measure()
    low, high = seen.top.others
    assert low - 1e-9 <= float(values[0]) and high >= 8.0 - 1e-9
    assert high < record.get("lambda_1").value and record.get("lambda_1").kind == CERTIFIED


def test_an_eigenvalue_whose_rank_is_not_certain_is_not_called_certified():
    fell, kinds = 0, set()
    for seed in range(20):
        values = torch.linspace(0.1, 1, 80, dtype=torch.float64)
        values[-2:] = torch.tensor([10.0 - 1e-9, 10.0])
        model, data = _regression(values, seed, torch.float32)
        tracker = SpectrumTracker(model, nn.MSELoss(), data, budget=None, quantities=[Eigenvalues()])
        each = tracker.measure().get("lambda_1")
        kinds.add(each.kind)
        fell += abs(each.value - 10.0) > each.error
    assert not fell and CERTIFIED not in kinds
