"""Operations rewritten so that their derivatives are right, and the second costs no more than it must.

Values and derivatives of all orders are those of the operations, up to rounding. Rewritten is what torch gets wrong
(2.13: the third derivatives of LayerNorm and of BatchNorm in train mode, the second of weight_norm), and what was
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

from pyhessian_spectra.curvature.kernels import composed
from pyhessian_spectra.curvature.kernels.activations import gelu, relu
from pyhessian_spectra.curvature.kernels.convolution import CONVOLUTIONS, convolution
from pyhessian_spectra.curvature.kernels.normalisation import layer_norm

__all__ = ["RightDerivatives"]

# Of torch's own operations, which transforms of torch.func have rules for.
_COMPOSED: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.batch_norm: composed.batch_norm,
    F.instance_norm: composed.instance_norm,
    F.layer_norm: composed.layer_norm,
    torch._weight_norm: composed.weight_norm,
}
_REWRITTEN: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    **_COMPOSED,
    F.layer_norm: layer_norm,
    F.gelu: gelu,
    F.relu: relu,
    torch.relu: relu,
    **{native: functools.partial(convolution, native) for native in CONVOLUTIONS},
}


class RightDerivatives(TorchFunctionMode):
    """Within it, convolutions, normalisations and activations run as written in this package.

    But for segments of a model that save tensors in ways of their own, as checkpointing does: they are run again on the
    way back, out of reach of this, and must find what they left.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hooks = _hooks_on_saved_tensors()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _REWRITTEN and _hooks_on_saved_tensors() == self._hooks:
            func = (_COMPOSED if torch._C._are_functorch_transforms_active() else _REWRITTEN).get(func, func)
        return func(*args, **(kwargs or {}))


def _hooks_on_saved_tensors() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)
