"""LeNet-5 with ReLU and max pooling."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.problems.architectures.base import StateDict


class LeNet(nn.Module):
    """Two 5x5 convolutions and three linear layers: 61,706 parameters at one channel and ten classes.

    Parameters
    ----------
    channels : int
        Input channels.
    classes : int

    References
    ----------
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998, section II.B;
    the scaled tanh and trainable subsampling of that time are the usual ReLU and max pooling here.
    """

    def __init__(self, *, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes), of images of shape (N, channels, 32, 32) or (N, channels, 28, 28)."""
        if x.shape[-1] == 28:
            x = F.pad(x, (2, 2, 2, 2))
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Input channels and classes."""
    return {"channels": state_dict["conv1.weight"].shape[1], "classes": state_dict["fc3.weight"].shape[0]}
