"""Sampling error from per-batch products, and traces of layers from the products of the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from passes import run_pass
from problems import CASES
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, Meter, Partition, TraceEstimate, analyze
from pyhessian_spectra.analysis.sampling import (
    eigenvalue_influences,
    jackknife,
    section_traces,
    with_trace_influences,
)
from pyhessian_spectra.spectra.forms import FormsRecorder
from pyhessian_spectra.spectra.operator import TermwiseOperator, observe


class Mean(TermwiseOperator):
    """The weighted mean of dense matrices (b, n, n)."""

    def __init__(self, weights, matrices):
        super().__init__(matrices.shape[1], dtype=torch.float64)
        self.weights, self.matrices = weights, matrices

    def _matvec(self, v):
        return sum(w * (a @ v) for w, a in zip(self.weights, self.matrices, strict=True))

    def _observe(self, v, look):
        return self._matvec(v), torch.as_tensor(self.weights), torch.stack([look(a @ v) for a in self.matrices])


def covariances(generator, batches, size, n=12, spread=None):
    """Second moments of ``size`` Gaussian examples in each batch, (b, n, n): the Hessian of least squares."""
    scale = torch.logspace(0.5, -1, n, dtype=torch.float64) if spread is None else spread
    x = torch.randn(batches, size, n, generator=generator, dtype=torch.float64) * scale
    return torch.einsum("bij,bik->bjk", x, x) / size


def recorded(op, vectors, probes=(), sections=None):
    recorder = FormsRecorder(op, sections)
    products = list(recorder.products(vectors))
    for u in probes:
        recorder.probe(u)
    return recorder.forms(np.ones(vectors.shape[1], dtype=bool)), products


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_terms_of_a_hessian_are_those_of_its_batches_and_cost_one_product(case):
    risk = case()
    op = Meter(HessianOperator(risk))
    v = torch.randn(risk.n, generator=torch.Generator().manual_seed(0), dtype=risk.dtype)
    product, weights, terms = observe(op, v, lambda term: term.double())
    assert op.num_products == 1
    assert float(weights.sum()) == pytest.approx(1.0, rel=1e-12)
    rounding = 100 * torch.finfo(risk.dtype).eps * float(product.abs().max() + 1)
    torch.testing.assert_close(product, op @ v, rtol=0, atol=0)
    torch.testing.assert_close((weights @ terms).to(product), product, rtol=0, atol=rounding)
    assert len(terms) == risk.num_batches


def test_the_jackknife_of_a_mean_of_unequal_batches_is_unbiased_for_its_variance():
    # batch means of n_b unit-variance examples have variance 1 / n_b; their weighted mean has 1 / N
    sizes = np.array([2, 3, 5, 10, 4, 8, 8, 10])
    weights, rng = sizes / sizes.sum(), np.random.default_rng(0)
    draws = rng.standard_normal((4000, len(sizes))) / np.sqrt(sizes)
    squares = [jackknife(weights, lambda w, x=x: w @ x) ** 2 for x in draws]
    spread = np.std(squares, ddof=1) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - 1 / sizes.sum()) < 4 * spread


def test_eigenvalue_errors_are_the_spread_of_eigenvalues_over_samples_of_the_data():
    generator, found, said = torch.Generator().manual_seed(0), [], []
    weights = np.full(20, 1 / 20)
    for _ in range(300):
        matrices = covariances(generator, 20, 25)
        values, vectors = torch.linalg.eigh(matrices.mean(dim=0))
        forms, _ = recorded(Mean(weights, matrices), vectors[:, -4:])
        found.append(values[-4:].numpy())
        said.append(np.linalg.norm(eigenvalue_influences(forms), axis=0))
    ratio = np.mean(said, axis=0) / np.std(found, axis=0, ddof=1)
    # the spread of 300 samples is itself known to 1 / sqrt(600) = 4 %, the mean of what was said to 2 %
    assert np.all(np.abs(ratio - 1) < 0.2), ratio


def test_the_top_of_two_crossing_eigenvalues_has_the_error_of_the_larger_of_them():
    # equal eigenvalues: first-order perturbation of each would call the top one unbiased and its spread too large
    generator, found, said = torch.Generator().manual_seed(1), [], []
    weights, spread = np.full(20, 1 / 20), torch.tensor([1.0, 1.0, 0.1, 0.1], dtype=torch.float64)
    for _ in range(300):
        matrices = covariances(generator, 20, 25, 4, spread)
        values, vectors = torch.linalg.eigh(matrices.mean(dim=0))
        found.append(float(values[-1]))
        said.append(
            np.linalg.norm(eigenvalue_influences(recorded(Mean(weights, matrices), vectors[:, -2:])[0]), axis=0)[-1]
        )
    assert abs(np.mean(said) / np.std(found, ddof=1) - 1) < 0.3


def test_trace_errors_are_the_spread_of_the_trace_over_samples_of_the_data():
    generator, found, said = torch.Generator().manual_seed(2), [], []
    weights = np.full(20, 1 / 20)
    for _ in range(200):
        op = Mean(weights, covariances(generator, 20, 25))
        values, vectors = torch.linalg.eigh(op.matrices.mean(dim=0))
        edge = vectors[:, -4:]
        probes = torch.randn(8, 12, generator=generator, dtype=torch.float64)
        probes = probes - probes @ edge @ edge.T
        probes = probes / probes.norm(dim=1, keepdim=True)
        found.append(float(values.sum()))
        said.append(with_trace_influences(TraceEstimate(0.0, 0.0, 0), recorded(op, edge, probes)[0]).data_stderr)
    assert abs(np.mean(said) / np.std(found, ddof=1) - 1) < 0.2


def test_forms_are_those_of_the_dense_terms():
    generator = torch.Generator().manual_seed(3)
    weights, matrices = np.array([0.2, 0.5, 0.3]), covariances(generator, 3, 30)
    mean = torch.einsum("b,bij->ij", torch.from_numpy(weights), matrices)
    vectors = torch.linalg.eigh(mean)[1][:, [0, 1, 11]]
    probe = torch.randn(12, generator=generator, dtype=torch.float64)
    forms, products = recorded(Mean(weights, matrices), vectors, [probe], [5, 3, 4])
    torch.testing.assert_close(torch.stack(products, dim=1), mean @ vectors)
    expected = torch.einsum("ip,bij,jq->bpq", vectors, matrices, vectors)
    np.testing.assert_allclose(forms.compressed, expected, atol=1e-12)
    np.testing.assert_allclose(forms.vectors.sum(axis=2), expected.diagonal(dim1=1, dim2=2), atol=1e-12)
    parts = (probe * (matrices @ probe)).split([5, 3, 4], dim=1)
    np.testing.assert_allclose(forms.probes[:, 0], torch.stack([part.sum(dim=1) for part in parts], dim=1), atol=1e-12)


def test_layer_traces_are_exact_when_every_eigenvector_is_deflated():
    generator = torch.Generator().manual_seed(4)
    weights, matrices = np.array([0.25, 0.75]), covariances(generator, 2, 30)
    op = Mean(weights, matrices)
    mean = torch.einsum("b,bij->ij", torch.from_numpy(weights), matrices)
    forms, _ = recorded(op, torch.linalg.eigh(mean)[1], sections=[5, 3, 4])
    found = section_traces(forms, {"first": [0], "rest": [1, 2]})
    assert found["first"].value == pytest.approx(float(mean.diagonal()[:5].sum()), rel=1e-12)
    assert found["rest"].value == pytest.approx(float(mean.diagonal()[5:].sum()), rel=1e-12)
    assert found["rest"].stderr == 0.0


def test_95_percent_intervals_of_layer_traces_cover_the_truth_over_200_seeds():
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))[0]
    spectrum = torch.cat([torch.tensor([-2.0, 8.0, 20.0]), torch.linspace(-0.2, 1.0, 57)]).double()
    matrix = basis @ torch.diag(spectrum) @ basis.T
    op, groups = Mean([0.5, 0.5], torch.stack([matrix, matrix])), {"a": [0], "b": [1, 2]}
    truth = [float(matrix.diagonal()[part].sum()) for part in (slice(0, 20), slice(20, 60))]
    covered = np.zeros(2)
    for seed in range(200):
        found = run_pass(
            op,
            k=2,
            num_probes=2,
            num_steps=8,
            tol=1e-6,
            max_steps=60,
            rtol=0.0,
            trace_probes=12,
            sections=[20, 30, 10],
            generator=torch.Generator().manual_seed(seed),
        )
        traces = section_traces(found.forms, groups)
        assert sum(trace.value for trace in traces.values()) == pytest.approx(found.trace.value, rel=1e-9)
        ends = [trace.interval() for trace in traces.values()]
        covered += [low <= value <= high for value, (low, high) in zip(truth, ends, strict=True)]
    # 95 % of 200 is 190 with a standard deviation of 3.1; Student's t is slightly off for bounded samples
    assert np.all(covered >= 180), covered


def classification(examples, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(examples, 6, generator=generator), torch.randint(0, 3, (examples,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), list(zip(x.split(batch), y.split(batch), strict=True)))


def test_an_analysis_gives_sampling_errors_and_layer_traces_that_survive_saving(tmp_path):
    risk = classification(240, 20)
    analysis = analyze(risk, num_eigenvalues=3, exact_limit=10, generator=torch.Generator().manual_seed(0))
    full, diagonal = analysis.full, HessianOperator(risk).to_dense().diagonal()
    assert full.largest.data_stderr.shape == full.smallest.data_stderr.shape == (3,)
    assert np.all(full.largest.data_stderr > 0) and full.trace.data_stderr > 0
    assert list(full.group_traces) == ["0", "2"]
    for name, trace in full.group_traces.items():
        low, high = trace.interval(0.999)
        truth = float(diagonal[Partition.by_module(risk.layout)[name].indices].sum())
        assert low <= truth <= high and trace.stderr < 0.3 * truth
    analysis.save(tmp_path / "a")
    again = type(analysis).load(tmp_path / "a").full
    np.testing.assert_array_equal(again.largest.data_stderr, full.largest.data_stderr)
    assert again.group_traces == full.group_traces and again.trace == full.trace


def test_one_batch_has_no_sampling_error_and_says_so_by_none():
    full = analyze(
        classification(60, 60), exact_limit=10, layers=False, generator=torch.Generator().manual_seed(0)
    ).full
    assert full.largest.data_stderr is None and full.trace.data_stderr is None
    assert all(trace.data_stderr is None for trace in full.group_traces.values())


def test_batches_drawn_anew_for_each_product_give_no_sampling_error():
    risk = classification(240, 240)
    (x, y), generator = risk.data[0], torch.Generator().manual_seed(0)

    class Shuffled:
        def __iter__(self):
            order = torch.randperm(240, generator=generator)
            return iter([(x[part], y[part]) for part in order.split(20)])

    shuffled = EmpiricalRisk(risk.model, risk.loss_fn, Shuffled())
    full = analyze(
        shuffled, exact_limit=10, layers=False, memory_budget=0, generator=torch.Generator().manual_seed(0)
    ).full
    assert full.largest.data_stderr is None and full.trace.data_stderr is None


def test_an_exact_analysis_has_the_same_sampling_errors_as_one_without_the_matrix():
    risk, generator = classification(240, 20), torch.Generator()
    exact, free = (
        analyze(risk, num_eigenvalues=3, exact_limit=limit, trace_probes=60, generator=generator.manual_seed(0)).full
        for limit in (3000, 10)
    )
    assert exact.spectrum.exact and not free.spectrum.exact
    np.testing.assert_allclose(exact.largest.data_stderr, free.largest.data_stderr, rtol=1e-2)
    np.testing.assert_allclose(exact.smallest.data_stderr, free.smallest.data_stderr, rtol=1e-2)
    diagonal = HessianOperator(risk).to_dense().diagonal()
    for name, trace in exact.group_traces.items():
        part = Partition.by_module(risk.layout)[name].indices
        assert trace.stderr == 0 and trace.value == pytest.approx(float(diagonal[part].sum()), rel=1e-4)


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_a_network_with_fewer_parameters_than_pairs_asked_for_has_sampling_errors(examples):
    x, y = torch.randn(6 * examples, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(6 * examples, 2)
    risk = EmpiricalRisk(nn.Linear(3, 2), nn.MSELoss(), list(zip(x.split(examples), y.split(examples), strict=True)))
    full = analyze(risk, num_eigenvalues=10, layers=False, generator=torch.Generator().manual_seed(0)).full
    assert len(full.largest) == len(full.largest.data_stderr) == 8
    np.testing.assert_allclose(full.largest.data_stderr, full.smallest.data_stderr)
    # all eigenvectors are known: the trace's error is that of the batches' traces
    traces = [
        float(HessianOperator(EmpiricalRisk(risk.model, risk.loss_fn, [b])).to_dense().trace()) for b in risk.data
    ]
    assert full.trace.data_stderr == pytest.approx(np.std(traces, ddof=1) / np.sqrt(6), rel=1e-4)


@pytest.mark.parametrize("num_eigenvalues", [20, 2])
def test_the_norm_has_the_sampling_error_of_the_jackknife(num_eigenvalues):
    risk = classification(240, 20)
    full = analyze(risk, num_eigenvalues=num_eigenvalues, layers=False, generator=torch.Generator().manual_seed(0)).full
    parts = [
        HessianOperator(EmpiricalRisk(risk.model, risk.loss_fn, [b])).to_dense().double().numpy() for b in risk.data
    ]
    left = [np.linalg.norm(np.mean(parts[:i] + parts[i + 1 :], axis=0)) for i in range(12)]
    assert full.frobenius.data_stderr == pytest.approx(np.std(left) * np.sqrt(11), rel=0.15)
    estimated = analyze(
        risk, num_eigenvalues=2, exact_limit=0, layers=False, generator=torch.Generator().manual_seed(0)
    )
    assert estimated.full.frobenius.data_stderr is None  # two eigenvalues at each edge do not tell it


def test_few_batches_and_batches_sorted_by_class_are_told():
    def told(batch, order=slice(None)):
        (x, y) = (torch.cat(part)[order] for part in zip(*classification(240, 20).data, strict=True))
        model = classification(240, 20).model
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), list(zip(x.split(batch), y.split(batch), strict=True)))
        found = analyze(risk, num_eigenvalues=2, layers=False, generator=torch.Generator().manual_seed(0))
        return [note.text for note in found.notes if note.kind == "data"]

    y = torch.cat([batch[1] for batch in classification(240, 20).data])
    assert told(20) == [] == told(240) and "from 6 batches" in told(40)[0]
    assert "sorted by class" in told(20, y.argsort())[0]
