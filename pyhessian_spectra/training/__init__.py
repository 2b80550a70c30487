"""Training: the library's one loop, for a network and for many at once."""

from pyhessian_spectra.training.descent import GradientDescent

__all__ = ["GradientDescent"]
