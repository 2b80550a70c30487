"""Notes: sentences that a reader of results must see, told apart by kind and never by their words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoteKind = Literal[
    "linearisation", "unconverged", "interrupted", "resumed", "afresh", "journal", "data", "verification"
]


@dataclass(frozen=True)
class Note:
    """A sentence for the reader.

    Parameters
    ----------
    kind : str
        ``"linearisation"``: whether it was kept. ``"unconverged"``: eigenpairs that did not reach the tolerance.
        ``"interrupted"``: what was not finished. ``"resumed"``, ``"afresh"``: what became of an earlier run's products.
        ``"journal"``: why an interruption would lose work. ``"data"``, ``"verification"``: of the data, of the
        products.
    text : str
    """

    kind: NoteKind
    text: str
