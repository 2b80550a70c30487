"""VGG11 in its CIFAR form, with and without BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures.base import StateDict

_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
# The convolutions (counted from 0) that are followed by 2x2 max pooling: five in all, 32x32 down to 1x1.
_POOLED = (0, 1, 3, 5, 7)


class VGG11(nn.Module):
    """Eight 3x3 convolutions, five max poolings and a classifier on the remaining pixel.

    Parameters
    ----------
    batch_norm : bool
    widths : sequence of 8 int
        Channels of the convolutions.
    channels, classes : int
        Input channels; outputs.
    hidden : int
        Width of the two hidden layers of the classifier; 0 for a linear classifier.
    dropout_first : bool
        Dropout before each hidden layer, or behind it: the same in eval mode, but the layers are numbered otherwise.

    References
    ----------
    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015, table 1,
    column A.
    """

    def __init__(
        self,
        *,
        batch_norm: bool,
        widths: Sequence[int] = _WIDTHS,
        channels: int = 3,
        classes: int = 10,
        hidden: int = 0,
        dropout_first: bool = True,
    ) -> None:
        super().__init__()
        if len(widths) != len(_WIDTHS):
            raise InputError(f"VGG11 has {len(_WIDTHS)} convolutions, but widths names {len(widths)}")
        layers: list[nn.Module] = []
        for index, width in enumerate(widths):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            if index in _POOLED:
                layers.append(nn.MaxPool2d(2))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier: nn.Module = nn.Linear(channels, classes)
        if hidden:
            blocks: list[nn.Module] = []
            for fan_in in (channels, hidden):
                block = [nn.Linear(fan_in, hidden), nn.ReLU()]
                blocks += [nn.Dropout(), *block] if dropout_first else [*block, nn.Dropout()]
            self.classifier = nn.Sequential(*blocks, nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes), of images of shape (N, channels, 32, 32)."""
        return self.classifier(self.features(x).flatten(1))


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Widths, channels, classes and the form of the classifier."""
    convolutions = [t for k, t in state_dict.items() if k.startswith("features.") and t.ndim == 4]
    dropout_first = "classifier.1.weight" in state_dict
    is_linear = "classifier.weight" in state_dict
    hidden = 0 if is_linear else state_dict[f"classifier.{int(dropout_first)}.weight"].shape[0]
    last = state_dict["classifier.weight" if is_linear else "classifier.6.weight"]
    return {
        "widths": [weight.shape[0] for weight in convolutions],
        "channels": convolutions[0].shape[1],
        "classes": last.shape[0],
        "hidden": hidden,
        "dropout_first": dropout_first,
    }
