"""How results show themselves: in one line, as a table in notebooks, and from the largest eigenvalue."""

from __future__ import annotations

import dataclasses
import html.parser
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator, SpectralAnalysis, analyze, eigh
from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.spectra import Eigenpairs, LinearOperator, MatrixOperator, Settings, Spectrum, TraceEstimate


@pytest.fixture(scope="module")
def risk() -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.randn(40, 8, generator=generator)
    y = torch.randint(0, 3, (40,), generator=generator)
    return EmpiricalRisk(model, nn.functional.cross_entropy, list(zip(x.split(4), y.split(4), strict=True)))


@pytest.fixture(scope="module")
def analysis(risk: EmpiricalRisk) -> SpectralAnalysis:
    how = Settings(exact_limit=10, data_parts=6)
    problem = {"checkpoint": "runs/lr-0.1/step-5.pt"}
    return analyze(risk, settings=how, problem=problem, generator=torch.Generator().manual_seed(1))


def results_in(value: Any) -> Iterator[Any]:
    """A dataclass and all dataclasses within it."""
    if dataclasses.is_dataclass(value):
        yield value
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from results_in(item)


class Cells(html.parser.HTMLParser):
    """The texts of a table's cells and headings; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.texts, self.tags = [], [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_result_of_an_analysis_prints_in_one_line(analysis: SpectralAnalysis) -> None:
    found = list(results_in(Checkpoints.of([analysis, analysis])))
    assert len({type(each) for each in found}) >= 12
    for each in found:
        assert "\n" not in repr(each), type(each)
        assert len(repr(each)) < 400, repr(each)


def test_an_analysis_says_in_one_line_what_it_is_of_and_its_numbers_with_errors(analysis: SpectralAnalysis) -> None:
    top, trace = next(iter(analysis.full.largest)), analysis.full.trace
    assert repr(analysis).startswith(f"SpectralAnalysis(step-5.pt, Hessian, n=75, λ₁={top}, trace={trace}, 2 layers")
    assert "±" in str(top) and "±" in str(trace)


def test_iterating_over_pairs_goes_from_the_largest_as_the_saved_list_does(analysis: SpectralAnalysis) -> None:
    saved = [row["eigenvalue"] for row in analysis.to_json()["full"]["largest"]]
    pairs = list(analysis.full.largest)
    assert [pair.eigenvalue for pair in pairs] == saved == sorted(saved, reverse=True)
    assert np.all(np.diff(analysis.full.largest.eigenvalues) >= 0)  # the arrays ascend as ever


def test_an_iterated_pair_has_the_vector_and_the_errors_of_its_eigenvalue() -> None:
    matrix = torch.diag(torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64))
    found = dataclasses.replace(eigh(MatrixOperator(matrix)), data_stderr=np.array([0.1, 0.2, 0.3]))
    for pair, error in zip(found, (0.3, 0.2, 0.1), strict=True):
        vector = torch.from_numpy(pair.eigenvector)
        assert float(torch.linalg.vector_norm(matrix @ vector - float(pair) * vector)) < 1e-12
        assert pair.data_stderr == error and pair.converged


def test_pairs_that_did_not_converge_are_counted_in_the_line_and_marked_in_the_table() -> None:
    values = np.array([1.0, 2.0, 3.0])
    pairs = Eigenpairs(values, np.full(3, 0.1), np.array([True, False, True]), num_products=7)
    assert repr(pairs) == "Eigenpairs(3: 3.00 ± 0.10 to 1.00 ± 0.10, 1 not converged, 7 products)"
    assert Cells(pairs._repr_html_()).texts.count("not converged") == 1


def test_an_estimate_is_a_number_and_prints_both_of_its_errors() -> None:
    estimate = TraceEstimate(25.3, 2.0, 30, "hutchinson", 30, data_stderr=5.0)
    assert float(estimate) == 25.3
    assert str(estimate) == "25 ± 5"  # the larger one
    assert repr(estimate) == f"TraceEstimate(25 ± {estimate.reach:.0f}, data ± 5.0, hutchinson)"
    assert {"unknown", "3"} <= set(Cells(TraceEstimate(1.0, 0.1, 3)._repr_html_()).texts)


def test_a_spectrum_says_whether_it_is_exact_and_otherwise_how_far_off_it_may_be(analysis: SpectralAnalysis) -> None:
    assert repr(Spectrum.from_eigenvalues([-1.0, 2.0])) == "Spectrum(n=2, −1.00 to 2.00, exact)"
    estimated = analysis.full.spectrum
    assert not estimated.exact and f"± {estimated.cdf_error(level=0.95):.2g} (95 %)" in repr(estimated)


def test_tables_in_notebooks_have_a_row_for_each_layer_and_escape_what_is_in_names(analysis: SpectralAnalysis) -> None:
    shown = [analysis, analysis.full, analysis.full.spectrum, analysis.full.largest, analysis.full.trace]
    for each in shown:
        assert {"table", "caption", "td"} <= Cells(each._repr_html_()).tags
    named = dataclasses.replace(analysis, layers={"<script>": analysis.full})
    cells = Cells(named._repr_html_())
    assert "script" not in cells.tags and "<script>" in cells.texts
    assert str(next(iter(analysis.full.largest))) in cells.texts


def test_operators_and_risks_say_what_they_are(risk: EmpiricalRisk) -> None:
    op: LinearOperator = HessianOperator(risk)
    assert repr(op) == "HessianOperator(Hessian, n=75, float32, cpu)"
    assert "Hessian - 2 Hessian" in repr(op - 2 * op)
    assert repr(risk) == "EmpiricalRisk(Sequential, n=75, mode=eval, float32, cpu)"
