"""Residual networks of basic blocks: the CIFAR family and ResNet18."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.problems.architectures.base import StateDict


class Subsample(nn.Module):
    """The shortcut without parameters ("option A"): every second pixel, zeros in the new channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self._before = new_channels // 2
        self._after = new_channels - self._before

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C + new, ceil(H / 2), ceil(W / 2))."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self._before, self._after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut; ``shortcut_name`` is how checkpoints call it."""

    def __init__(self, channels: int, width: int, stride: int, *, projection: bool, shortcut_name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            if projection:
                shortcut = nn.Sequential(
                    nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
                )
            else:
                shortcut = Subsample(width - channels)
        self._shortcut_name = shortcut_name
        self.add_module(shortcut_name, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) to (N, width, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.get_submodule(self._shortcut_name)(x))


class ResNet(nn.Module):
    """A stem, stages of basic blocks that halve the image, global average pooling and a linear head.

    Parameters
    ----------
    blocks, widths : sequence of int
        Blocks and channels of each stage.
    channels, classes : int
        Input channels; outputs.
    projection : bool
        1x1 convolutions where a shortcut changes shape ("option B"); otherwise shortcuts have no parameters.
    stem : {3, 7}
        3 keeps the resolution; 7 is the ImageNet stem with stride 2 and max pooling.
    head, shortcut_name : str
        What checkpoints call the last layer (``linear``, ``fc``) and the shortcut (``shortcut``, ``downsample``).

    References
    ----------
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, sections 3.3 and 4.2.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        channels: int,
        classes: int,
        projection: bool,
        stem: int,
        head: str,
        shortcut_name: str,
    ) -> None:
        super().__init__()
        if stem not in (3, 7):
            raise InputError(f"the stem of a ResNet is a 3x3 or a 7x7 convolution, not {stem}x{stem}")
        self.conv1 = nn.Conv2d(channels, widths[0], stem, stride=stem // 3, padding=stem // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == 7 else nn.Identity()
        self._num_stages = len(blocks)
        width_in = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(BasicBlock(width_in, width, stride, projection=projection, shortcut_name=shortcut_name))
                width_in = width
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self._head = head
        self.add_module(head, nn.Linear(width_in, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (N, classes), of images of shape (N, channels, H, W)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        for stage in range(1, self._num_stages + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.get_submodule(self._head)(x.mean(dim=(2, 3)))


def cifar_resnet(
    depth: int,
    *,
    width: int = 16,
    channels: int = 3,
    classes: int = 10,
    projection: bool = False,
    head: str = "linear",
    shortcut_name: str = "shortcut",
) -> ResNet:
    """The CIFAR network of depth 6k + 2: three stages of k blocks with 16, 32 and 64 channels."""
    return ResNet(
        [(depth - 2) // 6] * 3,
        [width, 2 * width, 4 * width],
        channels=channels,
        classes=classes,
        projection=projection,
        stem=3,
        head=head,
        shortcut_name=shortcut_name,
    )


def resnet18(
    *,
    width: int = 64,
    channels: int = 3,
    classes: int = 10,
    stem: int = 3,
    head: str = "fc",
    shortcut_name: str = "downsample",
) -> ResNet:
    """ResNet18: four stages of two blocks with 64, 128, 256 and 512 channels."""
    return ResNet(
        [2, 2, 2, 2],
        [width, 2 * width, 4 * width, 8 * width],
        channels=channels,
        classes=classes,
        projection=True,
        stem=stem,
        head=head,
        shortcut_name=shortcut_name,
    )


def infer_cifar(depth: int, state_dict: StateDict) -> dict[str, Any]:
    """Everything but the depth, which the model's name fixes."""
    found = _infer_common(state_dict)
    names = [name for name in ("shortcut", "downsample") if f"layer2.0.{name}.0.weight" in state_dict]
    return found | {"projection": bool(names), "shortcut_name": names[0] if names else "shortcut"}


def infer_resnet18(state_dict: StateDict) -> dict[str, Any]:
    """Width, channels, classes, the stem and the names in use."""
    name = "shortcut" if "layer2.0.shortcut.0.weight" in state_dict else "downsample"
    return _infer_common(state_dict) | {"stem": state_dict["conv1.weight"].shape[-1], "shortcut_name": name}


def _infer_common(state_dict: StateDict) -> dict[str, Any]:
    head = "fc" if "fc.weight" in state_dict else "linear"
    width, channels = state_dict["conv1.weight"].shape[:2]
    return {"width": width, "channels": channels, "classes": state_dict[f"{head}.weight"].shape[0], "head": head}
