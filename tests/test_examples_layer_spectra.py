"""The reproduction of layers against the whole: what it measures, what decides its claims, what it published."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from published import LAYERWISE, read
from torch import nn
from torch.func import functional_call, hessian

from examples.layerwise import spectra, spectra_claims, trained
from examples.store import finished, run_all
from pyhessian_spectra import Spectrum
from pyhessian_spectra.analysis.metrics import wasserstein
from pyhessian_spectra.analysis.similarity import WHOLE

FIGURES = ("layer_spectra", "layer_spectra_depth", "layer_spectra_training")


def test_the_fast_setting_writes_its_results_gives_no_verdict_and_resumes(tmp_path, capsys):
    arguments = ["--fast", "--out", str(tmp_path)]
    spectra.main(arguments)
    printed, runs = capsys.readouterr().out, tmp_path / "layer_spectra_runs.jsonl"
    endings = ("layer_spectra.json", "layer_spectra.npz", runs.name, *(f"{name}.png" for name in FIGURES))
    assert {path.name for path in tmp_path.iterdir()} == set(endings)
    document = read(tmp_path / "layer_spectra.json")
    assert document["command"] == "python -m examples.layerwise.spectra --fast --seed 0"
    criteria = [each for name in trained.JUDGED for each in spectra_claims.criteria_of(name)]
    assert [finding["rule"] for finding in document["findings"]] == [each.rule for each in criteria]
    for finding in document["findings"]:
        assert finding["verdict"] == "no verdict from a fast run"
        assert f"({finding['claim']}) no verdict from a fast run: {finding['statement']}" in printed
    before = runs.read_text()
    spectra.main([*arguments, "--finished"])
    assert runs.read_text() == before and read(tmp_path / "layer_spectra.json") == document


# ------------------------------------------------------------------------------------------------ what is measured


class Small(nn.Sequential):
    """Two layers with an activation between them, on 1 x 3 x 3 images."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__(nn.Flatten(), nn.Linear(9, 5), activation, nn.Linear(5, 3))


def small(activation):
    """A small network, how it is analysed, images and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small(activation).double()
    x = torch.randn(30, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = trained.Network(Small, "", 3, (0,), a_class=4, num_eigenvalues=2, num_steps=20)
    return model, network, x, torch.arange(30) % 3


def dense_blocks(model, x, y):
    """The Hessian by torch.func, and the places of each layer's coordinates in it."""
    named = dict(model.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])
    parts = [p.numel() for p in named.values()]

    def loss(theta):
        values = {name: t.view(p.shape) for (name, p), t in zip(named.items(), theta.split(parts), strict=True)}
        return trained.LOSS(functional_call(model, values, (x,)), y)

    ends = np.cumsum([0, *parts])
    return hessian(loss)(flat), {"1": slice(ends[0], ends[2]), "3": slice(ends[2], ends[4])}


def test_what_is_summed_up_agrees_with_a_dense_hessian():
    model, network, x, y = small(nn.ReLU())
    chosen = trained.subset_of(y, 1, network.a_class)
    dense, places = dense_blocks(model, x[chosen], y[chosen])
    found = trained.summary(trained.analysed(model, network, x, y, 0, 1, coupled=False))
    top = float(torch.linalg.eigvalsh(dense)[-1])
    assert abs(found["lambda_1"] - top) <= found["lambda_1_error"] + 1e-4 * top  # five digits are kept
    assert found["trace"] == pytest.approx(float(dense.trace()), rel=1e-4)
    for label, place in places.items():
        layer, values = found["layers"][label], torch.linalg.eigvalsh(dense[place, place])
        assert layer["lambda_1"] == pytest.approx(float(values[-1]), rel=1e-4)
        assert layer["trace"] == pytest.approx(float(values.sum()), rel=1e-4)
        assert layer["apart"] < 1e-9


def test_a_layer_that_is_not_piecewise_linear_is_told_to_be_apart_from_its_gauss_newton_part():
    model, network, x, y = small(nn.Tanh())
    found = trained.summary(trained.analysed(model, network, x, y, 0, 0, coupled=False))
    assert found["layers"]["1"]["apart"] > spectra_claims.SMALL
    assert found["layers"]["3"]["apart"] < 1e-9  # the last layer is linear


def test_subsets_are_balanced_and_disjoint():
    y = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    chosen = [trained.subset_of(y, number, 5) for number in range(3)]
    assert len(torch.cat(chosen).unique()) == 3 * 4 * 5
    assert all(torch.bincount(y[each]).tolist() == [5] * 4 for each in chosen)


def test_statistics_of_batchnorm_are_those_of_the_images_and_the_model_keeps_its_own():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten())
    x = 3 + 2 * torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(model.state_dict())
    settled = trained.with_statistics(model, x)
    assert not settled.training and model.training
    assert torch.allclose(settled[0].running_mean, x.mean(dim=(0, 2, 3)), atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_both_steps_share_their_start():
    networks = {"narrow ResNet": dataclasses.replace(trained.FAST["narrow ResNet"], kept=(0, 1), subsets=1)}
    runs = [{"network": "narrow ResNet", "rate": rate, "seed": 3} for rate in (0.01, 0.05)]
    small_step, large = (trained.train(run, data=None, networks=networks)["checkpoints"] for run in runs)
    assert small_step[0] == large[0] and small_step[1]["trace"] != large[1]["trace"]


def spectrum(*values):
    return Spectrum.from_eigenvalues(values)


def test_the_null_is_the_distance_of_a_spectrum_from_itself_on_other_images():
    subsets = [
        {WHOLE: spectrum(0.0, 4.0), "a": spectrum(0.0, 2.0), "b": spectrum(0.0, 1.0)},
        {WHOLE: spectrum(0.0, 4.4), "a": spectrum(0.0, 2.0), "b": spectrum(0.0, 1.2)},
    ]
    found = trained.beside_whole(subsets, wasserstein)
    assert found["null"] == pytest.approx([0.2, 0.0, 0.1])
    assert found["distances"] == pytest.approx([1.1, (1.4 + 1.7) / 2])
    assert "null" not in trained.beside_whole(subsets[:1], wasserstein)
    assert set(trained.published(subsets)) == {"distances", "null"}


def test_all_networks_take_their_images():
    for name, network in trained.NETWORKS.items():
        with torch.random.fork_rng(devices=[]):
            model, channels = network.build(channels=1).eval(), 1
        assert model(torch.zeros(2, channels, network.side, network.side)).shape == (2, 10), name


def test_finished_runs_are_those_with_a_line(tmp_path):
    path, runs = tmp_path / "runs.jsonl", [{"seed": seed} for seed in range(3)]
    run_all(dict, runs[:2], path)
    assert finished(runs, path) == runs[:2]


# ------------------------------------------------------------------------------------------------ what decides


LAYERS = ("first", "second", "third", "last")


def run_with(rate=0.01, seed=0, *, distances=(2.0, 1.0, 1.5, 2.0), null=0.1, tops=(4.0, 3.0, 1.0), **last):
    """A run with these numbers under every metric, and this lambda_1 and trace at epochs 0, 1 and 8."""
    layer = {"apart": last.get("apart", 0.0)}
    checkpoints = [
        {
            "epoch": epoch,
            "lambda_1": top,
            "trace": top,
            "residual": [-0.5, 0.5],
            "layers": {name: {"lambda_1": top, "trace": top, **layer} for name in LAYERS},
        }
        for epoch, top in zip((0, 1, 8), tops, strict=True)
    ]
    found = {"distances": list(distances), "null": [null] * 5}
    outliers = last.get("outliers", (10, 9, 11, 10))
    return {
        "network": "LeNet",
        "rate": rate,
        "seed": seed,
        "counts": True,
        "checkpoints": checkpoints,
        "last": {
            "hessian": dict.fromkeys(spectra_claims.NAMES, found),
            "outliers": {name: [count] * 3 for name, count in zip(LAYERS, outliers, strict=True)},
        },
    }


def holds(claim, *runs):
    """The verdicts on a claim of LeNet, in their order."""
    numbers = {"runs": list(runs), "classes": 10}
    return [each.decide(numbers)[0] for each in spectra_claims.criteria_of("LeNet") if each.claim == claim]


def test_a_middle_layer_must_be_the_closest_in_most_runs_and_a_tie_is_none():
    middle, edge, tie = (run_with(distances=d) for d in ((2, 1, 2, 2), (1, 2, 2, 2), (2, 1, 1.005, 2)))
    assert all(holds("middle", *[middle] * 4, edge))
    assert not any(holds("middle", *[middle] * 3, edge, edge))
    assert not any(holds("middle", *[middle] * 3, tie, tie))


def test_both_ends_must_stand_above_the_middle_by_more_than_the_null():
    assert all(holds("U-shape", run_with()))
    assert not any(holds("U-shape", run_with(null=0.8)))
    assert not any(holds("U-shape", run_with(distances=(2.0, 1.0, 1.5, 1.3))))


def test_falling_is_judged_by_step_size_and_by_where_it_starts():
    fallen = [run_with(0.01, seed, tops=(4.0, 1.0 + 0.01 * seed, 2.0)) for seed in range(5)]
    risen = [run_with(0.05, seed, tops=(1.0, 1.0, 2.0 + 0.01 * seed)) for seed in range(5)]
    for claim in ("falls", "falls, layers"):
        assert holds(claim, *fallen, *risen) == [True, False, False, False] * 2  # per quantity: start by step


def test_one_layer_that_rises_decides_against_all():
    runs = [run_with(0.01, seed, tops=(4.0, 3.0, 1.0 + 0.01 * seed)) for seed in range(5)]
    runs += [run_with(0.05, seed, tops=(4.0, 3.0, 1.0 + 0.01 * seed)) for seed in range(5)]
    assert all(holds("falls, layers", *runs))
    for run in runs:
        run["checkpoints"][-1]["layers"]["third"]["trace"] = 5.0
    assert holds("falls, layers", *runs) == [True] * 4 + [False] * 4
    assert all(holds("falls", *runs))


def test_outliers_and_the_distance_from_the_gauss_newton_part_follow_the_numbers():
    assert holds("outliers", run_with()) == [True] and holds("outliers", run_with(outliers=(10, 7, 10, 10))) == [False]
    assert holds("G", run_with()) == [True] and holds("G", run_with(apart=0.02)) == [False]


def test_dead_runs_count_for_nothing():
    dead = {"network": "LeNet", "rate": 0.01, "seed": 0, "counts": False, "checkpoints": []}
    assert spectra_claims.counted({"runs": [dead, run_with()]}, "LeNet") == [run_with()]
    findings = spectra_claims.verdicts({"runs": [dead], "classes": 10}, fast=False)
    assert {finding.verdict for finding in findings} == {"no verdict: only 0 runs of one condition count"}


# ------------------------------------------------------------------------------------------------ what was published


def test_published_verdicts_follow_from_the_published_numbers():
    document = read(LAYERWISE / "layer_spectra.json")
    assert " --fast" not in document["command"] and document["shortened"]
    again = spectra_claims.verdicts(document["numbers"], fast=False)
    assert [vars(finding) for finding in again] == document["findings"]


def test_published_profiles_end_at_the_published_largest_eigenvalues():
    numbers, arrays = read(LAYERWISE / "layer_spectra.json")["numbers"], np.load(LAYERWISE / "layer_spectra.npz")
    for run in (each for each in numbers["runs"] if each["counts"]):
        for label, layer in run["checkpoints"][-1]["layers"].items():
            above = arrays[f"{run['network']}, step {run['rate']:g}, seed {run['seed']}/{label}"][0]
            top = arrays["grid"][np.flatnonzero(above > 0.5)[-1]]
            assert top <= 1.001 * layer["lambda_1"] <= 1.001 * top * trained.GRID[1] / trained.GRID[0]
