"""The command line: a checkpoint in, a spectrum report out."""

from pyhessian_spectra.cli.main import main as main
