"""Sketches of vectors: short linear images that keep lengths, so that long vectors need not be kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyhessian_spectra.spectra.results import Floats


class CountSketch:
    """Maps vectors (n,) to ``width`` numbers for each section, always the same way.

    Each entry is added to one of the numbers of its section, with a random sign (Charikar, Chen and Farach-Colton
    2002). The squared length of a section is kept on average, with a relative standard deviation of up to ``(2 /
    width)^(1/2)``.
    """

    def __init__(self, sections: Sequence[int], width: int, generator: torch.Generator, device: torch.device) -> None:
        n, self._shape = sum(sections), (len(sections), width)
        starts = torch.repeat_interleave(torch.arange(len(sections)) * width, torch.tensor(sections))
        self._places = (starts + torch.randint(width, (n,), generator=generator)).to(device)
        self._signs = (torch.randint(2, (n,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)

    def __call__(self, v: Tensor) -> Floats:
        """The image (sections, width) of a vector."""
        image = torch.zeros(self._shape, dtype=torch.float64, device=v.device)
        image.view(-1).index_add_(0, self._places, self._signs * v.double())
        return image.cpu().numpy()
