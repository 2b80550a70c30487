"""Notes: sentences that a reader of results must see, distinguished by kind and never by their wording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NoteKind = Literal[
    "linearisation",
    "unconverged",
    "rounding",
    "interrupted",
    "resumed",
    "afresh",
    "journal",
    "data",
    "verification",
    "comparison",
]


@dataclass(frozen=True)
class Note:
    """A sentence for the reader of results.

    Parameters
    ----------
    kind : str
        ``"linearisation"``: says whether it was kept. ``"unconverged"``: counts eigenpairs that did not reach the
        tolerance. ``"rounding"``: says that products are less precise than the tolerance. ``"interrupted"``: names what
        is unfinished. ``"resumed"``, ``"afresh"``: say whether an earlier run's products were used. ``"journal"``: says
        why an interruption would lose work. ``"data"``, ``"verification"``: concern the data, the products.
        ``"comparison"``: says that what is compared differs in more than it should.
    text : str
    """

    kind: NoteKind
    text: str
