"""Writes the page of these experiments from the numbers they left, so that text and numbers agree to the digit.

python -m examples.singularity.page docs/results/singularity docs/reproductions/singularity.rst
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jinja2

from examples.experiment import FEWEST
from examples.singularity.descent import RULE

EXPERIMENTS = ("growing_networks", "many_starts", "growing_blobs", "mnist", "interpolation")


def render(results: Path) -> str:
    """The page as reStructuredText, from the JSON files in the folder ``results``."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sig"] = lambda value, digits=2: f"{value:.{digits}g}"
    environment.filters["percent"] = lambda value, digits=0: f"{value:.{digits}%}".replace("%", " %")
    environment.filters["thousands"] = lambda value: f"{value:,.0f}"
    documents = {name: json.loads((results / f"{name}.json").read_text()) for name in EXPERIMENTS}
    findings = [(name, finding) for name in EXPERIMENTS for finding in documents[name]["findings"]]
    findings.sort(key=lambda each: each[1]["claim"])
    template = environment.get_template("page.rst.jinja")
    return template.render(**documents, documents=documents, findings=findings, rule=RULE, fewest=FEWEST)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(render(Path(sys.argv[1])))
