"""Datasets on disk, read with no more than numpy: always the first examples in the order of the files."""

from __future__ import annotations

from pyhessian_spectra.problems.datasets.dataset import Dataset as Dataset
from pyhessian_spectra.problems.datasets.load import load_data as load_data
