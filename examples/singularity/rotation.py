"""A network in coordinates in which the directions that no example sees drop out: the same spectrum, many times faster.

What a first-layer unit gets is a product of its weights and bias with the examples, each with a 1 appended. In an
orthonormal basis of the span of these examples the coordinates beyond the span act on nothing: they are zeros of the
Hessian, and gradient descent never moves them. The others are a network without a first bias on the rotated examples,
whose Hessian has the remaining eigenvalues, as rotations change none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.singularity.common import network


@dataclass(frozen=True)
class Rotation:
    """An orthonormal basis (inputs + 1, r) of what the examples span, and the examples in it (N, r), in float64."""

    basis: Tensor
    x: Tensor

    @classmethod
    def onto(cls, x: Tensor) -> Rotation:
        """Onto the span of the examples ``x`` (N, inputs), each with a 1 appended."""
        extended = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
        _, sizes, rows = torch.linalg.svd(extended, full_matrices=False)
        rank = int((sizes > max(extended.shape) * torch.finfo(torch.float64).eps * sizes[0]).sum())
        basis = rows[:rank].T
        return cls(basis, extended @ basis)

    def model(self, hidden: int, outputs: int) -> nn.Sequential:
        """``network`` without its first bias, on the rotated inputs."""
        rest = list(network(1, hidden, outputs))[1:]
        return nn.Sequential(nn.Linear(self.basis.shape[1], hidden, bias=False), *rest)

    def unseen(self, hidden: int) -> int:
        """How many zeros the Hessian has beyond the rotated one's eigenvalues."""
        return hidden * (self.basis.shape[0] - self.basis.shape[1])

    def into(self, flat: Tensor, hidden: int) -> Tensor:
        """Parameters (n,) of ``network``, rotated; what no example sees of them is left out."""
        inputs = self.basis.shape[0] - 1
        weight, bias, rest = flat.double().split(
            [hidden * inputs, hidden, len(flat) - hidden * (inputs + 1)],
        )
        first = torch.cat([weight.view(hidden, inputs), bias[:, None]], dim=1) @ self.basis
        return torch.cat([first.flatten(), rest])

    def back(self, matrix: Tensor, hidden: int) -> Tensor:
        """A matrix in the rotated coordinates as one in those of ``network``."""
        inputs, rank = self.basis.shape[0] - 1, self.basis.shape[1]
        rest = len(matrix) - hidden * rank
        turned = torch.zeros(hidden * (inputs + 1) + rest, len(matrix), dtype=matrix.dtype)
        for unit in range(hidden):
            columns = slice(unit * rank, (unit + 1) * rank)
            turned[unit * inputs : (unit + 1) * inputs, columns] = self.basis[:-1]
            turned[hidden * inputs + unit, columns] = self.basis[-1]
        turned[hidden * (inputs + 1) :, hidden * rank :] = torch.eye(rest, dtype=matrix.dtype)
        return turned @ matrix @ turned.T
