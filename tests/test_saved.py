"""Analyses on disk are read one at a time."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pytest
from analyses import training_run

from pyhessian_spectra import load_analyses, save_analyses
from pyhessian_spectra.analysis.saved import SavedAnalyses
from pyhessian_spectra.errors import InputError, NonFiniteError


@pytest.fixture
def files(tmp_path):
    paths = {"json_path": tmp_path / "results.json", "npz_path": tmp_path / "spectra.npz"}
    save_analyses(training_run(), **paths)
    return paths


def test_each_is_read_from_disk_when_it_is_asked_for_and_not_kept(files):
    saved, written = SavedAnalyses(**files), training_run()
    assert len(saved) == 4
    for place in (2, 0, -1):
        np.testing.assert_array_equal(saved[place].full.spectrum.nodes, written[place].full.spectrum.nodes)
        assert saved[place].to_json() == written[place].to_json()
    one = saved[1]
    gone = weakref.ref(one.full)
    del one
    gc.collect()
    assert gone() is None


def test_all_of_them_are_what_load_analyses_reads(files):
    assert [each.to_json() for each in SavedAnalyses(**files)] == [each.to_json() for each in load_analyses(**files)]
    assert [each.to_json() for each in SavedAnalyses(**files)[1:3]] == [each.to_json() for each in training_run()[1:3]]


def test_files_that_do_not_belong_together_and_damaged_ones_get_a_sentence(files, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    one = dataclasses.replace(training_run()[0], layers={})
    save_analyses([one], json_path=other / "results.json", npz_path=other / "spectra.npz")
    with pytest.raises(InputError, match="does not belong to"):
        SavedAnalyses(files["json_path"], other / "spectra.npz")
    whole = files["npz_path"].read_bytes()
    saved = SavedAnalyses(**files)
    middle = len(whole) // 2
    files["npz_path"].write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    with pytest.raises(InputError, match="no analysis can be read"):
        list(saved)


def test_numbers_that_are_not_finite_are_refused_with_a_sentence_and_leave_no_file(tmp_path):
    (analysis, *_) = training_run()
    broken = dataclasses.replace(analysis, problem={**analysis.problem, "loss_value": float("nan")})
    with pytest.raises(NonFiniteError, match="products of these weights overflow"):
        save_analyses([broken], json_path=tmp_path / "a.json", npz_path=tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
