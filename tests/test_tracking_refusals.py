"""What cannot be tracked is refused at once, in a sentence."""

import pytest
import torch
from torch import nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.tracking import BatchEigenvalues, CriticalSharpness, Eigenvalues, SpectrumTracker, Traces
from tests.trainings import small_problem


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"every": 0}, "every must be"),
        ({"every": True}, "every must be"),
        ({"certify_every": 0.5}, "certify_every must be"),
        ({"budget": 2.0}, "budget must be"),
        ({"budget": "all"}, "budget must be"),
        ({"mode": "test"}, "mode must be"),
        ({"data": []}, "empty|no "),
        ({"data": 3}, "data must be"),
        ({"data": (torch.ones(4, 5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))}, "failed on batch 0"),
        ({"data": (torch.full((4, 6), torch.nan, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))}, "NaN|nan"),
        ({"quantities": []}, "quantities must be"),
        ({"quantities": ["lambda_1"]}, "quantities must be"),
        ({"quantities": [Eigenvalues]}, "quantities must be"),
        ({"quantities": Eigenvalues()}, "quantities must be"),
        ({"quantities": [Eigenvalues(), Eigenvalues(2)]}, "two of Eigenvalues"),
        ({"on_record": 3}, "on_record must be"),
        ({"path": "/dev/full"}, "cannot be written"),
    ],
)
def test_what_cannot_be_tracked_is_refused_at_once(how, said):
    model, loss_fn, batches = small_problem()
    with pytest.raises(InputError, match=said):
        SpectrumTracker(model, loss_fn, how.pop("data", batches), **how)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Eigenvalues(0),
        lambda: Eigenvalues(tol=0.0),
        lambda: Eigenvalues(tol=2.0),
        lambda: Eigenvalues(above=-1.0),
        lambda: Eigenvalues(4, above=0.5, most=3),
        lambda: BatchEigenvalues(max_products=0),
        lambda: Traces(1),
        lambda: Traces(5, first=3),
        lambda: CriticalSharpness(rtol=-1.0),
    ],
)
def test_quantities_out_of_range_are_refused(make):
    with pytest.raises(InputError, match="must be"):
        make()


@pytest.mark.parametrize("value", [torch.zeros(3), 0.5, 3], ids=["tensor", "float", "counter"])
def test_a_model_that_counts_its_calls_outside_of_buffers_is_refused_and_put_back(value):
    class Counting(nn.Linear):
        def forward(self, x):
            self.seen = self.seen + 1
            return super().forward(x)

    model = Counting(6, 4).double()
    model.seen = value
    _, loss_fn, batches = small_problem()
    with pytest.raises(InputError, match="changes its attribute seen"):
        SpectrumTracker(model, loss_fn, batches)
    assert model.seen is value


def test_a_random_loss_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(())

    batches = small_problem()[2]
    with pytest.raises(InputError, match=r"loss of the probe data was .* and then"):
        SpectrumTracker(Noisy(6, 4).double(), lambda out, y: (out**2).mean(), batches)


def test_an_optimizer_that_is_none_is_refused_and_a_loss_that_is_no_number_ends_the_record():
    model, loss_fn, batches = small_problem()
    found = SpectrumTracker(model, loss_fn, batches, every=1, budget=None)
    with pytest.raises(InputError, match="optimizer must be"):
        found.step("adam")
    with pytest.warns(RuntimeWarning, match="tracking ends"):
        found.step(loss="high")
