"""Spectra of disjoint parts of the data: which they are, when they are taken, and what they tell apart."""

import numpy as np
import pytest
import torch
from oracle import Oracle
from problems import WAYS, three_layers

from pyhessian_spectra import EmpiricalRisk, Partition, analyze
from pyhessian_spectra.analysis.similarity import WHOLE, similarity_matrix
from pyhessian_spectra.errors import InputError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("way", WAYS)
def test_spectra_of_parts_are_those_of_the_parts_of_the_data(way):
    risk = three_layers()
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
    risk = three_layers(batches=4)
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
    risk, passes = three_layers(batches=3), []
    for layers in (["0"], ["0", "2", "4"]):
        data = Counted(risk.data)
        counted = EmpiricalRisk(risk.model, risk.loss_fn, data)
        found = analyze(counted, **WAYS["rows"], layers=layers, data_parts=3, coupling_probes=0, generator=generator())
        assert set(layers) == set(found.gauss_newton.own)
        passes.append(data.passes)
    assert passes[0] == passes[1]


def test_parts_are_taken_where_the_matrix_is_built_and_there_are_enough_batches():
    assert len(analyze(three_layers(), generator=generator()).parts) == 6
    assert not analyze(three_layers(batches=5), generator=generator()).parts
    assert not analyze(three_layers(), exact_limit=0, num_eigenvalues=3, layers=False, generator=generator()).parts
    assert not analyze(three_layers(), exact_limit=0, num_eigenvalues=3, generator=generator()).parts
    assert not analyze(three_layers(), layers=False, generator=generator()).parts


def test_more_parts_than_batches_are_refused_before_any_product():
    with pytest.raises(InputError, match="data_parts = 9 needs as many batches, got 6; make batches smaller"):
        analyze(three_layers(), data_parts=9)
    with pytest.raises(InputError, match="coupling_probes must be 0, or at least 2"):
        analyze(three_layers(), coupling_probes=1)


def test_layers_of_different_curvature_are_told_apart_and_one_is_not_told_from_itself():
    found = analyze(three_layers(batches=12), generator=generator())
    matrix = similarity_matrix(found)
    assert matrix.null.shape == (4,) and (matrix.null > 0).all()
    assert not matrix.exceeds.diagonal().any() and matrix.exceeds[1, 3]
