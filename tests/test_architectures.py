"""Architectures: sizes by arithmetic, names of public checkpoints, and rebuilding from nothing but a state dict."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from pyhessian_spectra.curvature.operators import HessianOperator
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures import ARCHITECTURES, build_model
from pyhessian_spectra.problems.architectures.gpt import GPT
from pyhessian_spectra.problems.architectures.lenet import LeNet
from pyhessian_spectra.problems.architectures.lstm import LSTMClassifier
from pyhessian_spectra.problems.architectures.mlp import MLP
from pyhessian_spectra.problems.architectures.resnet import ResNet, cifar_resnet, resnet18
from pyhessian_spectra.problems.architectures.vgg import VGG11
from pyhessian_spectra.problems.checkpoints import Checkpoint
from pyhessian_spectra.problems.losses import cross_entropy
from pyhessian_spectra.problems.names import find_builtin

_SLIM = (4, 4, 6, 6, 8, 8, 8, 8)


def _seeded(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _checkpoint(state_dict) -> Checkpoint:
    return Checkpoint(Path("some.pt"), "", dict(state_dict))


def _inputs(model: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if isinstance(model, GPT):
        return torch.randint(11, (3, 5), generator=generator)
    if isinstance(model, MLP):
        return torch.rand(3, 5, generator=generator)
    if isinstance(model, LSTMClassifier):
        return torch.rand(3, 4, 5, generator=generator)
    channels = next(p.shape[1] for p in model.parameters() if p.ndim == 4)
    side = 16 if isinstance(model, ResNet) else 32
    return torch.rand(3, channels, side, side, generator=generator)


# Every variation that a state dict tells, in small.
_VARIANTS = {
    "mlp": ("mlp", partial(MLP, (5, 4, 3), bias=False)),
    "mlp-of-one-layer": ("mlp", partial(MLP, (5, 3))),
    "mlp-with-other-names": ("mlp", partial(MLP, (5, 4, 4, 3), names=["net.0", "net.2", "head"])),
    "lenet-of-colours": ("lenet", partial(LeNet, channels=3, classes=7)),
    "resnet20": ("resnet20", partial(cifar_resnet, 20, width=4)),
    "resnet32-fc": ("resnet32", partial(cifar_resnet, 32, width=4, head="fc", classes=5)),
    "resnet20-projections": ("resnet20", partial(cifar_resnet, 20, width=4, projection=True)),
    "resnet20-downsample": (
        "resnet20",
        partial(cifar_resnet, 20, width=4, projection=True, shortcut_name="downsample", head="fc", channels=1),
    ),
    "resnet18": ("resnet18", partial(resnet18, width=4, classes=5)),
    "resnet18-imagenet-stem": ("resnet18", partial(resnet18, width=4, stem=7)),
    "resnet18-other-names": ("resnet18", partial(resnet18, width=4, head="linear", shortcut_name="shortcut")),
    "vgg11": ("vgg11", partial(VGG11, batch_norm=False, widths=_SLIM)),
    "vgg11_bn-hidden": ("vgg11_bn", partial(VGG11, batch_norm=True, widths=_SLIM, hidden=6, classes=4)),
    "vgg11-dropout-behind": ("vgg11", partial(VGG11, batch_norm=False, widths=_SLIM, hidden=6, dropout_first=False)),
    "lstm": ("lstm", partial(LSTMClassifier, features=5, hidden=3, layers=2, classes=4, head="linear")),
    "gpt": ("gpt", partial(GPT, vocabulary=11, block_size=6, width=8, layers=2)),
    "gpt-untied": (
        "gpt",
        partial(GPT, vocabulary=11, block_size=6, width=8, layers=1, hidden=12, bias=False, tied=False),
    ),
}
variants = pytest.mark.parametrize(("name", "make"), _VARIANTS.values(), ids=_VARIANTS)


@variants
def test_name_and_state_dict_are_enough_to_rebuild_the_function(name, make):
    original = _seeded(make).eval()
    rebuilt, _ = build_model(name, _checkpoint(original.state_dict()))
    x = _inputs(original)
    assert not rebuilt.training
    assert [n for n, _ in rebuilt.named_parameters()] == [n for n, _ in original.named_parameters()]
    with torch.no_grad():
        assert torch.equal(rebuilt(x), original(x))


@pytest.mark.parametrize("prefix", ["model.", "net.", "network.inner."])
@pytest.mark.parametrize("variant", ["resnet20", "gpt", "lstm", "vgg11", "lenet-of-colours", "mlp"])
def test_a_prefix_common_to_all_keys_does_not_matter(variant, prefix):
    name, make = _VARIANTS[variant]
    original = _seeded(make).eval()
    prefixed = {prefix + key: tensor for key, tensor in original.state_dict().items()}
    rebuilt, _ = build_model(name, _checkpoint(prefixed))
    x = _inputs(original)
    with torch.no_grad():
        assert torch.equal(rebuilt(x), original(x))


@variants
def test_each_architecture_has_symmetric_second_derivatives(name, make):
    model = _seeded(make).eval().double()
    x = _inputs(model)
    targets = x % 3 if isinstance(model, GPT) else torch.tensor([0, 1, 2])
    risk = EmpiricalRisk(model, cross_entropy, (x.double() if x.is_floating_point() else x, targets))
    operator = HessianOperator(risk)
    u, v = torch.randn(2, risk.n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    left, right = torch.dot(u, operator @ v), torch.dot(v, operator @ u)
    scale = u.norm() * (operator @ v).norm()
    assert scale > 0 and abs(left - right) <= 1e-12 * scale


def test_building_leaves_the_random_state_alone():
    name, make = _VARIANTS["resnet20"]
    state_dict = _seeded(make).state_dict()
    before = torch.random.get_rng_state()
    build_model(name, _checkpoint(state_dict))
    assert torch.equal(before, torch.random.get_rng_state())


def test_lenet_has_the_published_size():
    convolutions = (25 * 1 + 1) * 6 + (25 * 6 + 1) * 16
    assert _size(LeNet()) == convolutions + (400 + 1) * 120 + (120 + 1) * 84 + (84 + 1) * 10 == 61_706


def test_lenet_pads_28_to_32_pixels():
    lenet = _seeded(LeNet)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lenet(x), lenet(nn.functional.pad(x, (2, 2, 2, 2))))


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_cifar_resnets_have_the_published_sizes(depth):
    def block(channels: int, width: int) -> int:
        return 9 * width * (channels + width) + 4 * width  # two convolutions, two BatchNorms

    k = (depth - 2) // 6
    stem, head = 9 * 3 * 16 + 2 * 16, (64 + 1) * 10
    stages = sum(block(c, w) + (k - 1) * block(w, w) for c, w in ((16, 16), (16, 32), (32, 64)))
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    expected = stem + stages + head
    assert _size(ARCHITECTURES[f"resnet{depth}"].module()) == expected
    assert _size(ARCHITECTURES[f"resnet{depth}"].module(projection=True)) == expected + projections
    if depth == 20:
        assert expected == 269_722 and expected + projections == 272_474


def test_the_sizes_of_the_larger_networks_by_arithmetic():
    widths = [64, 128, 256, 256, 512, 512, 512, 512]
    vgg = sum(9 * c * w + w for c, w in zip([3, *widths[:-1]], widths, strict=True)) + (512 + 1) * 10
    assert _size(ARCHITECTURES["vgg11"].module()) == vgg
    assert _size(ARCHITECTURES["vgg11_bn"].module()) == vgg + 2 * sum(widths)
    assert _size(resnet18(stem=7, classes=1000)) == 11_689_512  # the count its publishers give


def test_resnet20_has_the_names_of_the_common_checkpoints():
    state_dict = cifar_resnet(20).state_dict()
    assert len([name for name in state_dict if name.endswith("weight")]) == 19 + 19 + 1
    assert list(state_dict)[:2] == ["conv1.weight", "bn1.weight"]
    for name, shape in {
        "conv1.weight": (16, 3, 3, 3),
        "bn1.running_var": (16,),
        "layer1.0.conv1.weight": (16, 16, 3, 3),
        "layer2.0.conv1.weight": (32, 16, 3, 3),
        "layer3.2.bn2.bias": (64,),
        "linear.weight": (10, 64),
    }.items():
        assert state_dict[name].shape == shape
    assert not any("shortcut" in name for name in state_dict)


def test_the_shortcut_without_parameters_subsamples_and_pads_with_zeros():
    block = cifar_resnet(20, width=4).layer2[0]
    x = torch.rand(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    out = block.shortcut(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any() and not out[:, 6:].any()


def test_vgg_puts_its_layers_where_public_checkpoints_have_them():
    def convolutions(model):
        return [int(name.split(".")[1]) for name, p in model.named_parameters() if p.ndim == 4]

    assert convolutions(VGG11(batch_norm=False, widths=_SLIM)) == [0, 3, 6, 8, 11, 13, 16, 18]
    assert convolutions(VGG11(batch_norm=True, widths=_SLIM)) == [0, 4, 8, 11, 15, 18, 22, 25]


def test_dropout_is_off_in_eval():
    model = _seeded(_VARIANTS["vgg11_bn-hidden"][1]).eval()
    x = _inputs(model)
    assert torch.equal(model(x), model(x))


def test_the_stepped_lstm_equals_that_of_torch():
    model = _seeded(partial(LSTMClassifier, features=5, hidden=3, layers=2)).double()
    reference = nn.LSTM(5, 3, 2, batch_first=True).double()
    reference.load_state_dict(model.lstm.state_dict())
    x = torch.rand(4, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(model.lstm(x), reference(x)[0], rtol=0, atol=1e-14)


def test_the_gpt_does_not_look_ahead():
    model = _seeded(partial(GPT, vocabulary=11, block_size=6, width=8)).eval()
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    changed = torch.tensor([[1, 2, 3, 9, 9]])
    assert torch.equal(model(tokens)[:, :3], model(changed)[:, :3])
    assert not torch.equal(model(tokens)[:, 3:], model(changed)[:, 3:])


def test_tied_weights_are_one_parameter():
    tied, untied = (GPT(vocabulary=11, width=8, tied=tied) for tied in (True, False))
    assert _size(untied) - _size(tied) == 11 * 8


def test_model_args_tell_what_shapes_do_not():
    state_dict = _seeded(partial(MLP, (5, 4, 3), activation="tanh")).state_dict()
    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    relu, tanh = (
        build_model("mlp", _checkpoint(state_dict), model_args={"activation": a})[0] for a in ("relu", "tanh")
    )
    hidden = x @ state_dict["fc1.weight"].T + state_dict["fc1.bias"]
    expected = torch.tanh(hidden) @ state_dict["fc2.weight"].T + state_dict["fc2.bias"]
    torch.testing.assert_close(tanh(x), expected)
    assert not torch.allclose(relu(x), expected)


def test_the_number_of_heads_is_said_and_can_be_overridden():
    state_dict = _seeded(partial(GPT, vocabulary=11, block_size=6, width=8, heads=2)).state_dict()
    assert build_model("gpt", _checkpoint(state_dict))[1]["heads"] == 1
    assert build_model("gpt", _checkpoint(state_dict), model_args={"heads": 2})[1]["heads"] == 2
    with pytest.raises(InputError, match="heads = 3"):
        build_model("gpt", _checkpoint(state_dict), model_args={"heads": 3})


def test_an_unknown_name_lists_the_known_ones_and_the_closest():
    with pytest.raises(InputError, match=r"did you mean resnet20\?.*mlp, lenet, resnet20.*gpt") as error:
        find_builtin("model", "resent20", ARCHITECTURES)
    assert "\n" not in str(error.value)
    assert find_builtin("model", "VGG11-BN", ARCHITECTURES) is ARCHITECTURES["vgg11_bn"]


@pytest.mark.parametrize(
    ("variant", "name", "expected"),
    [
        ("resnet20", "resnet32", "missing (first layer1.3.conv1.weight)"),
        ("resnet32-fc", "resnet20", "unexpected (first layer1.3.conv1.weight)"),
        ("vgg11", "vgg11_bn", "missing (first features.1.weight)"),
        ("mlp", "lenet", "missing (first conv1.weight)"),
        ("lenet-of-colours", "mlp", "unexpected (first conv1.weight)"),
        ("lstm", "gpt", "missing (first wte.weight)"),
        ("gpt", "lstm", "missing (first lstm.weight_ih_l0)"),
        ("gpt", "resnet18", "missing (first conv1.weight)"),
    ],
)
def test_the_wrong_name_for_a_state_dict_is_one_sentence(variant, name, expected):
    state_dict = _VARIANTS[variant][1]().state_dict()
    with pytest.raises(InputError) as error:
        build_model(name, _checkpoint(state_dict))
    assert expected in str(error.value) and "some.pt" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"colour": 3}, "colour"),
        ({"activation": "gelu"}, "relu, tanh"),
        ({"widths": [5]}, "widths"),
        ({"widths": "abc"}, "abc"),
        ({"names": ["a"]}, "names"),
        ({"names": ["train", "head"]}, "already exists"),
    ],
)
def test_impossible_model_args_are_one_sentence(arguments, expected):
    state_dict = MLP((5, 4, 3)).state_dict()
    with pytest.raises(InputError) as error:
        build_model("mlp", _checkpoint(state_dict), model_args=arguments)
    assert expected in str(error.value) and "\n" not in str(error.value)
