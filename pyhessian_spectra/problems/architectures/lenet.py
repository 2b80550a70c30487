"""LeNet-5 with ReLU and max pooling."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.problems.state_dicts import StateDict


class LeNet(nn.Module):
    """Two 5x5 convolutions and three linear layers: 61,706 parameters at one channel and ten classes.

    It takes images (N, channels, 32, 32) or (N, channels, 28, 28) to logits (N, classes).

    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998, section II.B;
    ReLU and max pooling stand here for the scaled tanh and the trainable subsampling of that time.
    """

    def __init__(self, *, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 28:
            x = F.pad(x, (2, 2, 2, 2))
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


def infer(state_dict: StateDict) -> dict[str, Any]:
    """The numbers of input channels and of classes."""
    return {"channels": state_dict["conv1.weight"].shape[1], "classes": state_dict["fc3.weight"].shape[0]}
