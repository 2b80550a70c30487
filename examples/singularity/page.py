"""Writes the page of these experiments from the numbers they left, so that text and numbers agree to the digit.

python -m examples.singularity.page docs/results/singularity docs/reproductions/singularity.rst
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from examples.experiment import FEWEST, page_template
from examples.singularity.descent import RULE

EXPERIMENTS = ("growing_networks", "many_starts", "growing_blobs", "mnist", "interpolation")


def render(results: Path) -> str:
    """The page as reStructuredText, from the JSON files in the folder ``results``."""
    documents = {name: json.loads((results / f"{name}.json").read_text()) for name in EXPERIMENTS}
    findings = [(name, finding) for name in EXPERIMENTS for finding in documents[name]["findings"]]
    findings.sort(key=lambda each: each[1]["claim"])
    return page_template(Path(__file__).parent).render(
        **documents, documents=documents, findings=findings, rule=RULE, fewest=FEWEST
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(Path(sys.argv[1])))
