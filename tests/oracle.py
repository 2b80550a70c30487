"""Curvature matrices by torch.func on the whole risk at once, without a line of the package's own autograd."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from pyhessian_spectra import EmpiricalRisk


class Oracle:
    """Dense matrices of a risk, assembled from the user's batches by hand."""

    def __init__(self, risk: EmpiricalRisk) -> None:
        self.risk = risk
        parameters = {name: p.detach() for name, p in risk.model.named_parameters()}
        self.theta = torch.cat([parameters[name].reshape(-1) for name in risk.layout.names])

    def outputs(self, theta: Tensor, inputs: object) -> Tensor:
        pieces, start = {}, 0
        for name, shape in self.risk.layout.shapes.items():
            pieces[name] = theta[start : start + shape.numel()].view(shape)
            start += shape.numel()
        constants = {name: p.detach() for name, p in self.risk.model.named_parameters()}
        buffers = {name: b.clone() for name, b in self.risk.model.named_buffers()}
        args, kwargs = ((), inputs) if isinstance(inputs, Mapping) else ((inputs,), {})
        self.risk.model.train(self.risk.mode == "train")
        with sdpa_kernel(SDPBackend.MATH):
            # of a copy, since a module at two places is left with other parameters
            return functional_call(copy.deepcopy(self.risk.model), {**constants, **pieces, **buffers}, args, kwargs)

    def _batches(self) -> list[tuple[object, Tensor]]:
        batches = []
        for raw in self.risk.data:
            if isinstance(raw, Mapping):
                batches.append(({k: v for k, v in raw.items() if k != "labels"}, raw["labels"]))
            else:
                batches.append(tuple(raw))
        return batches

    def _weights(self) -> list[float]:
        """Terms in each batch's mean, from the meaning of the loss and not from the package."""
        class_weights = getattr(self.risk.loss_fn, "weight", None)
        weights = []
        for _, y in self._batches():
            if y.is_floating_point():
                weights.append(y.numel())
            elif class_weights is not None:
                weights.append(float(sum(class_weights[int(label)] for label in y)))
            else:
                weights.append(int((y != -100).sum()))
        return weights

    def loss(self, theta: Tensor) -> Tensor:
        weights = self._weights()
        total = sum(
            w * self.risk.loss_fn(self.outputs(theta, x), y)
            for w, (x, y) in zip(weights, self._batches(), strict=True)
            if w
        )
        return total / sum(weights)

    def gradient(self) -> Tensor:
        return grad(self.loss)(self.theta)

    def hessian(self) -> Tensor:
        if self.risk.mode == "train":
            # torch 2.13: vmap over the double backward of batch_norm in train mode gets d/d(weight) wrong, and
            # torch.func.hessian is a vmap; unbatched columns of the same derivative are right
            basis = torch.eye(len(self.theta), dtype=self.theta.dtype)
            return torch.stack([jvp(grad(self.loss), (self.theta,), (e,))[1] for e in basis], dim=1)
        return hessian(self.loss)(self.theta)

    def ggn(self) -> Tensor:
        weights, total = self._weights(), 0.0
        for w, (x, y) in zip(weights, self._batches(), strict=True):
            if not w:
                continue
            z = self.outputs(self.theta, x)
            jacobian = jacrev(lambda theta, x=x: self.outputs(theta, x))(self.theta).reshape(z.numel(), -1)
            outer = hessian(lambda z, y=y: self.risk.loss_fn(z, y))(z).reshape(z.numel(), z.numel())
            total = total + w * jacobian.T @ outer @ jacobian
        return total / sum(weights)

    def fisher(self) -> Tensor:
        """Sum over single-example batches of the weighted outer products of their gradients."""
        single = [
            ({k: v[i : i + 1] for k, v in x.items()} if isinstance(x, Mapping) else x[i : i + 1], y[i : i + 1])
            for x, y in self._batches()
            for i in range(len(y))
        ]
        total, weights = 0.0, 0.0
        outer = Oracle.__new__(Oracle)
        outer.risk, outer.theta = self.risk, self.theta
        outer._batches = lambda: single  # type: ignore[method-assign]
        for w, (x, y) in zip(outer._weights(), single, strict=True):
            if w:
                g = grad(lambda theta, x=x, y=y: self.risk.loss_fn(self.outputs(theta, x), y))(self.theta)
                total, weights = total + w * torch.outer(g, g), weights + w
        return total / weights
