"""Data-parallel ranks take the steps of one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from test_distributed import batches, model
from torch import Tensor, nn

from pyhessian_spectra import EmpiricalRisk, Partition
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.optimisers import HessianFree, Newton, squared_gradients

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")

SHARES = ([0, 1, 2], [3])  # batches of each rank
STEPS = 3
SETTINGS = dict(damping=0.1, lr=0.5, max_cg_iterations=500, cg_rtol=1e-13)  # else rounding may end CG earlier


def by_risk(shares: list[int], group: object) -> Tensor:
    """The end of a few steps, on these batches of this rank; the curvature is of their first two examples."""
    net, data = model(), [batches()[i] for i in shares]
    risk = EmpiricalRisk(net, nn.CrossEntropyLoss(), data, group=group)
    subset = risk.replace(data=[(x[:2], y[:2]) for x, y in data])
    optimizer = HessianFree(net.named_parameters(), partition="layer", preconditioner=squared_gradients, **SETTINGS)
    for _ in range(STEPS):
        optimizer.step(risk, subset)
    Newton(net.parameters(), damping=2.0).step(risk)
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def by_closure(rows: list[slice], group: object) -> Tensor:
    """The same by closures, of the first of each of these rows."""
    net = model()
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))

    def closure(size: int):
        chosen = torch.cat([torch.arange(24)[part][:size] for part in rows])
        outputs = net(x[chosen])
        return nn.functional.cross_entropy(outputs, y[chosen]), outputs

    optimizer = HessianFree(net.parameters(), group=group, **SETTINGS)
    for _ in range(STEPS):
        optimizer.step(lambda: closure(12), lambda: closure(5))
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


ROWS = [slice(0, 12), slice(12, 24)]


def _on_rank(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    group = torch.distributed.group.WORLD
    found = [by_risk(SHARES[rank], group), by_closure([ROWS[rank]], group)]
    net = model()
    concave = EmpiricalRisk(net, [_fine, _concave][rank], [batches()[rank]], group=group)
    try:
        HessianFree(net.parameters()).step(concave)
    except InputError as error:
        said = str(error)
    generator = torch.Generator().manual_seed(rank)
    own = HessianFree(net.named_parameters(), partition=lambda at: Partition.at_random(at, 2, generator=generator))
    other = EmpiricalRisk(net, nn.CrossEntropyLoss(), [batches()[rank]], group=group)
    apart = HessianFree(net.parameters(), damping=0.1 * rank)
    state = apart.state_dict()
    state["param_groups"][0]["num_steps"] = 3
    resumed = HessianFree(net.parameters())
    resumed.load_state_dict(state)
    alike = []
    for optimizer in (own, apart, resumed):
        try:
            optimizer.step(other)
        except InputError as error:
            alike.append(str(error))
    torch.save(found, f"{path}.{rank}")
    Path(f"{path}.{rank}.json").write_text(json.dumps([said, *alike]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _fine(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.square().mean()


def _concave(outputs: Tensor, targets: Tensor) -> Tensor:
    return -outputs.square().mean()


def test_two_ranks_take_the_steps_of_one_process(tmp_path):
    path = str(tmp_path / "rendezvous")
    torch.multiprocessing.spawn(_on_rank, args=(path,), nprocs=2)
    alone = [by_risk([0, 1, 2, 3], None), by_closure(ROWS, None)]
    ranks = [torch.load(f"{path}.{rank}") for rank in range(2)]
    for one, other, expected in zip(*ranks, alone, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-11)
    (first, *alike), (second, *others) = (json.loads(Path(f"{path}.{rank}.json").read_text()) for rank in range(2))
    assert alike == others and "the same blocks" in alike[0] and all("the same settings" in said for said in alike[1:])
    assert len(alike) == 3
    assert "not positive semidefinite" in second and first == f"process 1 of 2 failed: {second}"
