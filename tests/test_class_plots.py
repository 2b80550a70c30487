"""Figures of classes and examples show the numbers they are given, read back from the artists."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.offsetbox import AnnotationBbox
from problems import CASES

from pyhessian_spectra import carriers, class_structure
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.plots import plot_carriers, plot_class_structure


@pytest.fixture(scope="module")
def structure():
    return class_structure(CASES["tied_weights"]())


@pytest.fixture(scope="module")
def found():
    return carriers(CASES["mlp"]())


def drawn(ax):
    return {bars.get_label(): bars[0].get_xydata() for bars in ax.containers}


def test_eigenvalues_are_drawn_by_rank_beside_those_predicted_and_left(structure):
    lines = drawn(ax := plot_class_structure(structure))
    k = len(structure.classes)
    measured, predicted, left, outside = lines.values()
    np.testing.assert_allclose(measured[:, 1], structure.eigenvalues[::-1][: 2 * k])
    np.testing.assert_allclose(left[:, 1], structure.remaining[::-1][: 2 * k])
    np.testing.assert_allclose(outside[:, 1], structure.projected[::-1][: 2 * k])
    np.testing.assert_allclose(predicted[:, 1], structure.predicted[::-1])
    assert measured[:, 0].tolist() == list(range(1, 2 * k + 1)) and ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    told = ax.get_title(loc="left")
    assert (
        f"spans {structure.alignment:.1%} of the top 7" in told and f"{structure.chance.mean():.0%} by chance" in told
    )
    assert low < predicted[:, 1].min() and measured[:, 1].max() < high


def test_errors_of_what_is_told_are_shown_where_they_matter(structure):
    coarse = dataclasses.replace(structure, alignment=0.732, alignment_error=0.03)
    assert "spans (73 ± 3)% of" in plot_class_structure(coarse).get_title(loc="left")


def test_predicted_eigenvalues_that_are_zero_are_left_out(structure):
    levels = {**structure.levels, "between": np.concatenate([[0.0], structure.predicted[1:]])}
    lines = drawn(plot_class_structure(dataclasses.replace(structure, levels=levels)))
    predicted = list(lines.values())[1]
    assert len(predicted) == len(structure.predicted) - 1 and np.isfinite(predicted).all()
    with pytest.raises(InputError, match="all eigenvalues are zero"):
        plot_class_structure(dataclasses.replace(structure, eigenvalues=np.zeros(3)))


def test_bars_are_shares_coloured_by_mistakes_and_named_by_labels(found):
    ax = plot_carriers(found)
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches}
    assert [heights[i] for i in range(12)] == pytest.approx(found.shares[:12])
    right, wrong = (bars for bars in ax.containers if hasattr(bars, "patches"))
    assert right.get_label() == "classified correctly" and wrong.get_label() == "misclassified"
    mistakes = [i for i in range(12) if found.labels[i] != found.predictions[i]]
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in wrong] == mistakes
    names = [label.get_text() for label in ax.get_xticklabels()]
    first = mistakes[0]
    assert names[first] == f"{found.labels[first]}\n→ {found.predictions[first]}"
    told = "\n".join(text.get_text() for text in ax.texts)
    assert f"12 of 16 examples carry {sum(found.shares[:12]):.0%}" in told and "75.0% misclassified" in told


def test_examples_without_labels_are_named_by_their_number():
    found = carriers(CASES["mean_squared_error"]())
    ax = plot_carriers(found)
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(i) for i in found.examples[:12]]
    assert ax.get_legend() is None and ax.get_xlabel() == "Example"


@pytest.mark.parametrize("shape", [(16, 6, 5), (16, 1, 6, 5), (16, 3, 6, 5)])
def test_images_are_those_of_the_examples_drawn(found, shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).numpy()
    boxes = [artist for artist in plot_carriers(found, images).artists if isinstance(artist, AnnotationBbox)]
    assert len(boxes) == 12
    expected = images[found.examples[3]]
    expected = expected.transpose(1, 2, 0) if shape[1] == 3 else expected.reshape(6, 5)
    pixels = boxes[3].offsetbox.get_data()
    np.testing.assert_allclose(pixels, (expected - expected.min()) / np.ptp(expected), atol=1e-6)
    assert boxes[3].xy[0] == 3


@pytest.mark.parametrize("shape", [(16, 30), (15, 6, 5), (16, 2, 6, 5)])
def test_arrays_that_are_no_images_of_all_examples_are_refused(found, shape):
    with pytest.raises(InputError, match="images must be"):
        plot_carriers(found, np.zeros(shape))


def test_an_error_of_the_shares_that_can_be_seen_is_drawn(found):
    lines = [len(plot_carriers(dataclasses.replace(found, share_error=e)).collections) for e in (0.0, 0.02)]
    segments = plot_carriers(dataclasses.replace(found, share_error=0.02)).collections[0].get_segments()
    assert lines[0] <= lines[1] and np.ptp(segments[0][:, 1]) == pytest.approx(0.04)
