"""The networks of the three tasks of Zhang et al. (2017), each with its blocks as a mapping from labels to globs."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

AUTOENCODER_BLOCKS = {"encoder": "encoder", "decoder": "decoder"}
LSTM_BLOCKS = {"layer 1": "layers.0", "layer 2": "layers.1", "layer 3": ("layers.2", "head")}
RESNET_BLOCKS = {"block 1": ("conv", "blocks.0"), "block 2": "blocks.1", "block 3": ("blocks.2", "head")}


def autoencoder(widths: Sequence[int]) -> nn.Sequential:
    """A tanh encoder of these widths, from the images to the code, and its mirror image, which ends linearly.

    The images have pixels in [0, 1], so that tanh at the output would shut out half of its range. Weights are drawn as
    Glorot and Bengio (2010) do for tanh, biases are zero.
    """

    def layers(sizes: Sequence[int]) -> list[nn.Module]:
        return [each for a, b in itertools.pairwise(sizes) for each in (nn.Linear(a, b), nn.Tanh())]

    encoder, decoder = layers(widths), layers(widths[::-1])[:-1]
    model = nn.Sequential(OrderedDict(encoder=nn.Sequential(*encoder), decoder=nn.Sequential(*decoder)))
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


class PeepholeLayer(nn.Module):
    """The parameters of one LSTM layer with peepholes (Gers, Schraudolph and Schmidhuber 2002).

    Gates come in the order input, forget, output, candidate; the rows of ``peephole`` (3, units) belong to the first
    three. All are drawn uniformly within ``1 / sqrt(units)``, as by torch; biases of the forget gate are one more.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        bound = units**-0.5
        self.input, self.hidden, self.peephole, self.bias = (
            nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))
            for shape in ((4 * units, inputs), (4 * units, units), (3, units), (4 * units,))
        )
        with torch.no_grad():
            self.bias[units : 2 * units] += 1


class PeepholeLSTM(nn.Module):
    """Stacked LSTM layers with peepholes of equal width, and a linear head on the last output of the last of them.

    All layers take a step together: layer ``l`` works on time ``s - l`` in step ``s``, so that ``T + L - 1`` steps of a
    few operations each do for ``L`` layers and ``T`` times, and one matrix product a step has all gates of all layers.
    A second derivative takes each operation apart, so their number is what it costs.
    """

    def __init__(self, inputs: int, outputs: int, units: int = 10, layers: int = 3) -> None:
        if inputs > units:
            raise ValueError(f"layers are stacked, so inputs must be at most the {units} units, got {inputs}")
        super().__init__()
        self.units = units
        self.layers = nn.ModuleList(PeepholeLayer(inputs if not i else units, units) for i in range(layers))
        self.head = nn.Linear(units, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """From sequences (N, T, inputs) to outputs (N, outputs)."""
        units, depth = self.units, len(self.layers)
        weights, biases, peeping = self._stacked()
        steps = F.pad(x, (0, units - x.shape[2], 0, depth - 1)).transpose(0, 1).unsqueeze(1).unbind()
        h = c = x.new_zeros(depth, len(x), units)
        started = torch.ones(depth, depth, dtype=x.dtype, device=x.device).tril()[:, :, None, None]
        for s, entering in enumerate(steps):
            below = torch.cat([entering, h[:-1]])
            gates = torch.baddbmm(biases, torch.cat([below, h, c], dim=2), weights)
            both, outward, candidate = gates.split([2 * units, units, units], dim=2)
            inward, forget = both.sigmoid().chunk(2, dim=2)
            c = torch.addcmul(forget * c, inward, candidate.tanh())
            h = torch.addcmul(outward, peeping, c).sigmoid() * c.tanh()
            if s < depth - 1:  # layers that no input has reached stay at zero
                c, h = c * started[s], h * started[s]
        return self.head(h[-1])

    def _stacked(self) -> tuple[Tensor, Tensor, Tensor]:
        """The layers' weights from inputs, outputs and cells, their biases, and peepholes of the output gates."""
        units, weights = self.units, []
        for layer in self.layers:
            peeping = [torch.diag(row) for row in layer.peephole[:2]]
            from_cells = F.pad(torch.cat(peeping, dim=1), (0, 2 * units))
            entering = F.pad(layer.input, (0, units - layer.input.shape[1])).T
            weights.append(torch.cat([entering, layer.hidden.T, from_cells]))
        biases = torch.stack([layer.bias for layer in self.layers])[:, None]
        return torch.stack(weights), biases, torch.stack([layer.peephole[2:] for layer in self.layers])


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class ResNet(nn.Module):
    """One convolution, three residual blocks of one, two and four times the width, one linear layer; no BatchNorm.

    Weights are drawn as by He et al. (2015). Without BatchNorm signals would grow with each block: the last convolution
    of each is divided by the root of the number of blocks (after Zhang, Dauphin and Ma 2019).
    """

    def __init__(self, channels: int, outputs: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(
            Residual(width, width, 1), Residual(width, 2 * width, 2), Residual(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, outputs)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 4:
                gain = 1.0 if "shortcut" in name else math.sqrt(2.0)
                gain /= math.sqrt(len(self.blocks)) if "second" in name else 1.0
                nn.init.normal_(parameter, std=gain / math.sqrt(parameter[0].numel()))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(F.relu(self.conv(x))).mean(dim=(2, 3)))
