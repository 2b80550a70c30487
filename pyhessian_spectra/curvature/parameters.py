"""ParameterLayout: the positions of parameters in a flat vector."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from pyhessian_spectra.errors import InputError, NonFiniteError


@dataclass(frozen=True)
class ParameterLayout:
    """Names, shapes and positions of parameters in a flat vector.

    Parameters
    ----------
    shapes : mapping of str to torch.Size
        Parameter shapes by name, in the order of the flat vector.
    aliases : mapping of str to str, optional
        Further names of tied parameters, each mapped to the name in ``shapes``.

    Examples
    --------
    >>> layout = ParameterLayout({"0.weight": torch.Size([2, 3]), "0.bias": torch.Size([2])})
    >>> layout.n, layout.slices["0.bias"]
    (8, slice(6, 8, None))
    """

    shapes: Mapping[str, torch.Size]
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameter names in order."""
        return tuple(self.shapes)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Slice of the flat vector that holds each parameter, by name."""
        slices, start = {}, 0
        for name, shape in self.shapes.items():
            slices[name] = slice(start, start + shape.numel())
            start += shape.numel()
        return slices

    @cached_property
    def _sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes.values()]

    @cached_property
    def n(self) -> int:
        """Number of coordinates."""
        return sum(self._sizes)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate tensors, one per parameter and in order, to a vector (n,)."""
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def unflatten(self, v: Tensor) -> tuple[Tensor, ...]:
        """Views of a vector (n,) with the parameters' shapes, or of rows (k, n) with a leading dimension k."""
        parts, lead = v.split(self._sizes, dim=-1), v.shape[:-1]
        return tuple(part.view((*lead, *shape)) for part, shape in zip(parts, self.shapes.values(), strict=True))

    def match(self, patterns: str | Iterable[str]) -> tuple[str, ...]:
        """Names of the parameters that match parameter names, module names or globs; InputError if one has no match."""
        names, chosen = self.names, set()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            hits = {
                self.aliases.get(name, name)
                for name in (*names, *self.aliases)
                if name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)
            } & set(names)
            if not hits:
                known = (*names, *dict.fromkeys(name.rpartition(".")[0] for name in names))
                close = difflib.get_close_matches(pattern, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names[:4])}, ..."
                raise InputError(f"no trainable parameter matches {pattern!r}; {hint}")
            chosen |= hits
        return tuple(name for name in names if name in chosen)

    def restrict(self, patterns: str | Iterable[str]) -> ParameterLayout:
        """The layout of the parameters that :meth:`match` finds."""
        names = self.match(patterns)
        aliases = {alias: name for alias, name in self.aliases.items() if name in names}
        return ParameterLayout({name: self.shapes[name] for name in names}, aliases)


def trainable_layout(model: nn.Module) -> tuple[ParameterLayout, torch.dtype, torch.device]:
    """The layout of the parameters that require a gradient, each counted once, and their common dtype and device.

    Raises InputError if there are none, if one holds NaN or infinity, or if they are not all float32 or all float64.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise InputError("the model has no trainable parameters; call requires_grad_(True) on those to analyse")
    first_name, first = next(iter(trainable.items()))
    for name, p in trainable.items():
        if p.is_complex():
            raise InputError(f"{name} is complex; write it as two real parameters, such as its view_as_real")
        if (p.dtype, p.device) != (first.dtype, first.device):
            raise InputError(
                f"parameters must share dtype and device: {first_name} is {first.dtype} on {first.device}, {name} is "
                f"{p.dtype} on {p.device}; convert the model with .to(device, dtype)"
            )
        if not torch.isfinite(p).all():
            raise NonFiniteError(f"parameter {name} holds NaN or infinity; the checkpoint is from a run that diverged")
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
    return ParameterLayout({name: p.shape for name, p in trainable.items()}, aliases), first.dtype, first.device
