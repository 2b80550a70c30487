"""Architecture: a network that can be rebuilt from nothing but its name and the shapes in a state dict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

StateDict = Mapping[str, Tensor]

# What a network reads: flat vectors (N, d), images (N, C, H, W), sequences of rows (N, T, d) or tokens (N, T).
InputKind = Literal["flat", "image", "rows", "tokens"]


@dataclass(frozen=True)
class Architecture:
    """How to rebuild one family of networks.

    Parameters
    ----------
    module : callable
        Makes the ``nn.Module`` from keyword arguments, all of which have defaults.
    infer : callable
        Reads those arguments off a state dict. May raise ``LookupError`` or ``ValueError`` where the state dict
        is of some other network: the defaults then stand, and fitting says what is missing.
    inputs : str
        What the network reads.
    anchor : str
        A key that every state dict of the family has, used to recognise a prefix common to all keys; empty
        where the family has no fixed names.
    """

    module: Callable[..., nn.Module]
    infer: Callable[[StateDict], dict[str, Any]]
    inputs: InputKind
    anchor: str = ""
