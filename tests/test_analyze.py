"""analyze: exact equals the oracle, matrix-free agrees within its certificates, and everything is accounted for."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Oracle
from passes import run_pass
from problems import CASES
from test_spectra import generator, with_spectrum
from torch import nn

from pyhessian_spectra import (
    Eigenpairs,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Meter,
    Partition,
    Settings,
    SpectralAnalysis,
    analyze,
)
from pyhessian_spectra.errors import InputError, Interrupted
from pyhessian_spectra.runs.doctor import examine

EPS = np.finfo(np.float64).eps


def network(dtype: torch.dtype = torch.float64, risk: type[EmpiricalRisk] = EmpiricalRisk) -> EmpiricalRisk:
    """A tanh network of three layers and 627 parameters on 40 made examples."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # what it draws is replaced
        model = nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Linear(20, 18), nn.Tanh(), nn.Linear(18, 3)).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=rng))
    x, y = torch.randn(40, 8, generator=rng).to(dtype), torch.randint(3, (40,), generator=rng)
    return risk(model, nn.CrossEntropyLoss(), (x, y))


# The exact path


@pytest.mark.parametrize("case", CASES)
def test_the_exact_path_equals_the_oracle(case):
    risk = CASES[case]()
    matrix = Oracle(risk).hessian().numpy()
    found = analyze(risk, num_eigenvalues=4)
    values = np.linalg.eigvalsh(matrix)
    scale = np.abs(values).max()
    k = min(4, len(values))
    assert found.full.spectrum.exact
    np.testing.assert_allclose(found.full.spectrum.nodes[0], values, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found.full.largest.eigenvalues, values[-k:], rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(found.full.smallest.eigenvalues, values[:k], rtol=0, atol=1e-10 * scale)
    assert found.full.trace.value == pytest.approx(np.trace(matrix), abs=1e-10 * scale * len(values))
    assert found.full.frobenius.value == pytest.approx(np.linalg.norm(matrix), rel=1e-10)
    assert found.full.trace.stderr == found.full.frobenius.stderr == 0
    for name, block in found.layers.items():
        own = Partition.by_module(risk.layout)[name].indices
        part = np.linalg.eigvalsh(matrix[np.ix_(own, own)])
        np.testing.assert_allclose(block.spectrum.nodes[0], part, rtol=0, atol=1e-10 * scale)


def test_another_matrix_than_the_hessian_is_analysed_when_asked_for():
    risk = CASES["relu_mlp"]()
    exact = np.linalg.eigvalsh(Oracle(risk).ggn().numpy())
    for limit in (3000, 0):
        found = analyze(risk, matrix=GGNOperator, num_eigenvalues=3, exact_limit=limit, tol=1e-9, generator=generator())
        assert found.problem["matrix"] == "GGN"
        np.testing.assert_allclose(found.full.largest.eigenvalues, exact[-3:], atol=1e-9 * exact[-1])


# The matrix-free path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_matrix_free_path_agrees_with_the_exact_one_within_its_certificates(dtype):
    exact = analyze(network(), num_eigenvalues=6)
    found = analyze(network(dtype), num_eigenvalues=6, exact_limit=0, max_steps=200, generator=generator())
    assert not found.full.spectrum.exact and found.layers.keys() == exact.layers.keys()
    rounding = 100 * torch.finfo(dtype).eps
    for block, truth in [(found.full, exact.full), *zip(found.layers.values(), exact.layers.values(), strict=True)]:
        for pairs, values in ((block.largest, truth.largest.eigenvalues), (block.smallest, truth.smallest.eigenvalues)):
            slack = rounding * np.abs(values).max()  # the parameters of the float32 problem are rounded ones
            assert pairs.converged.all()
            lower, upper, all_values = pairs.lower - slack, pairs.upper + slack, truth.spectrum.nodes[0]
            holds = (lower[:, None] <= all_values) & (all_values <= upper[:, None])
            assert holds.any(axis=1).all()
            # where no other eigenvalue can be that far out, it is the one of this rank
            certified = (pairs.eigenvalues < pairs.others[0]) | (pairs.eigenvalues > pairs.others[1])
            assert ((lower <= values) & (values <= upper))[certified].all()
            assert certified.any() or pairs is block.smallest
        low, high = truth.spectrum.nodes[0][6], truth.spectrum.nodes[0][-7]  # the extremes of all the others
        assert block.largest.others[0] <= low and high <= block.largest.others[1]
        for estimate, value in ((block.trace, truth.trace.value), (block.frobenius, truth.frobenius.value)):
            assert abs(estimate.value - value) <= 10 * estimate.stderr + 1e-3 * truth.frobenius.value


def test_intervals_cover_at_their_rate():
    """Outliers within the edges, a bulk and a tail in the complement, as for trained networks."""
    rng = np.random.default_rng(0)
    values = np.sort(np.r_[rng.normal(0, 0.01, 88), np.geomspace(1, 20, 8), -np.geomspace(0.1, 0.5, 4)])
    op, runs = with_spectrum(values), 240
    covered = dict.fromkeys(("trace", "frobenius", "eigenvalues", "others"), 0)
    for seed in range(runs):
        found = run_pass(op, k=8, num_probes=3, num_steps=20, tol=1e-4, max_steps=100, generator=generator(1000 + seed))
        for name, truth in (("trace", values.sum()), ("frobenius", np.linalg.norm(values))):
            low, high = getattr(found, name).interval(0.95)
            covered[name] += low <= truth <= high
        edges = ((found.largest, values[-8:]), (found.smallest, values[:8]))
        covered["eigenvalues"] += all((p.lower <= v).all() and (v <= p.upper).all() for p, v in edges)
        low, high = found.largest.others
        covered["others"] += low <= values[8] and values[-9] <= high
    # three standard deviations of a binomial below the nominal rate, 0.95 and 0.99
    for name, rate in (("trace", 0.95), ("frobenius", 0.95), ("eigenvalues", 0.99), ("others", 0.99)):
        assert covered[name] / runs >= rate - 3 * np.sqrt(rate * (1 - rate) / runs), (name, covered[name] / runs)
    # and error bars that are never wrong are too long
    assert covered["trace"] < runs and covered["frobenius"] < runs


def test_the_trace_is_unbiased_where_outliers_are_left_in_the_complement():
    values = np.r_[np.linspace(-0.01, 0.01, 50), np.geomspace(1, 20, 10)]
    op = with_spectrum(values)
    samples = [
        run_pass(op, k=3, num_probes=2, num_steps=15, tol=1e-3, max_steps=60, generator=generator(s)).trace.value
        for s in range(300)
    ]
    assert abs(np.mean(samples) - values.sum()) < 4 * np.std(samples, ddof=1) / np.sqrt(len(samples))


SPECTRA = {
    "double top": np.r_[np.linspace(0, 1, 58), 7.0, 7.0],
    "triple top, double bottom": np.r_[np.linspace(0, 1, 55), -4.0, -4.0, 7.0, 7.0, 7.0],
    "identity": np.full(40, 3.0),
    "minus identity": np.full(40, -3.0),
    "low rank": np.r_[np.zeros(57), 1.0, 2.0, 3.0],
    "low rank, triple": np.r_[np.zeros(56), 1.0, 3.0, 3.0, 3.0],
    "zero": np.zeros(30),
    "three": np.array([1.0, 1.0, 2.0]),
    "five": np.array([-1.0, -1.0, 2.0, 2.0, 2.0]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_multiplicities_come_out_right(name, k, dtype):
    values = np.sort(SPECTRA[name])
    k = min(k, len(values) // 2)
    op = with_spectrum(values, dtype=dtype)
    found = run_pass(op, k=k, num_probes=3, num_steps=40, tol=1e-5, max_steps=100, generator=generator())
    error = 100 * torch.finfo(dtype).eps * np.abs(values).max()
    for pairs, truth in ((found.largest, values[len(values) - k :]), (found.smallest, values[:k])):
        assert pairs.converged.all()
        np.testing.assert_allclose(pairs.eigenvalues, truth, rtol=0, atol=error)
        assert (pairs.lower <= truth).all() and (truth <= pairs.upper).all()
        overlaps = pairs.eigenvectors.T.astype(np.float64) @ pairs.eigenvectors
        np.testing.assert_allclose(overlaps, np.eye(k), atol=100 * torch.finfo(dtype).eps * len(values))


class _Tiny(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(0.5, 1.0, n, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.w.sin()).sum(dim=1)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("k", [1, 2, 10])
def test_networks_of_a_few_parameters_are_analysed_without_building_a_large_matrix(n, k):
    x = torch.randn(9, n, generator=generator(), dtype=torch.float64)
    risk = EmpiricalRisk(_Tiny(n), nn.MSELoss(), (x, torch.zeros(9, dtype=torch.float64)))
    exact = np.linalg.eigvalsh(Oracle(risk).hessian().numpy())
    full = analyze(risk, num_eigenvalues=k, exact_limit=0, generator=generator()).full
    np.testing.assert_allclose(full.largest.eigenvalues, exact[-len(full.largest) :], atol=1e-10)
    np.testing.assert_allclose(full.smallest.eigenvalues, exact[: len(full.smallest)], atol=1e-10)
    assert len(full.largest) == min(k, n)


def test_a_bulk_ten_thousand_times_narrower_than_the_range_is_resolved():
    bulk = np.linspace(-0.005, 0.005, 190)
    values = np.r_[bulk, np.linspace(50, 100, 10)]
    found = run_pass(
        with_spectrum(values), k=10, num_probes=4, num_steps=40, tol=1e-6, max_steps=100, generator=generator()
    )
    grid = np.linspace(-0.0048, 0.0048, 25)
    exact = np.searchsorted(values, grid, side="right") / len(values)
    assert np.abs(found.spectrum.cdf(grid) - exact).max() < 0.1
    assert found.spectrum.cdf(1.0) == pytest.approx(0.95, abs=1e-12)


def test_what_did_not_converge_says_so():
    found = analyze(network(), exact_limit=0, num_steps=12, max_steps=12, num_eigenvalues=6, tol=1e-12, layers=False)
    pairs = found.full.largest
    assert not pairs.converged.all() and pairs.others is None
    assert any("did not reach the tolerance" in note.text and "max_steps" in note.text for note in found.notes)
    exact = analyze(network(), layers=False).full.spectrum.nodes[0]
    nearest = np.abs(exact[:, None] - pairs.eigenvalues)
    assert (nearest <= pairs.residuals + 1e-12).any(axis=0).all()  # residuals hold, converged or not


# Accounts


@pytest.mark.parametrize("limit", [3000, 0])
def test_products_are_counted_and_progress_ends_at_the_total(limit):
    built: list[Meter] = []

    def counted(risk: EmpiricalRisk) -> Meter:
        built.append(Meter(HessianOperator(risk)))
        return built[-1]

    calls: list[tuple[str, int, int]] = []
    found = analyze(
        network(),
        exact_limit=limit,
        num_eigenvalues=3,
        matrix=counted,
        generator=generator(),
        progress=lambda *call: calls.append(call),
    )
    taken = sum(op.num_products for op in built)
    assert found.timing["num_products"] == taken == calls[-1][1] == calls[-1][2]
    done = [call[1] for call in calls]
    assert done == sorted(done) and all(call[1] <= call[2] for call in calls)
    coupled = found.structure.coupling.num_products
    of_layers = sum(b.num_products for b in found.layers.values() if limit == 0)
    assert found.full.num_products + of_layers + coupled == taken


def test_seeds_repeat_and_others_differ():
    def quadrature(seed):
        weights = analyze(network(), exact_limit=0, layers=False, generator=generator(seed)).full.spectrum.weights
        return weights[(weights > 1e-12) & (weights != 1 / network().n)]  # atoms are the same whatever the seed

    torch.manual_seed(3)
    before = torch.get_rng_state()
    np.testing.assert_array_equal(quadrature(0), quadrature(0))
    assert not np.intersect1d(quadrature(0), quadrature(1)).size
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_left_as_it_was():
    risk = CASES["batchnorm_train"]()
    before = {name: value.clone() for name, value in risk.model.state_dict().items()}
    for limit in (3000, 0):
        analyze(risk, exact_limit=limit, num_eigenvalues=2)
    assert all(torch.equal(before[name], value) for name, value in risk.model.state_dict().items())
    assert all(p.grad is None for p in risk.model.parameters())


def test_a_reader_is_told_once_whether_the_linearisation_of_the_whole_was_kept():
    for budget, told in ((None, "kept between products"), (0, "rebuilt for each product")):
        notes = analyze(network(), exact_limit=0, num_eigenvalues=2, memory_budget=budget, generator=generator()).notes
        (text,) = [note.text for note in notes if note.kind == "linearisation"]
        assert told in text


def test_equal_eigenvalues_keep_their_own_residuals_and_vectors_when_saved(tmp_path):
    block = analyze(network(), num_eigenvalues=2, layers=False).full
    values, residuals = np.array([3.0, 3.0]), np.array([1.0, 2.0])
    twins = Eigenpairs(values, residuals, np.array([True, False]), np.eye(block.n)[:, :2])
    SpectralAnalysis({}, replace(block, largest=twins, smallest=twins)).save(tmp_path / "twins")
    full = SpectralAnalysis.load(tmp_path / "twins").full
    for pairs in (full.largest, full.smallest):
        np.testing.assert_array_equal(pairs.residuals, residuals)
        np.testing.assert_array_equal(pairs.converged, twins.converged)
        np.testing.assert_array_equal(pairs.eigenvectors, twins.eigenvectors)


@pytest.mark.parametrize("limit", [3000, 0])
def test_an_analysis_is_saved_and_loaded_unchanged(tmp_path, limit):
    found = analyze(network(), exact_limit=limit, num_eigenvalues=3, problem={"seed": 7}, generator=generator())
    found.save(tmp_path / "analysis")
    loaded = SpectralAnalysis.load(tmp_path / "analysis")
    assert loaded.to_json() == found.to_json()
    for block, copy in [(found.full, loaded.full), *zip(found.layers.values(), loaded.layers.values(), strict=True)]:
        np.testing.assert_array_equal(copy.spectrum.nodes, block.spectrum.nodes)
        np.testing.assert_array_equal(copy.spectrum.weights, block.spectrum.weights)
        for key in ("largest", "smallest"):
            one, other = getattr(block, key), getattr(copy, key)
            np.testing.assert_array_equal(other.eigenvalues, one.eigenvalues)
            np.testing.assert_array_equal(other.eigenvectors, one.eigenvectors)


# Layers


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (True, ["0", "2", "4"]),
        (False, []),
        (("2",), ["2"]),
        (("[02].weight",), ["0", "2"]),
        (("*",), ["0", "2", "4"]),
        (("*.bias",), ["0", "2", "4"]),
    ],
)
def test_layers_are_those_asked_for(layers, names):
    found = analyze(network(), layers=layers, num_eigenvalues=2)
    assert list(found.layers) == names
    if layers == ("*.bias",):
        assert [block.n for block in found.layers.values()] == [20, 18, 3]


def test_a_parameter_of_the_model_itself_is_the_layer_root():
    x = torch.randn(9, 4, generator=generator(), dtype=torch.float64)
    risk = EmpiricalRisk(_Tiny(4), nn.MSELoss(), (x, torch.zeros(9, dtype=torch.float64)))
    assert list(analyze(risk).layers) == []  # a vector is no layer of its own, unless asked for
    found = analyze(risk, layers=["*"])
    assert list(found.layers) == ["(root)"] and found.layers["(root)"].n == 4


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="nosuch"):
        analyze(network(), layers=["nosuch"])


# Stops and refusals


class _Interrupting(EmpiricalRisk):
    """Ctrl-C arrives at a product with the layer ``2``."""

    def point(self):
        if self.layout.names[0] == "2.weight":
            os.kill(os.getpid(), signal.SIGINT)
        return super().point()


def test_ctrl_c_within_a_layer_gives_what_was_finished():
    with pytest.raises(Interrupted, match="1 of 3 layers") as stop:
        analyze(network(risk=_Interrupting), exact_limit=0, num_eigenvalues=2, generator=generator())
    partial = stop.value.partial
    assert list(partial.layers) == ["0"] and partial.full.largest.converged.all()
    assert any("1 of 3 layers" in note.text for note in partial.notes)


def test_ctrl_c_within_the_whole_network_is_only_that():
    class Early(EmpiricalRisk):
        def gradient(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stop:
        analyze(network(risk=Early))
    assert not isinstance(stop.value, Interrupted)


class _Augmented:
    """Batches that change with every pass."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.batch, self.generator = batch, generator()

    def __iter__(self):
        x, y = self.batch
        yield x + torch.randn(x.shape, generator=self.generator, dtype=x.dtype), y


def test_data_that_change_between_passes_are_refused():
    risk = network()
    with pytest.raises(InputError, match=r"differ by .*switch off augmentation"):
        analyze(EmpiricalRisk(risk.model, risk.loss_fn, _Augmented(risk.data[0])))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"num_eigenvalues": 0}, "num_eigenvalues"),
        ({"num_probes": 1}, "num_probes"),
        ({"num_steps": 0}, "num_steps"),
        ({"tol": -1.0}, "tol"),
        ({"tol": float("nan")}, "tol"),
    ],
)
def test_settings_without_meaning_are_refused_before_any_product(arguments, name):
    with pytest.raises(InputError, match=name):
        analyze(network(), matrix=lambda *a, **k: pytest.fail("built an operator"), **arguments)


def test_a_matrix_that_does_not_fit_in_memory_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr("pyhessian_spectra.analysis.operators.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match="lower exact_limit"):
        analyze(network())


def test_the_doctor_forecasts_the_products_that_are_taken_of_the_whole_and_of_the_layers():
    risk = network()
    settings = Settings(num_eigenvalues=2, num_steps=10, exact_limit=10, max_steps=20)
    sentences = [finding.sentence for finding in examine(risk, settings)]
    (whole,) = [s for s in sentences if s.startswith("the whole matrix: about ")]
    (layers,) = [s for s in sentences if s.startswith("3 layers: about ")]
    found = analyze(risk, num_eigenvalues=2, num_steps=10, exact_limit=10, max_steps=20, generator=generator())
    for sentence, taken in (
        (whole, found.full.num_products),
        (layers, sum(b.num_products for b in found.layers.values())),
    ):
        forecast = int(sentence.split("about ")[1].split()[0].replace(",", ""))
        assert taken / 2 < forecast < 2 * taken
    assert not any(s.startswith("3 layers") for s in [f.sentence for f in examine(risk)])
