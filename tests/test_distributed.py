"""Two processes give the numbers of one, whatever their shares and budgets; or one clear message on all."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from commands import write_problem
from torch import nn

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Linearised, analyze, loss_surface
from pyhessian_spectra.errors import NonFiniteError, SpectraError

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")

SIZES = (7, 3, 5, 9)  # of the batches
# batches of each rank, and its memory budget
SHARES = {
    "uneven": (((0, 1, 2), (3,)), (None, None)),
    "unequal budgets": (((0, 1), (2, 3)), (0, None)),
    "one rank without data": (((0, 1, 2, 3), ()), (None, None)),
    "one rank without data and budget": (((0, 1, 2, 3), ()), (None, 0)),
}
SETTINGS = dict(num_eigenvalues=3, num_steps=15, max_steps=40, trace_probes=12, tol=1e-6)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(sum(SIZES), 6, generator=generator, dtype=torch.float64), torch.arange(sum(SIZES)) % 3
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def model() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


def risk(chosen: tuple[int, ...] | None = None, *, reduction: str = "mean", **options) -> EmpiricalRisk:
    every = batches()
    data = every if chosen is None else [every[i] for i in chosen]
    return EmpiricalRisk(model(), nn.CrossEntropyLoss(reduction=reduction), data, **options)


def found_of(own: EmpiricalRisk) -> dict:
    """Loss, gradient, matrices and two analyses."""
    found = {"loss": own.loss(), "gradient": own.gradient().numpy(), "N": own.num_examples, "b": own.num_batches}
    for operator in (HessianOperator, GGNOperator):
        op = operator(own)
        found[op.kind] = op.to_dense().numpy()
        found[f"{op.kind} kept"] = op.linearised is Linearised.KEPT
    for limit in (0, 3000):
        generator = torch.Generator().manual_seed(2)
        analysis = analyze(own, exact_limit=limit, generator=generator, **SETTINGS)
        for name, block in analysis.layers.items():  # whose lower edge is a cluster at zero, in no certain order
            found[f"{limit} {name}"] = np.r_[block.largest.eigenvalues, block.smallest.eigenvalues]
        full = analysis.full
        found[f"{limit} whole"] = np.r_[full.largest.eigenvalues, full.smallest.eigenvalues, full.trace.value]
        found[f"{limit} data"] = np.r_[full.largest.data_stderr, full.trace.data_stderr]
        found[f"{limit} groups"] = np.array([[t.value, t.data_stderr] for t in full.group_traces.values()])
    line = loss_surface(own, own.gradient(), positions=[-1.0, 0.5])
    found["line"] = np.r_[line.loss, line.loss_stderr, line.rise_stderr, line.model, line.model_stderr]
    return found


def _alike(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    found, group = {}, torch.distributed.group.WORLD
    for case, (shares, budgets) in SHARES.items():
        for reduction in ("mean", "sum"):
            own = risk(shares[rank], reduction=reduction, group=group, memory_budget=budgets[rank])
            found[case, reduction] = found_of(own)
    torch.save(found, f"{path}.{rank}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks has found, in all cases: they are started once."""
    path = str(tmp_path_factory.mktemp("ranks") / "rendezvous")
    torch.multiprocessing.spawn(_alike, args=(path,), nprocs=2)
    return [torch.load(f"{path}.{rank}", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", SHARES)
def test_two_ranks_equal_one_process(on_two_ranks, case, reduction):
    alone = found_of(risk(reduction=reduction))
    keep = 0 not in SHARES[case][1]
    for found in (every[case, reduction] for every in on_two_ranks):
        for name, expected in alone.items():
            if name.endswith("kept"):
                assert found[name] == keep, name  # all ranks keep linearisations, or none does
            else:
                np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-11, err_msg=name)


class _Failing(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == SIZES[3]:
            raise RuntimeError("no such kernel")
        return self.inner(x)


FAILURES = {
    "model": "RuntimeError: no such kernel",
    "rebuilt": "RuntimeError: no such kernel",
    "data": "NaN or infinite",
    "unreadable": "cannot be read as",
}


def _failing(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    said, group = {}, torch.distributed.group.WORLD
    for case in FAILURES:
        data = [batches()[:3], batches()[3:]][rank]
        net = model() if case in ("data", "unreadable") else _Failing(model())
        if rank == 1 and case == "data":
            data = [(x * np.nan, y) for x, y in data]
        if rank == 1 and case == "unreadable":
            data = [(x, y, y) for x, y in data]
        budget = 0 if case == "rebuilt" else None
        try:
            own = EmpiricalRisk(net, nn.CrossEntropyLoss(), data, group=group, memory_budget=budget)
            HessianOperator(own).to_dense()
            said[case] = ("nothing", "")
        except SpectraError as error:
            said[case] = (type(error).__name__, str(error))
    Path(f"{path}.{rank}").write_text(json.dumps(said))
    own = group = None  # gloo's threads abort where the group outlives its end
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_a_rank_that_fails_ends_all_with_one_message(tmp_path):
    path = str(tmp_path / "rendezvous")
    torch.multiprocessing.spawn(_failing, args=(path,), nprocs=2)
    other, own = (json.loads(Path(f"{path}.{rank}").read_text()) for rank in range(2))
    for case, sentence in FAILURES.items():
        assert own[case][0] == other[case][0] == (NonFiniteError.__name__ if case == "data" else "InputError")
        assert sentence in own[case][1] and other[case][1] == f"process 1 of 2 failed: {own[case][1]}"


def _torchrun(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "pyhessian_spectra"]
    return subprocess.run(
        [*launch, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def numbers(document: dict) -> list[float]:
    """All numbers of an entry, in order, but for times."""
    if isinstance(document, dict):
        return [n for k, v in document.items() if k not in ("timing", "facts") for n in numbers(v)]
    if isinstance(document, list):
        return [n for v in document for n in numbers(v)]
    return [float(document)] if isinstance(document, (int, float)) and not isinstance(document, bool) else []


@pytest.mark.slow
def test_the_command_line_under_torchrun_gives_the_numbers_of_one_process(folder, cli):
    ask = ("report", "a.pt", "--dtype", "float64", "--num-eigenvalues", 3, "--num-steps", 10, "--exact-limit", 0)
    assert cli(*ask, "--out", "alone").status == 0
    done = _torchrun(folder, *ask, "--out", "together")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("largest eigenvalue") == 1  # only the first process speaks
    alone, together = (json.loads((folder / out / "results.json").read_text()) for out in ("alone", "together"))
    assert together["problem"]["N"] == 24 and together["full"]["trace"]["data_stderr"] is not None
    np.testing.assert_allclose(numbers(together["full"]), numbers(alone["full"]), rtol=1e-6, atol=1e-10)
    for name, layer in alone["layers"].items():  # how a cluster at zero is deflated, rounding decides
        found = [row["eigenvalue"] for row in together["layers"][name]["largest"]]
        np.testing.assert_allclose(found, [row["eigenvalue"] for row in layer["largest"]], rtol=1e-6)
    assert not list(folder.glob(".together*"))


KILLED = "os.environ.get('KILLED') == f'{checkpoint} {len(calls)}' and os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.slow
def test_a_run_under_torchrun_that_was_killed_goes_on_from_its_products(folder):
    """Every product evaluates the loss again; a process is killed in the middle, and torchrun ends the other."""
    write_problem(folder, f"{KILLED} or F.cross_entropy(z, y)")
    text = (folder / "own.py").read_text()
    whole = '(torch.from_numpy(data["x"]), torch.from_numpy(data["y"]))'
    assert whole in text
    (folder / "own.py").write_text(text.replace(whole, f"[(x, y) for x, y in zip(*(t.split(12) for t in {whole}))]"))
    ask = ("report", "a.pt", "--problem", "own:risk", "--memory-budget", 0, "--exact-limit", 0, "--layers", "none")
    ask += ("--num-eigenvalues", 2, "--num-steps", 10, "--out", "o")
    killed = _torchrun(folder, *ask, KILLED="a.pt 40")
    assert killed.returncode != 0 and not (folder / "o").exists()
    resumed = _torchrun(folder, *ask)
    assert resumed.returncode == 0, resumed.stderr
    (note,) = [line for line in resumed.stderr.splitlines() if line.startswith("a.pt: Resumed: ")]
    assert int(note.split()[2]) >= 10
    refused = _torchrun(folder, *ask)
    assert refused.returncode != 0 and refused.stderr.count("exists and is not empty") == 1
