"""Training: the library's only training loop, for one network or for many at once."""

from pyhessian_spectra.training.descent import GradientDescent

__all__ = ["GradientDescent"]
