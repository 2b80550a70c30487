"""Distances between spectra, what chance makes of them, and which differences exceed that."""

import math

import numpy as np
import pytest
import scipy.stats
from analyses import exact_analysis, lanczos_quadrature, network_eigenvalues

from pyhessian_spectra import Spectrum
from pyhessian_spectra.analysis import metrics
from pyhessian_spectra.analysis.similarity import SimilarityMatrix, similarity_matrix
from pyhessian_spectra.errors import InputError

ALL = (
    metrics.wasserstein,
    metrics.scaled_wasserstein,
    metrics.jensen_shannon,
    metrics.kolmogorov,
    metrics.relative_largest,
    metrics.relative_trace,
    metrics.htr_compat,
)


def exact(*values: float) -> Spectrum:
    return Spectrum.from_eigenvalues(values)


def random_spectra(count: int, seed: int = 0) -> list[Spectrum]:
    rng = np.random.default_rng(seed)
    return [exact(*rng.normal(size=12) * rng.uniform(0.1, 10)) for _ in range(count)]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.__name__)
def test_a_metric_is_symmetric_and_zero_between_a_spectrum_and_itself(metric):
    a, b = random_spectra(2)
    assert metric(a, a) == pytest.approx(0.0, abs=1e-15)
    assert metric(a, b) > 0 and metric(b, a) == pytest.approx(metric(a, b), rel=1e-12)


@pytest.mark.parametrize("metric", ALL[:4], ids=lambda metric: metric.__name__)
def test_a_spectrum_listed_twice_is_the_same_measure(metric):
    """Dimensions do not enter: a layer is compared with the whole."""
    a, b = random_spectra(2)
    twice = Spectrum.from_eigenvalues(np.repeat(a.nodes, 2))
    assert metric(twice, a) == pytest.approx(0.0, abs=1e-12)
    assert metric(twice, b) == pytest.approx(metric(a, b), rel=1e-12)


@pytest.mark.parametrize("metric", (metrics.wasserstein, metrics.kolmogorov), ids=lambda metric: metric.__name__)
def test_the_triangle_inequality_holds(metric):
    for seed in range(20):
        a, b, c = random_spectra(3, seed)
        assert metric(a, c) <= metric(a, b) + metric(b, c) + 1e-12


def test_wasserstein_is_the_mean_distance_between_sorted_eigenvalues_of_equal_number():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30))
    expected = np.abs(np.sort(x) - np.sort(y)).mean()
    assert metrics.wasserstein(exact(*x), exact(*y)) == pytest.approx(expected, rel=1e-12)
    assert metrics.wasserstein(exact(*x), exact(*(x + 3))) == pytest.approx(3.0)


def test_scaled_wasserstein_does_not_change_with_units():
    a, b = random_spectra(2)
    found = metrics.scaled_wasserstein(a, b)
    assert metrics.scaled_wasserstein(exact(*(1e-6 * a.nodes[0])), b) == pytest.approx(found, rel=1e-9)
    assert found <= 2


def test_scaled_wasserstein_from_zeros_is_one():
    assert metrics.scaled_wasserstein(exact(0.0, 0.0), exact(1.0, -7.0, 2.0)) == pytest.approx(1.0)
    assert metrics.scaled_wasserstein(exact(0.0), exact(0.0, 0.0)) == 0.0


def test_jensen_shannon_of_disjoint_spectra_is_ln_2_and_follows_its_definition():
    assert metrics.jensen_shannon(exact(-1.0), exact(1.0)) == pytest.approx(math.log(2))
    # half of the second is where the first is: p = (1, 0), q = (1/2, 1/2)
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert metrics.jensen_shannon(exact(1.0), exact(1.0, 0.01)) == pytest.approx(expected)


def test_jensen_shannon_tells_signs_apart_and_not_what_is_next_to_zero():
    assert metrics.jensen_shannon(exact(1.0, -0.01), exact(1.0, 0.01)) > 0.1
    assert metrics.jensen_shannon(exact(1.0, -1e-9), exact(1.0, 1e-9)) == 0.0


def test_kolmogorov_is_that_of_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=25), rng.normal(0.3, 1.0, size=40)
    expected = scipy.stats.ks_2samp(x, y).statistic
    assert metrics.kolmogorov(exact(*x), exact(*y)) == pytest.approx(expected, rel=1e-12)


def test_the_published_distance_does_not_see_eigenvalues():
    """The fault in its docstring: it is zero from a spectrum to its mirror image, and to the same one anywhere else."""
    values = np.random.default_rng(0).uniform(1, 2, size=50)
    for other in (exact(*-values), exact(*(values + 1000.0))):
        assert metrics.htr_compat(exact(*values), other) == pytest.approx(0.0, abs=1e-9)
        assert metrics.wasserstein(exact(*values), other) > 2


def test_the_matrix_of_an_analysis_compares_the_whole_and_its_layers():
    analysis = exact_analysis()
    found = similarity_matrix(analysis)
    assert found.labels == ("whole", "fc1", "fc2", "fc3") and found.metric == "wasserstein"
    for i, name in enumerate(found.labels[1:], start=1):
        expected = metrics.wasserstein(analysis.full.spectrum, analysis.layers[name].spectrum)
        assert found.values[0, i] == found.values[i, 0] == pytest.approx(expected, rel=1e-9)
    assert (found.values.diagonal() == 0).all() and (found.probe_stderr == 0).all()
    assert found.across is found.null is found.exceeds is None


def test_a_metric_of_ones_own_is_a_callable():
    def means(a, b):
        return abs(a.moment(1) - b.moment(1))

    found = similarity_matrix({"a": exact(1.0), "b": exact(4.0)}, metric=means)
    assert found.metric == "means" and found.values[0, 1] == 3.0


def test_probe_errors_are_those_of_the_jackknife_and_near_the_true_spread():
    rng = np.random.default_rng(0)
    values = network_eigenvalues(rng, 300)
    other = exact(*network_eigenvalues(rng, 300, scale=0.3))
    found = [
        similarity_matrix({"a": lanczos_quadrature(rng, values, probes=6, steps=20), "b": other}) for _ in range(40)
    ]
    spread = np.std([each.values[0, 1] for each in found], ddof=1)
    claimed = np.sqrt(np.mean([each.probe_stderr[0, 1] ** 2 for each in found]))
    assert 0.6 < claimed / spread < 1.7


def parts_of(draws, count: int, seed: int) -> list[dict[str, Spectrum]]:
    """Spectra of parts of data: ``draws`` are functions of a generator, one a label."""
    rng = np.random.default_rng(seed)
    return [{name: exact(*draw(rng)) for name, draw in draws.items()} for _ in range(count)]


def test_the_null_is_the_distance_between_draws_of_the_same_spectrum():
    draws = {"a": lambda rng: rng.normal(size=40), "b": lambda rng: rng.normal(5.0, 1.0, size=40)}
    parts = parts_of(draws, 6, 0)
    found = similarity_matrix(parts[0], parts=parts)
    distances = [metrics.wasserstein(parts[s]["a"], parts[t]["a"]) for s in range(6) for t in range(6) if s != t]
    assert found.null[0] == pytest.approx(np.mean(distances), rel=1e-9)
    assert found.exceeds[0, 1] and not found.exceeds[0, 0]
    assert found.p_values[0, 1] == 2.0**-5


def test_spectra_that_differ_by_chance_alone_are_marked_as_rarely_as_claimed():
    """The exchange test is exact: at most 5 % of pairs of the same distribution are marked."""
    marked = 0
    for seed in range(300):
        parts = parts_of({name: lambda rng: rng.standard_cauchy(size=10) for name in "ab"}, 6, seed)
        marked += int(similarity_matrix(parts[0], parts=parts).exceeds[0, 1])
    assert marked <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_few_parts_cannot_mark_a_difference():
    parts = parts_of({"a": lambda rng: rng.normal(size=9), "b": lambda rng: rng.normal(9, 1, size=9)}, 4, 0)
    found = similarity_matrix(parts[0], parts=parts)
    assert found.p_values[0, 1] == 2.0**-3 and not found.exceeds.any()


def test_errors_of_the_data_are_how_far_parts_are_from_the_whole_over_the_root_of_one_less_than_their_number():
    draws = {"a": lambda rng: rng.normal(size=9), "b": lambda rng: rng.normal(9, 1, size=9)}
    whole, *parts = parts_of(draws, 6, 1)
    found = similarity_matrix(whole, parts=parts)
    apart = [metrics.wasserstein(p["a"], p["b"]) - metrics.wasserstein(whole["a"], whole["b"]) for p in parts]
    assert found.data_stderr[0, 1] == pytest.approx(math.sqrt(np.mean(np.square(apart)) / 4), rel=1e-9)


@pytest.mark.parametrize("metric", [metrics.wasserstein, metrics.scaled_wasserstein], ids=lambda each: each.__name__)
def test_errors_of_the_data_are_the_spread_over_fresh_data_and_cover(metric):
    """Of a least-squares problem in 12 inputs, whose Hessian is their second moment; 20 examples a part."""
    rng, mixing = np.random.default_rng(0), np.random.default_rng(1).normal(size=(12, 12)) * 0.3
    mixing += np.diag([2.0] * 5 + [1.0] * 7)

    def spectra(x: np.ndarray) -> dict[str, Spectrum]:
        moment = x.T @ x / len(x)
        blocks = {"whole": moment, "first": moment[:5, :5], "second": moment[5:, 5:]}
        return {name: Spectrum.from_eigenvalues(np.linalg.eigvalsh(block)) for name, block in blocks.items()}

    values, errors = [], []
    for _ in range(200):
        x = rng.standard_t(8, size=(120, 12)) @ mixing
        found = similarity_matrix(spectra(x), metric=metric, parts=[spectra(x[i::6]) for i in range(6)])
        pairs = np.tril_indices(3, -1)
        values.append(found.values[pairs])
        errors.append(found.data_stderr[pairs])
    ratio = np.sqrt(np.mean(np.square(errors), axis=0)) / np.std(values, axis=0, ddof=1)
    assert (ratio > 0.8).all() and (ratio < 1.6).all()
    covered = np.abs(np.array(values) - np.mean(values, axis=0)) <= scipy.stats.t.ppf(0.975, 5) * np.array(errors)
    assert (covered.mean(axis=0) > 0.92).all()


def test_rows_can_be_taken_by_label():
    found = similarity_matrix(exact_analysis()).among(["fc3", "whole"])
    assert isinstance(found, SimilarityMatrix) and found.labels == ("fc3", "whole") and found.values.shape == (2, 2)
    with pytest.raises(InputError, match="there is no 'fc9'; there are whole, fc1, fc2, fc3"):
        similarity_matrix(exact_analysis()).among(["fc9"])


def test_analyses_of_other_data_or_checkpoints_are_compared_with_a_note():
    first, later = exact_analysis(sha256="a" * 64), exact_analysis(sha256="b" * 64)
    assert [note.kind for note in similarity_matrix({"first": first, "later": later}).notes] == ["comparison"]
    other = exact_analysis(sha256="a" * 64, N=7)
    (note,) = similarity_matrix({"first": first, "other": other}).notes
    assert "'other' is of other data or another matrix than 'first'" in note.text
    assert not similarity_matrix({"first": first, "again": first}).notes


def test_one_spectrum_cannot_be_compared_and_a_part_must_have_all():
    with pytest.raises(InputError, match="at least two spectra, got 1; ask for layers"):
        similarity_matrix(exact_analysis(layers=False))
    parts = [{"a": exact(1.0)}] * 2
    with pytest.raises(InputError, match="has no spectrum of 'b'"):
        similarity_matrix({"a": exact(1.0), "b": exact(2.0)}, parts=parts)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), np.ones(2)])
def test_a_metric_that_gives_no_finite_number_is_refused(bad):
    given = {"a": exact(1.0), "b": exact(2.0)}
    with pytest.raises(InputError, match="it must give a finite number"):
        similarity_matrix(given, metric=lambda first, second: bad)
    with pytest.raises(InputError, match="metric must be a function of two spectra"):
        similarity_matrix(given, metric="wasserstein")


def test_rounding_of_spectra_of_zeros_is_no_difference():
    rng = np.random.default_rng(0)

    def zeros() -> Spectrum:
        return Spectrum.from_eigenvalues(1e-16 * rng.normal(size=5), rounding=1e-15)

    parts = [{"a": zeros(), "b": zeros()} for _ in range(6)]
    for metric in ALL[:6]:
        found = similarity_matrix(parts[0], parts=parts, metric=metric)
        assert found.values[0, 1] == 0 and found.p_values[0, 1] == 1


def test_many_parts_are_exchanged_at_random():
    parts = parts_of({"a": lambda rng: rng.normal(size=9), "b": lambda rng: rng.normal(9, 1, size=9)}, 30, 0)
    assert similarity_matrix(parts[0], parts=parts).p_values[0, 1] == 2.0**-11
    alike = parts_of({name: lambda rng: rng.normal(size=9) for name in "ab"}, 14, 0)
    assert 0.05 < similarity_matrix(alike[0], parts=alike).p_values[0, 1] <= 1
