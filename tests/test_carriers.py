"""Shares of examples and classes in an eigenvalue are those of its eigenvector, and say how well it is determined."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from problems import CASES
from torch import nn

from pyhessian_spectra import EmpiricalRisk, carriers, ggn_gram
from pyhessian_spectra.errors import InputError


def regression(lengths, dtype=torch.float64):
    """A linear regression on orthogonal inputs of these lengths: an example each for the eigenvalues 2 l^2 / N."""
    model = nn.Linear(len(lengths), 1, bias=False).to(dtype)
    x = torch.diag(torch.tensor(lengths, dtype=dtype))
    return EmpiricalRisk(model, nn.MSELoss(), (x, torch.zeros(len(lengths), 1, dtype=dtype)))


def test_each_of_orthogonal_inputs_carries_its_own_eigenvalue():
    risk = regression([1.0, 5.0, 2.0])
    for k, example, value in ((1, 1, 25.0), (2, 2, 4.0), (3, 0, 1.0)):
        found = carriers(risk, ggn_gram(risk), k=k)
        assert found.examples[0] == example and found.ranks == (k,) and not found.notes
        assert found.shares == pytest.approx((1.0, 0.0, 0.0), abs=1e-12)
        assert found.eigenvalues == pytest.approx((value * 2 / 3,))
        assert found.share_error < 1e-10
        assert found.labels is None and found.predictions is None and found.misclassified_share is None
    with torch.no_grad():
        expected = [float((x @ risk.model.weight[0]) ** 2) for x in risk.data[0][0]]
    assert [found.losses[found.examples.index(i)] for i in range(3)] == pytest.approx(expected)


def test_alike_inputs_share_an_eigenvalue_by_their_squared_lengths():
    model = nn.Linear(2, 1, bias=False).double()
    x = torch.tensor([[3.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]]).double()
    found = carriers(EmpiricalRisk(model, nn.MSELoss(), (x, torch.zeros(4, 1).double())))
    assert found.examples == (0, 3, 1, 2)
    assert found.shares == pytest.approx((9 / 14, 4 / 14, 1 / 14, 0.0), abs=1e-12)


@pytest.mark.parametrize(("dtype", "apart"), [(torch.float64, 0.0), (torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_shares_in_equal_eigenvalues_are_those_in_their_sum_with_a_note(dtype, apart):
    found = carriers(regression([3.0, 1.0, 3.0 + apart, 2.0], dtype), k=2)
    assert found.ranks == (1, 2) and len(found.eigenvalues) == 2
    assert set(found.examples[:2]) == {0, 2} and found.shares == pytest.approx((0.5, 0.5, 0.0, 0.0), abs=1e-5)
    assert found.share_error < 0.05 and found.gap == pytest.approx((9 - 4) * 2 / 4, rel=1e-4)
    (note,) = found.notes
    assert note.kind == "rounding" and "in the sum of the eigenvalues 1 to 2" in note.text
    assert carriers(regression([3.0, 1.0, 3.1, 2.0], dtype)).ranks == (1,)


@pytest.mark.parametrize("case", ["mlp", "class_weights", "tied_weights", "uneven_last_batch"])
def test_shares_are_the_gram_matrix_own_and_classes_and_mistakes_are_their_sums(case):
    risk = CASES[case]()
    gram = ggn_gram(risk)
    found = carriers(risk, gram, k=2)
    shares = gram.example_shares(2)[:, 1]
    np.testing.assert_allclose(found.shares, shares[list(found.examples)], atol=1e-9)
    assert list(found.shares) == sorted(found.shares, reverse=True) and sum(found.shares) == pytest.approx(1.0)
    x, y = (torch.cat(parts) for parts in zip(*risk.data, strict=True))
    with torch.no_grad():
        outputs = risk.model(x)
    wrong = (outputs.argmax(dim=1) != y).numpy()
    assert found.misclassified_fraction == wrong.mean()
    assert found.misclassified_share == pytest.approx(shares[wrong].sum())
    for name, share in found.classes.items():
        assert share == pytest.approx(shares[y.numpy() == int(name)].sum())
    first = found.examples[0]
    assert found.labels[0] == y[first] and found.predictions[0] == outputs[first].argmax()
    assert found.losses[0] == pytest.approx(float(nn.functional.cross_entropy(outputs[first], y[first])))


def test_float32_is_within_the_errors_stated():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 5))
    x, y = torch.randn(40, 8), torch.randint(0, 5, (40,))
    rounded = EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y))
    found = {k: carriers(rounded, k=k) for k in (1, 5, 20)}
    exact = EmpiricalRisk(model.double(), nn.CrossEntropyLoss(), (x.double(), y))
    for k, some in found.items():
        truth = carriers(exact, k=k)
        assert some.ranks == truth.ranks == (k,)
        shares = dict(zip(truth.examples, truth.shares, strict=True))
        off = max(abs(share - shares[i]) for i, share in zip(some.examples, some.shares, strict=True))
        assert 0 < off <= some.share_error
        assert max(abs(some.classes[name] - truth.classes[name]) for name in truth.classes) <= some.class_error


def test_ignored_examples_carry_nothing_and_have_no_loss():
    x, y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, -100, 1, 0, 1])
    torch.manual_seed(0)
    found = carriers(EmpiricalRisk(nn.Linear(3, 2), nn.CrossEntropyLoss(), (x, y)), names=["cat", "dog"])
    at = found.examples.index(2)
    assert found.shares[at] == 0 and found.losses[at] is None and not found.counts[at]
    assert set(found.classes) == {"cat", "dog"} and sum(found.classes.values()) == pytest.approx(1.0)


def test_fields_are_written_as_json_and_read_again():
    found = dataclasses.asdict(carriers(CASES["mlp"]()))
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["shares"] == list(found["shares"]) and again["classes"] == found["classes"]


def test_a_rank_beyond_that_of_the_matrix_and_another_matrix_are_refused():
    risk = regression([1.0, 2.0])
    for k in (0, 3):
        with pytest.raises(InputError, match="k must be between 1 and the rank 2"):
            carriers(risk, k=k)
    half = risk.replace(data=[(risk.data[0][0][:1], risk.data[0][1][:1])])
    with pytest.raises(InputError, match="not of this risk's 2 examples"):
        carriers(risk, ggn_gram(half))
