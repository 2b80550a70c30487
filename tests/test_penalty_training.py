"""The trace penalty while a network trains: its groups, its schedule, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from penalties import BATCH, Deep, deep, on_its_batch, penalty_of, seeded
from problems import batchnorm_train, mlp
from torch import nn

from pyhessian_spectra import HessianOperator, Partition
from pyhessian_spectra.regularisers import trace_penalty


def test_the_middle_is_that_of_the_published_code():
    # ten tensors: numbers 10 // 4 = 2 to 3 * 10 // 4 = 7, both included
    assert list(deep(groups="middle").partition.groups) == ["b", "c", "d"]
    names = [name for group in deep(groups="middle").partition for name in group.names]
    assert names == [name for name, _ in Deep().named_parameters()][2:8]


def test_random_groups_are_as_many_whole_modules_as_the_middle_has_and_follow_the_generator():
    drawn = [deep(groups="random", generator=seeded(seed)).partition for seed in range(20)]
    again = [deep(groups="random", generator=seeded(seed)).partition for seed in range(20)]
    labels = [tuple(partition.groups) for partition in drawn]
    assert all(
        len(set(each)) == 3 and all(group.whole for group in each_) for each, each_ in zip(labels, drawn, strict=True)
    )
    assert len(set(labels)) > 3 and labels == [tuple(partition.groups) for partition in again]


def test_the_value_is_the_sum_of_the_traces_of_its_groups():
    penalty = deep(groups=["a", "d.weight"], num_probes=2)
    value = penalty(BATCH)
    assert list(penalty.traces) == ["a", "d.weight"]
    assert float(value.detach()) == pytest.approx(float(sum(penalty.traces.values())))
    assert not any(trace.requires_grad for trace in penalty.traces.values())


def test_parameters_outside_the_groups_are_penalised_through_the_model():
    model = Deep()
    penalty = trace_penalty(model, nn.CrossEntropyLoss(), groups="b")
    penalty(BATCH).backward()
    assert model.d.weight.grad.any() and model.e.bias.grad.any()


def test_coordinates_outside_the_groups_add_no_noise_even_in_the_same_parameter():
    risk, pair = mlp(), torch.tensor([1, 5])
    penalty = penalty_of(risk, groups=Partition(risk.layout, {"pair": pair}), generator=seeded())
    dense = Oracle(risk).ggn()[pair][:, pair]
    found = {round(float(on_its_batch(penalty, risk).detach()), 10) for _ in range(20)}
    assert found == {round(float(dense.trace() + sign * dense[0, 1]), 10) for sign in (-2, 2)}


def test_it_is_on_at_start_and_every_so_many_calls_after_it_and_else_zero_without_a_graph():
    penalty = deep(start=2, every=3)
    values = [penalty(BATCH) for _ in range(9)]
    assert [i for i, value in enumerate(values) if value.requires_grad] == [2, 5, 8]
    assert all(float(value) == 0 and value.shape == () for value in values if not value.requires_grad)
    assert penalty.step == 9


def test_a_resumed_run_repeats_it():
    torch.manual_seed(0)
    model = Deep()
    first = trace_penalty(model, nn.CrossEntropyLoss(), groups="random", every=2, generator=seeded(1))
    for _ in range(3):
        first(BATCH)
    second = trace_penalty(model, nn.CrossEntropyLoss(), groups="random", every=2, generator=seeded(2))
    second.load_state_dict(first.state_dict())
    assert list(second.partition.groups) == list(first.partition.groups)
    assert [float(first(BATCH).detach()) for _ in range(4)] == [float(second(BATCH).detach()) for _ in range(4)]


def test_the_gauss_newton_form_is_never_negative_and_the_signed_trace_of_the_hessian_is():
    risk = mlp()
    for seed in range(30):
        assert float(on_its_batch(penalty_of(risk, generator=seeded(seed)), risk).detach()) >= 0
    signed = [
        float(on_its_batch(penalty_of(risk, matrix=HessianOperator, generator=seeded(seed)), risk).detach())
        for seed in range(30)
    ]
    assert min(signed) < 0


def test_the_model_is_not_changed_and_its_mode_decides_the_statistics():
    risk = batchnorm_train()
    model, before = risk.model, {name: t.clone() for name, t in risk.model.state_dict().items()}
    values = {}
    penalty = trace_penalty(model, risk.loss_fn, num_probes=risk.n)
    state = torch.get_rng_state()
    for training in (True, False):
        model.train(training)
        values[training] = float(penalty(risk.data[0]).detach())
        fixed = trace_penalty(model, risk.loss_fn, num_probes=risk.n, mode="train" if training else "eval")
        assert values[training] == float(fixed(risk.data[0]).detach())
        assert all(module.training == training for module in model.modules())
    assert values[True] != pytest.approx(values[False], rel=1e-3)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_descent_on_the_penalty_lowers_the_exact_trace():
    risk = mlp()
    penalty, optimiser = penalty_of(risk, generator=seeded()), torch.optim.SGD(risk.model.parameters(), lr=0.02)
    before = Oracle(risk).ggn().trace()
    for _ in range(60):
        optimiser.zero_grad()
        on_its_batch(penalty, risk).backward()
        optimiser.step()
    assert Oracle(risk).ggn().trace() < 0.5 * before
