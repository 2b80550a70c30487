"""Directions in which to look at a loss: to another checkpoint, or at random with the network's own scale."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pyhessian_spectra.curvature import EmpiricalRisk
from pyhessian_spectra.curvature.relative import filter_norms
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.space import VectorSpace


def towards(risk: EmpiricalRisk, state: Mapping[str, Tensor]) -> Tensor:
    """The vector (n,) from the model's parameters to those of another checkpoint of it, its ``state_dict()``.

    Raises InputError where a step of 1 along it would not lead to that checkpoint: a tensor is missing or has another
    shape, or one that is no coordinate differs, such as a running statistic in eval mode.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"state must be the state_dict() of the other checkpoint, got {type(state).__name__}")
    model, layout = risk.model, risk.layout
    if unknown := [name for name in state if name not in model.state_dict()]:
        raise InputError(
            f"the other checkpoint has {unknown[0]}, which the model does not have; it is of another model"
        )
    own = {**dict(model.named_parameters()), **(dict(model.named_buffers()) if risk.mode == "eval" else {})}
    for name, tensor in own.items():
        if name not in state or not isinstance(state[name], Tensor) or state[name].shape != tensor.shape:
            got = tuple(state[name].shape) if isinstance(state.get(name), Tensor) else "nothing"
            raise InputError(f"{name} must be {tuple(tensor.shape)} in the other checkpoint too, got {got}")
        given = state[name].to(tensor.device)
        if name not in layout.shapes and tensor.is_floating_point() and not torch.equal(given.to(tensor), tensor):
            raise InputError(
                f"{name} differs between the checkpoints and is no coordinate of the risk, so that the line would end "
                "elsewhere; let the risk have all parameters, and use mode='train' for statistics of batches"
            )
    pairs = ((state[name].to(own[name].device, risk.dtype), own[name].detach()) for name in layout.names)
    return layout.flatten([there - here for there, here in pairs])


def random_direction(risk: EmpiricalRisk, *, generator: torch.Generator) -> Tensor:
    """A normal random vector (n,) each of whose filters has the norm of the network's own filter.

    Li, Xu, Taylor, Studer and Goldstein 2018, section 4; see :func:`filter_norms` for what a filter is. Components of
    vectors, such as biases, are zero.
    """
    if not isinstance(generator, torch.Generator):
        raise InputError(f"generator must be a torch.Generator, got {generator!r}")
    layout, found = risk.layout, []
    drawn = VectorSpace(risk.n, dtype=risk.dtype, device=risk.device).randn(generator)
    for name, part in zip(layout.names, layout.unflatten(drawn), strict=True):
        norms = filter_norms(part)
        scaled = part * (filter_norms(risk.model.get_parameter(name).detach()) / norms)
        found.append(torch.where(norms > 0, scaled, torch.zeros_like(part)))
    return layout.flatten(found)
