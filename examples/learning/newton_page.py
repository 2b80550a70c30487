"""Writes the page of examples/learning/newton.py from the numbers it left, so that text and numbers agree to the digit.

python -m examples.learning.newton_page docs/results/learning docs/reproductions/newton.rst
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from examples.experiment import page_template
from examples.learning.newton_claims import CALLED, IS, ROUNDING


def render(results: Path) -> str:
    """The page as reStructuredText, from ``newton.json`` in the folder ``results``."""
    document = json.loads((results / "newton.json").read_text())
    template = page_template(Path(__file__).parent, "newton_page")
    return template.render(**document, called=CALLED, printed=IS, rounding=ROUNDING)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(Path(sys.argv[1])))
