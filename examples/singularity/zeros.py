"""Null directions of a network with two hidden ReLU layers that are forced, whatever the gradient, counted by cause.

A step along one of them leaves every output, or the softmax of it, as it is, from any point near by: ``H d = 0``
exactly. Rescaling a unit changes nothing either, but its direction turns as the parameters move, so that
``H A_j w = -A_j g`` is only as small as the gradient: :func:`rescalings`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.singularity.common import unflatten

CAUSES = ("unseen inputs", "dead units", "partly active units", "softmax shift")


@dataclass(frozen=True)
class ForcedZeros:
    """Orthonormal null directions, a row each (k, n), and how many there are for each cause."""

    directions: Tensor
    causes: dict[str, int]

    def __len__(self) -> int:
        return len(self.directions)


def forced_zeros(model: nn.Module, flat: Tensor, x: Tensor) -> ForcedZeros:
    """Directions that no example sees at the float64 parameters ``flat`` (n,).

    - *unseen inputs*: combinations of inputs and bias that are zero for every example, for each first-layer unit;
      constant inputs are among them;
    - *dead units*: what else enters or leaves a unit that is off for every example, or on with none on behind it;
    - *partly active units*: combinations that are zero for the examples on which a unit is on;
    - *softmax shift*: a unit of the last hidden layer, or the bias, added to all logits.
    """
    named = unflatten(model, flat)
    weights, inputs = named["0.weight"], x.double()
    if biased := "0.bias" in named:
        weights = torch.cat([weights, named["0.bias"][:, None]], dim=1)
        inputs = torch.cat([inputs, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    first = torch.relu(inputs @ weights.T)
    on_second = first @ named["2.weight"].T + named["2.bias"] > 0
    on_first = (first > 0) & on_second.any(dim=1, keepdim=True)
    rows: list[Tensor] = []
    causes = dict.fromkeys(CAUSES, 0)

    def add(count: int, **causes_of_them: int) -> dict[str, Tensor]:
        """So many rows of zeros, as views by parameter."""
        rows.append(torch.zeros(count, len(flat), dtype=torch.float64))
        for cause, part in causes_of_them.items():
            causes[cause.replace("_", " ")] += part
        return _views(model, rows[-1])

    never = len(_null_space(inputs))
    for unit, on in enumerate(on_first.T):
        unseen = _null_space(inputs[on])
        rest = "partly_active_units" if on.any() else "dead_units"
        at = add(len(unseen), unseen_inputs=never, **{rest: len(unseen) - never})
        at["0.weight"][:, unit] = unseen[:, : x.shape[1]]
        if biased:
            at["0.bias"][:, unit] = unseen[:, -1]
    for unit, on in enumerate(on_second.T):
        for source in (~on_first[on].any(dim=0)).nonzero()[:, 0]:
            alive = on.any() and on_first[:, source].any()
            add(1, **{"partly_active_units" if alive else "dead_units": 1})["2.weight"][0, unit, source] = 1
        if not on.any():
            add(1, dead_units=1)["2.bias"][0, unit] = 1
    # the first column adds to all logits alike, the others complete it to a basis
    classes = len(named["4.bias"])
    logits = torch.linalg.qr(torch.eye(classes, dtype=torch.float64).index_fill(1, torch.tensor(0), 1.0))[0].T
    for unit, on in enumerate(on_second.T):
        dead = 0 if on.any() else classes - 1
        add(1 + dead, softmax_shift=1, dead_units=dead)["4.weight"][:, :, unit] = logits[: 1 + dead]
    add(1, softmax_shift=1)["4.bias"][0] = logits[0]
    return ForcedZeros(torch.cat(rows), causes)


def rescalings(model: nn.Module, flat: Tensor) -> Tensor:
    """``A_j w`` for each unit of both hidden layers, a row each: +1 on what enters a unit, -1 on what leaves it."""
    units = [(layer, unit) for layer in (0, 2) for unit in range(model[layer].out_features)]
    generators = torch.zeros(len(units), len(flat), dtype=flat.dtype)
    at = _views(model, generators)
    for row, (layer, unit) in enumerate(units):
        at[f"{layer}.weight"][row, unit] = at[f"{layer}.bias"][row, unit] = 1
        at[f"{layer + 2}.weight"][row, :, unit] = -1
    return generators * flat


def beyond(rows: Tensor, directions: Tensor) -> Tensor:
    """An orthonormal basis, a row each, of what ``rows`` add to the span of orthonormal ``directions``."""
    rest = rows
    for _ in range(2):
        rest = rest - (rest @ directions.T) @ directions
    _, sizes, basis = torch.linalg.svd(rest, full_matrices=False)
    return basis[sizes > 1e-8 * rows.norm(dim=1).max()]


def _null_space(matrix: Tensor) -> Tensor:
    """Orthonormal rows that span the null space; all of space where the matrix has no row."""
    if not len(matrix):
        return torch.eye(matrix.shape[1], dtype=matrix.dtype)
    _, sizes, basis = torch.linalg.svd(matrix)
    return basis[int((sizes > max(matrix.shape) * torch.finfo(matrix.dtype).eps * sizes[0]).sum()) :]


def _views(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """Views of rows (k, n) by parameter, (k, *shape)."""
    named = dict(model.named_parameters())
    parts = rows.split([p.numel() for p in named.values()], dim=1)
    return {name: part.view(len(rows), *p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
