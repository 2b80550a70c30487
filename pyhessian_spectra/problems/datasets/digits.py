"""The handwritten digits bundled with scikit-learn."""

from __future__ import annotations

import numpy as np

from pyhessian_spectra.problems.datasets.dataset import RawExamples, Split

# Every fifth image is held out: the digits are in the order of their writers, so that a cut at the end would test
# on other hands than those trained on.
_TEST_EVERY = 5


def read_digits(split: Split) -> RawExamples:
    """1,797 images of 8x8 pixels as float32 vectors of length 64 in [0, 1]: 1,438 to train, 359 to test."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    images, labels = load_digits(return_X_y=True)
    test = np.arange(len(labels)) % _TEST_EVERY == _TEST_EVERY - 1
    chosen = test if split == "test" else ~test
    # Pixels count the set dots, 0 to 16, of a 4x4 patch.
    inputs = (images[chosen] / 16).astype(np.float32)
    return RawExamples("digits", inputs, labels[chosen].astype(np.int64), 10, "scikit-learn's digits", "8x8 images")
