"""Whole matrices and whole lists of eigenvalues, drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyhessian_spectra import ParameterLayout
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import plot_matrix, plot_profiles

LAYOUT = ParameterLayout({"0.weight": torch.Size([2, 2]), "0.bias": torch.Size([2]), "head.weight": torch.Size([3])})


def test_a_matrix_is_drawn_entry_by_entry_with_colours_symmetric_about_zero():
    matrix = np.diag(np.arange(-2.0, 7.0))
    ax = plot_matrix(torch.from_numpy(matrix), LAYOUT)
    image = ax.images[0]
    np.testing.assert_array_equal(np.asarray(image.get_array()), matrix)
    assert (image.norm.vmin, image.norm.vmax) == (-6.0, 6.0)


def test_layers_are_ruled_where_they_end_and_named_in_their_middle():
    ax = plot_matrix(np.eye(9), LAYOUT)
    lines = sorted({float(line.get_xdata()[0]) for line in ax.lines if len(set(line.get_xdata())) == 1})
    assert lines == [5.5]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["layer 1", "head"]
    np.testing.assert_array_equal(ax.get_xticks(), [2.5, 7.0])


def test_sorted_profiles_hold_every_eigenvalue_and_histograms_count_each_once():
    spectra = {"small": [3.0, -1.0, 0.5], "large": np.linspace(-1, 4, 40)}
    ranked, counted = plot_profiles(spectra)
    for line, values in zip(ranked.lines[::2], spectra.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), np.sort(values))
        assert 0 < line.get_xdata()[0] < line.get_xdata()[-1] < 1
    for patch, values in zip(counted.patches, spectra.values(), strict=True):
        counts = patch.get_data().values
        assert counts[counts >= 1].sum() == len(values)


@pytest.mark.parametrize("spectra", [{}, {"a": []}, {"a": [1.0, np.nan]}])
def test_profiles_of_nothing_are_refused_in_a_sentence(spectra):
    with pytest.raises(InputError):
        plot_profiles(spectra)


@pytest.mark.parametrize("matrix", [np.eye(4), np.full((9, 9), np.inf)])
def test_a_matrix_of_another_shape_or_not_finite_is_refused(matrix):
    with pytest.raises(InputError):
        plot_matrix(matrix, LAYOUT)


def test_constant_spectra_and_matrices_of_zeros_are_drawn():
    plot_matrix(np.zeros((9, 9)), LAYOUT).figure.canvas.draw()
    plot_profiles({"zeros": np.zeros(5)})[0].figure.canvas.draw()
