"""Trace penalties on the risks of tests, and a deep network to choose groups of."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator
from pyhessian_spectra.regularisers import TracePenalty, trace_penalty

MATRICES = {HessianOperator: Oracle.hessian, GGNOperator: Oracle.ggn}
both_matrices = pytest.mark.parametrize("matrix", MATRICES, ids=lambda matrix: matrix.kind)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def penalty_of(risk: EmpiricalRisk, **options) -> TracePenalty:
    groups = options.pop("groups", list(risk.layout.names))
    return trace_penalty(risk.model, risk.loss_fn, mode=risk.mode, groups=groups, **options)


def on_its_batch(penalty: TracePenalty, risk: EmpiricalRisk) -> Tensor:
    (batch,) = risk.data
    return penalty(batch)


class Deep(nn.Sequential):
    def __init__(self) -> None:
        super().__init__()
        for name, layer in zip(
            "abcde", (nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)), strict=True
        ):
            self.add_module(name, layer)


def deep(**options) -> TracePenalty:
    return trace_penalty(Deep(), nn.CrossEntropyLoss(), **options)


BATCH = (torch.eye(2), torch.tensor([0, 1]))
