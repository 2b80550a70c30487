"""Eigenvalues over subsets of the data, their sampling errors, and bounds for more data, against enumeration."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from torch import nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, ggn_gram
from pyhessian_spectra.analysis.data_curve import DataCurve, bootstrap, data_curve, describe
from pyhessian_spectra.analysis.stored import from_json, to_json
from pyhessian_spectra.analysis.subsets import Bracket, LeftOut, Rows, jackknife, largest, leave_out, mean_of_examples
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots.data_curve import plot_data_curve


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def softmax_risk(count, *, inputs=4, seed=0, weight=None):
    """A linear classifier of three classes, in float64."""
    torch.manual_seed(seed)
    model = nn.Linear(inputs, 3).double()
    x, y = torch.randn(count, inputs, dtype=torch.float64), torch.arange(count) % 3
    return EmpiricalRisk(model, nn.CrossEntropyLoss(weight=weight), (x, y)), x, y


def regression_gram(x):
    """Of ``mean (w x_i)^2``, whose matrix is ``2/N sum x_i x_i^T``."""
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    return ggn_gram(EmpiricalRisk(model, nn.MSELoss(), (x, torch.zeros(len(x), 1, dtype=torch.float64))))


def dense_matrix(risk, x, y, chosen):
    return GGNOperator(risk.replace(data=(x[chosen], y[chosen]))).to_dense().numpy()


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)])
def test_eigenvalues_and_trace_of_a_subset_are_those_of_its_dense_matrix(weight):
    risk, x, y = softmax_risk(9, weight=weight)
    rows = Rows.of(ggn_gram(risk))
    start = rows.start(2, seeded())
    for chosen in ([0, 4, 8], [1, 2], [7], range(9)):
        values, trace = rows.subset(np.array(chosen), 2, start)
        dense = dense_matrix(risk, x, y, list(chosen))
        np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[:-3:-1], rtol=1e-10)
        assert trace == pytest.approx(np.trace(dense), rel=1e-10)


def test_examples_drawn_twice_count_twice():
    risk, x, y = softmax_risk(6)
    rows = Rows.of(ggn_gram(risk))
    found = rows.reweighted(np.array([2.0, 0, 1, 0, 3, 0]), 1, rows.start(1, seeded()))
    dense = dense_matrix(risk, x, y, [0, 0, 2, 4, 4, 4])
    assert found[0] == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-10)


def test_the_mean_over_all_subsets_falls_with_their_size_and_random_subsets_estimate_it():
    risk, *_ = softmax_risk(8)
    gram = ggn_gram(risk)
    rows = Rows.of(gram)
    start = rows.start(1, seeded())
    every = [
        [rows.subset(np.array(each), 1, start)[0][0] for each in itertools.combinations(range(8), size)]
        for size in range(1, 9)
    ]
    means = np.array([np.mean(each) for each in every])
    assert (np.diff(means) < 0).all()
    curve = data_curve(gram, generator=seeded(), sizes=range(1, 8), subsets=400)
    np.testing.assert_array_equal(curve.sizes, np.arange(1, 9))
    errors = np.array([np.std(each) for each in every]) / 20
    assert (np.abs(curve.means[:, 0] - means) <= 4 * errors + 1e-12).all()
    np.testing.assert_allclose(curve.spreads[:-1, 0], 20 * errors[:-1], rtol=0.2)
    # the trace is the same whatever the size
    assert (np.abs(curve.traces - curve.traces[-1]) <= 4 * curve.trace_spreads / 20 + 1e-12).all()


def test_the_bootstrap_lies_above_the_eigenvalue_it_starts_from():
    risk, *_ = softmax_risk(4)
    gram = ggn_gram(risk)
    rows = Rows.of(gram)
    start, draws = rows.start(1, seeded()), itertools.product(range(4), repeat=4)
    every = np.array([rows.reweighted(np.bincount(each, minlength=4) * 1.0, 1, start)[0] for each in draws])
    assert every.mean() > 1.05 * gram.eigenvalues()[-1]
    found = bootstrap(gram, generator=seeded(), draws=400)
    assert found.shape == (400, 1)
    assert abs(found.mean() - every.mean()) < 4 * every.std() / 20
    assert found.std() == pytest.approx(every.std(), rel=0.15)


def test_what_is_left_out_is_measured_on_directions_of_the_rest():
    risk, x, y = softmax_risk(7)
    rows = Rows.of(ggn_gram(risk))
    groups = [np.array([0, 5]), np.array([1, 2, 6]), np.array([3, 4])]
    left = leave_out(rows, groups, 2, rows.start(2, seeded()))
    each = [dense_matrix(risk, x, y, [i]) for i in range(7)]
    for group, values in zip(groups, left.values, strict=True):
        kept = [i for i in range(7) if i not in group]
        np.testing.assert_allclose(values, np.linalg.eigvalsh(dense_matrix(risk, x, y, kept))[:-3:-1], rtol=1e-10)
        tempered = sum(each[i] / np.trace(each[i]) ** 0.5 for i in kept)
        v = np.linalg.eigh(tempered)[1][:, :-3:-1]
        for i in group:
            np.testing.assert_allclose(left.quotients[i], np.diag(v.T @ each[i] @ v), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(left.shares, [2 / 7, 3 / 7, 2 / 7])


def test_the_jackknife_takes_the_bias_off_a_variance_and_knows_the_error_of_a_mean():
    x, shares = np.random.default_rng(0).standard_normal(30), np.full(30, 1 / 30)
    mean, bias = jackknife(x.mean(), np.array([np.delete(x, i).mean() for i in range(30)]), shares)
    assert mean.stderr == pytest.approx(x.std(ddof=1) / 30**0.5) and bias == pytest.approx(0, abs=1e-12)
    assert mean_of_examples(x, shares).stderr == pytest.approx(mean.stderr)
    variance, bias = jackknife(x.var(), np.array([np.delete(x, i).var() for i in range(30)]), shares)
    assert variance.estimate - bias == pytest.approx(x.var(ddof=1))
    pairs = x.reshape(-1, 2)
    grouped, _ = jackknife(x.mean(), np.array([np.delete(pairs, i, 0).mean() for i in range(15)]), np.full(15, 1 / 15))
    assert grouped.stderr == pytest.approx(pairs.mean(axis=1).std(ddof=1) / 15**0.5)


def test_the_upper_end_starts_at_halves_with_the_relative_error_of_the_whole_and_that_of_drawing_them():
    rows = Rows(np.eye(4), np.arange(4), np.full(4, 0.25))
    left = LeftOut(np.array([[1.7], [1.9], [2.1], [2.3]]), np.full(4, 0.25), np.full((4, 1), 0.5))
    bracket = Bracket.of(np.array([2.0]), left, np.array([[3.0], [5.0]]), rows, 0.95)
    # pseudo-values 2.9, 2.3, 1.7 and 1.1, whose mean has the error sqrt(0.6 / 4); halves 4 +- sqrt(2 / 2)
    error = (0.6 / 4) ** 0.5
    assert bracket.whole[0].stderr == pytest.approx(error)
    assert bracket.whole[0].freedom == 3  # as their kurtosis is 1.64
    assert np.log(bracket.bounds[0, 1] / 4) == pytest.approx(3.182 * np.hypot(error / 2, 1 / 4), rel=1e-3)
    assert bracket.bounds[0, 0] == 0.5


def test_one_example_that_decides_leaves_few_degrees_of_freedom():
    shares, heavy = np.full(100, 0.01), np.zeros(100)
    heavy[3] = 1.0
    few, many = mean_of_examples(heavy, shares), mean_of_examples(np.tile([1.0, 2.0], 50), shares)
    assert 2 < few.freedom < 2.1 and many.freedom == 99
    # Student's 4.3 standard errors at two degrees of freedom, and 1.98 at 99
    assert np.log(few.end(1, 0.95) / few.estimate) == pytest.approx(4.3 * few.stderr / few.estimate, rel=0.05)
    assert np.log(many.estimate / many.end(-1, 0.95)) == pytest.approx(1.984 * many.stderr / many.estimate, rel=0.001)


def test_the_bracket_holds_the_known_largest_eigenvalue_of_gaussian_inputs():
    # 2 Cov has the largest eigenvalue 2 * 1.2^2; the curve's promise is for 160 examples as well as for endless ones
    scales, rng = torch.tensor([1.2, *[1.0] * 9], dtype=torch.float64), np.random.default_rng(0)
    more = [2 * np.linalg.norm(rng.standard_normal((160, 10)) * scales.numpy(), 2) ** 2 / 160 for _ in range(400)]
    limits, generator = (2 * 1.2**2, float(np.mean(more))), seeded()
    curves = []
    for _ in range(40):
        x = torch.randn(40, 10, dtype=torch.float64, generator=generator) * scales
        curves.append(data_curve(regression_gram(x), generator=generator, sizes=[20], subsets=10))
    top, held_out = (np.array([getattr(c, name)[0] for c in curves]) for name in ("eigenvalues", "quotients"))
    assert limits[0] < limits[1] < top.mean() - 2 * top.std() / 40**0.5
    assert held_out.mean() + 2 * held_out.std() / 40**0.5 < limits[0]
    for limit in limits:
        held = [curve.interval()[0] <= limit <= curve.interval()[1] for curve in curves]
        assert sum(held) >= 36
    # and each error is about what the eigenvalue varies by
    errors = np.array([curve.stderr[0] for curve in curves])
    assert 0.7 < np.sqrt((errors**2).mean()) / top.std() < 1.6
    guesses = np.array([curve.expected(160) for curve in curves])
    assert np.abs(np.log(guesses / limits[1])).mean() < 0.8 * np.abs(np.log(top / limits[1])).mean()


def test_sums_of_eigenvalues_have_bounds_of_their_own_and_the_trace_its_interval():
    x = torch.randn(60, 5, dtype=torch.float64, generator=seeded(3))
    curve = data_curve(regression_gram(x), generator=seeded(), k=5, groups=60)
    assert curve.bounds.shape == curve.sum_bounds.shape == (5, 2)
    np.testing.assert_allclose(curve.sum_bounds[0], curve.bounds[0])
    for r in range(1, 6):  # 2 Cov = 2 I
        assert curve.sum_bounds[r - 1, 0] <= 2 * r <= curve.sum_bounds[r - 1, 1]
    assert (curve.bounds[1:] < curve.sum_bounds[1:]).all()
    # all five together are the trace, whatever the directions
    assert curve.means[-1].sum() == pytest.approx(curve.traces[-1])
    assert curve.sum_bounds[4, 0] == pytest.approx(curve.trace_bounds[0])
    squares = 2 * (x**2).sum(dim=1).numpy()
    error = squares.std(ddof=1) / 60**0.5
    # halves have the same trace on average, and the error of drawing them beside that of the trace
    drawn = curve.trace_spreads[-2] / curve.subsets[-2] ** 0.5
    both = np.log(curve.sum_bounds[4, 1] / curve.traces[-2]) * curve.traces[-2]
    assert both == pytest.approx(2 * np.hypot(error * curve.traces[-2] / squares.mean(), drawn), rel=0.03)
    # a ratio of two standard errors either way
    np.testing.assert_allclose(
        np.log(curve.trace_bounds / squares.mean()), np.array([-2.0, 2.0]) * error / squares.mean(), rtol=0.03
    )


def test_examples_sorted_by_class_give_what_mixed_ones_give():
    # each class has a direction of its own, so that the first half of the sorted examples is another matrix
    y = torch.arange(90) % 3
    x = torch.randn(90, 3, dtype=torch.float64, generator=seeded()) * 0.3 + 2 * torch.eye(3, dtype=torch.float64)[y]
    order = torch.argsort(y, stable=True)
    mixed, ordered = (
        data_curve(regression_gram(each), generator=seeded(seed), sizes=[30], subsets=200, groups=30)
        for seed, each in ((1, x), (2, x[order]))
    )
    both = (mixed.spreads[0, 0] ** 2 + ordered.spreads[0, 0] ** 2) ** 0.5 / 200**0.5
    assert abs(mixed.means[0, 0] - ordered.means[0, 0]) < 4 * both
    assert mixed.eigenvalues[0] == pytest.approx(ordered.eigenvalues[0])
    np.testing.assert_allclose(mixed.stderr, ordered.stderr, rtol=0.3)
    first = np.linalg.eigvalsh((2 / 30 * x[order][:30].T @ x[order][:30]).numpy())[-1]
    assert first > mixed.means[0, 0] + 10 * mixed.spreads[0, 0]


def test_a_subset_without_the_heavy_examples_is_found_from_a_start_that_knows_them_only():
    # ten light examples resemble the heavy one; the others, which weigh more together, are at right angles to both
    a = np.zeros((311, 301))
    a[:300, :300], a[300:310, 300], a[310, 300] = 0.1 * np.eye(300) + 0.05, 0.1, 100.0
    rows = Rows(a @ a.T, np.arange(311), np.full(311, 1 / 311))
    values, _ = rows.subset(np.arange(310), 1, rows.start(1, seeded()))
    assert values[0] == pytest.approx(np.linalg.norm(a[:300], 2) ** 2 * 311 / 310)


@pytest.mark.parametrize("rows", [1, 120, 200, 290, 300])
def test_largest_eigenpairs_of_scaled_rows_are_the_dense_ones_however_they_are_found(rows):
    rng = np.random.default_rng(0)
    a, scale = rng.standard_normal((300, 20)), np.zeros(300)
    scale[rng.permutation(300)[:rows]] = rng.random(rows) + 0.5
    values, vectors = largest(a @ a.T, scale, 3, rng.standard_normal(300))
    dense = np.outer(scale, scale) * (a @ a.T)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(dense)[:-4:-1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(dense @ vectors, vectors * values, atol=1e-4)
    assert not vectors[scale == 0].any()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=0), [1, rows > 1, rows > 1])


def test_a_curve_survives_json_and_its_sentence_says_the_same():
    risk, *_ = softmax_risk(24)
    curve = data_curve(ggn_gram(risk), generator=seeded(), k=2)
    again = from_json(DataCurve, json.loads(json.dumps(to_json(curve))))
    assert describe(again) == describe(curve) and to_json(again) == to_json(curve)
    np.testing.assert_array_equal(again.sizes, [6, 12, 24])
    text = describe(curve, size=1000)
    few, (low, high) = curve.means[0, 0], curve.interval()
    assert f"From 24 examples lambda_1 = {curve.eigenvalues[0]:.3g} (standard error {curve.stderr[0]:.3g})" in text
    assert f"give more ({few:.3g} on average from 6)" in text
    assert f"1,000 should give between {low:.3g} and {high:.3g} (about {curve.expected(1000):.3g}) at 95 %" in text


def test_the_band_of_the_figure_is_the_interval_and_its_filled_point_the_eigenvalue():
    risk, *_ = softmax_risk(24)
    curve = data_curve(ggn_gram(risk), generator=seeded(), k=2)
    ax = plot_data_curve(curve)
    band = next(each for each in ax.collections if isinstance(each, PolyCollection)).get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx(curve.interval())
    assert (band[:, 0].min(), band[:, 0].max()) == pytest.approx((24, 240))
    drawn = [line.get_xydata() for line in ax.lines]
    assert any(np.shape(each) == (3, 2) and np.allclose(each[:, 1], curve.means[:, 1]) for each in drawn)
    assert any(np.shape(each) == (1, 2) and np.allclose(each, [[24, curve.eigenvalues[0]]]) for each in drawn)
    assert ax.get_ylim()[0] < curve.means.min() and curve.means.max() < ax.get_ylim()[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be between 1"),
        ({"sizes": [0]}, "sizes must be between 1 and N = 6"),
        ({"sizes": [7]}, "sizes must be between 1 and N = 6"),
        ({"subsets": 1}, "at least two subsets"),
        ({"groups": 1}, "groups must be between 2 and N = 6"),
        ({"level": 1.0}, "level must be between 0 and 1"),
    ],
)
def test_what_makes_no_curve_is_refused(options, message):
    risk, *_ = softmax_risk(6)
    with pytest.raises(InputError, match=message):
        data_curve(ggn_gram(risk), generator=seeded(), **options)


def test_sums_too_few_examples_and_smaller_sizes_are_refused():
    risk, x, y = softmax_risk(6)
    summed = EmpiricalRisk(risk.model, nn.CrossEntropyLoss(reduction="sum"), (x, y))
    with pytest.raises(InputError, match="the loss is a sum"):
        data_curve(ggn_gram(summed), generator=seeded())
    risk, *_ = softmax_risk(3)
    with pytest.raises(InputError, match="at least four examples, got 3"):
        data_curve(ggn_gram(risk), generator=seeded())
    risk, *_ = softmax_risk(6)
    curve = data_curve(ggn_gram(risk), generator=seeded(), subsets=2)
    with pytest.raises(InputError, match="size must be at least N = 6, got 5"):
        curve.expected(5)
    with pytest.raises(InputError, match="rank must be between 1 and 1, got 2"):
        curve.interval(2)


@pytest.mark.parametrize("ignored", [2, 9])
def test_an_ignored_example_is_none(ignored):
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 3).double(), torch.randn(13, 3, dtype=torch.float64)
    y = torch.arange(13) % 3
    y[:ignored] = -100
    loss = torch.nn.CrossEntropyLoss()
    with_them, without = (
        data_curve(ggn_gram(EmpiricalRisk(model, loss, data)), generator=torch.Generator().manual_seed(0))
        for data in ((x, y), (x[ignored:], y[ignored:]))
    )
    assert with_them.num_examples == without.num_examples == 13 - ignored
    np.testing.assert_allclose(with_them.interval(), without.interval(), rtol=1e-6)
