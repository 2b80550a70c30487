"""What an analysis says of layers beside one another: coupling, eigenvectors, gradient."""

import numpy as np
import pytest
import scipy.stats
import torch
from oracle import Oracle
from problems import WAYS, InFloat32, three_layers

from pyhessian_spectra import (
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    MatrixOperator,
    Partition,
    Settings,
    SpectralAnalysis,
    analyze,
    analyze_operator,
    tidy,
)
from pyhessian_spectra.analysis.similarity import similarity_matrix
from pyhessian_spectra.analysis.table import CERTIFIED
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.runs.doctor import examine


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("matrix", [HessianOperator, GGNOperator])
def test_coupling_localisation_and_gradient_are_those_of_the_dense_matrix(way, matrix):
    risk = three_layers(activation=torch.nn.Tanh)
    if matrix is HessianOperator and way == "rows":
        risk = three_layers()
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


@pytest.mark.parametrize("fields", [WAYS["built"], {**WAYS["pass"], "tol": 3e-2}], ids=["built", "loose"])
def test_the_largest_eigenvalue_of_a_layer_beside_that_of_the_whole_is_within_its_error(fields):
    risk = three_layers()
    found = analyze(risk, **fields, generator=generator())
    dense = Oracle(risk).hessian()
    top = float(torch.linalg.eigvalsh(dense)[-1])
    rows = {row.block: row for row in tidy([found]) if row.quantity == "lambda_1 / lambda_1 of the whole"}
    for group in Partition.by_layer(risk.layout):
        ratio, error = found.layers[group.label].largest_beside(found.full)
        true = float(torch.linalg.eigvalsh(dense[group.indices][:, group.indices])[-1]) / top
        assert abs(ratio - true) <= error < 0.1
        assert (rows[group.label].value, rows[group.label].error, rows[group.label].kind) == (ratio, error, CERTIFIED)


def test_no_ratio_is_told_to_an_eigenvalue_that_may_be_zero():
    entries = torch.diag(torch.tensor([-3.0, -2.0, 0.0], dtype=torch.float64))
    zero, other = (analyze_operator(MatrixOperator(each), num_eigenvalues=1) for each in (entries, entries + 1))
    assert other.largest_beside(zero) is None and zero.largest_beside(other)[0] == pytest.approx(0.0, abs=1e-12)


def test_masses_of_a_matrix_that_was_built_allow_for_the_rounding_of_its_products():
    risk = three_layers()
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
def test_a_single_layer_is_held_against_the_rest_of_the_three_layers(way):
    risk = three_layers()
    found = analyze(risk, **WAYS[way], layers=["2"], matrix=GGNOperator, generator=generator()).structure.coupling
    dense, inside = Oracle(risk).ggn(), Partition.by_module(risk.layout, "2")["2"].indices
    rest = torch.tensor(sorted({*range(risk.n)} - {*inside.tolist()}))
    expected = [[float((dense[i][:, j] ** 2).sum()) for j in (inside, rest)] for i in (inside, rest)]
    assert found.labels == ("2", "(rest)") and found.num_products == 0
    np.testing.assert_allclose(found.mass, expected, rtol=1e-8)


def test_what_was_found_of_structure_and_parts_survives_saving(tmp_path):
    found = analyze(three_layers(), data_parts=2, exact_limit=0, num_eigenvalues=3, generator=generator())
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
    found = analyze(three_layers(), **WAYS[way], generator=generator())
    for block in (found.full, *found.layers.values()):
        for pairs in (block.largest, block.smallest):
            if pairs.data_stderr is not None:
                norms = np.linalg.norm(pairs.data_influences, axis=0)
                np.testing.assert_allclose(norms, pairs.data_stderr, rtol=1e-10)
        if block.trace.data_influences is not None:
            assert np.linalg.norm(block.trace.data_influences) == pytest.approx(block.trace.data_stderr)
    assert found.full.trace.data_influences is not None


def test_the_doctor_says_what_coupling_and_parts_will_take():
    told = [f.sentence for f in examine(three_layers(), Settings(exact_limit=0, num_eigenvalues=4, data_parts=3))]
    assert "the coupling of layers: 14 more products with the whole matrix" in told
    assert any(sentence.startswith("3 parts of the data: ") for sentence in told)
    taken = analyze(three_layers(), exact_limit=0, num_eigenvalues=4, gauss_newton="never", generator=generator())
    assert 12 < taken.structure.coupling.num_products <= 14
    told = [f.sentence for f in examine(three_layers(), Settings())]
    assert any(sentence.startswith("6 parts of the data: 170 products each") for sentence in told)
    (failed,) = [f for f in examine(three_layers(), Settings(data_parts=7)) if f.level == "FAIL"]
    assert failed.sentence == "data_parts = 7 needs as many batches, got 6"


def test_a_layer_that_is_called_as_the_whole_is_must_have_another_label():
    model = torch.nn.ModuleDict({"whole": torch.nn.Linear(6, 3)}).double()
    model.forward = lambda x: model["whole"](x)
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), three_layers().data)
    with pytest.raises(InputError, match="a layer is called 'whole', which stands for the whole matrix"):
        analyze(risk)
    assert list(analyze(risk, layers={"layer whole": "whole"}).layers) == ["layer whole"]
