"""This module says what a report says, in plain values for its templates: every number comes with its error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pyhessian_spectra.analysis.bulk import BulkEdge
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.plots.numbers import format_duration, format_number
from pyhessian_spectra.report import tables

# The report shows these keys of ``problem`` in this order and these words; others follow under their own names.
_FACTS = {
    "checkpoint": "Checkpoint",
    "sha256": "SHA-256 of the file",
    "model": "Model",
    "model_args": "Settings of the model",
    "n": "Parameters n",
    "data": "Data",
    "data_description": "Examples taken",
    "N": "Examples N",
    "num_batches": "Batches",
    "loss": "Loss",
    "mode": "Mode of the model",
    "reduction": "Loss over examples",
    "dtype": "Precision",
    "device": "Device",
    "matrix": "Matrix",
    "seed": "Seed",
    "tol": "Tolerance of eigenpairs",
    "step": "Optimisation step",
}
# The report calls the matrices that ``problem["matrix"]`` names by these words.
_MATRICES = {
    "GGN": "generalised Gauss-Newton matrix",
    "Residual": "Gauss-Newton residual H − G",
    "EmpiricalFisher": "empirical Fisher matrix",
}
# The report shows these keys of ``timing`` in these words, and makes text of their values by these functions.
_TIMINGS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("Time in all", format_duration),
    "num_products": ("Matrix-vector products", "{:,.0f}".format),
    "seconds_per_product": ("Time per product", format_duration),
    "seconds_per_gradient": ("Time per gradient", format_duration),
}
# The columns of the overview are facts that only some checkpoints know, and numbers that all have.
_KNOWN = [("step", "Step"), ("train_loss", "Training loss"), ("test_accuracy", "Test accuracy")]
_NUMBERS = [("largest", "λ₁"), ("smallest", "λₙ"), ("trace", "Trace"), ("negative", "Negative share")]


def checkpoint_labels(analyses: Sequence[SpectralAnalysis]) -> list[str]:
    """Return a short, distinct name for each checkpoint: its file name, numbered where two share one."""
    names = [PurePath(str(analysis.problem.get("checkpoint", "checkpoint"))).name for analysis in analyses]
    shared = Counter(names)
    return [f"{name} ({i})" if shared[name] > 1 else name for i, name in enumerate(names, start=1)]


def describe_overview(analyses: Sequence[SpectralAnalysis], sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe what concerns all checkpoints: title, summary, what did not converge, and one row each."""
    problems = [analysis.problem for analysis in analyses]
    matrix, _, _ = _subject(problems[0])
    names = ", ".join(dict.fromkeys(str(problem.get("model", "the model")) for problem in problems))
    data = f" on {problems[0]['data']}" if problems[0].get("data") else ""
    blocks = [block for analysis in analyses for block in (analysis.full, *analysis.layers.values())]
    residuals = [pairs.residuals.max(initial=0.0) for block in blocks for pairs in (block.largest, block.smallest)]
    tolerances = (format_number(float(problem["tol"]), digits=1) for problem in problems if problem.get("tol"))
    rows = [section["row"] for section in sections]
    several = len(analyses) > 1
    return {
        "title": f"{matrix[0].upper()}{matrix[1:]} spectrum of {names}{data}",
        "summary": _movement(analyses, sections) if several else sections[0]["summary"],
        "several": several,
        "unconverged": [row for section in sections for row in section["unconverged"]],
        "num_unconverged": sum(row["unconverged"] for row in rows),
        "num_pairs": sum(row["pairs"] for row in rows),
        "tolerances": ", ".join(dict.fromkeys(tolerances)),
        "largest_residual": format_number(float(max(residuals)), digits=2),
        "notes": [(section["label"], note) for section in sections for note in section["notes"]],
        "columns": [column for column in _KNOWN if any(column[0] in row for row in rows)] + _NUMBERS,
        "rows": rows,
    }


def describe_checkpoint(analysis: SpectralAnalysis, label: str, identifier: str, bulk: BulkEdge) -> dict[str, Any]:
    """Describe one checkpoint, where ``bulk`` is that of the whole network."""
    full, problem = analysis.full, analysis.problem
    blocks = [("whole network", full), *analysis.layers.items()]
    known = {key: problem[key] for key in _FACTS if problem.get(key) is not None}
    known |= {key: value for key, value in problem.items() if key not in _FACTS}
    facts = {key: str(value) if key == "seed" else _fact(value) for key, value in known.items()}
    numbers = tables.key_numbers(full, bulk)
    name = {"label": label, "id": identifier}
    edges = [
        ("Largest eigenvalues", tables.eigenvalue_rows(full, from_top=True)),
        ("Smallest eigenvalues", tables.eigenvalue_rows(full, from_top=False)),
    ]
    return {
        **name,
        "row": {**facts, **numbers, **tables.count_pairs(block for _, block in blocks), **name},
        "facts": [(_FACTS.get(key, key.replace("_", " ")), text) for key, text in facts.items()],
        "key_numbers": numbers,
        "summary": _summary(analysis, label, numbers) + _caveats(edges, analysis),
        "exact": full.spectrum.exact,
        "tables": edges,
        "missed": tables.missed(full),
        "bulk": tables.bulk_facts(bulk, numbers) + tables.fit_facts(full),
        "has_data_errors": full.trace.data_stderr is not None,
        "layers": [tables.layer_row(*layer, problem.get("dtype")) for layer in analysis.layers.items()],
        "layer_traces": [] if analysis.layers else tables.layer_trace_rows(full),
        "unconverged": [tables.unconverged_row(words, block) | name for words, block in blocks if block.unconverged],
        "notes": [note.text for note in analysis.notes],
        "timing": _timing_rows(analysis.timing),
        "trace_method": full.trace.method,
    }


def _summary(analysis: SpectralAnalysis, label: str, numbers: Mapping[str, str]) -> str:
    full = analysis.full
    matrix, loss, examples = _subject(analysis.problem)
    how = "All its eigenvalues were computed, so the density and the trace carry no sampling error."
    if not full.spectrum.exact:
        how = f"It was not diagonalised as a whole: its density was estimated from {full.spectrum.num_probes} random "
        how += "probes and its extreme eigenvalues were found one by one."
    return tables.unbroken(
        f"This is the {matrix} of {loss} of {analysis.problem.get('model', 'a model')} at the checkpoint {label}"
        f"{examples}: a symmetric matrix with a row for each of the n = {full.n:,} parameters. {how} Its largest "
        f"eigenvalue is λ₁ = {numbers['largest']}, its smallest {numbers['smallest']}, and its trace "
        f"{numbers['trace']}; {numbers['negative']} of its eigenvalues are negative."
    )


def _movement(analyses: Sequence[SpectralAnalysis], sections: Sequence[Mapping[str, Any]]) -> str:
    first, last = sections[0], sections[-1]
    was, became = first["key_numbers"], last["key_numbers"]
    matrix, loss, examples = _subject(analyses[0].problem)
    n = " and ".join(f"{size:,}" for size in dict.fromkeys(analysis.full.n for analysis in analyses))
    sentences = tables.unbroken(
        f"This report follows the {matrix} of {loss} through {len(analyses)} checkpoints, from {first['label']} to "
        f"{last['label']}{examples}. It is a symmetric matrix with a row for each of the n = {n} parameters. Its "
        f"largest eigenvalue λ₁ is {was['largest']} at the first checkpoint and {became['largest']} at the last; its "
        f"trace {was['trace']} and {became['trace']}; the share of negative eigenvalues {was['negative']} and "
        f"{became['negative']}."
    )
    return sentences + _caveats([*first["tables"], *last["tables"]], analyses[-1])


def _caveats(edges: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], analysis: SpectralAnalysis) -> str:
    """Say what a reader must know before quoting: that an extreme is not certified, and what errors of data mean."""
    text = ""
    if any(rows and not rows[0]["certified"] for _, rows in edges):
        text += " These extreme eigenvalues are not all certified; the tables below say what is known of each."
    if analysis.full.trace.data_stderr is not None:
        size = "" if analysis.problem.get("N") is None else f"{_fact(analysis.problem['N'])} "
        text += " Errors are of the computation; what stands after “data” is the standard error from having these "
        text += f"{size}examples rather than as many others."
    return text


def _subject(problem: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return parts of a sentence: the matrix, the loss, and the examples that the loss is a mean over."""
    matrix = str(problem.get("matrix", "Hessian"))
    loss = f"the {str(problem['loss']).replace('_', ' ')} loss" if problem.get("loss") else "the loss"
    examples = "" if problem.get("N") is None else f", over N = {_fact(problem['N'])} examples"
    if examples and problem.get("data"):
        examples += f" of {problem['data']}"
    return _MATRICES.get(matrix, matrix), loss, examples


def _timing_rows(timing: Mapping[str, float]) -> list[tuple[str, str]]:
    rows = [(words, show(timing[key])) for key, (words, show) in _TIMINGS.items() if key in timing]
    if timing.get("seconds_per_gradient") and timing.get("seconds_per_product"):
        ratio = timing["seconds_per_product"] / timing["seconds_per_gradient"]
        rows.append(("A product costs", f"{ratio:.2f} gradients"))
    return rows


def _fact(value: Any) -> str:
    """Write a JSON scalar as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
