"""The three tasks of block-diagonal Hessian-free: what is recorded of a run, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from examples import experiment
from examples.learning import autoencoder, claims, compare, judgements, lstm, resnet, runs, trainers
from examples.learning.trainers import Data
from pyhessian_spectra import EmpiricalRisk, Partition

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "learning"
TASKS = {
    task.name: (module, task)
    for module, tasks in (
        (autoencoder, (autoencoder.TASK,)),
        (lstm, (lstm.ROWS, lstm.PIXELS)),
        (resnet, (resnet.TASK,)),
    )
    for task in tasks
}
PUBLISHED = [name for name in TASKS if (RESULTS / f"{name}.json").exists()]


def reject_constant(name):
    raise ValueError(f"{name} is not JSON")


# ------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", TASKS)
def test_blocks_hold_every_parameter_once(name):
    _, task = TASKS[name]
    data = task.load(None, task.fast)
    risk = EmpiricalRisk(task.build(data, task.fast), task.loss, (data.train[0][:2], data.train[1][:2]))
    assert Partition.of(risk.layout, task.blocks).complete


def test_both_readings_of_sequential_have_the_same_pixels_in_the_same_order():
    rows, pixels = (task.load(None, task.fast).train[0] for task in (lstm.ROWS, lstm.PIXELS))
    assert rows.shape[1:] == (4, 4) and pixels.shape[1:] == (16, 1)
    assert torch.equal(rows.flatten(1), pixels.flatten(1))


def test_minibatches_are_epochs_of_full_ones_and_repeat_with_the_seed():
    drawn = runs.minibatches(11, 5, 3)
    first = [next(drawn) for _ in range(4)]
    assert all(len(batch) == 5 for batch in first)
    for epoch in (first[:2], first[2:]):
        assert len(torch.cat(epoch).unique()) == 10
    assert all(torch.equal(a, b) for a, b in zip(first, runs.minibatches(11, 5, 3), strict=False))
    assert not torch.equal(first[0], next(runs.minibatches(11, 5, 4)))


def least_squares(blocks, inputs=4):
    torch.manual_seed(0)
    x = torch.randn(30, inputs)
    data = Data((x, x @ torch.randn(inputs, 1)), (x, x @ torch.ones(inputs, 1)), "lines")
    setting = trainers.Setting(30, 20, 5, (8, 18, 19), 3, (0.1,), lr=1.0, solve_rtol=1e-3, records=3)
    return trainers.Task(
        "line", lambda data_, setting_: data, lambda d, s: nn.Linear(inputs, 1), nn.MSELoss(), blocks, *[setting] * 3
    )


def test_blocks_together_are_the_whole_where_there_is_one_block():
    task = least_squares({"all": ["weight", "bias"]})
    found = runs.solves(task, nn.Linear(4, 1), task.load(None, task.fast), replace(task.fast, curvatures=(6, 20, 20)))
    assert found["iterations"] == dict.fromkeys(["whole", "all", "together"], found["iterations"]["whole"])
    assert 1 < found["iterations"]["whole"] <= 5 and all(found["converged"].values())
    cut = runs.solves(task, nn.Linear(4, 1), task.load(None, task.fast), replace(task.fast, solve_iterations=1))
    assert not any(cut["converged"].values()) and cut["iterations"]["together"] == 1


def test_one_block_is_hessian_free_and_costs_its_products():
    task = least_squares({"all": ["weight", "bias"]})
    found = {
        name: runs.once({"arm": name, "seed": 0, "rate": 1.0}, task=task, data=None, setting=task.fast)
        for name in (trainers.hessian_free(18), trainers.block_diagonal(18), trainers.random_blocks(18))
    }
    whole, blocks, chance = (each["course"] for each in found.values())
    assert whole["train_loss"] == blocks["train_loss"] == pytest.approx(chance["train_loss"], rel=1e-3, abs=1e-8)
    assert whole["train_loss"][-1] < 0.01 * whole["train_loss"][0] and whole["update"] == [0, 1, 2, 3]
    assert whole["examples"] == [0, 20, 40, 60]
    assert [p["all"] for p in whole["products"]] == [p["all"] for p in blocks["products"]]
    assert "solves" in found[trainers.block_diagonal(18)] and "solves" not in found[trainers.hessian_free(18)]


def test_arms_differ_in_what_their_names_say():
    task = least_squares({"left": ["weight"], "right": ["bias"]})
    found = {}
    for name, arm in trainers.arms_of(replace(task.fast, lr=0.5, stretch=2.0)).items():
        if arm.curvature:
            model = nn.Linear(4, 1)
            trainer = trainers.HessianFreeTrainer(model, task, replace(task.fast, lr=0.5), arm, 0.0, seed=0)
            group = trainer.optimizer.param_groups[0]
            sizes = [len(block) for block in trainer.optimizer.partition]
            found[name] = (group["lr"], group["cg_momentum"], sizes, "left" in trainer.products)
    assert found.pop(trainers.longer_steps(18)) == (1.0, 0.95, [5], False)
    assert found.pop(trainers.no_momentum(18)) == (0.5, 0.0, [4, 1], True)
    for size in task.fast.curvatures:
        assert found.pop(trainers.hessian_free(size)) == (0.5, 0.95, [5], False)
        assert found.pop(trainers.block_diagonal(size)) == (0.5, 0.95, [4, 1], True)
        assert found.pop(trainers.random_blocks(size)) == (0.5, 0.95, [3, 2], False)
    assert not found


def test_work_is_counted_in_gradients():
    task = least_squares({"all": ["weight", "bias"]})
    measured = {"loss": 0.5, "linearisation": {"18": 2.0}, "product": {"whole": {"18": 1.5}, "left": {"18": 1.0}}}
    course = {
        "update": [0, 2],
        "examples": [0, 40],
        "products": [{"left": 0, "random 1": 0}, {"left": 3, "random 1": 4}],
    }
    run = {"arm": trainers.random_blocks(18), "course": course}
    # two updates: gradients, losses after, linearisations; then products, those of random blocks as of the whole
    expected = 40 + 2 * 20 * 0.5 + 2 * 18 * 2.0 + 18 * 3 * 1.0 + 18 * 4 * 1.5
    assert runs.equivalents(run, measured, task.fast) == [0.0, expected]
    course = {"update": [0, 2], "examples": [0, 10], "products": [{}, {}]}
    assert runs.equivalents({"arm": trainers.adam(5), "course": course}, measured, task.fast) == [0.0, 10.0]


def test_adams_averaged_parameters_are_exponential_and_leave_its_own_alone():
    torch.manual_seed(0)
    model, x = nn.Linear(2, 1), torch.randn(6, 2)
    trainer = trainers.AdamTrainer(model, nn.MSELoss(), 0.1, averaging=0.75)
    weights = []
    for _ in range(2):
        trainer.step(x, x[:, :1])
        weights.append(model.weight.detach().clone())
    with trainer.averaged():
        assert torch.allclose(model.weight, 0.75 * weights[0] + 0.25 * weights[1])
    assert torch.equal(model.weight, weights[1]) and trainer.examples == 12


def test_a_run_that_diverges_is_set_aside():
    task = least_squares({"all": ["weight", "bias"]})
    found = runs.once({"arm": trainers.adam(5), "seed": 0, "rate": 1e30}, task=task, data=None, setting=task.fast)
    assert found == {"counts": False, "course": None}
    alive = {"counts": True, "course": {"train_loss": [1.0, 0.5, 0.25]}}
    grid = [{"arm": "Adam 5", "rate": rate} for rate in (0.1, 1.0, 1e30)]
    worse = {"counts": True, "course": {"train_loss": [1.0, 0.5, 0.5]}}
    tuned = compare.tune(grid, [worse, alive, found])["Adam 5"]
    assert tuned["rate"] == 1.0 and not tuned["at_the_edge"] and tuned["losses"]["1e+30"] is None
    assert compare.tune(grid, [alive, worse, found])["Adam 5"]["at_the_edge"]


# ------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["autoencoder", "lstm_rows", "resnet"])
def test_the_fast_setting_writes_its_results_and_gives_no_verdict(name, tmp_path, capsys):
    module, task = TASKS[name]
    tasks = [each for of, each in TASKS.values() if of is module]
    compare.run_task(tasks, module.__file__, ["--fast", "--out", str(tmp_path)])
    expected = {f"{name}.json", f"{name}.png", f"{name}_curvature.png", f"{name}_fast.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == expected
    document = json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=reject_constant)
    assert document["command"].startswith(f"python -m examples.learning.{Path(module.__file__).stem}")
    assert {finding["verdict"] for finding in document["findings"]} == {"no verdict from a fast run"}
    assert "came out" not in capsys.readouterr().out
    assert all(run["counts"] for run in document["numbers"]["runs"])
    for criterion in claims.criteria(task, judgements.setting_of(document["numbers"])):
        criterion.decide(document["numbers"])  # of what was measured, each can be decided


def test_what_has_ended_is_not_run_again(tmp_path, monkeypatch):
    task, asked = autoencoder.TASK, ["--fast", "--out", str(tmp_path), "--finished"]
    tuned = ["--fast", "--out", str(tmp_path)]
    monkeypatch.setattr(compare, "draw_course", lambda *some: experiment.new_figure(1, 1)[0])
    monkeypatch.setattr(compare, "draw_curvature", lambda *some: experiment.new_figure(1, 1)[0])
    compare.run_task((task,), autoencoder.__file__, tuned)
    document = json.loads((tmp_path / "autoencoder.json").read_text())
    monkeypatch.setattr(compare, "once", dict)
    monkeypatch.setattr(compare, "costs", dict)
    compare.run_task((task,), autoencoder.__file__, tuned)
    assert json.loads((tmp_path / "autoencoder.json").read_text()) == document
    lines = (tmp_path / "autoencoder_fast.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "autoencoder_fast.jsonl").write_text(
        "".join(lines[:-3])
    )  # a plan that is cut is judged as far as it is
    compare.run_task((task,), autoencoder.__file__, asked)
    cut = json.loads((tmp_path / "autoencoder.json").read_text())
    assert cut["numbers"]["runs"] == document["numbers"]["runs"][:-3]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_verdicts_follow_from_the_published_numbers(name):
    _, task = TASKS[name]
    document = json.loads((RESULTS / f"{name}.json").read_text(), parse_constant=reject_constant)
    found, setting = document["numbers"], judgements.setting_of(document["numbers"])
    assert " --fast" not in document["command"] and document["shortened"]
    least = judgements.fewest(found)
    again = experiment.judge(claims.criteria(task, setting), found, fast=False, fewest=least, enough=claims.ENOUGH)
    assert [vars(finding) for finding in again] == document["findings"]
    assert len(found["runs"]) == len(trainers.arms_of(setting)) * setting.seeds
    assert runs.TUNING_SEED not in {run["seed"] for run in found["runs"]}
