"""What is saved satisfies its schema, and what is damaged does not."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import pytest
import torch
from analyses import exact_analysis, problem
from pages import Page

from pyhessian_spectra import EmpiricalRisk
from pyhessian_spectra.analysis.analyze import analyze
from pyhessian_spectra.analysis.saved import save_analyses
from pyhessian_spectra.report import results_schema, write_report


def document(analyses, tmp_path):
    save_analyses(analyses, json_path=tmp_path / "results.json", npz_path=tmp_path / "spectra.npz")
    return json.loads((tmp_path / "results.json").read_text())


def test_the_schema_is_a_schema_that_describes_every_field():
    schema = results_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, definition in schema["$defs"].items():
        for key, field in definition.get("properties", {}).items():
            described = field.get("description") or schema["$defs"][field["$ref"].rpartition("/")[2]]["description"]
            assert described, f"{name}.{key}"


@pytest.mark.parametrize("count", [1, 2])
def test_saved_results_satisfy_the_schema(slq, tmp_path, count):
    jsonschema.validate(document([slq, exact_analysis(n=200)][:count], tmp_path), results_schema())


@pytest.mark.parametrize("exact_limit", [3000, 0], ids=["exact", "matrix-free"])
def test_an_analysis_of_a_network_satisfies_the_schema_and_makes_a_report(tmp_path, exact_limit):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, y))
    analysis = analyze(risk, num_eigenvalues=3, num_steps=20, exact_limit=exact_limit, generator=generator)
    assert analysis.full.spectrum.exact is (exact_limit > 0)
    required = problem("net.pt", analysis.full.n) | dict(analysis.problem)
    doc = document([dataclasses.replace(analysis, problem=required)], tmp_path)
    jsonschema.validate(doc, results_schema())
    assert {"lower", "upper"} <= doc["full"]["largest"][0].keys() and "interval95" in doc["full"]["trace"]
    assert "Bulk and edges" in Page(write_report([analysis], tmp_path)).words()


DAMAGES = {
    "no sha256": lambda doc: doc["problem"].pop("sha256"),
    "negative stderr": lambda doc: doc["full"]["trace"].update(stderr=-1.0),
    "residual missing": lambda doc: doc["full"]["largest"][0].pop("residual"),
    "half an interval": lambda doc: doc["full"]["largest"][0].pop("upper"),
    "half a bound": lambda doc: doc["full"].update(others=[1.0]),
    "other version": lambda doc: doc.update(schema_version=3),
    "both forms": lambda doc: doc.update(checkpoints=[]),
    "a layer without trace": lambda doc: doc["layers"]["fc1"].pop("trace"),
    "nested fact": lambda doc: doc["problem"].update(extra={"a": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_results_do_not_satisfy_the_schema(tmp_path, damage):
    doc = document([exact_analysis(n=200)], tmp_path)
    DAMAGES[damage](doc)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(doc, results_schema())
