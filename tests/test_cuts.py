"""Weights of batches are checked against how the loss says that the data are cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_verification import drawn, filled, labels, mixed, net
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import UnverifiedError


def shifted(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())


WEIGHTS = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
FLOATS, CLASSES, WHOLE = drawn(16, 3, seed=3), labels(16), 10 * labels(16, 5)[:, None] - 100
HIDDEN = {
    "ignored label": (lambda z, y: F.cross_entropy(z, y, ignore_index=0), CLASSES),
    "class weights": (lambda z, y: F.cross_entropy(z, y, weight=WEIGHTS), CLASSES),
    "sum": (lambda z, y: F.mse_loss(z, y, reduction="sum"), FLOATS),
    "only some targets": (lambda z, y: (z - y)[y > 0].square().mean(), FLOATS),
    "root of a mean": (lambda z, y: F.mse_loss(z, y).sqrt(), FLOATS),
    "log of a mean": (lambda z, y: F.mse_loss(z, y).log(), FLOATS),
    "largest": (lambda z, y: (z - y).square().sum(1).max(), FLOATS),
    "whole numbers, -100 among them": (lambda z, y: F.mse_loss(z.sum(1, keepdim=True), y / 50.0), WHOLE),
}


def cut(loss, y: Tensor, **how) -> EmpiricalRisk:
    x = drawn(16, 3)
    return EmpiricalRisk(net(), loss, [(x[a:b], y[a:b]) for a, b in ((0, 3), (3, 9), (9, 16))], **how)


@pytest.mark.parametrize("name", HIDDEN)
def test_weights_that_the_loss_hides_are_refused_with_the_remedy(name):
    loss, y = HIDDEN[name]
    with pytest.raises(UnverifiedError, match=r"depends on how the data are cut into batches.*pass weight="):
        verify(HessianOperator(cut(loss, y)))
    verify(HessianOperator(cut(loss, y, weight=lambda batch: len(batch[0]))))  # the user says what the risk is
    verify(HessianOperator(EmpiricalRisk(net(), loss, (drawn(16, 3), y))))  # one batch has no weight


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=0), CLASSES),
        (nn.MSELoss(reduction="sum"), FLOATS),
        (nn.L1Loss(), FLOATS),
        (lambda z, y: (z - y).square().sum(1).mean(), FLOATS),
    ],
)
def test_weights_that_can_be_known_pass(loss, y):
    verify(HessianOperator(cut(loss, y)))


def test_sequences_of_other_lengths_are_checked_by_the_labels_that_were_averaged():
    """Of each row the first label is not averaged, so that batches of 3 and 7 columns weigh 2 and 6."""
    model = filled(nn.Sequential(nn.Embedding(5, 3), nn.Tanh(), nn.Linear(3, 5)))
    batches = [(t, t) for t in (labels(12, 5).view(4, 3), labels(14, 5).view(2, 7))]
    with pytest.raises(UnverifiedError, match=r"not the numbers of labels .*0\.6667 and 0\.8571.*pass weight="):
        verify(HessianOperator(EmpiricalRisk(model, shifted, batches)))
    plain = lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten())  # noqa: E731
    verify(HessianOperator(EmpiricalRisk(model, plain, batches)))


def test_batch_statistics_may_depend_on_the_cut_in_train_mode_only():
    x, y = drawn(16, 3), labels(16)
    batches = [(x[:6], y[:6]), (x[6:], y[6:])]
    norm = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    verify(HessianOperator(EmpiricalRisk(norm, F.cross_entropy, batches, mode="train")))
    with pytest.raises(UnverifiedError, match="cut into batches"):
        verify(HessianOperator(EmpiricalRisk(net(mixed), F.cross_entropy, batches)))


def test_a_loss_that_ignores_labels_of_a_batch_in_the_middle_is_refused():
    x, y = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 3
    y[20:27] = -1
    data = list(zip(x.split(20), y.split(20), strict=True))
    risk = EmpiricalRisk(nn.Linear(4, 3).double(), lambda z, t: F.cross_entropy(z, t, ignore_index=-1), data)
    with pytest.raises(UnverifiedError, match="how the data are cut"):
        verify(HessianOperator(risk))
