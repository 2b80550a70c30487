"""What an analysis says of layers beside one another: coupling, eigenvectors, gradient, and parts of the data."""

import numpy as np
import pytest
import scipy.stats
import torch
from oracle import Oracle
from problems import InFloat32

from pyhessian_spectra import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Partition,
    Settings,
    SpectralAnalysis,
    analyze,
)
from pyhessian_spectra.analysis.similarity import WHOLE, similarity_matrix
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.runs.doctor import examine


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(batches: int = 6, activation: type = torch.nn.ReLU) -> EmpiricalRisk:
    """Three layers, 12 examples a batch, float64, away from its start."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 9), activation(), torch.nn.Linear(9, 8), activation(), torch.nn.Linear(8, 3)
    ).double()
    x = torch.randn(12 * batches, 6, generator=generator(1), dtype=torch.float64)
    y = torch.randint(3, (12 * batches,), generator=generator(2))
    return EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), list(zip(x.split(12), y.split(12), strict=True)))


WAYS = {
    "built": {},
    "pass": {"exact_limit": 0, "num_eigenvalues": 4, "gauss_newton": "never"},
    "rows": {"exact_limit": 0, "num_eigenvalues": 4, "gauss_newton": "always"},
}


@pytest.mark.parametrize("way", WAYS)
def test_spectra_of_parts_are_those_of_the_parts_of_the_data(way):
    risk = network()
    found = analyze(risk, **WAYS[way], data_parts=3, num_steps=30, generator=generator())
    assert len(found.parts) == 3
    for number, part in enumerate(found.parts):
        own = EmpiricalRisk(risk.model, risk.loss_fn, risk.data[number::3])
        dense = Oracle(own).hessian()
        assert list(part) == [WHOLE, "0", "2", "4"]
        groups = {WHOLE: torch.arange(risk.n), **{g.label: g.indices for g in Partition.by_layer(risk.layout)}}
        for label, spectrum in part.items():
            block = dense[groups[label]][:, groups[label]]
            values = torch.linalg.eigvalsh(block).numpy()
            assert spectrum.n == len(values)
            assert spectrum.support[1] == pytest.approx(values[-1], rel=1e-3)
            scale = np.abs(values).max() * len(values) ** 0.5
            assert spectrum.n * spectrum.moment(1) == pytest.approx(
                values.sum(), abs=(1e-6 if way == "built" else 0.5) * scale
            )


@pytest.mark.parametrize("ignored", [0, 1])
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_without_any_weight_belongs_to_no_part(way, ignored):
    risk = network(batches=4)
    data = [(x, torch.full_like(y, -100) if i == ignored else y) for i, (x, y) in enumerate(risk.data)]
    few = {"layers": ["0"], "data_parts": 3, "coupling_probes": 0}
    found = analyze(EmpiricalRisk(risk.model, risk.loss_fn, data), **WAYS[way], **few, generator=generator())
    group = Partition.by_layer(risk.layout)["0"].indices
    for part, batch in zip(found.parts, data[:ignored] + data[ignored + 1 :], strict=True):
        dense = Oracle(EmpiricalRisk(risk.model, risk.loss_fn, batch)).hessian()
        expected = torch.linalg.eigvalsh(dense[group][:, group])[-1]
        assert part["0"].support[1] == pytest.approx(float(expected), rel=1e-6)


class Counted(list):
    """Batches that count how often they are read."""

    passes = 0

    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_the_data_are_not_read_again_for_each_layer_of_a_part_that_is_known_from_rows():
    risk, passes = network(batches=3), []
    for layers in (["0"], ["0", "2", "4"]):
        data = Counted(risk.data)
        counted = EmpiricalRisk(risk.model, risk.loss_fn, data)
        found = analyze(counted, **WAYS["rows"], layers=layers, data_parts=3, coupling_probes=0, generator=generator())
        assert set(layers) == set(found.gauss_newton.own)
        passes.append(data.passes)
    assert passes[0] == passes[1]


def test_parts_are_taken_where_the_matrix_is_built_and_there_are_enough_batches():
    assert len(analyze(network(), generator=generator()).parts) == 6
    assert not analyze(network(batches=5), generator=generator()).parts
    assert not analyze(network(), exact_limit=0, num_eigenvalues=3, layers=False, generator=generator()).parts
    assert not analyze(network(), exact_limit=0, num_eigenvalues=3, generator=generator()).parts
    assert not analyze(network(), layers=False, generator=generator()).parts


def test_more_parts_than_batches_are_refused_before_any_product():
    with pytest.raises(InputError, match="data_parts = 9 needs as many batches, got 6; make batches smaller"):
        analyze(network(), data_parts=9)
    with pytest.raises(InputError, match="coupling_probes must be 0, or at least 2"):
        analyze(network(), coupling_probes=1)


def test_layers_of_different_curvature_are_told_apart_and_one_is_not_told_from_itself():
    found = analyze(network(batches=12), generator=generator())
    matrix = similarity_matrix(found)
    assert matrix.null.shape == (4,) and (matrix.null > 0).all()
    assert not matrix.exceeds.diagonal().any() and matrix.exceeds[1, 3]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("matrix", [HessianOperator, GGNOperator])
def test_coupling_localisation_and_gradient_are_those_of_the_dense_matrix(way, matrix):
    risk = network(activation=torch.nn.Tanh)
    if matrix is HessianOperator and way == "rows":
        risk = network()
    found = analyze(risk, **WAYS[way], matrix=matrix, generator=generator())
    oracle = Oracle(risk)
    dense = oracle.hessian() if matrix is HessianOperator else oracle.ggn()
    groups = [group.indices for group in Partition.by_layer(risk.layout)]
    mass = np.array([[float((dense[i][:, j] ** 2).sum()) for j in groups] for i in groups])
    structure = found.structure
    assert structure.coupling.labels == ("0", "2", "4")
    exact = way == "built" or (way == "rows" and matrix is GGNOperator)
    reach = 1e-8 * mass.max() + scipy.stats.t.ppf(0.9995, 3) * structure.coupling.stderr
    assert (np.abs(structure.coupling.mass - mass) <= reach).all()
    assert (structure.coupling.stderr < 0.4 * mass.max()).all() and (structure.coupling.stderr.max() == 0) == exact
    assert (structure.coupling.num_products == 0) == exact
    vectors = torch.linalg.eigh(dense).eigenvectors.flip(1)
    count = structure.localisation.shares.shape[1]
    expected = np.array([(vectors[i, :count] ** 2).sum(dim=0).numpy() for i in groups])
    assert (np.abs(structure.localisation.shares - expected) <= structure.localisation.errors + 1e-9).all()
    g = oracle.gradient()
    share = float(((vectors[:, :3].T @ g) ** 2).sum() / (g @ g))
    value, error = structure.gradient.in_top(3)
    assert abs(value - share) <= error + 1e-9 and structure.gradient.norm == pytest.approx(float(g.norm()))


def test_masses_of_a_matrix_that_was_built_allow_for_the_rounding_of_its_products():
    risk = network()
    lower = EmpiricalRisk(InFloat32(risk.model.float()), risk.loss_fn, [(x.float(), y) for x, y in risk.data])
    found = analyze(lower, accept_unverified=True, generator=generator())
    coupling = found.structure.coupling
    assert coupling.num_products == 0 and coupling.rounding == found.full.largest.rounding > 0
    exact = EmpiricalRisk(risk.model.double(), risk.loss_fn, [(x.float().double(), y) for x, y in risk.data])
    dense, groups = Oracle(exact).hessian(), [group.indices for group in Partition.by_layer(exact.layout)]
    norms = np.array([[float(torch.linalg.matrix_norm(dense[i][:, j])) for j in groups] for i in groups])
    assert 0 < np.abs(np.sqrt(coupling.mass) - norms).max() <= coupling.rounding < 1e-4
    share = 1 - (norms.diagonal() ** 2).sum() / (norms**2).sum()
    low, high = coupling.error.interval()
    assert low <= share <= high and low < high


@pytest.mark.parametrize("way", ["built", "rows"])
def test_a_single_layer_is_held_against_the_rest_of_the_network(way):
    risk = network()
    found = analyze(risk, **WAYS[way], layers=["2"], matrix=GGNOperator, generator=generator()).structure.coupling
    dense, inside = Oracle(risk).ggn(), Partition.by_module(risk.layout, "2")["2"].indices
    rest = torch.tensor(sorted({*range(risk.n)} - {*inside.tolist()}))
    expected = [[float((dense[i][:, j] ** 2).sum()) for j in (inside, rest)] for i in (inside, rest)]
    assert found.labels == ("2", "(rest)") and found.num_products == 0
    np.testing.assert_allclose(found.mass, expected, rtol=1e-8)


def test_what_was_found_of_structure_and_parts_survives_saving(tmp_path):
    found = analyze(network(), data_parts=2, exact_limit=0, num_eigenvalues=3, generator=generator())
    found.save(tmp_path / "analysis")
    loaded = SpectralAnalysis.load(tmp_path / "analysis")
    assert loaded.to_json() == found.to_json()
    for one, other in zip(found.parts, loaded.parts, strict=True):
        for label, spectrum in one.items():
            np.testing.assert_array_equal(other[label].nodes, spectrum.nodes)
            np.testing.assert_array_equal(other[label].weights, spectrum.weights)
    np.testing.assert_array_equal(loaded.structure.coupling.mass, found.structure.coupling.mass)
    assert loaded.structure.coupling.error == found.structure.coupling.error
    np.testing.assert_array_equal(loaded.structure.localisation.shares, found.structure.localisation.shares)
    np.testing.assert_array_equal(loaded.structure.gradient.data_stderr, found.structure.gradient.data_stderr)
    np.testing.assert_array_equal(loaded.full.trace.samples, found.full.trace.samples)
    np.testing.assert_array_equal(loaded.full.trace.data_influences, found.full.trace.data_influences)
    np.testing.assert_array_equal(loaded.full.largest.data_influences, found.full.largest.data_influences)
    assert similarity_matrix(loaded).across.tolist() == similarity_matrix(found).across.tolist()


@pytest.mark.parametrize("way", WAYS)
def test_influences_add_up_to_the_errors_of_the_data(way):
    found = analyze(network(), **WAYS[way], generator=generator())
    for block in (found.full, *found.layers.values()):
        for pairs in (block.largest, block.smallest):
            if pairs.data_stderr is not None:
                norms = np.linalg.norm(pairs.data_influences, axis=0)
                np.testing.assert_allclose(norms, pairs.data_stderr, rtol=1e-10)
        if block.trace.data_influences is not None:
            assert np.linalg.norm(block.trace.data_influences) == pytest.approx(block.trace.data_stderr)
    assert found.full.trace.data_influences is not None


def test_the_doctor_says_what_coupling_and_parts_will_take():
    told = [f.sentence for f in examine(network(), Settings(exact_limit=0, num_eigenvalues=4, data_parts=3))]
    assert "the coupling of layers: 14 more products with the whole matrix" in told
    assert any(sentence.startswith("3 parts of the data: ") for sentence in told)
    taken = analyze(network(), exact_limit=0, num_eigenvalues=4, gauss_newton="never", generator=generator())
    assert 12 < taken.structure.coupling.num_products <= 14
    told = [f.sentence for f in examine(network(), Settings())]
    assert any(sentence.startswith("6 parts of the data: 170 products each") for sentence in told)
    (failed,) = [f for f in examine(network(), Settings(data_parts=7)) if f.level == "FAIL"]
    assert failed.sentence == "data_parts = 7 needs as many batches, got 6"


def test_a_layer_that_is_called_as_the_whole_is_must_have_another_label():
    model = torch.nn.ModuleDict({"whole": torch.nn.Linear(6, 3)}).double()
    model.forward = lambda x: model["whole"](x)
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), network().data)
    with pytest.raises(InputError, match="a layer is called 'whole', which stands for the whole matrix"):
        analyze(risk)
    assert list(analyze(risk, layers={"layer whole": "whole"}).layers) == ["layer whole"]
