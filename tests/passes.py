"""One Krylov pass from plain arguments, as the tests of spectra take it."""

from __future__ import annotations

from typing import Any

from pyhessian_spectra import LinearOperator, Meter, Settings
from pyhessian_spectra.spectra.krylov import KrylovPass, krylov_pass

_OWN = ("which", "atol", "max_products", "sections", "generator")


def run_pass(op: LinearOperator, *, k: int, **arguments: Any) -> KrylovPass:
    """``krylov_pass`` with ``k`` eigenvalues at each edge; what is no argument of its own is a setting."""
    own = {name: arguments.pop(name) for name in _OWN if name in arguments}
    return krylov_pass(Meter.of(op), Settings(num_eigenvalues=k, **arguments), **own)
