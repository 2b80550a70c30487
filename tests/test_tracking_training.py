"""Training goes on as if no tracker were there, whatever happens to either."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from pyhessian_spectra.analysis.table import CERTIFIED
from pyhessian_spectra.tracking import (
    BatchSharpness,
    CriticalSharpness,
    Eigenvalues,
    GradientShare,
    MidpointLoss,
    PreconditionedEigenvalues,
    SpectrumTracker,
    Traces,
    pace,
)
from tests.trainings import small_problem, train


class _Troubled(nn.Module):
    """Dropout and BatchNorm, which a careless measurement would disturb."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


def test_training_ends_with_the_same_bits_with_and_without_a_tracker():
    _, loss_fn, batches = small_problem(torch.float32)

    def weights(tracked):
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        model = _Troubled()
        opt = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 0.99)
        loader = torch.utils.data.DataLoader([(x[i], y[i]) for x, y in batches for i in range(len(x))], 8, shuffle=True)
        found = None
        if tracked:
            quantities = [
                Eigenvalues(2, smallest=1),
                PreconditionedEigenvalues(),
                Traces(2, first=4),
                GradientShare(),
                BatchSharpness(),
                MidpointLoss(),
                CriticalSharpness(),
            ]
            how = {"every": 20, "budget": None, "certify_every": 5, "quantities": quantities}
            found = SpectrumTracker(model, loss_fn, loader, **how)
        for _ in range(40):
            for x, y in loader:
                opt.zero_grad()
                loss_fn(model(x), y).backward()
                opt.step()
                if found is not None:
                    grads = [p.grad.clone() for p in model.parameters()]
                    found.step(opt)
                    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
            schedule.step()
        assert model.training
        if found is not None:
            assert len(found.track.records) == 10 and not found.track.records[-1].ended
        return [*model.state_dict().values(), torch.rand(3), torch.tensor([random.random(), np.random.rand()])]

    assert all(torch.equal(a, b) for a, b in zip(weights(False), weights(True), strict=True))


def test_the_tracker_measures_the_same_within_autocast_and_inference_mode():
    model, loss_fn, batches = small_problem(torch.float32)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def first(context):
        found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None)
        with context:
            return [each.value for each in found.measure(opt).values]

    plain = first(torch.enable_grad())
    assert first(torch.autocast("cpu", dtype=torch.bfloat16)) == plain
    assert first(torch.no_grad()) == plain
    assert first(torch.inference_mode()) == plain


@pytest.mark.parametrize("dear", [1.0, 8.0])
def test_measurements_keep_to_their_share_of_the_time_and_are_certified_nevertheless(monkeypatch, dear):
    clock = [0.0]
    monkeypatch.setattr(pace.time, "perf_counter", lambda: clock[0])

    class Slow(Eigenvalues):
        def measure(self, moment):
            clock[0] += 3.0 * (dear if moment.certify else 4.0 if self._start is None else 1.0)
            return super().measure(moment)

    model, loss_fn, batches = small_problem()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    how = {"every": 5, "budget": 0.1, "certify_every": 10, "quantities": [Slow()]}
    found = SpectrumTracker(model, loss_fn, batches, **how)
    shares = []

    def follow(step, loss):
        clock[0] += 1.0
        record = found.step(opt)
        if record is not None and len(found.track.records) > 1:
            shares.append(sum(each.seconds for each in found.track.records) / clock[0])

    train(model, loss_fn, batches, opt, follow, 1500)
    certified = [record.get("lambda_1").kind == CERTIFIED for record in found.track.records]
    assert max(shares) <= 0.1 + 1e-9
    assert sum(each.seconds for each in found.track.records) >= 0.07 * clock[0]
    assert 1 <= sum(certified) < len(certified)
    assert all(record.step % 5 == 0 for record in found.track.records)


def test_probe_data_are_copied_as_they_are_read():
    model, loss_fn, batches = small_problem()
    buffer = batches[0][0].clone()

    def loader():
        for x, y in batches:
            yield buffer.copy_(x), y

    first = SpectrumTracker(model, loss_fn, loader()).measure()
    assert first.values == SpectrumTracker(model, loss_fn, batches).measure().values


def test_nan_ends_the_record_and_not_the_training():
    model, loss_fn, batches = small_problem()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None)
    found.step(opt)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    with pytest.warns(RuntimeWarning, match="tracking ends at step 2: .*NaN"):
        record = found.step(opt)
    assert "NaN" in record.ended and found.step(opt) is None
    assert len(found.track.records) == 2


def test_a_training_loss_that_is_nan_ends_the_record():
    model, loss_fn, batches = small_problem()
    found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None)
    with pytest.warns(RuntimeWarning, match="training loss is nan"):
        found.step(loss=torch.tensor(torch.nan))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model[2], "weight", nn.Parameter(torch.ones(4, 8, dtype=torch.float64))),
        lambda model: model.float(),
        lambda model: model[0].requires_grad_(False),
    ],
    ids=["replaced", "converted", "frozen"],
)
def test_a_model_that_changes_ends_the_record(change):
    model, loss_fn, batches = small_problem()
    found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None)
    found.step()
    change(model)
    with pytest.warns(RuntimeWarning, match="build another tracker"):
        found.step()


def test_what_could_not_be_verified_is_warned_of_once():
    class Coarse(nn.Linear):
        def forward(self, x):
            return torch.tanh(super().forward(x)) + 1e9 - 1e9

    torch.manual_seed(0)
    model = Coarse(4, 2).double()
    data = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 2
    tracker = SpectrumTracker(model, nn.CrossEntropyLoss(), data, budget=None)
    with pytest.warns(RuntimeWarning, match="cannot be seen from differences"):
        tracker.measure()
    tracker.measure()
