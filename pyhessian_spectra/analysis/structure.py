"""How layers, eigenvectors and the gradient of one checkpoint lie to one another."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from pyhessian_spectra.analysis.block import BlockAnalysis
from pyhessian_spectra.analysis.coupling import LayerCoupling, coupling_of_rows, layer_coupling
from pyhessian_spectra.analysis.eigenspaces import Localisation, localisation
from pyhessian_spectra.analysis.gradient import GradientShares
from pyhessian_spectra.curvature import GGNGram, Partition
from pyhessian_spectra.shown import Shown
from pyhessian_spectra.spectra import Eigenpairs, MatrixOperator, Settings
from pyhessian_spectra.spectra.operator import LinearOperator


@dataclass(frozen=True, repr=False)
class Structure(Shown):
    """What one checkpoint's matrix says beyond spectra.

    Parameters
    ----------
    coupling : LayerCoupling, optional
        The masses of all blocks, and what the block diagonal misses; None with fewer than two groups or without probes.
    localisation : Localisation, optional
        How much of each of the largest eigenvectors lies in each layer; None where they were not kept.
    gradient : GradientShares, optional
        How much of the gradient lies in the space of the largest eigenvalues; None where it is zero.
    """

    coupling: LayerCoupling | None = None
    localisation: Localisation | None = None
    gradient: GradientShares | None = None


def coupling_of(
    op: LinearOperator,
    block: BlockAnalysis,
    settings: Settings,
    partition: Partition,
    seed: int,
    gram: GGNGram | None = None,
) -> LayerCoupling | None:
    """The coupling of the groups, from what is known; None where there is nothing to couple, or no probes to spend.

    Known are the Gram matrices of the groups, if ``op`` is their ``A^T A``, or else the eigenpairs of ``block``.
    """
    if len(partition) + (not partition.complete) < 2 or not len(partition):
        return None
    if gram is not None:
        return coupling_of_rows(gram, gram.groups)
    if not isinstance(op, MatrixOperator) and not settings.coupling_probes:
        return None
    known, off, generator = _both_edges(block), block.largest.rounding, torch.Generator().manual_seed(seed)
    probes = settings.coupling_probes
    return layer_coupling(op, partition, num_probes=probes, known=known, rounding=off, generator=generator)


def localised(block: BlockAnalysis, partition: Partition) -> Localisation | None:
    """The localisation of the largest eigenvectors, if they were kept."""
    kept = block.largest.eigenvectors
    return None if kept is None or not kept.shape[1] or not len(partition) else localisation(block, partition)


def _both_edges(block: BlockAnalysis) -> Eigenpairs | None:
    """The eigenpairs of both edges; None where vectors were not kept, or where edges of a small matrix overlap."""
    low, high = block.smallest, block.largest
    if low.eigenvectors is None or high.eigenvectors is None or len(low) + len(high) > block.n:
        return None
    values, vectors = np.append(low.eigenvalues, high.eigenvalues), np.hstack([low.eigenvectors, high.eigenvectors])
    return replace(high, eigenvalues=values, eigenvectors=vectors)
