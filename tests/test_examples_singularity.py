"""The experiments of examples/singularity: what decides their claims, what they count, and what they have published."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from published import SINGULARITY, read
from torch.func import hessian

from examples import experiment

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples" / "singularity"
FIGURES = {
    "growing_networks": ("growing_networks", "heatmaps"),
    "many_starts": ("many_starts",),
    "growing_blobs": ("growing_blobs", "blobs"),
    "mnist": ("mnist", "random_inputs"),
    "interpolation": ("interpolation",),
}


@pytest.fixture
def example():
    """Import an example as ``python -m examples.singularity.name`` would."""
    return lambda name: importlib.import_module(f"examples.singularity.{name}")


@pytest.mark.parametrize("name", FIGURES)
def test_the_fast_setting_writes_its_results_and_gives_no_verdict(name, example, tmp_path, capsys):
    example(name).main(["--fast", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    expected = {f"{name}.json", f"{name}.npz", *(f"{figure}.png" for figure in FIGURES[name])}
    assert {path.name for path in tmp_path.iterdir()} == expected
    document = read(tmp_path / f"{name}.json")
    assert document["command"] == f"python -m examples.singularity.{name} --fast --seed 0"
    assert [finding["rule"] for finding in document["findings"]] == [each.rule for each in example(name).CRITERIA]
    for finding in document["findings"]:
        assert finding["verdict"] == "no verdict from a fast run"
        assert f"({finding['claim']}) no verdict from a fast run: {finding['statement']}" in printed


# ------------------------------------------------------------------------------------------------ what was published


def published(name: str) -> dict:
    return read(SINGULARITY / f"{name}.json")


@pytest.mark.parametrize("name", FIGURES)
def test_published_verdicts_follow_from_the_published_numbers(name, example):
    document = published(name)
    assert " --fast" not in document["command"] and document["shortened"]
    again = experiment.judge(example(name).CRITERIA, document["numbers"], fast=False, fewest=10**9)
    assert [vars(finding) for finding in again] == document["findings"]


def test_the_page_is_what_the_published_numbers_give(example):
    assert (ROOT / "docs" / "reproductions" / "singularity.rst").read_text() == example("page").render(SINGULARITY)


def test_published_numbers_follow_from_the_published_spectra():
    for n, entry in published("growing_networks")["numbers"]["networks"].items():
        spectra = np.load(SINGULARITY / "growing_networks.npz")[f"n = {n}"]
        assert spectra.shape == (entry["counted"], int(n))
        assert np.median(spectra[:, -2]) == pytest.approx(entry["largest"][1]["median"], rel=2e-4)
    for key, entry in published("mnist")["numbers"]["conditions"].items():
        spectra = np.load(SINGULARITY / "mnist.npz")[key].astype(float)
        assert len(spectra) == entry["runs"]
        assert np.median(spectra.sum(axis=1) / spectra[:, -1]) == pytest.approx(
            entry["trace_over_top"]["median"], rel=1e-3
        )
    for tolerance, entries in published("growing_blobs")["numbers"]["tolerances"].items():
        for deviation, entry in entries.items():
            spectra = np.load(SINGULARITY / "growing_blobs.npz")[f"tolerance {tolerance}, std {deviation}"]
            assert np.median(spectra[:, -1]) == pytest.approx(entry["largest"][0]["median"], rel=2e-4)
    numbers = published("many_starts")["numbers"]
    top = np.load(SINGULARITY / "many_starts.npz")["three_largest"]
    assert len(top) == numbers["counted"]
    assert np.median(top[:, 0]) == pytest.approx(numbers["largest"][0]["median"], rel=2e-4)
    for name, surface in np.load(SINGULARITY / "interpolation.npz").items():
        step, line = name.removeprefix("step ").split(", ", 1)
        for run in published("interpolation")["numbers"]["step_lengths"][step][line]:
            assert surface[run["pair"], :, surface.shape[2] // 2] == pytest.approx(run["middle"], rel=1e-3)


def test_published_files_are_small():
    assert all(path.stat().st_size < 150_000 for path in SINGULARITY.glob("*.png"))
    assert sum(path.stat().st_size for path in SINGULARITY.glob("*.npz")) < 1_500_000


# ------------------------------------------------------------------------------------------------ what decides


def test_too_few_runs_decide_nothing(example):
    verdicts = experiment
    criterion = verdicts.Criterion("a", "statement", "rule", lambda numbers: (numbers["x"] > 0, "evidence"))

    def verdict(x: float, **settings) -> str:
        (finding,) = verdicts.judge([criterion], {"x": x}, **settings)
        return finding.verdict

    assert verdict(1.0, fast=False, fewest=5) == "came out"
    assert verdict(-1.0, fast=False, fewest=5) == "did NOT come out"
    assert verdict(1.0, fast=False, fewest=4) == "no verdict: only 4 runs of one condition count"
    assert verdict(1.0, fast=True, fewest=5) == "no verdict from a fast run"


def network_entry(near: float, edges: list[int], top: float, negative: float, found: int, beyond: int = 0) -> dict:
    return {
        "near_zero": {"median": near},
        "edges_above": edges,
        "largest": [{"median": top}, {"median": top / 2}],
        "small_negative_share": negative,
        "smallest_over_largest": {"median": -0.01},
        "zeros": {"found": [found], "forced": [5], "worst_residual": 1e-15, "beyond_bound": [beyond]},
    }


def holds(module, numbers: dict) -> list[bool]:
    return [each.decide(numbers)[0] for each in module.CRITERIA]


def test_criteria_on_growing_networks_follow_the_numbers(example):
    module = example("growing_networks")
    start = network_entry(0.5, [2, 2, 2, 2, 3], 1.0, 1.0, 5)
    good = {"networks": {"18": start, "74": network_entry(0.7, [2, 2, 2, 2, 2], 1.4, 0.8, 5)}}
    assert holds(module, good) == [True] * 7
    bad = {"networks": {"18": start, "74": network_entry(0.5, [3, 3, 3, 2, 2], 1.6, 0.7, 6, beyond=-1)}}
    assert holds(module, bad) == [False] * 7


def test_criteria_on_growing_blobs_follow_the_numbers(example):
    module = example("growing_blobs")

    def entry(middle: float, spread: float, error: float, counted: int = 5) -> dict:
        one = {"p10": middle / spread, "median": middle, "p90": middle * spread}
        return {"counted": counted, "largest": [one, one, one], "error": {"median": error}}

    def judged(first: dict, last: dict) -> list[bool]:
        # what too few runs count for is left out
        entries = {"0.3": first, "0.6": entry(0.1, 9.0, 0.0, counted=4), "1.0": last}
        other = {"0.3": first, "1.0": first}
        found = holds(module, {"tolerances": {"0.1": entries, "0.01": other}})
        assert not any(found[1::2])
        return found[::2]

    start = entry(1.0, 1.1, 0.0)
    assert judged(start, entry(100.0, 1.1, 0.1)) == [True, True, True]
    assert judged(start, entry(100.0, 20.0, 0.1)) == [False, False, True]
    assert judged(start, entry(0.5, 1.1, 0.0)) == [False, False, False]


def condition(hidden: int, near: float, top: float, count: int, ratio: float, runs: int = 5) -> dict:
    return {
        "hidden": hidden,
        "runs": runs,
        "small_negative_share": 1.0 if top < 10 else 0.5,
        "smallest_over_largest": {"median": -0.01},
        "near_zero": {"median": near},
        "lambda_1": {"median": top},
        "lambda_10": {"median": top / 9},
        "above_tenth": {"median": count, "range": [count, count]},
        "trace_over_top": {"range": [ratio, ratio]},
    }


def test_criteria_on_mnist_follow_the_numbers(example):
    module = example("mnist")
    good = {
        "h = 6, images, after": condition(6, 0.5, 1.0, 10, 5.0),
        "h = 8, images, after": condition(8, 0.6, 1.2, 12, 6.0),
        "h = 8, images, before": condition(8, 0.6, 1.2, 12, 6.0),
        "h = 8, random inputs, before": condition(8, 0.4, 1.0, 90, 40.0),
        "h = 8, random inputs, after": condition(8, 0.4, 1.0, 90, 40.0),
    }
    assert holds(module, {"conditions": good}) == [True] * 6
    # a count that is larger does not do where the ratio overlaps
    bad = {
        **good,
        "h = 6, images, after": condition(6, 0.7, 20.0, 30, 5.0),
        "h = 8, random inputs, before": condition(8, 0.4, 1.0, 90, 5.0),
        "h = 8, random inputs, after": condition(8, 0.4, 1.0, 11, 40.0),
    }
    assert holds(module, {"conditions": bad}) == [False] * 6
    few = {**good, "h = 10, images, after": condition(10, 0.1, 9.0, 50, 5.0, runs=4)}
    assert holds(module, {"conditions": few}) == [True] * 6


def test_criteria_on_interpolation_follow_the_numbers(example):
    module = example("interpolation")

    def numbers(one: tuple[float, float], orthogonal: tuple[float, float]) -> dict:
        lines = {
            line: [{"pair": 0, "barrier": [0.0, barrier], "middle": [1.0, last]}]
            for line, (barrier, last) in zip(module.LINES, (one, orthogonal), strict=True)
        }
        return {"classes": 10, "step_lengths": {"0.1": lines}}

    assert holds(module, numbers((0.1, 0.5), (0.2, 0.5))) == [True] * 4
    assert holds(module, numbers((0.2, 1.5), (0.1, 1.5))) == [False] * 4


# ------------------------------------------------------------------------------------------------ what is counted


def test_forced_zeros_are_null_and_counted_by_cause(example):
    common, zeros = example("common"), example("zeros")
    generator = torch.Generator().manual_seed(3)
    model = common.network(6, 4, 3).double()
    x = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    # two constant inputs; one unit off in each hidden layer
    x[:, 4:] = 0.5
    y = torch.randint(3, (40,), generator=generator)
    flat = torch.randn(common.size(model), generator=generator, dtype=torch.float64)
    named = common.unflatten(model, flat)
    named["0.bias"][1] = -100
    named["2.bias"][2] = -1000
    found = zeros.forced_zeros(model, flat, x)
    dense = hessian(common.flat_loss(model))(flat, x, y)
    assert float((dense @ found.directions.T).abs().max()) < 1e-12 * float(dense.abs().max())
    assert float((found.directions @ found.directions.T - torch.eye(len(found))).abs().max()) < 1e-12
    assert found.causes["softmax shift"] == 4 + 1
    assert found.causes["unseen inputs"] == 4 * 2
    # first layer: 5 more incoming, 4 outgoing weights; second: 4 - 1 incoming, the bias, 3 - 1 outgoing
    assert found.causes["dead units"] >= 5 + 4 + 3 + 1 + 2
    eigenvalues = torch.linalg.eigvalsh(dense)
    assert int((eigenvalues.abs() < 1e-12 * eigenvalues[-1]).sum()) >= len(found)


def test_rotated_coordinates_keep_the_loss_the_descent_and_the_spectrum(example):
    common, rotation = example("common"), example("rotation")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    x[:, 0] = 2.0
    y = torch.randint(3, (7,), generator=generator)
    model, flat = common.network(10, 4, 3).double(), 0.7 * torch.randn(79, generator=generator, dtype=torch.float64)
    onto = rotation.Rotation.onto(x)
    rotated, moved = onto.model(4, 3).double(), onto.into(flat, 4)
    loss, turned = common.flat_loss(model), common.flat_loss(rotated)
    assert float(turned(moved, onto.x, y)) == pytest.approx(float(loss(flat, x, y)), rel=1e-12)
    stepped = onto.into(flat - torch.func.grad(loss)(flat, x, y), 4)
    assert torch.allclose(stepped, moved - torch.func.grad(turned)(moved, onto.x, y), atol=1e-12)
    full, small = hessian(loss)(flat, x, y), hessian(turned)(moved, onto.x, y)
    assert torch.allclose(onto.back(small, 4), full, atol=1e-12)
    padded = torch.cat([torch.linalg.eigvalsh(small), torch.zeros(onto.unseen(4))]).sort().values
    assert len(padded) == 79 and onto.unseen(4) == 4 * (11 - 7)
    assert torch.allclose(padded, torch.linalg.eigvalsh(full), atol=1e-12)


def test_rescalings_shrink_with_the_gradient_and_are_not_forced(example):
    common, zeros = example("common"), example("zeros")
    model, (x, y) = common.network(2, 3, 2).double(), common.blobs(20, 0.3, 0)
    flat = common.fan_in_start(model, 0).double() + 0.1
    rows, x = zeros.rescalings(model, flat), x.double()
    loss = common.flat_loss(model)
    dense, gradient = hessian(loss)(flat, x, y), torch.func.grad(loss)(flat, x, y)
    signs = torch.where(flat != 0, rows / flat, 0)
    assert torch.allclose(rows @ dense, -signs * gradient, atol=1e-12)
    added = zeros.beyond(rows, zeros.forced_zeros(model, flat, x).directions)
    assert torch.allclose(added @ added.T, torch.eye(len(added), dtype=torch.float64), atol=1e-12)
    assert 0 < len(added) <= 6 and float(gradient.norm()) > 1e-2


def test_training_ends_at_the_tolerance_and_one_rule_sets_runs_aside(example):
    common, descent = example("common"), example("descent")
    data, model = common.blobs(20, 0.3, 0), common.network(2, 4, 2)
    starts = torch.stack([common.fan_in_start(model, seed) for seed in range(3)])
    # a network whose last hidden layer is off guesses for ever, with a gradient that vanishes
    common.unflatten(model, starts[2])["2.weight"][:] = -1
    runs = descent.train(model, data, starts, step=0.1, tolerance=1e-2, max_steps=20, max_evaluations=400)
    assert runs.counted.tolist() == [True, True, False]
    assert runs.losses[2] == pytest.approx(math.log(2), abs=1e-3)
    finished = runs.evaluations > 0
    assert finished[:2].all()
    assert runs.gradient_norms[:2] == pytest.approx([1e-2] * 2, rel=1e-2)
    assert runs.summary()["counted"] == 2
