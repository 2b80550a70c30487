"""What an analysis holds in memory: the linearisation, the Krylov basis, the eigenvectors, and little more."""

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
from test_basis import generator
from torch.multiprocessing.reductions import StorageWeakRef

from pyhessian_spectra import EmpiricalRisk, GGNOperator, HessianOperator, Linearised, Settings, analyze
from pyhessian_spectra.errors import OutOfMemoryError
from pyhessian_spectra.runs.doctor import examine
from pyhessian_spectra.spectra import basis as basis_module
from pyhessian_spectra.spectra.basis import readable
from pyhessian_spectra.spectra.cost import bytes_needed, bytes_of_basis

K, STEPS, MOST = 4, 20, 60
_CONSTANT = 40 * 2**20
# glibc gives freed tensors back at once, so that what is measured is what is held (else 6 % of it is chance)
_GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"}

_ANALYSES = """
import json, sys, threading, time
import psutil, torch
from test_memory import K, MOST, STEPS, network
from pyhessian_spectra import HessianOperator, analyze

torch.set_num_threads(1)
process = psutil.Process()
analyze(network(8), num_eigenvalues=2, exact_limit=0, layers=False)  # loads libraries, warms the allocator
risk = network(int(sys.argv[1]))
risk.gradient()
op = HessianOperator(risk)
op @ torch.ones(risk.n)
op @ torch.ones(risk.n)
linearisation = op.linearised_bytes
del op
before, peak, running = process.memory_info().rss, 0, True

def watch():
    global peak
    while running:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)

watcher = threading.Thread(target=watch)
watcher.start()
found = analyze(
    risk, num_eigenvalues=K, num_steps=STEPS, max_steps=MOST, tol=1e-9, exact_limit=0, layers=False,
    generator=torch.Generator().manual_seed(0),
)
running = False
watcher.join()
facts = found.full.spectrum.facts
print(json.dumps({"grown": peak - before, "linearisation": linearisation, "n": risk.n, **facts}))
"""


def network(width: int) -> EmpiricalRisk:
    layers = (torch.nn.Linear(300, width), torch.nn.Tanh(), torch.nn.Linear(width, 10))
    model = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.05, generator=generator())
    x = torch.randn(100, 300, generator=generator(1))
    return EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, torch.randint(10, (100,), generator=generator(2))))


@pytest.mark.slow
def test_a_report_takes_the_linearisation_and_the_basis_and_a_fifth_more():
    """And 40 MiB for the allocator and a block of vectors; the eigenvectors that are the result come on top."""
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent)])
    environment = {**os.environ, **_GIVEN_BACK, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", _ANALYSES, "2000"], env=environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    row = found["n"] * 4
    assert found["basis"].startswith("kept in memory") and found["steps"] >= MOST
    basis, result = MOST * row, 2 * K * row
    assert found["grown"] <= 1.2 * (found["linearisation"] + basis) + result + _CONSTANT
    # and the doctor's forecast holds
    settings = Settings(num_eigenvalues=K, num_steps=STEPS, max_steps=MOST, exact_limit=0)
    forecast = bytes_needed(settings, found["n"], torch.float32)
    forecast += bytes_of_basis(settings, found["n"], torch.float32)[2]
    assert found["grown"] <= found["linearisation"] + forecast + _CONSTANT


def sentences(settings: Settings) -> list[tuple[str, str]]:
    return [(finding.level, finding.sentence) for finding in examine(network(8), settings, layers=False)]


def free(monkeypatch, *, memory: int, disk: int) -> None:
    monkeypatch.setattr(basis_module, "free_bytes", lambda device: memory)
    usage = type("Usage", (), {"free": disk})
    monkeypatch.setattr(basis_module.shutil, "disk_usage", lambda folder: usage)


def test_the_doctor_says_what_of_the_basis_will_lie_where(monkeypatch):
    settings = Settings(num_eigenvalues=K, num_steps=STEPS, max_steps=MOST, exact_limit=0)
    least, expected, most = bytes_of_basis(settings, network(8).n, torch.float32)
    row = network(8).n * 4
    assert (least, expected, most) == (STEPS * row, 9 * K * row, MOST * row)
    said = f"about {readable(expected)} for the Krylov basis, at most {readable(most)}"
    free(monkeypatch, memory=10 * most, disk=0)
    assert ("ok", f"{said}: kept in memory: {readable(most)}") in sentences(settings)
    free(monkeypatch, memory=2 * 100 * 1024, disk=10 * most)
    assert ("ok", f"{said}: 100 KiB in memory, {readable(most - 100 * 1024)} on disk") in sentences(settings)
    free(monkeypatch, memory=2 * 100 * 1024, disk=2 * 100 * 1024)
    levels = {sentence: level for level, sentence in sentences(settings) if "Krylov basis" in sentence}
    assert list(levels.values()) == ["WARN"] and "restarts sooner" in next(iter(levels))
    free(monkeypatch, memory=2 * 100 * 1024, disk=0)
    with pytest.raises(
        OutOfMemoryError, match=f"{readable(least)} does not fit: 100 KiB would be kept in memory.*TMPDIR"
    ):
        sentences(settings)


def test_a_dense_matrix_needs_no_basis():
    settings = Settings()
    assert bytes_of_basis(settings, 2000, torch.float32) == (0, 0, 0)
    assert 16 * 2000**2 < bytes_needed(settings, 2000, torch.float32) < 32 * 2000**2
    assert not any("Krylov" in sentence for _, sentence in sentences(settings))


def test_a_budget_sends_the_lanczos_vectors_to_disk_and_changes_no_number():
    x, y = torch.randn(200, 20, generator=generator(0)), torch.randn(200, 20, generator=generator(1))
    layers = torch.nn.Sequential(torch.nn.Linear(20, 60), torch.nn.Tanh(), torch.nn.Linear(60, 20))
    risk = EmpiricalRisk(layers, torch.nn.MSELoss(), (x, y))
    settings = dict(num_eigenvalues=2, exact_limit=10, layers=False, num_steps=100, max_steps=100)
    kept, spilled = (
        analyze(risk, memory_budget=budget, generator=torch.Generator().manual_seed(0), **settings).full
        for budget in (None, 2**10)
    )
    assert "disk" in spilled.spectrum.facts["basis"] and "disk" not in kept.spectrum.facts["basis"]
    np.testing.assert_array_equal(spilled.largest.eigenvalues, kept.largest.eigenvalues)
    np.testing.assert_array_equal(spilled.spectrum.nodes, kept.spectrum.nodes)


@pytest.mark.parametrize("operator", [GGNOperator, HessianOperator])
def test_an_operator_that_is_dropped_leaves_nothing_behind(operator):
    """Saved outputs that lead back to the node that saved them are never freed."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3), torch.nn.LogSoftmax(1))
    data = torch.randn(128, 4, generator=torch.Generator().manual_seed(0)), torch.arange(128) % 3
    kept = []
    model[1].register_forward_hook(lambda module, inputs, output: kept.append(StorageWeakRef(output.untyped_storage())))
    for _ in range(3):
        op = operator(EmpiricalRisk(model, torch.nn.NLLLoss(), data))
        _ = op @ torch.ones(op.n)
        assert op.linearised is Linearised.KEPT
        del op
    gc.collect()
    assert len(kept) >= 3 and all(ref.expired() for ref in kept)
