"""Partition: groups of coordinates of a parameter vector, such as layers, parameters or attention heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.errors import InputError


@dataclass(frozen=True, eq=False)
class Group:
    """A named set of coordinates: ascending ``indices`` (p,), int64, with a ``label``.

    ``names`` are the parameters that contain them; ``whole`` says whether the group holds all coordinates of these.
    """

    label: str
    indices: Tensor = field(repr=False)
    names: tuple[str, ...]
    whole: bool

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def _range(self) -> slice | None:
        """The coordinates as a slice if they are contiguous, else None."""
        first, last = int(self.indices[0]), int(self.indices[-1])
        return slice(first, last + 1) if last - first + 1 == len(self.indices) else None

    def take(self, v: Tensor) -> Tensor:
        """The group's coordinates of ``v`` (n,) or (n, k): a view if they are contiguous, else a copy."""
        return v[self.indices.to(v.device)] if self._range is None else v[self._range]

    def embed(self, part: Tensor, n: int) -> Tensor:
        """The vector (n,), or columns (n, k), with ``part`` at the group's coordinates and zeros elsewhere."""
        return self.put(part, part.new_zeros(n, *part.shape[1:]))

    def put(self, part: Tensor, whole: Tensor) -> Tensor:
        """``whole``, with ``part`` at the group's coordinates: it is changed in place."""
        whole[self.indices.to(part.device) if self._range is None else self._range] = part
        return whole


class Partition:
    """Coordinates of a parameter vector in groups that do not overlap.

    Build one with :meth:`by_layer`, :meth:`by_module`, :meth:`by_parameter`, :meth:`by_depth`, :meth:`by_glob`,
    :meth:`by_rows`, :meth:`by_heads` or :meth:`at_random`. Some coordinates may belong to no group.

    Parameters
    ----------
    layout : ParameterLayout
    groups : mapping of str to Tensor
        Indices of each group's coordinates, int64, by label.

    Raises
    ------
    InputError
        A group is empty, groups overlap, an index lies outside the layout, or a pattern or a number does not fit it.

    Examples
    --------
    >>> shapes = {"a.weight": torch.Size([2, 3]), "a.bias": torch.Size([2]), "b.weight": torch.Size([4])}
    >>> layout = ParameterLayout(shapes)
    >>> {group.label: len(group) for group in Partition.by_module(layout)}
    {'a': 8, 'b': 4}
    """

    def __init__(self, layout: ParameterLayout, groups: Mapping[str, Tensor]) -> None:
        self.layout = layout
        owner = torch.full((layout.n,), -1, dtype=torch.int32)
        labels = list(groups)
        for number, (label, indices) in enumerate(groups.items()):
            if not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= layout.n:
                raise InputError(f"group {label!r} is empty or has indices outside 0 to {layout.n - 1}")
            taken = owner[indices]
            if len(indices.unique()) < len(indices) or bool((taken >= 0).any()):
                other = labels[int(taken.max())] if bool((taken >= 0).any()) else label
                raise InputError(
                    f"groups {other!r} and {label!r} overlap; each coordinate belongs to one group at most"
                )
            owner[indices] = number
        self._owner = owner
        self.groups: dict[str, Group] = {label: self._group(label, indices) for label, indices in groups.items()}

    def _group(self, label: str, indices: Tensor) -> Group:
        indices = indices.sort().values
        ends = torch.tensor([part.stop for part in self.layout.slices.values()])
        touched = torch.searchsorted(ends, indices, right=True).unique()
        names = tuple(self.layout.names[i] for i in touched.tolist())
        size = sum(self.layout.shapes[name].numel() for name in names)
        return Group(label, indices, names, size == len(indices))

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups.values())

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, label: str) -> Group:
        if label not in self.groups:
            raise InputError(f"there is no group {label!r}; there are {', '.join(self.groups)}")
        return self.groups[label]

    @property
    def complete(self) -> bool:
        """Whether every coordinate belongs to a group."""
        return bool((self._owner >= 0).all())

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the parameters with coordinates that belong to no group."""
        return tuple(name for name, part in self.layout.slices.items() if bool((self._owner[part] < 0).any()))

    def sections(self) -> tuple[list[int], dict[str, list[int]]]:
        """Lengths of runs of coordinates that share a group or have none, and the runs of each group by label."""
        _, counts = torch.unique_consecutive(self._owner, return_counts=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)[:-1]])
        owners = self._owner[starts].tolist()
        members = {label: [i for i, o in enumerate(owners) if o == number] for number, label in enumerate(self.groups)}
        return counts.tolist(), members

    @classmethod
    def of(cls, layout: ParameterLayout, groups: GroupSpec) -> Partition:
        """From a Partition, ``"layer"``, ``"module"`` or ``"parameter"``, a depth, or globs as for :meth:`by_glob`."""
        if isinstance(groups, Partition):
            if groups.layout.shapes != layout.shapes:
                raise InputError("the partition is of another model's parameters; build it from this risk's layout")
            return groups
        if isinstance(groups, int):
            return cls.by_depth(layout, groups)
        named = {"layer": cls.by_layer, "module": cls.by_module, "parameter": cls.by_parameter}
        if isinstance(groups, str) and groups in named:
            return named[groups](layout)
        return cls.by_glob(layout, groups)

    @classmethod
    def by_module(cls, layout: ParameterLayout, patterns: str | Sequence[str] | None = None) -> Partition:
        """One group for each module that owns (matching) parameters; those of the root module form ``"(root)"``."""
        names = layout.names if patterns is None else layout.match(patterns)
        return cls._by(layout, names, lambda name: name.rpartition(".")[0] or "(root)")

    @classmethod
    def by_layer(cls, layout: ParameterLayout) -> Partition:
        """One group for each module that owns a weight of two or more dimensions, with all its parameters."""
        modules = cls.by_module(layout)
        matrices = [g for g in modules if any(len(layout.shapes[name]) > 1 for name in g.names)]
        return cls(layout, {g.label: g.indices for g in matrices})

    @classmethod
    def by_parameter(cls, layout: ParameterLayout) -> Partition:
        """One group for each parameter tensor."""
        return cls._by(layout, layout.names, lambda name: name)

    @classmethod
    def by_depth(cls, layout: ParameterLayout, depth: int) -> Partition:
        """One group per first ``depth`` parts of module names: 1 separates ``layer1`` and ``layer2`` of a ResNet."""
        if depth < 1:
            raise InputError(f"depth must be at least 1, got {depth}")
        modules = {name: name.rpartition(".")[0] for name in layout.names}
        return cls._by(layout, layout.names, lambda name: ".".join(modules[name].split(".")[:depth]) or "(root)")

    @classmethod
    def by_glob(
        cls, layout: ParameterLayout, patterns: str | Sequence[str] | Mapping[str, str | Sequence[str]]
    ) -> Partition:
        """One group for each pattern, or for each label of a mapping from labels to patterns."""
        if not isinstance(patterns, Mapping):
            patterns = {pattern: pattern for pattern in ([patterns] if isinstance(patterns, str) else patterns)}
        return cls(layout, {label: _coordinates(layout, layout.match(some)) for label, some in patterns.items()})

    @classmethod
    def by_rows(cls, layout: ParameterLayout, name: str, size: int = 1) -> Partition:
        """One group for every ``size`` successive rows (first index) of one parameter."""
        (name,) = layout.match(name)
        shape, start = layout.shapes[name], layout.slices[name].start
        if not 1 <= size <= shape[0]:
            raise InputError(f"size must be between 1 and the {shape[0]} rows of {name}, got {size}")
        width = shape.numel() // shape[0]
        ranges = {
            row: (start + row * width, start + min(row + size, shape[0]) * width) for row in range(0, shape[0], size)
        }
        return cls(layout, {f"{name}[{row}]": torch.arange(*ends) for row, ends in ranges.items()})

    @classmethod
    def by_heads(
        cls, layout: ParameterLayout, name: str, num_heads: int, *, parts: Sequence[str] = ("q", "k", "v")
    ) -> Partition:
        """One group for each part and head of a joint attention projection, such as ``"qkv.weight q0"``.

        The rows are the heads of the first of the ``parts``, then those of the next; a separate projection has one
        part.
        """
        (name,) = layout.match(name)
        rows, count = layout.shapes[name][0], num_heads * len(parts)
        if num_heads < 1 or rows % count:
            raise InputError(f"the {rows} rows of {name} are not {len(parts)} parts of {num_heads} heads of equal size")
        blocks = cls.by_rows(layout, name, rows // count)
        labels = [f"{name} {part}{head}" for part in parts for head in range(num_heads)]
        return cls(layout, {label: group.indices for label, group in zip(labels, blocks, strict=True)})

    @classmethod
    def at_random(cls, layout: ParameterLayout, count: int, *, generator: torch.Generator) -> Partition:
        """All coordinates in ``count`` random groups, whose sizes differ by one at most."""
        if not 1 <= count <= layout.n:
            raise InputError(f"count must be between 1 and n = {layout.n}, got {count}")
        parts = torch.randperm(layout.n, generator=generator).tensor_split(count)
        return cls(layout, {f"random {i}": part for i, part in enumerate(parts)})

    @classmethod
    def _by(cls, layout: ParameterLayout, names: Sequence[str], label: Callable[[str], str]) -> Partition:
        members: dict[str, list[str]] = {}
        for name in (name for name in names if layout.shapes[name].numel()):
            members.setdefault(label(name), []).append(name)
        return cls(layout, {group: _coordinates(layout, some) for group, some in members.items()})


# Specifications from which :meth:`Partition.of` builds a partition.
GroupSpec = Partition | str | int | Sequence[str] | Mapping[str, str | Sequence[str]]


def _coordinates(layout: ParameterLayout, names: Sequence[str]) -> Tensor:
    ranges = [torch.arange(layout.slices[name].start, layout.slices[name].stop) for name in names]
    return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)
