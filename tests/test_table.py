"""The table of everything that analyses say, and the frames made of it."""

import csv
import dataclasses
import io

import numpy as np
import pytest
import torch
from analyses import exact_analysis
from problems import three_layers

from pyhessian_spectra import (
    DiagonalOperator,
    EmpiricalRisk,
    HessianOperator,
    SpectralAnalysis,
    analyze,
    analyze_operator,
    follow_checkpoints,
    similarity_matrix,
)
from pyhessian_spectra.analysis.table import CERTIFIED, DATA, PROBES, UNPLACED, tidy, to_csv, to_frame


def training(*scales: float) -> list[EmpiricalRisk]:
    """A network at checkpoints that differ by the scale of all weights."""
    risks = [three_layers() for _ in scales]
    with torch.no_grad():
        for risk, scale in zip(risks, scales, strict=True):
            for p in risk.model.parameters():
                p.mul_(scale)
    return risks


def test_the_table_says_what_the_analyses_say():
    generator = torch.Generator().manual_seed(0)
    run = [analyze(risk, num_eigenvalues=3, generator=generator) for risk in training(1.0, 1.02)]
    rows = tidy(run, ["first", "second"])

    def find(**wanted):
        return [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]

    top = run[1].full.largest
    (row,) = find(checkpoint="second", block="whole", quantity="lambda_1", kind=CERTIFIED)
    assert row.value == top.eigenvalues[-1] and top.lower[-1] >= row.value - row.error - 1e-15
    (row,) = find(checkpoint="second", block="whole", quantity="lambda_1", kind=DATA)
    assert row.error == top.data_stderr[-1]
    (row,) = find(checkpoint="first", block="2", quantity="trace", kind="exact up to rounding")
    assert row.value == run[0].layers["2"].trace.value
    (row,) = find(checkpoint="second", quantity="change of trace", block="whole", kind=DATA)
    assert row.value == run[1].full.trace.value - run[0].full.trace.value
    assert find(quantity="wasserstein to the whole", block="0") and find(quantity="share of eigenvector 1", block="0")
    assert not find(checkpoint="first", quantity="change of trace")
    (mass,) = find(checkpoint="first", block="2", quantity="squared norm of the block with 0")
    coupling = run[0].structure.coupling
    assert mass.value == coupling.mass[1, 0] and mass.kind == "exact up to rounding"
    assert mass.value**0.5 + coupling.rounding == pytest.approx((mass.value + mass.error) ** 0.5, rel=1e-15)
    assert 0 < mass.error < 1e-12 * mass.value
    read = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert len(read) == len(rows)
    for text, row in zip(read, rows, strict=True):
        assert float(text["value"]) == row.value and text["error"] == ("" if row.error is None else str(row.error))
    frame = to_frame(rows)
    assert list(frame.columns) == ["run", "checkpoint", "step", "block", "quantity", "value", "error", "kind"]
    assert len(frame) == len(rows)


NUMBERS = ("step", "value", "error", "probe_stderr", "data_stderr", "across", "p_value")


@pytest.mark.parametrize(
    "made",
    [
        lambda: exact_analysis().to_frame(),
        lambda: similarity_matrix(exact_analysis()).to_frame(),
        lambda: follow_checkpoints([exact_analysis(), exact_analysis()]).to_frame(),
        lambda: to_frame([]),
    ],
    ids=["analysis", "similarity", "trajectory", "nothing"],
)
def test_columns_of_numbers_are_numbers_where_all_of_them_are_unknown(made):
    frame = made()
    assert all(frame[name].dtype == np.float64 for name in NUMBERS if name in frame)
    assert not any(name in frame and frame[name].notna().any() for name in ("step", "across", "p_value"))


def test_a_frame_of_similarities_has_each_pair_once_with_what_is_known_of_it():
    found = similarity_matrix(analyze(three_layers(), num_eigenvalues=3, generator=torch.Generator().manual_seed(0)))
    frame, names = found.to_frame(), found.labels
    assert len(frame) == len(names) * (len(names) + 1) // 2
    for row in frame.itertuples(index=False):
        at = names.index(row.first), names.index(row.second)
        expected = (found.values, found.probe_stderr, found.data_stderr, found.across, found.p_values)
        assert row[2:] == tuple(array[at] for array in expected)


def test_a_frame_of_a_trajectory_has_the_changes_with_the_errors_that_they_have():
    generator, fields = torch.Generator().manual_seed(0), {"exact_limit": 0, "num_eigenvalues": 3, "tol": 1e-3}
    blocks = [analyze_operator(HessianOperator(risk), generator=generator, **fields) for risk in training(1.0, 1.02)]
    run = [SpectralAnalysis({}, block) for block in blocks]
    found = follow_checkpoints(run, labels=["first", "second"])
    frame = found.to_frame().set_index(["quantity", "kind"])
    assert (frame["checkpoint"] == "second").all() and (frame["block"] == "whole").all()
    (top,), (trace,) = found.largest, found.trace
    assert top.value > 0.01 and top.rounding == pytest.approx(sum(each.full.largest.reach[-1] for each in run))
    expected = {
        ("change of lambda_1", CERTIFIED): (top.value, top.rounding),
        ("change of lambda_1", DATA): (top.value, top.data_stderr),
        ("change of trace", PROBES): (trace.value, trace.reach),
        ("change of trace", DATA): (trace.value, trace.data_stderr),
        ("overlap of the top 3 eigenvectors with those before", CERTIFIED): tuple(found.persistence[0]),
    }
    for key, numbers in expected.items():
        assert tuple(frame.loc[[key], ["value", "error"]].to_numpy()[0]) == numbers


def test_an_eigenvalue_of_the_other_edge_is_not_said_to_have_its_rank():
    values = torch.zeros(200)
    values[:10] = torch.tensor([-2.0, -1.0, *range(1, 9)])
    generator = torch.Generator().manual_seed(0)
    block = analyze_operator(DiagonalOperator(values), num_eigenvalues=5, exact_limit=0, generator=generator)
    rows = tidy([dataclasses.replace(exact_analysis(layers=False), full=block)], ["one"])
    kinds = {row.quantity: row.kind for row in rows if row.quantity.startswith("lambda_") and row.kind != DATA}
    truth = values.sort().values.tolist()
    for row in rows:
        if row.quantity.removeprefix("lambda_") in ("n", *(f"n-{i}" for i in range(1, 5))) and row.kind == CERTIFIED:
            assert row.value == pytest.approx(
                truth[int(row.quantity.removeprefix("lambda_n").lstrip("-") or 0)], abs=1e-3
            )
    assert kinds["lambda_1"] == kinds["lambda_n"] == CERTIFIED and UNPLACED in kinds.values()
