"""Eigenvalues while training: found anew with a certificate now and then, and followed in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.analysis.sampling import eigenvalue_influences
from pyhessian_spectra.analysis.table import CERTIFIED, RESIDUAL, UNPLACED
from pyhessian_spectra.curvature import HessianOperator
from pyhessian_spectra.errors import ConvergenceError
from pyhessian_spectra.spectra import Eigenpairs, Meter, eigh, eigsh
from pyhessian_spectra.spectra.follow import Followed, follow
from pyhessian_spectra.tracking.checks import require_count, require_share
from pyhessian_spectra.tracking.moment import Moment, Stateless
from pyhessian_spectra.tracking.track import Measured

# Matrices of at most this many rows are built: a Lanczos process with its check takes as many products.
_BUILT = 40

# Least allowance of followed eigenvalues, in eps of the largest product, for the rounding of what follows products.
_ROUNDING = 30


class Eigenvalues:
    """The largest and smallest eigenvalues of the Hessian: ``lambda_1``, ``lambda_2``, ..., and ``lambda_n``, ...

    Where the tracker certifies, :func:`eigsh` finds them with intervals that hold the eigenvalues of these ranks,
    except with probability 0.01 each; where another rank is not ruled out, the kind of error says so. In between they
    are followed from the eigenvectors of the measurement before, by Davidson's method. The error is then the residual:
    an eigenvalue lies as near as that, but that no larger one has appeared since the last certificate is not known. One
    vector more than asked for is followed at each edge, by which most of those that appear are found.

    Parameters
    ----------
    k : int
        Number of the largest, at least 1.
    smallest : int
        Number of the smallest.
    above : float, optional
        Follow one more whenever all followed exceed this share of the optimiser's edge of stability; ``.75`` is ``1.5 /
        lr`` of gradient descent.
    most : int
        At most this many, with ``above``.
    tol : float
        Residual to reach, relative to each eigenvalue.
    max_products : int
        Products to spend between certificates at most; what has not converged then is marked so.

    Raises
    ------
    InputError
        A number is out of its range.
    """

    needs_previous = False
    _name = "lambda_{}"

    def __init__(
        self,
        k: int = 1,
        *,
        smallest: int = 0,
        above: float | None = None,
        most: int = 10,
        tol: float = 1e-2,
        max_products: int = 30,
    ) -> None:
        self._k, self._smallest = require_count("k", k, 1), require_count("smallest", smallest, 0)
        self._above = None if above is None else require_share("above", above, most=np.inf)
        self._most, self._max_products = (
            require_count("most", most, 1 if above is None else k),
            require_count("max_products", max_products, 1),
        )
        self._tol = require_share("tol", tol)
        self._start: Tensor | None = None
        self._rounding = 0.0  # relative to the largest product, when it was measured last
        self._draws = torch.Generator().manual_seed(0)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers."""
        draws = self._draws.get_state()
        return {"k": self._k, "start": self._start, "rounding": self._rounding, "draws": draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._k, self._start, self._rounding = state["k"], state["start"], state["rounding"]
        self._draws.set_state(state["draws"])

    def measure(self, moment: Moment) -> list[Measured]:
        """The eigenvalues now, from the largest, and then from the smallest."""
        smallest, largest = self._edges(moment.hessian, certify=moment.certify)
        moment.top = largest
        if moment.stability is not None and moment.stability.plain:
            self._grow(largest, moment.stability.threshold)
        return _told(self._name, smallest, largest)

    def _grow(self, largest: Eigenpairs, threshold: float) -> None:
        """Follow one more from the next measurement on, if all exceed their share of the threshold."""
        if self._above is not None and (largest.eigenvalues > self._above * threshold).all():
            self._k = max(self._k, min(self._k + 1, self._most))

    def _edges(self, op: Meter, *, certify: bool) -> tuple[Eigenpairs, Eigenpairs]:
        """The smallest and the largest pairs, ascending."""
        high = min(self._k, op.n)
        low = min(self._smallest, op.n - high)
        certified = self._certified(op, low, high) if certify else None
        if certified is None:
            start = op.space.randn(self._draws, 2) if self._start is None else self._start
            most = self._max_products
        else:  # their space once more, for where to go on from, and for what each batch says of them
            near = certified[0].take(slice(0, low + bool(low))), certified[1].take(slice(-high - 1, None))
            start = torch.from_numpy(np.hstack([np.asarray(each.eigenvectors) for each in near]))
            most = start.shape[1]
        start = start.to(op.device, op.dtype)
        found = follow(op, start, largest=high, smallest=low, tol=self._tol, max_products=most)
        self._start, pairs, moved = found.start, found.pairs, eigenvalue_influences(found.forms)
        if certified is None:
            pairs = _bounded(found, max(self._rounding, _ROUNDING * op.space.eps))
            edges = pairs.take(slice(0, low)), pairs.take(slice(low, None))
        else:
            self._rounding = float(max(each.rounding for each in certified)) / (found.scale or 1.0)
            count = len(certified[1])
            edges = _beside(certified[0], slice(0, low)), _beside(certified[1], slice(count - high, count))
        if moved is None:
            return edges
        errors = np.sqrt((moved**2).sum(axis=0))
        return replace(edges[0], data_stderr=errors[:low]), replace(edges[1], data_stderr=errors[low:])

    def _certified(self, op: Meter, low: int, high: int) -> tuple[Eigenpairs, Eigenpairs] | None:
        """The smallest and the largest pairs from the beginning, with a neighbour each or all; None if that fails."""
        if op.n <= max(_BUILT, 2 * (low + high + 2)):
            found = eigh(op)
            return found, found
        how: dict[str, Any] = {"tol": self._tol / 2, "v0": self._start, "generator": self._draws}
        try:
            largest = eigsh(op, high + 1, which="LA", **how)
            return eigsh(op, low + 1, which="SA", **how) if low else largest.take(slice(0, 0)), largest
        except ConvergenceError:
            return None


class PreconditionedEigenvalues(Eigenvalues):
    """The largest eigenvalues of the matrix that the optimiser's edge of stability belongs to: ``sharpness_1``, ...

    That is ``P^-1/2 H P^-1/2`` for Adam, AdamW and RMSprop; see :func:`stability_of`. Nothing is measured where it is
    not known, or where it is the Hessian, as for gradient descent. For the arguments see :class:`Eigenvalues`.
    """

    _name = "sharpness_{}"

    def measure(self, moment: Moment) -> list[Measured]:
        """The eigenvalues now, from the largest."""
        if moment.stability is None or moment.stability.plain:
            return []
        op = Meter(moment.stability.operator(moment.hessian))
        smallest, largest = self._edges(op, certify=moment.certify)
        self._grow(largest, moment.stability.threshold)
        return _told(self._name, smallest, largest)


class BatchEigenvalues(Stateless):
    """The largest eigenvalue of each batch of the probe data: ``lambda_1`` of ``"batch 0"``, and so on.

    Their distribution says what steps on single batches see. Each is found from the largest eigenvector of the whole,
    which is measured first where :class:`Eigenvalues` stand before it.

    Parameters
    ----------
    tol : float
        Residual to reach, relative to the eigenvalue.
    max_products : int
        For each batch.
    """

    def __init__(self, *, tol: float = 1e-2, max_products: int = 30) -> None:
        self._tol, self._max_products = require_share("tol", tol), require_count("max_products", max_products, 1)

    def measure(self, moment: Moment) -> list[Measured]:
        """The eigenvalue of each batch now."""
        rows = []
        for number, risk in enumerate(moment.batches):
            op = Meter(HessianOperator(risk, point=moment.point))
            start = op.space.randn(torch.Generator().manual_seed(number), 2)
            if moment.top is not None:
                start[:, 0] = torch.from_numpy(np.asarray(moment.top.eigenvectors)[:, -1]).to(start)
            found = follow(op, start, largest=1, tol=self._tol, max_products=self._max_products)
            pairs = _bounded(found, _ROUNDING * op.space.eps)
            moment.products += op.num_products
            rows.append(_measured("lambda_1", pairs, 0, block=f"batch {number}"))
        return rows


def _bounded(found: Followed, rounding: float) -> Eigenpairs:
    """The pairs with intervals in which some eigenvalue lies, as far as their residuals and rounding tell."""
    reach = found.pairs.residuals + rounding * found.scale
    return replace(found.pairs, lower=found.pairs.eigenvalues - reach, upper=found.pairs.eigenvalues + reach)


def _beside(pairs: Eigenpairs, chosen: slice) -> Eigenpairs:
    """Some of the pairs; what holds all others then holds the rest of them too."""
    assert pairs.lower is not None and pairs.upper is not None
    low, high = pairs.others or (np.inf, -np.inf)  # of all pairs there are none beside them
    rest = np.ones(len(pairs), dtype=bool)
    rest[chosen] = False
    others = pairs.lower[rest].min(initial=low), pairs.upper[rest].max(initial=high)
    return replace(pairs.take(chosen), others=(float(others[0]), float(others[1])))


def _told(name: str, smallest: Eigenpairs, largest: Eigenpairs) -> list[Measured]:
    """From the largest, and then from the smallest."""
    down = largest.take(slice(None, None, -1))
    rows = [_measured(name.format(rank + 1), down, rank) for rank in range(len(down))]
    below = [name.format(f"n-{rank}" if rank else "n") for rank in range(len(smallest))]
    lowest = [_measured(each, smallest, rank, from_top=False) for rank, each in enumerate(below)]
    return rows + lowest


def _measured(name: str, pairs: Eigenpairs, rank: int, *, block: str = "", from_top: bool = True) -> Measured:
    value, reach = float(pairs.eigenvalues[rank]), float(pairs.reach[rank])
    data = None if pairs.data_stderr is None else float(pairs.data_stderr[rank])
    kind = RESIDUAL if pairs.others is None else CERTIFIED if pairs.placed(from_top=from_top)[rank] else UNPLACED
    return Measured(name, value, reach, kind, block, data, bool(pairs.converged[rank]))
