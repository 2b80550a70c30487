"""Numbers that reproductions have written, read as what they must be: JSON to the letter, without NaN and infinity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Where they are published.
LAYERWISE, SINGULARITY = (
    Path(__file__).parents[1] / "docs" / "results" / name for name in ("layerwise", "singularity")
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=_reject_constant)


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
