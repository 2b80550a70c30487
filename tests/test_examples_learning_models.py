"""The networks of the three tasks: their sizes, and that they compute what is said."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from examples.learning import autoencoder, models


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_autoencoder_has_the_papers_parameters_in_the_papers_blocks():
    widths = [784, *autoencoder.HIDDEN]
    encoder = sum((a + 1) * b for a, b in itertools.pairwise(widths))
    decoder = sum((b + 1) * a for a, b in itertools.pairwise(widths))
    model = models.autoencoder(widths)
    assert (count(model.encoder), count(model.decoder)) == (encoder, decoder) == (1_418_280, 1_419_034)
    assert count(model) == 2_837_314
    assert isinstance(model.decoder[-1], nn.Linear) and isinstance(model.encoder[-1], nn.Tanh)


@pytest.mark.parametrize("inputs", [7, 1])
def test_the_lstm_has_the_parameters_of_its_gates_and_peepholes(inputs):
    model = models.PeepholeLSTM(inputs, 10)
    assert [count(layer) for layer in model.layers] == [4 * 10 * (each + 10 + 1) + 3 * 10 for each in (inputs, 10, 10)]
    assert count(model.head) == 110


def unrolled(model, x):
    """Layer after layer, step after step, gate by gate."""
    units = model.units
    for layer in model.layers:
        h = c = x.new_zeros(len(x), units)
        outputs = []
        for entering in x.unbind(1):
            i, f, o, g = (entering @ layer.input.T + h @ layer.hidden.T + layer.bias).split(units, dim=1)
            i = torch.sigmoid(i + layer.peephole[0] * c)
            f = torch.sigmoid(f + layer.peephole[1] * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + layer.peephole[2] * c) * torch.tanh(c)
            outputs.append(h)
        x = torch.stack(outputs, dim=1)
    return model.head(h)


@pytest.mark.parametrize(("steps", "inputs"), [(7, 4), (2, 1)])
def test_layers_that_step_together_are_layers_one_after_another(steps, inputs):
    torch.manual_seed(0)
    model = models.PeepholeLSTM(inputs, 3, units=4, layers=3).double()
    x = torch.randn(5, steps, inputs, dtype=torch.float64)
    ours, slow = model(x), unrolled(model, x)
    assert torch.allclose(ours, slow, rtol=1e-12, atol=1e-13)
    parameters = list(model.parameters())
    found, expected = (torch.autograd.grad(z.square().sum(), parameters) for z in (ours, slow))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(found, expected, strict=True))
    assert all(float(part.abs().max()) > 0 for part in found)


def test_without_peepholes_it_is_torchs_lstm():
    torch.manual_seed(0)
    model, other = models.PeepholeLSTM(3, 2, units=4, layers=2).double(), nn.LSTM(3, 4, 2, batch_first=True).double()
    order = [0, 1, 3, 2]  # torch has the candidate before the output gate
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            layer.peephole.zero_()
            for ours, name in ((layer.input, "weight_ih"), (layer.hidden, "weight_hh"), (layer.bias, "bias_ih")):
                rows = ours.reshape(4, 4, -1)[order].reshape(ours.shape)
                getattr(other, f"{name}_l{number}").copy_(rows)
            getattr(other, f"bias_hh_l{number}").zero_()
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    assert torch.allclose(model(x), model.head(other(x)[0][:, -1]), rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="at most the 4 units"):
        models.PeepholeLSTM(5, 2, units=4)


def test_the_resnet_has_no_batchnorm_and_starts_with_outputs_of_moderate_size():
    torch.manual_seed(0)
    model = models.ResNet(3, 10, 16)
    assert not any("Norm" in type(module).__name__ for module in model.modules())
    convolution = 9 * 3 * 16 + 16
    blocks = [2 * 9 * 16 * 16 + 32] + [9 * w * 2 * w + 9 * 4 * w * w + 4 * w + w * 2 * w + 2 * w for w in (16, 32)]
    assert count(model) == convolution + sum(blocks) + 65 * 10
    spread = model(torch.randn(64, 3, 16, 16)).std(dim=0).mean()
    assert 0.05 < float(spread.detach()) < 2
