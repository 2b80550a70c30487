"""What analyze accounts for: its products, its seeds, the layers asked for, stops and refusals."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import CASES
from test_analyze import _Tiny, network
from test_spectra import generator
from torch import nn

from pyhessian_spectra import (
    Eigenpairs,
    EmpiricalRisk,
    HessianOperator,
    Meter,
    Settings,
    SpectralAnalysis,
    analyze,
)
from pyhessian_spectra.errors import InputError, Interrupted
from pyhessian_spectra.runs.doctor import examine

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
