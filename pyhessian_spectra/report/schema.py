"""The schema documents the form of ``results.json``."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def results_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``results.json``, which describes every field."""
    return json.loads(files("pyhessian_spectra.report").joinpath("schema.json").read_text(encoding="utf-8"))
