"""This module says what a report says, in plain values for its templates: every number comes with its error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pyhessian_spectra.analysis.bulk import BulkEdge
from pyhessian_spectra.analysis.checkpoints import Checkpoints
from pyhessian_spectra.analysis.result import SpectralAnalysis
from pyhessian_spectra.analysis.similarity import SimilarityMatrix
from pyhessian_spectra.numbers import format_duration, format_number
from pyhessian_spectra.report import tables
from pyhessian_spectra.report.conclusion import conclude, leading_numbers
from pyhessian_spectra.report.gauss_newton import describe_part, outlook
from pyhessian_spectra.report.layers import describe_layers, describe_seeds, describe_steps

# The report shows these keys of ``problem`` in this order and these words; others follow in one line.
_FACTS = {
    "checkpoint": "Checkpoint",
    "label": "Called",
    "sha256": "SHA-256 of the file",
    "model": "Model",
    "model_args": "Settings of the model",
    "n": "Parameters n",
    "data": "Data",
    "split": "Part of the data",
    "data_description": "Examples taken",
    "N": "Examples N",
    "num_batches": "Batches",
    "loss": "Loss",
    "mode": "Mode of the model",
    "reduction": "Loss over examples",
    "dtype": "Precision",
    "device": "Device",
    "matrix": "Matrix",
    "units": "Units of eigenvalues",
    "verified": "Verified",
    "seed": "Seed",
    "tol": "Tolerance of eigenpairs",
    "left_out": "Left out of the file",
    "step": "Optimisation step",
    "global_step": "Optimisation step",
    "epoch": "Epoch",
    "lr": "Learning rate",
    "learning_rate": "Learning rate",
    "recorded_loss": "Loss in the file",
    "train_loss": "Training loss",
    "train_accuracy": "Training accuracy",
    "test_loss": "Test loss",
    "test_accuracy": "Test accuracy",
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
_KNOWN = [("step", "Step"), *((key, _FACTS[key]) for key in ("train_loss", "test_accuracy"))]
_NUMBERS = [("largest", "λ₁"), ("smallest", "λₙ"), ("trace", "Trace")]


def describe_overview(found: Checkpoints, sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Describe what concerns all checkpoints: title, summary, what did not converge, and one row each."""
    analyses = found.analyses
    problems = [analysis.problem for analysis in analyses]
    matrix, _, _ = _subject(problems[0])
    names = ", ".join(dict.fromkeys(str(problem.get("model", "the model")) for problem in problems))
    data = f" on {_data_name(problems[0])}" if problems[0].get("data") else ""
    blocks = [block for analysis in analyses for block in (analysis.full, *analysis.layers.values())]
    residuals = [pairs.residuals.max(initial=0.0) for block in blocks for pairs in (block.largest, block.smallest)]
    tolerances = (format_number(float(problem["tol"]), digits=1) for problem in problems if problem.get("tol"))
    rows = [section["row"] for section in sections]
    several = len(analyses) > 1
    return {
        "title": f"{matrix[0].upper()}{matrix[1:]} spectrum of {names}{data}",
        "summary": _movement(analyses, sections) if several else sections[0]["summary"],
        "conclusion": conclude(found),
        "numbers": leading_numbers(analyses[-1]),
        "numbers_of": found.labels[-1],
        "several": several,
        "unconverged": [row for section in sections for row in section["unconverged"]],
        **{f"num_{key}": sum(row[key] for row in rows) for key in ("pairs", "unconverged", "uncertified")},
        "tolerances": ", ".join(dict.fromkeys(tolerances)),
        "largest_residual": format_number(float(max(residuals)), digits=2),
        "unverified": _notes(sections, "unverified"),
        "notes": _notes(sections, "notes"),
        "columns": [column for column in _KNOWN if any(column[0] in row for row in rows)]
        + [*_NUMBERS, *_share_columns(rows, {"negative": "Negative share"})],
        "rows": rows,
        "steps": [describe_steps(each, run) for run, each in found.trajectories.items()],
        "seeds": describe_seeds(found.seeds),
        "num_runs": len(found.runs),
    }


def _notes(sections: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return each note under a key of the sections once, with the checkpoints it is about if these are not all."""
    about: dict[str, list[str]] = {}
    for section in sections:
        for note in dict.fromkeys(section[key]):
            about.setdefault(note, []).append(section["label"])
    return [note if len(who) == len(sections) else f"{', '.join(who)}: {note}" for note, who in about.items()]


def describe_checkpoint(
    analysis: SpectralAnalysis,
    label: str,
    identifier: str,
    bulk: BulkEdge,
    similar: Mapping[str, SimilarityMatrix],
) -> dict[str, Any]:
    """Describe one checkpoint, where ``bulk`` is that of the whole network and ``similar`` compares its layers."""
    full, problem = analysis.full, analysis.problem
    blocks = [("whole network", full), *analysis.layers.items()]
    texts = {key: str(value) if key == "seed" else _fact(value) for key, value in problem.items() if value is not None}
    others = ", ".join(f"{key} = {text}" for key, text in texts.items() if key not in _FACTS)
    numbers = tables.key_numbers(full, bulk)
    name = {"label": label, "id": identifier}
    edges = [
        ("Largest eigenvalues", tables.eigenvalue_rows(full, from_top=True)),
        ("Smallest eigenvalues", tables.eigenvalue_rows(full, from_top=False)),
    ]
    return {
        **name,
        "row": {**texts, **numbers, **tables.known_shares(bulk), **tables.count_pairs(b for _, b in blocks), **name},
        "facts": [(words, texts[key]) for key, words in _FACTS.items() if key in texts]
        + ([("Also recorded", others)] if others else []),
        "key_numbers": numbers,
        "summary": _summary(analysis, label, numbers, bulk)
        + outlook(analysis.gauss_newton)
        + _caveats(edges, analysis),
        "exact": full.spectrum.exact,
        "tables": edges,
        "missed": tables.missed(full),
        "proposal": tables.proposal(full, bulk, analysis.timing.get("seconds_per_product")),
        "sums": tables.sums(full),
        "bulk": tables.bulk_facts(bulk, numbers) + tables.fit_facts(full),
        "has_data_errors": full.largest.data_stderr is not None,
        "layers": (layers := [tables.layer_row(*layer) for layer in analysis.layers.items()]),
        "layer_shares": _share_columns(layers, {"zero": "Zero", "negative": "Negative"}),
        "layer_traces": [] if analysis.layers else tables.layer_trace_rows(full),
        "unconverged": [tables.unconverged_row(words, block) | name for words, block in blocks if block.unconverged],
        "gauss_newton": describe_part(analysis),
        "structure": describe_layers(analysis, similar),
        "notes": [note.text for note in analysis.notes if note.kind != "verification"],
        "unverified": [note.text for note in analysis.notes if note.kind == "verification"],
        "timing": _timing_rows(analysis.timing),
    }


def _summary(analysis: SpectralAnalysis, label: str, numbers: Mapping[str, str], bulk: BulkEdge) -> str:
    full = analysis.full
    matrix, loss, examples = _subject(analysis.problem)
    how = "All its eigenvalues were computed, so the density and the trace carry no sampling error."
    if not full.spectrum.exact:
        how = f"It was not diagonalised as a whole: its density was estimated from {full.spectrum.num_probes} random "
        how += "probes and its extreme eigenvalues were found one by one."
    share = ""
    if tables.share_known(bulk.negative_bounds):
        share = f"; {numbers['negative']} of its eigenvalues are negative"
    elif not full.spectrum.exact:
        held = tables.unresolved(full, bulk.negative_bounds[1] - bulk.negative_bounds[0])
        share = f"; how many are negative is not resolved: {held}"
    return tables.unbroken(
        f"This is the {matrix} of {loss} of {analysis.problem.get('model', 'a model')} at the checkpoint {label}"
        f"{examples}: a symmetric matrix with a row for each of the n = {full.n:,} parameters. {how} Its largest "
        f"eigenvalue is λ₁ = {numbers['largest']}{_source(analysis)}, its smallest {numbers['smallest']}, and its "
        f"trace {numbers['trace']}{share}."
    )


def _movement(analyses: Sequence[SpectralAnalysis], sections: Sequence[Mapping[str, Any]]) -> str:
    first, last = sections[0], sections[-1]
    was, became = first["key_numbers"], last["key_numbers"]
    matrix, loss, examples = _subject(analyses[0].problem)
    shares = ""
    if first["row"]["negative_known"] and last["row"]["negative_known"]:
        shares = f"; the share of negative eigenvalues {was['negative']} and {became['negative']}"
    n = " and ".join(f"{size:,}" for size in dict.fromkeys(analysis.full.n for analysis in analyses))
    sentences = tables.unbroken(
        f"This report follows the {matrix} of {loss} through {len(analyses)} checkpoints, from {first['label']} to "
        f"{last['label']}{examples}. It is a symmetric matrix with a row for each of the n = {n} parameters. Its "
        f"largest eigenvalue λ₁ is {was['largest']} at the first checkpoint and {became['largest']}"
        f"{_source(analyses[-1])} at the last; its trace {was['trace']} and {became['trace']}{shares}."
    )
    return sentences + _caveats([*first["tables"], *last["tables"]], analyses[-1])


def _caveats(edges: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], analysis: SpectralAnalysis) -> str:
    """Say what a reader must know before quoting: that an extreme is not certified, and what errors of data mean."""
    text = ""
    if any(rows and not rows[0]["certified"] for _, rows in edges):
        text += " These extreme eigenvalues are not all certified; the tables below say what is known of each."
    if analysis.full.trace.data_stderr is not None:
        text += (
            " After ± stands the largest error known of each number. That of the data, a standard error, is of having "
        )
        text += (
            "these examples rather than as many others: of training examples, where the network was fitted to them; "
        )
        text += "fresh ones can differ by far. The computation’s own errors stand in the tables."
    return text


def _source(analysis: SpectralAnalysis) -> str:
    """Say what the largest eigenvalue’s error is of, where it is that of the data."""
    top, count = analysis.full.largest, analysis.problem.get("N")
    of_data = top.data_stderr is not None and len(top) and top.data_stderr[-1] > top.reach[-1]
    return f" from {count:,} examples" if of_data and count else ""


def _share_columns(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the columns of shares that are known in any row."""
    return [(key, name) for key, name in names.items() if any(row[f"{key}_known"] for row in rows)]


def _subject(problem: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return parts of a sentence: the matrix, the loss, and the examples that the loss is a mean over."""
    matrix = str(problem.get("matrix", "Hessian"))
    loss = f"the {str(problem['loss']).replace('_', ' ')} loss" if problem.get("loss") else "the loss"
    examples = "" if problem.get("N") is None else f", over N = {_fact(problem['N'])} examples"
    if examples and problem.get("data"):
        examples += f" of {_data_name(problem)}"
    return _MATRICES.get(matrix, matrix), loss, examples


def _data_name(problem: Mapping[str, Any]) -> str:
    """Return the name of the data without the folders it lies in."""
    kind, colon, path = str(problem["data"]).partition(":")
    return kind + colon + PurePath(path).name if colon else PurePath(kind).name


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
