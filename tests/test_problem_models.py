"""Data take the shape that a model takes, and a model the loss that its data have."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_problem_factory import _DATA, _seeded
from torch import nn

from pyhessian_spectra.problems import load_data, load_problem
from pyhessian_spectra.problems.architectures.gpt import GPT
from pyhessian_spectra.problems.architectures.lstm import LSTMClassifier
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.problems.architectures.resnet import cifar_resnet
from pyhessian_spectra.problems.losses import LOSSES, cross_entropy, mse
from pyhessian_spectra.problems.names import find_builtin


def test_digits_become_images_for_a_convolutional_net(tmp_path):
    model = _seeded(lambda: cifar_resnet(20, width=4, channels=1)).eval()
    torch.save({"state_dict": nn.DataParallel(model).state_dict(), "epoch": 9}, tmp_path / "a.pth")
    problem = load_problem(tmp_path / "a.pth", model="resnet20", data="digits", num_examples=4)
    data = load_data("digits", num_examples=4)
    with torch.no_grad():
        expected = F.cross_entropy(model(data.inputs.view(4, 1, 8, 8)), data.targets)
    assert problem.risk.loss() == pytest.approx(float(expected), rel=1e-6)
    assert problem.description["epoch"] == 9


def test_digits_become_rows_for_an_lstm(tmp_path):
    model = _seeded(lambda: LSTMClassifier(features=8, hidden=4))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    problem = load_problem(tmp_path / "a.pt", model="lstm", data="digits", num_examples=4)
    assert torch.cat([x for x, _ in problem.risk.data]).shape == (4, 8, 8)


def test_a_text_is_cut_to_the_block_size_of_the_gpt(tmp_path):
    model = _seeded(lambda: GPT(block_size=6, width=8, layers=1)).eval()
    torch.save(model.state_dict(), tmp_path / "a.pt")
    (tmp_path / "a.txt").write_bytes(bytes(range(60, 120)))
    problem = load_problem(tmp_path / "a.pt", model="gpt", data=str(tmp_path / "a.txt"))
    tokens = torch.arange(60, 60 + 54)
    with torch.no_grad():
        logits = model(tokens[:48].view(8, 6))
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[1:49])
    assert problem.risk.loss() == pytest.approx(float(expected), rel=1e-6)
    assert problem.description["N"] == 8


def test_a_pickled_module_is_given_images_where_it_convolves(tmp_path):
    model = _seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)))
    torch.save(model, tmp_path / "a.pt")
    problem = load_problem(tmp_path / "a.pt", data="digits", num_examples=5, trust_pickle=True)
    assert problem.risk.data[0][0].shape[1:] == (1, 8, 8)


def test_a_regression_takes_mse_without_being_told(tmp_path):
    model = _seeded(lambda: MLP((3, 4, 2)))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    x, y = np.eye(3), np.arange(6.0).reshape(3, 2)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    problem = load_problem(tmp_path / "a.pt", model="mlp", data=str(tmp_path / "a.npz"), dtype="float64")
    outputs = copy.deepcopy(model).double()(torch.tensor(x)).detach()
    assert problem.risk.loss() == pytest.approx(float((outputs - torch.tensor(y)).square().mean()), rel=1e-12)


def test_cross_entropy_averages_over_positions_and_skips_ignored_ones():
    outputs = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, -100], [4, -100, 2]])
    rows = [(0, 0), (0, 1), (1, 0), (1, 2)]
    expected = -sum(outputs[i, t].log_softmax(0)[targets[i, t]] for i, t in rows) / 4
    torch.testing.assert_close(cross_entropy(outputs, targets), expected)


def test_mse_compares_with_one_hot_vectors():
    outputs = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    assert float(mse(outputs, torch.tensor([0, 1]))) == pytest.approx((1 + 9) / 6)
    assert find_builtin("loss", "MSE", LOSSES) is mse
    assert find_builtin("loss", "cross-entropy", LOSSES) is cross_entropy


@pytest.mark.skipif(not (_DATA / "cifar-10-batches-bin").is_dir(), reason="no CIFAR-10 in PYHESSIAN_SPECTRA_DATA")
def test_a_resnet20_checkpoint_of_data_parallel_meets_real_cifar(tmp_path):
    model = _seeded(lambda: cifar_resnet(20)).eval()
    torch.save({"state_dict": nn.DataParallel(model).state_dict(), "best_prec1": 91.7}, tmp_path / "resnet20.th")
    problem = load_problem(tmp_path / "resnet20.th", model="resnet20", data=str(_DATA), num_examples=20)
    data = load_data(_DATA, num_examples=20)
    with torch.no_grad():
        expected = F.cross_entropy(model(data.inputs), data.targets)
    assert problem.risk.loss() == pytest.approx(float(expected), rel=1e-5)
    assert problem.risk.n == 269_722 and problem.description["best_prec1"] == 91.7


def test_what_a_file_holds_besides_the_network_is_told_and_not_what_a_prefix_asked_to_leave(tmp_path):
    network = _seeded(lambda: cifar_resnet(20))
    tensors = {f"net.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": {**tensors, "loss_fn.weight": torch.ones(10)}}, tmp_path / "stray.pt")
    np.savez(tmp_path / "images.npz", x=np.zeros((2, 3, 32, 32), np.float32), y=np.arange(2))
    how = {"model": "resnet20", "data": str(tmp_path / "images.npz")}
    found = load_problem(tmp_path / "stray.pt", **how)
    assert found.description["left_out"] == "loss_fn.weight"
    assert "left_out" not in load_problem(tmp_path / "stray.pt", prefix="net.", **how).description
