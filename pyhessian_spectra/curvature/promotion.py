"""A model in another dtype than its own, as it is run to measure rounding: contexts that leave it the same function."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]

# In another dtype bits are other numbers, and random numbers are other ones.
_BITS = (Tensor.view, torch.frombuffer)
_RANDOM = (torch.rand_like, torch.randn_like, torch.bernoulli, torch.normal, torch.poisson, torch.multinomial)
_RANDOM_IN_PLACE = (Tensor.normal_, Tensor.uniform_, Tensor.bernoulli_, Tensor.exponential_, Tensor.log_normal_)

_NORMS = (F.rms_norm, torch.rms_norm)

# These make float tensors of the default dtype, if they are given none.
_FACTORIES = (torch.zeros, torch.ones, torch.empty, torch.eye, torch.linspace)
_TYPED_FACTORIES = (*_FACTORIES, torch.full, torch.arange, torch.tensor, torch.as_tensor, torch.logspace)


class Promoted(TorchFunctionMode):
    """Within this context, a float32 model runs in float64, or the other way round.

    It meets float32 constants, such as class weights that its loss has captured: a function that fails is called again
    with all floating tensors in float64. And it converts tensors to float32, as many losses and normalisations do so
    that they are not computed in less: these stay in float64.
    """

    def __init__(self, own: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self._own, self._dtype = own, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.float and self._own == torch.float32:
            func, args = Tensor.to, (args[0], self._dtype)
        elif func in _TYPED_FACTORIES or (args and isinstance(args[0], Tensor) and func not in _BITS):
            args = [self._dtype if x is self._own else x for x in args]
            kwargs = {name: self._dtype if x is self._own else x for name, x in kwargs.items()}
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            written = "out" in kwargs or getattr(func, "__name__", "").endswith(("_", "__setitem__"))
            if written or func is torch.autograd.grad:  # to a copy, which is lost; a graph has been used
                raise
            args, kwargs = tree_map(self._cast, (args, kwargs))
            return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class ToldOwn(TorchFunctionMode):
    """Within :class:`Promoted`, for calls of the model and the loss: they are told that they run in their own dtype.

    What depends on it, such as ``finfo(x.dtype).eps``, a branch, or random numbers with a seed, is then the same.
    """

    def __init__(self, own: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self._own, self._dtype = own, dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DTYPE:
            found = func(*args)
            return self._own if found is self._dtype else found
        if func is Tensor.element_size and args[0].dtype is self._dtype:
            return self._own.itemsize
        if func in _RANDOM or func in _RANDOM_IN_PLACE:
            with torch._C.DisableTorchFunction():  # the context around this one would draw in the other dtype
                return self._drawn(func, args, kwargs)
        if func in _NORMS:  # whose own default is eps of what they are given
            eps = torch.finfo(self._own).eps
            args, kwargs = (*args[:3], *[eps if x is None else x for x in args[3:]]), {**kwargs}
            if len(args) < 4 and kwargs.get("eps") is None:
                kwargs["eps"] = eps
        elif func in _FACTORIES and not kwargs.get("dtype") and torch.get_default_dtype() is self._own:
            kwargs = {**kwargs, "dtype": self._dtype}
        return func(*args, **kwargs)

    def _drawn(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Random numbers, drawn in the model's own dtype."""
        own, named = tree_map(lambda x: _between(x, self._dtype, self._own), (args, kwargs))
        if func in _RANDOM_IN_PLACE:
            return args[0].copy_(func(own[0].detach().clone(), *own[1:], **named))
        return _between(func(*own, **named), self._own, self._dtype)


def _between(value: Any, before: torch.dtype, after: torch.dtype) -> Any:
    """A tensor of one dtype in another, and all else as it is."""
    return value.to(after) if isinstance(value, Tensor) and value.dtype is before else value
