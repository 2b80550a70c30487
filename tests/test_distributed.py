"""The risk over two ranks equals the risk of one process with all the data."""

from __future__ import annotations

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from pyhessian_spectra import EmpiricalRisk, HessianOperator


def _data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(10, 3, generator=generator, dtype=torch.float64), torch.arange(10) % 2


def _model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def _rank(rank: int, path: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    x, y = _data()
    part = slice(0, 7) if rank == 0 else slice(7, 10)  # uneven, and one batch each
    group = torch.distributed.group.WORLD
    risk = EmpiricalRisk(_model(), nn.CrossEntropyLoss(), (x[part], y[part]), group=group)
    torch.save((risk.loss(), HessianOperator(risk).to_dense()), f"{path}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_ranks_equal_one_process(tmp_path):
    path = str(tmp_path / "rendezvous")
    torch.multiprocessing.spawn(_rank, args=(path,), nprocs=2)
    risk = EmpiricalRisk(_model(), nn.CrossEntropyLoss(), _data())
    expected = HessianOperator(risk).to_dense()
    for rank in range(2):
        loss, found = torch.load(f"{path}.{rank}")
        assert loss == pytest.approx(risk.loss(), rel=1e-13)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
