"""Checkpoints beside a reference: differences with errors of their own, and what can be compared where not all can."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from analyses import exact_analysis, training_run
from oracle import Oracle
from test_trajectory import examples, network

from pyhessian_spectra import (
    EmpiricalRisk,
    MatrixOperator,
    SpectralAnalysis,
    Spectrum,
    analyze,
    analyze_operator,
    compare_checkpoints,
)
from pyhessian_spectra.analysis.comparison import Comparison
from pyhessian_spectra.analysis.similarity import merged
from pyhessian_spectra.analysis.table import CERTIFIED, DATA, compared_rows
from pyhessian_spectra.analysis.trajectory import exceeds
from pyhessian_spectra.errors import InputError

NEGATIVE = ("whole", "share of negative eigenvalues")


def analysed(moved: float, data, seed: int = 0, hidden: int = 5, **fields):
    draw = torch.Generator().manual_seed(seed)
    return analyze(network(moved, data, hidden), num_eigenvalues=3, generator=draw, **fields)


@pytest.fixture(scope="module")
def three() -> Comparison:
    data = examples()
    return compare_checkpoints([analysed(moved, data) for moved in (0.0, 0.01, 1.5)], labels=["a", "b", "c"])


def test_differences_are_those_of_dense_hessians(three):
    data = examples()
    first, last = (Oracle(network(moved, data)).hessian() for moved in (0.0, 1.5))
    values = [torch.linalg.eigvalsh(each) for each in (first, last)]
    changes, tol = three.differences[2].changes, 1e-10 * float(values[0].abs().max())
    assert changes["whole", "lambda_1"].value == pytest.approx(float(values[1][-1] - values[0][-1]), abs=tol)
    assert changes["whole", "lambda_n"].value == pytest.approx(float(values[1][0] - values[0][0]), abs=tol)
    assert changes["whole", "trace"].value == pytest.approx(float(last.trace() - first.trace()), abs=40 * tol)
    shares = [float((each < -1e-10).double().mean()) for each in values]
    assert changes[NEGATIVE].value == pytest.approx(shares[1] - shares[0], abs=1e-12)
    blocks = [float(each[:45, :45].trace()) for each in (first, last)]
    assert changes["0", "trace"].value == pytest.approx(blocks[1] - blocks[0], abs=40 * tol)
    vectors = [torch.linalg.eigh(each).eigenvectors[:, -3:] for each in (first, last)]
    overlap = float((vectors[0].T @ vectors[1]).square().sum() / 3)
    assert three.differences[2].overlap[0] == pytest.approx(overlap, abs=1e-6) and three.differences[2].k == 3


def test_the_reference_has_no_difference_and_may_be_any(three):
    assert three.differences[0] is None and [i for i, _ in three.compared] == [1, 2]
    data = examples()
    other = compare_checkpoints([analysed(moved, data) for moved in (0.0, 0.01)], reference=-1)
    assert other.reference == 1 and other.differences[1] is None
    back, there = (x.changes["whole", "trace"] for x in (other.differences[0], three.differences[1]))
    assert back.value == pytest.approx(-there.value) and back.data_stderr == pytest.approx(there.data_stderr)


def test_errors_of_near_checkpoints_are_far_smaller_than_those_of_both(three):
    for block, quantity in (("whole", "trace"), ("whole", "lambda_1"), ("0", "trace")):
        ends = [each.full if block == "whole" else each.layers[block] for each in three.analyses[:2]]
        edges = [each.trace.data_stderr if quantity == "trace" else each.largest.data_stderr[-1] for each in ends]
        assert three.differences[1].changes[block, quantity].data_stderr < 0.3 * np.hypot(*edges)


def of_parts(moved: float, data) -> SpectralAnalysis:
    """The exact spectra of all data and of six parts of it, without all else."""
    whole = analyze_operator(MatrixOperator(Oracle(network(moved, data)).hessian()), num_eigenvalues=1)
    parts = [Oracle(network(moved, data[part::6])).hessian() for part in range(6)]
    rounding = 1e-10 * float(whole.largest.eigenvalues[-1])
    spectra = [Spectrum.from_eigenvalues(torch.linalg.eigvalsh(each), rounding=rounding) for each in parts]
    return SpectralAnalysis({}, whole, parts=[{"whole": merged(each)} for each in spectra])


def test_the_error_of_the_data_of_a_share_is_the_spread_over_fresh_data():
    """Shares of a small network come in steps, so that a factor of two either way is what can be asked."""
    found = []
    for seed in range(18):
        data = examples(seed)
        pair = [of_parts(moved, data) for moved in (0.0, 0.4)]
        found.append(compare_checkpoints(pair).differences[1].changes[NEGATIVE])
    said = np.sqrt(np.mean([each.data_stderr**2 for each in found]))
    assert 0.5 < said / np.std([each.value for each in found], ddof=1) < 2.5


def test_estimated_differences_cover_over_fresh_probes():
    data, covered = examples(), {"trace": 0, "share of negative eigenvalues": 0}
    first, last = (Oracle(network(moved, data)).hessian() for moved in (0.0, 0.05))
    negative = [float((torch.linalg.eigvalsh(each) < 0).double().mean()) for each in (first, last)]
    truth = dict(zip(covered, (float(last.trace() - first.trace()), negative[1] - negative[0]), strict=True))
    fields = {"exact_limit": 0, "num_steps": 10, "rtol": 0.0, "layers": False, "coupling_probes": 0}
    for seed in range(8):
        moved = compare_checkpoints([analysed(moved, data, seed, **fields) for moved in (0.0, 0.05)]).differences[1]
        for what in covered:
            low, high = moved.changes["whole", what].interval(0.95)
            covered[what] += low <= truth[what] <= high
    assert covered["trace"] >= 6 and covered["share of negative eigenvalues"] == 8


def test_another_architecture_is_compared_as_far_as_it_goes():
    data = examples()
    small, large = analysed(0.0, data), analysed(0.0, data, hidden=7)
    third = dataclasses.replace(small, layers={"0": small.layers["0"], "head": small.layers["2"]})
    found = compare_checkpoints([small, large, third])
    apart, renamed = found.differences[1:]
    assert apart.overlap is None and "69 and 95 coordinates" in apart.left_out[0]
    assert ("2", "trace") in apart.changes and apart.changes["whole", "lambda_1"].data_stderr > 0
    assert renamed.left_out == ("layers that only one of the two has: 2, head",)
    assert ("head", "trace") not in renamed.changes and renamed.overlap is not None


def test_analyses_on_other_examples_are_compared_unpaired_with_a_note():
    pair = [analysed(0.0, examples(0)), analysed(0.0, examples(1))]
    (moved,) = (each for _, each in compare_checkpoints(pair).compared)
    assert [note.kind for note in moved.notes] == ["comparison"] and "other data" in moved.notes[0].text
    alone = np.hypot(*(each.full.trace.data_stderr for each in pair))
    assert moved.changes["whole", "trace"].data_stderr == pytest.approx(alone)
    assert moved.changes[NEGATIVE].data_stderr is None


def test_only_what_moved_beyond_both_errors_exceeds_them():
    data = examples()
    same, other = (analysed(moved, data) for moved in (0.0, 1.5))
    found = compare_checkpoints([same, same, other])
    assert not any(map(exceeds, found.differences[1].changes.values()))
    assert exceeds(found.differences[2].changes["whole", "trace"])
    assert found.densities.exceeds[2].any() and not found.densities.exceeds[1].any()


class Watched(Sequence):
    """Analyses that are made when they are asked for, and how many of them are alive at most."""

    def __init__(self, count: int) -> None:
        self.count, self.made, self.most = count, [], 0

    def __len__(self):
        return self.count

    def __getitem__(self, place):
        gc.collect()
        made = exact_analysis(f"step-{place}.pt", n=200, scale=1.0 + place)
        pairs = dataclasses.replace(made.full.largest, eigenvectors=np.linalg.qr(np.ones((200, 8)))[0])
        made = dataclasses.replace(made, full=dataclasses.replace(made.full, largest=pairs))
        self.made.append(weakref.ref(made.full))
        self.most = max(self.most, sum(each() is not None for each in self.made))
        return made


def test_eigenvectors_of_many_checkpoints_are_not_held_at_once():
    watched = Watched(6)
    found = compare_checkpoints(watched, reference=2)
    assert watched.most <= 3
    assert all(each.full.largest.eigenvectors is None for each in found.analyses)
    assert all(each.overlap is not None for _, each in found.compared)


def test_the_table_has_checkpoints_what_was_given_of_them_and_differences(three):
    rows = compared_rows(three)
    changes = three.differences[1].changes

    def find(**wanted):
        return [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]

    (row,) = find(checkpoint="b", block="0", quantity="trace, difference from a", kind=DATA)
    assert (row.value, row.error) == (changes["0", "trace"].value, changes["0", "trace"].data_stderr)
    (row,) = find(checkpoint="b", block="whole", quantity="lambda_1, difference from a", kind=CERTIFIED)
    assert row.error == changes["whole", "lambda_1"].reach
    assert find(checkpoint="c", quantity="overlap of the top 3 eigenvectors, difference from a")
    given = compared_rows(compare_checkpoints(training_run()))
    told = {(row.checkpoint, row.quantity): row for row in given if row.block == "given"}
    assert told["step-00100.pt", "test_accuracy"].value == pytest.approx(0.1 + 100 / 1200)
    assert told["step-00100.pt", "test_accuracy"].error is None and ("step-00100.pt", "N") not in told


def test_wrong_arguments_get_a_sentence():
    run = training_run()
    for given, words in (((run[0],), "in a sequence, got SpectralAnalysis"), ((run[:1],), "at least two analyses")):
        with pytest.raises(InputError, match=words):
            compare_checkpoints(*given)
    with pytest.raises(InputError, match="the place of one of 4 analyses, got 4"):
        compare_checkpoints(run, reference=4)
    with pytest.raises(InputError, match="1 labels were given for 4"):
        compare_checkpoints(run, labels=["a"])


def test_a_risk_of_one_batch_has_no_error_of_the_data():
    x, y = (torch.cat(each) for each in zip(*examples(), strict=True))
    model = network(0.0, [(x, y)]).model
    one = analyze(EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, y)), num_eigenvalues=2)
    moved = compare_checkpoints([one, one]).differences[1]
    assert moved.changes["whole", "trace"].data_stderr is None and moved.changes[NEGATIVE].data_stderr is None


@pytest.mark.parametrize("given", [[1, 2], None])
def test_what_is_no_analysis_is_refused(given):
    with pytest.raises(InputError, match="a comparison"):
        compare_checkpoints(given)
