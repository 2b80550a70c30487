"""Residual networks of basic blocks: the CIFAR family and ResNet18."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.state_dicts import StateDict


class Subsample(nn.Module):
    """The shortcut without parameters ("option A"): every second pixel of (N, C, H, W), zeros in the new channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self._before = new_channels // 2
        self._after = new_channels - self._before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self._before, self._after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, (N, channels, H, W) to (N, width, H / stride, W / stride)."""

    def __init__(self, channels: int, width: int, stride: int, projection: bool, shortcut_name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        shortcut: nn.Module = nn.Identity()
        if projection and (stride != 1 or channels != width):
            convolution = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(width))
        elif stride != 1 or channels != width:
            shortcut = Subsample(width - channels)
        self._shortcut_name = shortcut_name
        self.add_module(shortcut_name, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.get_submodule(self._shortcut_name)(x))


class ResNet(nn.Sequential):
    """A stem, stages of basic blocks that halve the image, global average pooling and a linear head.

    It takes images (N, channels, H, W) to logits (N, classes). ``blocks`` and ``widths`` count each stage's blocks and
    channels. With ``projection``, shortcuts that change shape are 1x1 convolutions ("option B"); otherwise they have no
    parameters. A ``stem`` of 3 keeps the resolution; 7 is the ImageNet stem with stride 2 and max pooling.

    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, sections 3.3 and 4.2.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        channels: int = 3,
        classes: int = 10,
        projection: bool = False,
        stem: int = 3,
        head: str = "linear",
        shortcut_name: str = "shortcut",
    ) -> None:
        if stem not in (3, 7):
            raise InputError(f"the stem of a ResNet is a 3x3 or a 7x7 convolution, not {stem}x{stem}")
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(channels, widths[0], stem, stride=stem // 3, padding=stem // 2, bias=False),
            bn1=nn.BatchNorm2d(widths[0]),
            relu=nn.ReLU(),
            maxpool=nn.MaxPool2d(3, stride=2, padding=1) if stem == 7 else nn.Identity(),
        )
        before = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            shapes = [(before, width, min(stage, 2)), *[(width, width, 1)] * (count - 1)]
            in_stage = (BasicBlock(*shape, projection, shortcut_name) for shape in shapes)
            layers[f"layer{stage}"] = nn.Sequential(*in_stage)
            before = width
        layers |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), head: nn.Linear(before, classes)}
        super().__init__(layers)


def cifar_resnet(depth: int, *, width: int = 16, **options: Any) -> ResNet:
    """The CIFAR network of depth 6k + 2: three stages of k blocks, 16, 32 and 64 channels; ``options`` are ResNet's."""
    return ResNet([(depth - 2) // 6] * 3, [width, 2 * width, 4 * width], **options)


def resnet18(*, width: int = 64, **options: Any) -> ResNet:
    """ResNet18: four stages of two blocks, 64, 128, 256 and 512 channels; ``options`` are ResNet's."""
    usual: dict[str, Any] = {"projection": True, "head": "fc", "shortcut_name": "downsample"}
    return ResNet([2, 2, 2, 2], [width, 2 * width, 4 * width, 8 * width], **(usual | options))


def infer(state_dict: StateDict) -> dict[str, Any]:
    """Everything but the depth, which the model's name fixes, and the stem."""
    head = "fc" if "fc.weight" in state_dict else "linear"
    width, channels = state_dict["conv1.weight"].shape[:2]
    shortcuts = [name for name in ("shortcut", "downsample") if f"layer2.0.{name}.0.weight" in state_dict]
    return {
        "width": width,
        "channels": channels,
        "classes": state_dict[f"{head}.weight"].shape[0],
        "head": head,
        "projection": bool(shortcuts),
        "shortcut_name": shortcuts[0] if shortcuts else "shortcut",
    }


def infer_resnet18(state_dict: StateDict) -> dict[str, Any]:
    """What ``infer`` finds, and the stem; a ResNet18 always has projections."""
    return infer(state_dict) | {"projection": True, "stem": state_dict["conv1.weight"].shape[-1]}
