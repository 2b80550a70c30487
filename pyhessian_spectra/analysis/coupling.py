"""How strongly groups of parameters are coupled: the masses of a matrix' blocks, and what its block diagonal misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyhessian_spectra.curvature.partition import Partition
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import Eigenpairs, MatrixOperator, Meter, TraceEstimate
from pyhessian_spectra.spectra.gram import GramMatrix
from pyhessian_spectra.spectra.operator import LinearOperator, require_operator
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.rounding import Rounding
from pyhessian_spectra.spectra.space import fresh_generator

#: The label of all coordinates that belong to no group.
REST = "(rest)"


@dataclass(frozen=True, repr=False)
class LayerCoupling(Shown):
    """The squared Frobenius norms of a matrix' blocks.

    Parameters
    ----------
    labels : tuple of str, length p
        Groups of coordinates; ``"(rest)"`` are those of no group.
    mass : ndarray, shape (p, p)
        ``||H_lk||_F^2``, symmetric; their sum is ``||H||_F^2``.
    stderr : ndarray, shape (p, p)
        Standard errors due to the random probes; zero if the masses are exact.
    num_probes : int
        Independent samples behind them; 0 if they are exact.
    error : TraceEstimate
        Of the block diagonal, ``E ||Hv - H_bd v||^2 / E ||Hv||^2`` over random ``v``: the share of mass between groups.
    rounding : float
        Measured bound on how far the rounding of products moves the norm of any block; 0 if it was not measured of a
        matrix that was given.
    num_products : int
        Products spent.
    """

    labels: tuple[str, ...]
    mass: Floats
    stderr: Floats
    num_probes: int
    error: TraceEstimate
    rounding: float
    num_products: int = 0

    @property
    def cosine(self) -> TraceEstimate:
        """``E <Hv, H_bd v> / sqrt(E ||Hv||^2 E ||H_bd v||^2)``, which is the root of one less :attr:`error`."""
        value = max(0.0, 1 - self.error.value) ** 0.5
        slope = 1 / (2 * value) if value else 1.0
        return TraceEstimate(
            value,
            slope * self.error.stderr,
            0,
            self.error.method,
            self.num_probes,
            rounding=slope * self.error.rounding,
        )

    @property
    def shares(self) -> Floats:
        """``||H_lk||_F / sqrt(||H_ll||_F ||H_kk||_F)``, shape (p, p): above 1 where coupling exceeds both layers."""
        norms = np.sqrt(self.mass.clip(0.0))
        own = np.sqrt(norms.diagonal())
        scale = np.outer(own, own)
        return np.divide(norms, scale, out=np.full_like(norms, np.nan), where=scale > 0)


def layer_coupling(
    op: LinearOperator,
    partition: Partition,
    *,
    num_probes: int = 4,
    known: Eigenpairs | None = None,
    rounding: float = 0.0,
    generator: torch.Generator | None = None,
) -> LayerCoupling:
    """Estimate the mass of every block from ``num_probes`` products for each group.

    ``||H_lk||_F^2 = E ||(H v_k)_l||^2`` for random vectors ``v_k`` in group ``k``, uniform on a sphere. The masses of
    approximate eigenpairs are known exactly, so that what the same vectors make of them says how much chance has moved
    each sample: a control variate, which does not bias the mean however good the eigenpairs are.

    Parameters
    ----------
    op : LinearOperator, shape (n, n)
        A :class:`MatrixOperator` gives exact masses and takes no product.
    partition : Partition
        Coordinates of no group form one more, ``"(rest)"``.
    num_probes : int
        At least 2.
    known : Eigenpairs, optional
        Eigenpairs of ``op`` with their vectors, such as ``analyze_operator(op).largest``.
    rounding : float
        Bound on the norm of the error of a :class:`MatrixOperator`'s entries; that of products is measured.
    generator : torch.Generator, optional
        Source of all randomness; None draws a fresh random seed.

    Raises
    ------
    InputError
        Too few probes, or a partition of other coordinates.
    """
    require_operator(op)
    if not isinstance(partition, Partition):
        raise InputError(f"partition must be a Partition, got {type(partition).__name__}; see Partition.of")
    if partition.layout.n != op.n:
        raise InputError(f"the partition is of {partition.layout.n:,} coordinates and the operator has {op.n:,}")
    groups = {group.label: group.indices for group in partition}
    owned = torch.zeros(op.n, dtype=torch.bool)
    for indices in groups.values():
        owned[indices] = True
    if not owned.all():
        groups[REST] = torch.nonzero(~owned)[:, 0]
    labels = tuple(groups)
    if isinstance(op, MatrixOperator):
        squares, parts = op.matrix.double() ** 2, list(groups.values())
        mass = np.array([[float(squares[rows][:, columns].sum()) for columns in parts] for rows in parts])
        return _exact(labels, mass, rounding)
    if not isinstance(num_probes, int) or num_probes < 2:
        raise InputError(f"num_probes must be at least 2 for a standard error, got {num_probes}")
    generator, meter = generator or fresh_generator(), Meter.of(op)
    before, places = meter.num_products, [indices.to(op.device) for indices in groups.values()]
    part = _KnownPart(known, places, op)
    plain, controls, products = [], [], []
    for _ in range(num_probes):
        drawn = _spherical(op.space.randn(generator), places)
        image = torch.zeros_like(drawn)
        columns, of_part = [], []
        for at in places:
            v = torch.zeros_like(drawn)
            v[at] = drawn[at]
            product = meter @ v
            image += product
            columns.append(_masses(product, places))
            of_part.append(_masses(part.product(v), places))
        products.append((drawn, image))
        plain.append(np.stack(columns, axis=1))
        controls.append(np.stack(of_part, axis=1) - part.mass)
    off = Rounding(meter).seen(products[:1]).norm
    samples = _controlled(np.stack(plain), np.stack(controls))
    mass = samples.mean(axis=0)
    seen = samples.std(axis=0, ddof=1) / num_probes**0.5
    # few values may agree by chance: what one outlier may hide is added, as for traces
    unseen = (2 / num_probes) ** 0.5 * np.abs(mass - part.mass) * 2.0 ** ((1 - num_probes) / 2)
    if not np.isfinite(mass).all():
        raise NonFiniteError("products are NaN or infinite, and so are the masses; look at the operator")
    sampled = min(1.0, float(np.abs(mass - part.mass).sum() / (np.abs(mass).sum() or 1.0)))
    error, spent = _outside(samples, num_probes, off, sampled), meter.num_products - before
    return LayerCoupling(labels, mass, np.hypot(seen, unseen), num_probes, error, off, spent)


def coupling_of_rows(whole: GramMatrix, groups: Mapping[str, GramMatrix]) -> LayerCoupling:
    """The exact masses of ``G = A^T A`` from Gram matrices: ``||G_lk||_F^2 = tr(K_l K_k)``."""
    matrices = {label: gram.matrix for label, gram in groups.items()}
    if sum(gram.n for gram in groups.values()) < whole.n:
        matrices[REST] = whole.matrix - sum(matrices.values())
    mass = np.array([[float((one * other).sum()) for other in matrices.values()] for one in matrices.values()])
    return _exact(tuple(matrices), mass, whole.rounding)


def _exact(labels: tuple[str, ...], mass: Floats, off: float) -> LayerCoupling:
    return LayerCoupling(labels, mass, np.zeros_like(mass), 0, _outside(mass[None], 0, off), off)


def _spherical(v: Tensor, places: Sequence[Tensor]) -> Tensor:
    """A normal vector with each group's part brought to the length that it has on average: a sign in a group of one."""
    found = torch.zeros_like(v)
    for at in places:
        found[at] = v[at] * (len(at) ** 0.5 / torch.linalg.vector_norm(v[at]))
    return found


def _outside(samples: Floats, num_probes: int, off: float, sampled: float = 1.0) -> TraceEstimate:
    """The share of mass off the block diagonal, from samples (r, p, p) of all masses; by the jackknife over these.

    ``sampled`` is the part of the mass that no known eigenpairs explain, of which few samples may hide an outlier.
    """

    def share(mass: Floats) -> float:
        total = float(mass.sum())
        return float(1 - np.trace(mass) / total) if total else 0.0

    value = share(samples.mean(axis=0))
    norm = max(float(samples.mean(axis=0).sum()), 0.0) ** 0.5
    rounding = min(1.0, 2 * off / norm) if norm else 0.0
    if not num_probes:
        return TraceEstimate(value, 0.0, 0, rounding=rounding)
    left = np.array([share(np.delete(samples, i, axis=0).mean(axis=0)) for i in range(len(samples))])
    seen = float(((num_probes - 1) / num_probes * ((left - left.mean()) ** 2).sum()) ** 0.5)
    unseen = sampled * abs(value * (1 - value)) * (2 / num_probes) ** 0.5 * 2.0 ** ((1 - num_probes) / 2)
    return TraceEstimate(value, float(np.hypot(seen, unseen)), 0, "probes of each group", num_probes, rounding=rounding)


class _KnownPart:
    """The matrix ``U diag(theta) U^T`` of known eigenpairs, zero without them, and the exact masses of its blocks."""

    def __init__(self, known: Eigenpairs | None, places: Sequence[Tensor], op: LinearOperator) -> None:
        count = 0 if known is None or known.eigenvectors is None else len(known)
        self._vectors = torch.zeros(op.n, count, dtype=op.dtype, device=op.device)
        self._values = torch.zeros(count, dtype=op.dtype, device=op.device)
        if count and known is not None:
            self._vectors = torch.from_numpy(np.asarray(known.eigenvectors)).to(self._vectors)
            self._values = torch.from_numpy(known.eigenvalues).to(self._values)
        parts = [self._vectors[at].double() for at in places]
        grams = [(u.T @ u) * self._values.double() for u in parts]
        self.mass = np.array([[float((first * other.T).sum()) for other in grams] for first in grams])

    def product(self, v: Tensor) -> Tensor:
        return self._vectors @ (self._values * (self._vectors.T @ v))


def _masses(v: Tensor, places: Sequence[Tensor]) -> Floats:
    """The squared norm (p,) of each group's coordinates."""
    return np.array([float((v[at].double() ** 2).sum()) for at in places])


def _controlled(plain: Floats, controls: Floats) -> Floats:
    """Samples (r, p, p) less the multiple of controls of mean zero that explains most of their spread.

    Each sample's multiple is that of the other samples alone, on which it does not depend, so that the mean is not
    biased (Avramidis and Wilson 1993, splitting). A block and its mirror image are samples of the same mass.
    """
    found = []
    for one in range(len(plain)):
        y, x = (np.delete(given, one, axis=0) for given in (plain, controls))
        y, x = (np.concatenate([each, each.transpose(0, 2, 1)]) for each in (y, x))
        spread = ((x - x.mean(axis=0)) ** 2).sum(axis=0)
        slope = ((x - x.mean(axis=0)) * y).sum(axis=0)
        slope = np.divide(slope, spread, out=np.zeros_like(slope), where=spread > 0).clip(0.0, 1.0)
        sample = plain[one] - slope * controls[one]
        found.append((sample + sample.T) / 2)
    return np.stack(found)
