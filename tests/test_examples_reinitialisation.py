"""The reproduction of re-initialisation by the Hessian: what it counts, what decides its claims, what it published."""

import numpy as np
import pytest
import torch
from published import LAYERWISE, read
from torch import nn

from examples import experiment
from examples.layerwise import reinitialisation, resetting
from examples.layerwise.reinitialisation_claims import CRITERIA, summary

FIGURES = ("reinitialisation", "reinitialisation_choices")


def test_the_fast_setting_writes_its_results_gives_no_verdict_and_resumes(tmp_path, capsys):
    arguments = ["--fast", "--out", str(tmp_path)]
    reinitialisation.main(arguments)
    printed, runs = capsys.readouterr().out, tmp_path / "reinitialisation_runs.jsonl"
    endings = ("reinitialisation.json", "reinitialisation.npz", runs.name, *(f"{name}.png" for name in FIGURES))
    assert {path.name for path in tmp_path.iterdir()} == set(endings)
    document = read(tmp_path / "reinitialisation.json")
    assert document["command"] == "python -m examples.layerwise.reinitialisation --fast --seed 0"
    assert [finding["rule"] for finding in document["findings"]] == [each.rule for each in CRITERIA]
    for finding in document["findings"]:
        assert finding["verdict"] == "no verdict from a fast run"
        assert f"({finding['claim']}) no verdict from a fast run: {finding['statement']}" in printed
    finished = runs.read_text()
    reinitialisation.main(arguments)
    assert runs.read_text() == finished and read(tmp_path / "reinitialisation.json") == document


def test_arms_share_their_start_and_the_order_of_their_batches():
    """Until the first reset all arms of one seed are the same network."""
    setting = resetting.Setting("digits", (20, 20), 500, 2, 50, pooled_seeds=0)
    found = {arm: resetting.train({"arm": arm, "seed": 3}, setting) for arm in ("plain", "top 10", "random 10")}
    first = {arm: [each[f"before_{name}"][0] for name in resetting.CURVES] for arm, each in found.items()}
    assert first["plain"] == first["top 10"] == first["random 10"]
    assert found["plain"]["before_test_loss"] == found["plain"]["after_test_loss"]
    assert found["top 10"]["before_test_loss"][0] != found["top 10"]["after_test_loss"][0]


def test_scores_of_the_layers_above_are_those_of_the_whole_network():
    model, x = resetting.network((5, 8, 6, 4), 0), torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 4
    whole = resetting.CurvatureReinitializer(resetting.network((5, 8, 6, 4), 0), nn.CrossEntropyLoss(), layers=2, k=10)
    chosen = resetting._chosen(model, x, y, 30, layers=2)
    for found, wanted in zip(chosen.values(), whole.step((x, y)).coordinates.values(), strict=True):
        assert torch.equal(found, wanted)


def curves(test, *, train=1.0, after=None):
    """A run's curves with these test accuracies."""
    found = {f"{when}_{name}": [0.5] * len(test) for when in ("before", "after") for name in resetting.CURVES}
    found["before_test_accuracy"], found["before_train_accuracy"] = list(test), [train] * len(test)
    found["after_test_accuracy"] = list(test if after is None else after)
    return found


def test_a_run_is_summed_up_as_the_rule_says():
    found = summary(curves([0.90, 0.952, 0.94, 0.96, 0.96, 0.96, 0.96, 0.96]), 8)
    assert found["accuracy"] == pytest.approx(96.0) and found["gap"] == pytest.approx(4.0)
    assert found["area"] == pytest.approx(94.9) and found["falls"] == 1
    assert found["epochs_to"] == {"95": 2, "96": 4, "97": 9}
    assert summary(curves([0.9, 0.49]), 2) == {"dead": True}
    broken = curves([0.9, 0.9])
    broken["after_train_loss"][1] = float("nan")
    assert summary(broken, 2) == {"dead": True}


def numbers_of(**arms):
    """Numbers with these final accuracies by arm, one for each seed; None is a dead run."""
    runs = {
        name: {
            str(seed): {"dead": True} if value is None else summary(curves([value / 100] * 6), 6)
            for seed, value in enumerate(each)
        }
        for name, each in arms.items()
    }
    return {"epochs": 6, "arms": {name.replace("_", " "): each for name, each in runs.items()}}


def verdict(statement, numbers):
    (criterion,) = (each for each in CRITERIA if each.statement.startswith(statement))
    return criterion.decide(numbers)[0]


def test_a_claim_holds_where_its_interval_lies_on_its_side_and_dead_runs_count_in_no_pair():
    plain = [95.0, 95.5, 96.0, 95.2]
    better, noisy = [each + 0.2 + 0.01 * i for i, each in enumerate(plain)], [95.9, 95.1, 96.4, 94.8]
    claim = "k = 10 ends with a higher accuracy than plain"
    assert verdict(claim, numbers_of(plain=plain, top_10=better))
    assert not verdict(claim, numbers_of(plain=plain, top_10=noisy))
    assert not verdict(claim, numbers_of(plain=better, top_10=plain))
    assert verdict(claim, numbers_of(plain=[*plain, 95.0], top_10=[*better, None]))


def test_convergence_is_judged_by_accuracies_that_half_of_the_plain_runs_reach():
    claim = "k = 10 converges faster"
    runs = numbers_of(plain=[95.5] * 4, top_10=[95.5] * 4)
    assert not verdict(claim, runs)  # alike
    for seed in range(4):
        runs["arms"]["plain"][str(seed)]["epochs_to"]["95"] = 4 + seed % 2
    assert verdict(claim, runs)  # 96 and 97 % are reached by nobody
    assert not verdict(claim, numbers_of(plain=[90.0] * 4, top_10=[90.0] * 4))


def test_weights_have_an_impact_if_zeroing_them_costs_more_than_zeroing_random_ones():
    def zeroed(top):
        cost = {"top 10": top, "random 10": 0.1, "bottom 10": 0.0}
        return {
            str(seed): {
                key: {"train_loss": c + 0.001 * seed * (key == "top 10"), "test_accuracy": 0.0}
                for key, c in cost.items()
            }
            for seed in range(5)
        }

    claim = "weights of a high score have no impact"
    assert not verdict(claim, {"zeroed": zeroed(0.5)})
    assert verdict(claim, {"zeroed": zeroed(0.05)})


# ------------------------------------------------------------------------------------------------ what was published


def test_published_verdicts_follow_from_the_published_numbers():
    document = read(LAYERWISE / "reinitialisation.json")
    assert " --fast" not in document["command"] and document["shortened"]
    again = experiment.judge(CRITERIA, document["numbers"], fast=False, fewest=10**9)
    assert [vars(finding) for finding in again] == document["findings"]


def test_published_numbers_follow_from_the_published_curves():
    numbers, curves = read(LAYERWISE / "reinitialisation.json")["numbers"], np.load(LAYERWISE / "reinitialisation.npz")
    for arm, runs in numbers["arms"].items():
        for place, run in enumerate(runs.values()):
            one = {
                name: curves[f"{arm}/{name}"][place]
                for name in (f"{w}_{c}" for w in ("before", "after") for c in resetting.CURVES)
            }
            again = summary(one, numbers["epochs"])
            assert again["dead"] == run["dead"]
            if not run["dead"]:
                assert again["accuracy"] == pytest.approx(run["accuracy"], rel=2e-4)
                assert again["area"] == pytest.approx(run["area"], rel=2e-4)
