"""What a model says of single examples: outputs, losses and labels, from one forward pass over the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.spectra.results import Floats


@dataclass(frozen=True)
class Examples:
    """All examples of a risk, in the order of the data.

    Parameters
    ----------
    outputs : tuple of ndarray, shape (N_b, d), float64
        What the loss is a function of, batch by batch.
    losses : ndarray, shape (N,), float64
        The loss of each example alone; NaN where it has none: an ignored target, or outputs that are no tensors.
    terms : ndarray, shape (N,), float64
        What each example counts in a sum of losses: 1, its class weight, or 0 where its target is ignored.
    labels : ndarray, shape (N,), int64, or None
        The targets, where they are one integer for each example and the outputs one tensor (N, C); else None.
    """

    outputs: tuple[Floats, ...]
    losses: Floats
    terms: Floats
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.losses)


def read_examples(risk: EmpiricalRisk, point: Point) -> Examples:
    """Outputs, losses and labels of single examples at a point; raises what the model raises."""
    outputs, losses, terms, labels = [], [], [], []
    for _, batch in risk.sample.read():
        tensors, alone = risk.objective.run(point, batch, partial(_called, risk, batch))
        outputs.append(np.concatenate([_flat(t, batch.num_examples) for t in tensors], axis=1))
        losses.append(alone)
        terms.append([_terms(risk, batch.rows(i, i + 1)) for i in range(batch.num_examples)])
        labels.append(_labels(tensors, batch))
    known = [some for some in labels if some is not None]
    return Examples(
        tuple(outputs),
        np.concatenate(losses),
        np.concatenate(terms),
        np.concatenate(known) if len(known) == len(labels) else None,
    )


def _called(risk: EmpiricalRisk, batch: Batch) -> tuple[tuple[Tensor, ...], Floats]:
    outputs = risk.objective.outputs(batch)
    return risk.objective.selected(outputs), _losses(risk, outputs, batch)


def _losses(risk: EmpiricalRisk, outputs: Any, batch: Batch) -> Floats:
    """The loss of each example alone (N,): of its part of the outputs, since others may have shaped it (BatchNorm)."""
    count = batch.num_examples
    if not all(isinstance(x, Tensor) and x.dim() and len(x) == count for x in tree_leaves(outputs)):
        return np.full(count, np.nan)
    answered = Batch(outputs, batch.targets, batch.index)
    parts = [answered.rows(i, i + 1) for i in range(count)]
    return np.array([float(risk.loss_fn(part.inputs, part.targets).detach()) for part in parts])


def _terms(risk: EmpiricalRisk, example: Batch) -> float:
    # targets that are no tensor do not tell
    return risk.weight_of(example) if isinstance(example.targets, Tensor) else 1.0


def _labels(tensors: tuple[Tensor, ...], batch: Batch) -> NDArray[np.int64] | None:
    targets = batch.targets
    if not isinstance(targets, Tensor) or targets.is_floating_point() or len(tensors) != 1:
        return None
    if targets.dim() != 1 or tensors[0].dim() != 2 or tensors[0].shape[1] < 2:
        return None
    return targets.cpu().numpy().astype(np.int64)


def _flat(tensor: Tensor, count: int) -> Floats:
    return tensor.detach().reshape(count, -1).double().cpu().numpy()
