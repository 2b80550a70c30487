"""The risk and its operators: what they leave alone, what they refuse, and exact facts about networks."""

from __future__ import annotations

import functools
import gc
import math

import psutil
import pytest
import torch
import torch.nn.functional as F
from functions import Apply, CubeOnce
from problems import CASES, relu_mlp
from torch import nn

from pyhessian_spectra import (
    EmpiricalFisherOperator,
    EmpiricalRisk,
    GGNOperator,
    HessianOperator,
    Partition,
    analyze,
    eigh,
)
from pyhessian_spectra.errors import InputError, NonFiniteError, SecondDerivativeError

every_case = pytest.mark.parametrize("case", CASES)
LOSS = nn.CrossEntropyLoss()


def linear(inputs: int = 3, outputs: int = 2) -> nn.Linear:
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(inputs, outputs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def batch(n: int = 4, inputs: int = 3, outputs: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, inputs, generator=generator, dtype=torch.float64)
    return x, torch.randint(outputs, (n,), generator=generator)


# --- what is left alone


def state(model: nn.Module) -> dict:
    return {
        "modes": [module.training for module in model.modules()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "tensors": {name: t.clone() for name, t in model.state_dict().items()},
    }


def assert_unchanged(before: dict, model: nn.Module) -> None:
    after = state(model)
    assert before["modes"] == after["modes"] and before["requires_grad"] == after["requires_grad"]
    assert all((a is None) == (b is None) for a, b in zip(before["grads"], after["grads"], strict=True))
    assert all(a is None or torch.equal(a, b) for a, b in zip(before["grads"], after["grads"], strict=True))
    assert all(torch.equal(t, after["tensors"][name]) for name, t in before["tensors"].items())


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_never_changed(case, training):
    risk = CASES[case]()
    risk.model.train(training)
    for p in risk.model.parameters():
        p.grad = torch.ones_like(p)
    before = state(risk.model)
    risk.loss(), risk.gradient()
    v = torch.ones(risk.n, dtype=torch.float64)
    for budget in (None, 0):
        for operator in (HessianOperator, GGNOperator):
            operator(risk, memory_budget=budget) @ v
    assert_unchanged(before, risk.model)


def test_the_model_is_not_changed_by_a_failure():
    model = nn.Sequential(linear(), nn.BatchNorm1d(2).double())
    risk = EmpiricalRisk(model, LOSS, [batch(), (torch.ones(4, 5, dtype=torch.float64), batch()[1])])
    model.train()
    before = state(model)
    with pytest.raises(InputError, match="batch 1"):
        risk.gradient()
    assert_unchanged(before, model)


def test_an_operator_stays_at_the_point_where_it_was_built():
    model = nn.Sequential(linear(), nn.Tanh(), linear(2, 2))
    op = HessianOperator(EmpiricalRisk(model, LOSS, batch()))
    v = torch.ones(op.shape[0], dtype=torch.float64)
    before = op @ v
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    assert torch.equal(op @ v, before)


def test_products_do_not_leak_memory():
    """100 products after a warm-up: the resident set stays where it was, to the allocator's 4 MiB."""
    model = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 10))
    generator = torch.Generator().manual_seed(0)
    data = (torch.randn(300, 200, generator=generator), torch.randint(10, (300,), generator=generator))
    v = torch.randn(sum(p.numel() for p in model.parameters()), generator=generator)
    process = psutil.Process()
    for budget in (None, 0):
        op = HessianOperator(EmpiricalRisk(model, LOSS, data), memory_budget=budget)
        for _ in range(20):
            op @ v
        gc.collect()
        before = process.memory_info().rss
        for _ in range(100):
            op @ v
        assert process.memory_info().rss - before < 4 * 2**20


# --- exact facts


@pytest.mark.parametrize("pooling", [False, True])
def test_layer_blocks_of_relu_networks_are_those_of_the_gauss_newton_matrix(pooling):
    """Piecewise linear in each single layer, so H_ll = G_ll almost everywhere, and tr H = tr G."""
    if pooling:
        generator = torch.Generator().manual_seed(5)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16, 3),
        ).double()
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
        x = torch.randn(10, 1, 8, 8, generator=generator, dtype=torch.float64)
        risk = EmpiricalRisk(model, LOSS, (x, torch.randint(3, (10,), generator=generator)))
    else:
        risk = relu_mlp()
    hessian, ggn = HessianOperator(risk).to_dense(), GGNOperator(risk).to_dense()
    scale = float(hessian.abs().max())
    for group in Partition.by_module(risk.layout):
        index = group.indices
        block, own = hessian[index][:, index], HessianOperator(risk.restrict(group.names)).to_dense()
        torch.testing.assert_close(block, ggn[index][:, index], rtol=0, atol=1e-13 * scale)
        torch.testing.assert_close(own, block, rtol=0, atol=1e-13 * scale)
        assert float(torch.linalg.eigvalsh(block)[0]) > -1e-13 * scale
    assert float(hessian.trace()) == pytest.approx(float(ggn.trace()), rel=1e-13)
    assert float((hessian - ggn).abs().max()) > 1e-3 * scale  # the blocks across layers do differ


def test_gauss_newton_and_fisher_matrices_are_semidefinite():
    for operator in (GGNOperator, EmpiricalFisherOperator):
        values = eigh(operator(relu_mlp())).eigenvalues
        assert values[0] > -1e-13 * values[-1]


def test_the_risk_does_not_depend_on_the_cut_into_batches():
    x, y = batch(64)
    model = linear()
    whole = HessianOperator(EmpiricalRisk(model, LOSS, (x, y))).to_dense()
    cut = HessianOperator(EmpiricalRisk(model, LOSS, [(x[:60], y[:60]), (x[60:], y[60:])])).to_dense()
    torch.testing.assert_close(cut, whole, rtol=1e-13, atol=1e-15)


def test_a_dataloader_gives_the_same_hessian_as_a_list():
    x, y = batch(10)
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=False)
    model = linear()
    torch.testing.assert_close(
        HessianOperator(EmpiricalRisk(model, LOSS, loader)).to_dense(),
        HessianOperator(EmpiricalRisk(model, LOSS, (x, y))).to_dense(),
    )


def test_ignore_index_is_found_in_modules_and_partials():
    x, y = batch(8)
    y[:3] = 1
    model = linear()
    for loss in (nn.CrossEntropyLoss(ignore_index=1), functools.partial(F.cross_entropy, ignore_index=1)):
        cut = EmpiricalRisk(model, loss, [(x[:3], y[:3]), (x[3:6], y[3:6]), (x[6:], y[6:])])
        assert cut.loss() == pytest.approx(float(loss(model(x), y).detach()), rel=1e-13)


def test_from_loss_is_the_hessian_of_the_graph_at_hand():
    model, (x, y) = nn.Sequential(linear(), nn.Tanh(), linear(2, 2)), batch()
    op = HessianOperator.from_loss(LOSS(model(x), y), model.parameters())
    expected = HessianOperator(EmpiricalRisk(model, LOSS, (x, y))).to_dense()
    torch.testing.assert_close(op.to_dense(), expected)
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(InputError, match="with a graph"):
        HessianOperator.from_loss(torch.tensor(1.0), model.parameters())


def test_restrict_takes_names_modules_and_globs():
    risk = relu_mlp()
    assert risk.restrict("2").layout.names == ("2.weight", "2.bias")
    assert risk.restrict(["*.bias"]).layout.names == ("0.bias", "2.bias", "4.bias")
    assert risk.restrict(["4.weight", "0"]).layout.names == ("0.weight", "0.bias", "4.weight")
    with pytest.raises(InputError, match=r"did you mean '2\.weight'"):
        risk.restrict("2.wieght")


def test_tied_weights_can_be_named_by_either_name():
    risk = CASES["tied_weights"]()
    assert risk.restrict("out.weight").layout.names == risk.restrict("embed.weight").layout.names


# --- what is refused, and how


def refused(match: str, model=None, loss=LOSS, data=None, error=InputError, **options):
    with pytest.raises(error, match=match):
        risk = EmpiricalRisk(linear() if model is None else model, loss, batch() if data is None else data, **options)
        HessianOperator(risk) @ torch.ones(risk.n, dtype=risk.dtype)


def test_wrong_arguments_are_told_with_the_remedy():
    x, y = batch()
    refused("must be a torch.nn.Module", model=lambda x: x)
    refused("mode must be 'eval' or 'train', got 'test'", mode="test")
    refused("use reduction='mean' or 'sum'", loss=nn.CrossEntropyLoss(reduction="none"))
    refused("pass a list or a DataLoader", data=iter([(x, y)]))
    refused("data is empty", data=[])
    refused("every batch has weight 0", data=(x, torch.full_like(y, -100)))
    refused("cannot be read as", data=[(x, y, y)])
    refused("none of labels", data={"inputs": x, "classes": y})
    refused("must return a scalar tensor", loss=lambda z, y: z)
    refused("no trainable parameters", model=linear().requires_grad_(False))
    refused("too coarse", model=linear().half())
    refused("share dtype and device", model=nn.Sequential(linear(), nn.Linear(2, 2)))
    refused("the weight of batch 0 is nan", weight=lambda batch: math.nan)


def test_data_that_change_between_passes_are_refused():
    x, y = batch(8)

    class Shrinking:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([(x, y)] if self.passes == 1 else [(x[:3], y[:3])])

    risk = EmpiricalRisk(linear(), LOSS, Shrinking())
    _ = risk.num_examples
    with pytest.raises(InputError, match="must give the same examples each time"):
        risk.loss()


def test_dropout_is_refused_in_train_mode_and_off_in_eval_mode():
    dropped = nn.Sequential(linear(), nn.Dropout(0.5))
    refused("Dropout.*use mode='eval'", model=dropped, mode="train")
    plain = HessianOperator(EmpiricalRisk(dropped[0], LOSS, batch())).to_dense()
    torch.testing.assert_close(HessianOperator(EmpiricalRisk(dropped, LOSS, batch())).to_dense(), plain)


@pytest.mark.parametrize("where", ["parameter", "input"])
def test_what_is_not_finite_is_named(where):
    model, (x, y) = linear(), batch()
    if where == "parameter":
        model.weight.data[0, 0] = math.nan
        refused("parameter weight holds NaN", model=model, error=NonFiniteError)
    else:
        x2 = x.clone()
        x2[0, 0] = math.inf
        refused("of batch 1 is NaN", data=[(x, y), (x2, y)], error=NonFiniteError)


def test_labels_outside_the_classes_are_refused_with_the_batch():
    x, y = batch()
    refused("batch 1.*out of bounds", data=[(x, y), (x, y + 5)])


def test_a_model_without_second_derivatives_is_refused_naming_the_operation():
    model = nn.Sequential(linear(), Apply(CubeOnce.apply))
    refused("CubeOnce.* has no second derivative", model=model, error=SecondDerivativeError)
    risk = EmpiricalRisk(model, LOSS, batch())
    for operator in (GGNOperator, EmpiricalFisherOperator):
        with pytest.raises(SecondDerivativeError, match=r"CubeOnce.* has no second derivative"):
            operator(risk) @ torch.ones(risk.n, dtype=risk.dtype)
    grid = nn.Sequential(nn.Unflatten(1, (1, 1, 3)), nn.Conv2d(1, 4, 1), nn.PixelShuffle(2), nn.Flatten()).double()
    assert HessianOperator(EmpiricalRisk(grid, LOSS, batch(4, 3, 12))) @ torch.ones(8, dtype=torch.float64) is not None


def test_a_class_in_place_of_a_loss_and_a_model_in_place_of_a_risk_are_told_apart():
    model, data = nn.Linear(2, 2), (torch.zeros(3, 2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match=r"pass an instance, CrossEntropyLoss\(\)"):
        EmpiricalRisk(model, nn.CrossEntropyLoss, data)
    for call in (HessianOperator, analyze):
        with pytest.raises(InputError, match=r"EmpiricalRisk\(model, loss_fn, data\)"):
            call(model)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_module_at_two_places_keeps_its_parameters_and_buffers(mode):
    linear, norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
    model = nn.Sequential(linear, norm, nn.Tanh(), linear, norm, nn.Linear(5, 3))
    before = {name: p for name, p in model.named_parameters(remove_duplicate=False)}
    values = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(12, 5), torch.randint(0, 3, (12,))
    analysis = analyze(EmpiricalRisk(model, nn.CrossEntropyLoss(), (x, y), mode=mode), exact_limit=0, num_eigenvalues=2)
    assert list(analysis.layers) == ["0", "5"]
    assert all(p is before[name] for name, p in model.named_parameters(remove_duplicate=False))
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == [True] * 5
