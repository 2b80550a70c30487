"""Operations rewritten so that their derivatives are right and second derivatives are cheap.

Values and derivatives of all orders equal those of the original operations, up to rounding. An operation is rewritten
if torch differentiates it wrongly (2.13: the third derivatives of LayerNorm and of BatchNorm in train mode, the second
of weight_norm), if its rounding hides the derivatives (softmax losses of confident predictions), or if measurements
showed a gain. Forms of a call that are not known here are left to torch.
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
from pyhessian_spectra.curvature.kernels.activations import gelu, is_small, relu
from pyhessian_spectra.curvature.kernels.convolution import CONVOLUTIONS, convolution
from pyhessian_spectra.curvature.kernels.losses import binary_cross_entropy_with_logits, cross_entropy, log_softmax
from pyhessian_spectra.curvature.kernels.normalisation import layer_norm

__all__ = ["RightDerivatives"]

# Composed of torch's own operations, for which the transforms of torch.func have rules.
_COMPOSED: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    F.batch_norm: composed.batch_norm,
    F.instance_norm: composed.instance_norm,
    F.layer_norm: composed.layer_norm,
    torch._weight_norm: composed.weight_norm,
    F.cross_entropy: cross_entropy,
    F.log_softmax: log_softmax,
    torch.log_softmax: log_softmax,
    Tensor.log_softmax: log_softmax,
    F.binary_cross_entropy_with_logits: binary_cross_entropy_with_logits,
}
_REWRITTEN: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    **_COMPOSED,
    F.layer_norm: layer_norm,
    F.gelu: gelu,
    F.relu: relu,
    torch.relu: relu,
    **{native: functools.partial(convolution, native) for native in CONVOLUTIONS},
}

_LARGE = (gelu, relu)  # rewritten for large inputs only
_ATTENTION = (F.scaled_dot_product_attention, F.multi_head_attention_forward)


class RightDerivatives(TorchFunctionMode):
    """Within this context, convolutions, normalisations and activations run as written in this package.

    Exceptions are segments of a model that install saved-tensor hooks, as checkpointing does: they run again in the
    backward pass, outside this context, and must then save the same tensors. ``met`` says whether a rewritten operation
    was called, ``attended`` whether attention was, ``hooked`` whether there was such a segment.
    """

    def __init__(self) -> None:
        super().__init__()
        self._hooks = _hooks_on_saved_tensors()
        self.met = self.attended = self.hooked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        hooked = _hooks_on_saved_tensors() != self._hooks
        self.hooked = self.hooked or hooked
        if func in _REWRITTEN and not hooked:
            func = (_COMPOSED if torch._C._are_functorch_transforms_active() else _REWRITTEN).get(func, func)
            self.met = self.met or not (func in _LARGE and is_small(args[0]))
        elif func in _ATTENTION:
            self.attended = True
        return func(*args, **(kwargs or {}))


def _hooks_on_saved_tensors() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)
