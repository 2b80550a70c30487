"""The documented form of ``results.json``."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def results_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``results.json``, schema version 1, every field described."""
    return json.loads(files("pyhessian_spectra.report").joinpath("schema.json").read_text(encoding="utf-8"))
