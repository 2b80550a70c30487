"""The demo's training learns, repeats itself, and leaves checkpoints that describe themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems import load_problem, read_checkpoint, train_digits
from pyhessian_spectra.problems.training import checkpoint_steps


def test_training_on_the_digits_learns_and_its_checkpoints_describe_themselves(tmp_path):
    state = torch.random.get_rng_state()
    steps: list[tuple[int, int]] = []
    paths = train_digits(tmp_path / "out", num_checkpoints=3, progress=lambda step, total: steps.append((step, total)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert steps == [(i, 2000) for i in range(1, 2001)]
    assert [path.name for path in paths] == [f"step-{step:05d}.pt" for step in checkpoint_steps(3)]
    first, last = (load_problem(path) for path in (paths[0], paths[-1]))
    assert first.risk.n == 2410 and first.description["step"] == 0
    assert last.description["test_accuracy"] > 0.95 > 0.2 > first.description["test_accuracy"]
    for problem in (first, last):
        assert problem.risk.loss() == pytest.approx(problem.description["train_loss"], rel=1e-5)


def test_the_same_seed_trains_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setattr("pyhessian_spectra.problems.training._STEPS", 20)
    runs = [
        train_digits(tmp_path / name, seed=seed, num_checkpoints=2) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    same, again, other = (read_checkpoint(paths[-1]).state_dict["fc1.weight"] for paths in runs)
    assert torch.equal(same, again) and not torch.equal(same, other)


@pytest.mark.parametrize("number", [2, 3, 5, 10, 50])
def test_checkpoints_are_at_distinct_growing_steps(number):
    steps = checkpoint_steps(number)
    assert len(steps) == number and steps[0] == 0 and steps[-1] == 2000
    assert all(a < b for a, b in pairwise(steps))


@pytest.mark.parametrize("number", [1, 51])
def test_an_impossible_number_of_checkpoints_is_refused(tmp_path, number):
    with pytest.raises(InputError, match="num_checkpoints"):
        train_digits(tmp_path, num_checkpoints=number)
