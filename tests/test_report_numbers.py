"""What a report says of its numbers: their errors and digits, what is certified, and what is left open."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from analyses import exact_analysis, slq_analysis, training_run
from pages import Page

from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.analysis.fits import fit_semicircle
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.numbers import format_number
from pyhessian_spectra.report import format_with_error, write_report
from pyhessian_spectra.report.tables import share_text
from pyhessian_spectra.spectra.spectrum import Spectrum


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (15668.3, 262.4, "15,668 ± 262"),
        (3.21042, 0.0003, "3.2104 ± 0.0003"),
        (3.21042, 0.00031, "3.2104 ± 0.0003"),
        (3.21042, 0.00014, "3.21042 ± 0.00014"),
        (-3.21042, 0.04, "−3.21 ± 0.04"),
        (0.0, 0.5, "0.0 ± 0.5"),
        (-0.001, 0.5, "0.0 ± 0.5"),
        (0.99, 0.096, "0.990 ± 0.096"),
        (2.5, 0.0, "2.5 (exact)"),
        (0.0, 0.0, "0 (exact)"),
        (15668.0, 0.0, "15,668 (exact)"),
        (3.2104123456, 1e-13, "3.210412 ± 1.0×10⁻¹³"),
        (1.2345e-9, 2e-11, "(1.234 ± 0.020)×10⁻⁹"),
        (1.5e9, 2e7, "(1.500 ± 0.020)×10⁹"),
        (5.0, 40.0, "5 ± 40"),
        (2.0, float("nan"), "2.00 (error unknown)"),
        (float("nan"), 1.0, "not finite"),
    ],
)
def test_a_value_has_the_digits_its_error_leaves(value, error, text):
    assert format_with_error(value, error) == text


def test_rounding_of_a_formatted_value_is_at_most_its_error():
    rng = np.random.default_rng(0)
    for value, error in zip(rng.normal(size=500) * 10 ** rng.uniform(-12, 12, 500), rng.random(500), strict=True):
        error *= abs(value)
        text = format_with_error(value, error).replace("−", "-").replace(",", "")
        mantissa, _, power = text.partition("×10")
        exponent = int(power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))) if text.startswith("(") else 0
        shown = float(mantissa.strip("()").split(" ± ")[0]) * 10.0**exponent
        assert abs(shown - value) <= 0.55 * error


def test_a_negative_error_is_refused():
    with pytest.raises(InputError, match="error must not be negative"):
        format_with_error(1.0, -0.1)


@pytest.mark.parametrize(("dtype", "share"), [("float32", "12.5"), ("float64", "37.5")])
def test_zeros_blurred_by_rounding_are_not_negative(tmp_path, dtype, share):
    eigenvalues = np.concatenate([np.full(50, -1e-9), np.full(50, 1e-9), [-1.0] * 25, [10.0] * 75])
    analysis = exact_analysis(n=200, layers=False)
    full = dataclasses.replace(analysis.full, spectrum=Spectrum.from_eigenvalues(eigenvalues, dtype=dtype))
    words = Page(write_report([dataclasses.replace(analysis, full=full)], tmp_path)).words()
    assert f"{share} % (exact) of its eigenvalues are negative" in words


def certified(analysis, **changes):
    """The analysis with other certificates on both edges."""
    full = analysis.full
    edges = {key: dataclasses.replace(getattr(full, key), **changes) for key in ("largest", "smallest")}
    return dataclasses.replace(analysis, full=dataclasses.replace(full, **edges), layers={})


def statuses(path):
    """Status by rank of the largest, then of the smallest eigenvalues."""
    found = (
        re.match(r"\d+ .*?((position )?(not )?certified|not converged)$", row) for row in Page(path).trimmed_rows()
    )
    return [match[1] for match in found if match]


def test_an_error_is_the_reach_of_the_certified_interval(converged, tmp_path):
    largest = converged.full.largest
    wide = dataclasses.replace(largest, lower=largest.eigenvalues - 0.3, upper=largest.eigenvalues + 0.1)
    analysis = dataclasses.replace(converged, full=dataclasses.replace(converged.full, largest=wide), layers={})
    rows = Page(write_report([analysis], tmp_path)).trimmed_rows()
    assert any(row.startswith("1 100.0 ± 0.3 0.0010 ") for row in rows)


def test_eigenvalues_among_the_others_have_no_certified_position(converged, tmp_path):
    top, bottom = converged.full.largest.eigenvalues, converged.full.smallest.eigenvalues
    path = write_report([certified(converged, others=(bottom[2] * 1.01, top[-3] * 1.01))], tmp_path)
    sure, unsure = ["certified"] * 2, ["position not certified"] * 6
    assert statuses(path) == [*sure, *unsure, *sure, *unsure]
    assert "With 99 % confidence no further eigenvalue lies above" in Page(path).words()


def test_without_bounds_on_the_others_no_position_is_certified(converged, tmp_path):
    path = write_report([certified(converged, others=None)], tmp_path)
    assert set(statuses(path)) == {"position not certified"}
    words = Page(path).words()
    assert "99 % confidence no further" not in words and "extreme eigenvalues are not all certified" in words


def test_without_intervals_nothing_is_certified(converged, tmp_path):
    assert set(statuses(write_report([certified(converged, lower=None, upper=None)], tmp_path))) == {"not certified"}


def test_all_eigenvalues_of_an_exact_analysis_are_certified(tmp_path):
    path = write_report([exact_analysis(n=200, layers=False)], tmp_path)
    assert set(statuses(path)) == {"certified"}
    assert "there is none beyond those listed" in Page(path).words()


def test_the_bulk_is_what_split_bulk_found(converged, tmp_path):
    split = split_bulk(converged.full, dtype="float32")
    words = Page(write_report([converged], tmp_path)).words()
    assert split.separable and f"Bulk {format_number(split.bulk[0])} to {format_number(split.bulk[1])}" in words
    with pytest.raises(InputError, match="not resolved") as refusal:
        fit_semicircle(converged.full)
    assert f"Semicircle fit none: {refusal.value}" in words
    assert f"Edges above the bulk {split.num_above} distinct" in words


@pytest.mark.parametrize(
    ("mass", "bounds", "text"),
    [
        (0.6, (0.55, 0.64), "60 % (between 55 and 64 %)"),
        (0.99871, (0.9912, 1.0), "99.87 % (between 99.12 and 100 %)"),
        (0.0, (0.0, 0.0004), "0 % (between 0 and 0.040 %)"),
    ],
)
def test_a_share_says_what_is_open_about_it(slq, mass, bounds, text):
    assert share_text(slq.full, mass, bounds) == text
    assert share_text(exact_analysis(n=200).full, 0.19432, (0.19432, 0.19432)) == "19.4 % (exact)"


def test_a_share_whose_bounds_are_wide_is_no_number_anywhere(tmp_path):
    """Nearly all eigenvalues of this one lie around zero, where nothing tells their signs."""
    fuzzy = slq_analysis("fuzzy.pt", n=1000, probes=2, steps=40, layer_names=("fc",), dtype="float64", unconverged=0)
    low, high = split_bulk(fuzzy).negative_bounds
    assert high - low > 0.2
    page = Page(write_report([fuzzy], tmp_path / "one"))
    found = re.search(r"how many are negative is not resolved: (\d+) % lie between", page.words())
    assert found and int(found[1]) == int(100 * (high - low))
    assert "--resolve 80 makes the probes twice as long: 80 further products, about 1.6 s" in page.words()
    assert not [row for row in page.trimmed_rows() if "Negative" in row or "Zero" in row]  # of the layers
    rows = Page(write_report([fuzzy, *training_run((1,))], tmp_path / "two")).trimmed_rows()
    assert any("Negative share" in row for row in rows)  # known of the other
    (row,) = (row for row in rows if row.startswith("fuzzy.pt"))
    assert "not resolved: " in row


def test_a_headline_has_the_digits_of_its_largest_error_and_the_table_the_solver_s(tmp_path):
    analysis = exact_analysis(n=200, layers=False)
    full = analysis.full
    largest = dataclasses.replace(full.largest, eigenvalues=full.largest.eigenvalues * 0 + 2.147464)
    largest = dataclasses.replace(largest, data_stderr=np.full(len(largest), 0.32), lower=None, upper=None)
    trace = dataclasses.replace(full.trace, value=9.580678, data_stderr=1.03)
    full = dataclasses.replace(full, largest=largest, trace=trace)
    page = Page(write_report([dataclasses.replace(analysis, full=full)], tmp_path))
    summary = page.words()[: page.words().index("Density of eigenvalues")]
    assert "λ₁ = 2.1 ± 0.3 from 1,500 examples" in summary and "its trace 9.6 ± 1.0;" in summary
    assert "fresh ones can differ by far" in summary and "2.14746" not in summary and "9.5806" not in summary
    assert any(row.startswith("1 2.147464 ±") and "± 0.32" in row for row in page.trimmed_rows())
    assert "9.580678 (exact) (data: ± 1.0)" in page.words()


def test_convergence_and_certification_are_one_message(converged, tmp_path):
    top, bottom = converged.full.largest.eigenvalues, converged.full.smallest.eigenvalues
    path = write_report([certified(converged, others=(bottom[2] * 1.01, top[-3] * 1.01))], tmp_path)
    assert "Everything converged, 4 of 16 with certified positions" in Page(path).words()
    (section,) = (attrs for _, attrs in Page(path).tags if attrs.get("id") == "convergence")
    assert "plain" in section["class"]


def test_a_spectrum_without_edges_says_why(tmp_path):
    analysis = exact_analysis(n=200, layers=False)
    spectrum = Spectrum.from_eigenvalues(np.linspace(-1, 1, 200))
    full = dataclasses.replace(analysis.full, spectrum=spectrum)
    words = Page(write_report([dataclasses.replace(analysis, full=full)], tmp_path)).words()
    assert "Division not separable: " + split_bulk(full, dtype="float32").reason in words
