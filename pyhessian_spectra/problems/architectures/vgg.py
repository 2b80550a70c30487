"""VGG11 in its CIFAR form, with and without BatchNorm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.state_dicts import StateDict

_WIDTHS = (64, 128, 256, 256, 512, 512, 512, 512)
# The convolutions (counted from 0) that are followed by 2x2 max pooling: five in all, 32x32 down to 1x1.
_POOLED = (0, 1, 3, 5, 7)


class VGG11(nn.Sequential):
    """Eight 3x3 convolutions, five max poolings and a classifier on the remaining pixel.

    It takes images (N, channels, 32, 32) to logits (N, classes). ``hidden`` is the width of the classifier's two hidden
    layers; 0 makes it linear. ``dropout_first`` puts dropout before each hidden layer rather than behind it, which in
    eval mode changes nothing but the numbers of the layers.

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
        if len(widths) != len(_WIDTHS):
            raise InputError(f"VGG11 has {len(_WIDTHS)} convolutions, but widths names {len(widths)}")
        features: list[nn.Module] = []
        for index, width in enumerate(widths):
            norm = [nn.BatchNorm2d(width)] if batch_norm else []
            pooling = [nn.MaxPool2d(2)] if index in _POOLED else []
            features += [nn.Conv2d(channels, width, 3, padding=1), *norm, nn.ReLU(), *pooling]
            channels = width
        classifier: nn.Module = nn.Linear(hidden or channels, classes)
        if hidden:
            first, second = nn.Linear(channels, hidden), nn.Linear(hidden, hidden)
            layers = [nn.Dropout(), first, nn.ReLU(), nn.Dropout(), second, nn.ReLU()]
            classifier = nn.Sequential(*(layers if dropout_first else [*layers[1:], layers[0]]), classifier)
        super().__init__(OrderedDict(features=nn.Sequential(*features), flatten=nn.Flatten(), classifier=classifier))


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Widths, channels, classes and how the classifier is built."""
    convolutions = [t for k, t in state_dict.items() if k.startswith("features.") and t.ndim == 4]
    is_linear = "classifier.weight" in state_dict
    return {
        "widths": [weight.shape[0] for weight in convolutions],
        "channels": convolutions[0].shape[1],
        "classes": state_dict["classifier.weight" if is_linear else "classifier.6.weight"].shape[0],
        "hidden": 0 if is_linear else state_dict["classifier.6.weight"].shape[1],
        "dropout_first": "classifier.1.weight" in state_dict,
    }
