"""ParameterLayout: which coordinate of a flat vector is which parameter."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and positions of parameters in a flat vector.

    Parameters
    ----------
    shapes : mapping of str to torch.Size
        Parameter shapes by name, in the order of the flat vector.

    Examples
    --------
    >>> layout = ParameterLayout({"0.weight": torch.Size([2, 3]), "0.bias": torch.Size([2])})
    >>> layout.n, layout.slices["0.bias"]
    (8, slice(6, 8, None))
    """

    shapes: Mapping[str, torch.Size]

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(self.shapes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each parameter lies in the flat vector."""
        slices, start = {}, 0
        for name, shape in self.shapes.items():
            slices[name] = slice(start, start + shape.numel())
            start += shape.numel()
        return slices

    @property
    def n(self) -> int:
        """Number of coordinates."""
        return sum(shape.numel() for shape in self.shapes.values())

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate one tensor a parameter, in order, to a vector (n,)."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def unflatten(self, v: Tensor) -> tuple[Tensor, ...]:
        """Views of a vector (n,), or of rows (k, n), with the parameters' shapes; a leading k is kept."""
        return tuple(
            v[..., part].reshape(*v.shape[:-1], *shape)
            for part, shape in zip(self.slices.values(), self.shapes.values(), strict=True)
        )

    def layers(self) -> dict[str, tuple[str, ...]]:
        """Parameter names by the module that owns them, in order; the root module's own are under ``""``."""
        groups: dict[str, tuple[str, ...]] = {}
        for name in self.names:
            owner = name.rpartition(".")[0]
            groups[owner] = (*groups.get(owner, ()), name)
        return groups

    def indices(self, names: Iterable[str]) -> Tensor:
        """Coordinates of the named parameters, shape (p,), int64."""
        return torch.cat([torch.arange(self.slices[name].start, self.slices[name].stop) for name in names])


def select_names(patterns: str | Iterable[str], names: Sequence[str], aliases: Mapping[str, str]) -> tuple[str, ...]:
    """The names matched by parameter names, module names or globs, in the order of ``names``.

    ``aliases`` maps further names of tied parameters to the one in ``names``.
    """
    chosen = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = {
            aliases.get(name, name)
            for name in (*names, *aliases)
            if name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
        } & set(names)
        if not hits:
            known = (*names, *dict.fromkeys(name.rpartition(".")[0] for name in names))
            close = difflib.get_close_matches(pattern, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names[:4])}, ..."
            raise InputError(f"no trainable parameter matches {pattern!r}; {hint}")
        chosen |= hits
    return tuple(name for name in names if name in chosen)


def trainable_parameters(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Parameters that require a gradient, each once, and the further names of tied ones.

    Raises
    ------
    InputError
        No parameter requires a gradient, or they do not share one floating dtype and device.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise InputError("the model has no trainable parameters; call requires_grad_(True) on those to analyse")
    first_name, first = next(iter(trainable.items()))
    for name, p in trainable.items():
        if (p.dtype, p.device) != (first.dtype, first.device):
            raise InputError(
                f"parameters must share dtype and device: {first_name} is {first.dtype} on {first.device}, {name} is "
                f"{p.dtype} on {p.device}; convert the model with .to(device, dtype)"
            )
    if first.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{first_name} is {first.dtype}, too coarse for second derivatives; convert the model with .float() "
            "or .double()"
        )
    by_id = {id(p): name for name, p in trainable.items()}
    aliases = {
        name: by_id[id(p)]
        for name, p in model.named_parameters(remove_duplicate=False)
        if id(p) in by_id and by_id[id(p)] != name
    }
    return trainable, aliases
