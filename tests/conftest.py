"""For all tests: Ctrl-C works, also where the runner was started in the background; command line and two analyses."""

from __future__ import annotations

import signal
import sys
import warnings

import numpy as np
import pytest
from analyses import slq_analysis
from commands import Result, small_mlp

from pyhessian_spectra.cli.main import main
from pyhessian_spectra.problems import save_checkpoint

# A shell without job control starts background commands with SIGINT ignored, and children inherit that; the tests of
# Ctrl-C send it to this process and to programs they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cli(monkeypatch, capsys):
    """The console script in this process: arguments in, exit status and both streams out."""

    def call(*arguments) -> Result:
        monkeypatch.setattr(sys, "argv", ["pyhessian-spectra", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            try:
                main()
            finally:
                signal.signal(signal.SIGTERM, before)
        result = Result(stop.value.code or 0, *capsys.readouterr())
        assert "Traceback" not in result.err
        return result

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current directory with small data (``small.npz``) and checkpoints that fit (``a.pt``, ``b.pt``)."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((24, 6)).astype(np.float32)
    np.savez(tmp_path / "small.npz", x=inputs, y=np.arange(24) % 3)
    for seed, name in enumerate(("a.pt", "b.pt")):
        save_checkpoint(tmp_path / name, small_mlp(seed), problem={"model": "mlp", "data": "small.npz"}, step=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def slq():
    """A stochastic analysis in which some eigenpairs have not converged."""
    return slq_analysis()


@pytest.fixture(scope="session")
def converged():
    """A small stochastic analysis in which all eigenpairs have converged."""
    return slq_analysis(n=1000, probes=3, layer_names=("linear",), unconverged=0)
