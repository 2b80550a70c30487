"""Operations rewritten so that their second derivative costs no more than it must.

Values and derivatives of all orders are those of torch's own operations, up to rounding. What is rewritten is what was
measured to pay; what is in a form that is not known here is left to torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyhessian_spectra.curvature.kernels.activations import gelu, relu
from pyhessian_spectra.curvature.kernels.convolution import CONVOLUTIONS, convolution
from pyhessian_spectra.curvature.kernels.normalisation import batch_norm, layer_norm

__all__ = ["CheapSecondDerivatives"]

_REWRITTEN: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.batch_norm: batch_norm,
    F.layer_norm: layer_norm,
    F.gelu: gelu,
    F.relu: relu,
    torch.relu: relu,
    **{native: functools.partial(convolution, native) for native in CONVOLUTIONS},
}


class CheapSecondDerivatives(TorchFunctionMode):
    """Within it, convolutions, normalisations and activations run as written in this package."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # torch.func has rules for torch's own operations alone
        if func in _REWRITTEN and not torch._C._are_functorch_transforms_active():
            func = _REWRITTEN[func]
        return func(*args, **(kwargs or {}))
