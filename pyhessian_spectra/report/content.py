"""What a report says, as plain values for the templates: sentences and tables, every number with its error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pyhessian_spectra.analysis.bulk import BulkEdge
from pyhessian_spectra.analysis.fits import BulkFit
from pyhessian_spectra.analysis.result import BlockAnalysis, SpectralAnalysis
from pyhessian_spectra.plots.numbers import format_duration, format_number
from pyhessian_spectra.report.tables import (
    bulk_facts,
    eigenvalue_rows,
    fit_fact,
    key_numbers,
    layer_row,
    layer_trace_rows,
    missed,
    num_pairs,
    num_uncertified,
    unconverged_row,
)

# Keys of ``problem`` in the order and in the words of the report; others follow under their own names.
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
# ``problem["matrix"]`` in words.
_MATRICES = {
    "GGN": "generalised Gauss-Newton matrix",
    "Residual": "Gauss-Newton residual H − G",
    "EmpiricalFisher": "empirical Fisher matrix",
}
_TIMINGS = {
    "seconds": "Time in all",
    "num_products": "Matrix-vector products",
    "seconds_per_product": "Time per product",
    "seconds_per_gradient": "Time per gradient",
}


def checkpoint_labels(analyses: Sequence[SpectralAnalysis]) -> list[str]:
    """A short, distinct name for each checkpoint: its file name, numbered where two share one."""
    names = [PurePath(str(analysis.problem.get("checkpoint", "checkpoint"))).name for analysis in analyses]
    shared = Counter(names)
    return [f"{name} ({i})" if shared[name] > 1 else name for i, name in enumerate(names, start=1)]


def describe_overview(analyses: Sequence[SpectralAnalysis], sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What concerns all checkpoints: title, summary, what did not converge, and one row each."""
    first = analyses[0].problem
    names = ", ".join(dict.fromkeys(str(analysis.problem.get("model", "the model")) for analysis in analyses))
    data = f" on {first['data']}" if first.get("data") else ""
    matrix = _matrix(first)
    title = f"{matrix[0].upper()}{matrix[1:]} spectrum of {names}{data}"
    several = len(analyses) > 1
    totals = [analysis.full.unconverged + sum(b.unconverged for b in analysis.layers.values()) for analysis in analyses]
    return {
        "title": title,
        "summary": _movement(analyses, sections) if several else sections[0]["summary"],
        "several": several,
        "unconverged": [row for section in sections for row in section["unconverged"]],
        "num_unconverged": sum(totals),
        "num_pairs": sum(num_pairs(block) for analysis in analyses for _, block in _blocks(analysis)),
        "tolerances": _tolerances(analyses),
        "largest_residual": format_number(_largest_residual(analyses), digits=2),
        "notes": [(section["label"], note) for section in sections for note in section["notes"]],
        "columns": _overview_columns(analyses),
        "rows": [
            {**section["key_numbers"], **section["facts_by_key"], "label": section["label"], "id": section["id"]}
            | {
                "unconverged": total,
                "pairs": sum(num_pairs(block) for _, block in _blocks(analysis)),
                "uncertified": sum(num_uncertified(block) for _, block in _blocks(analysis)),
            }
            for section, total, analysis in zip(sections, totals, analyses, strict=True)
        ],
    }


def describe_checkpoint(
    analysis: SpectralAnalysis,
    label: str,
    identifier: str,
    bulks: Mapping[str | None, BulkEdge],
    fits: Mapping[str, BulkFit | str],
) -> dict[str, Any]:
    """What concerns one checkpoint; ``bulks`` are those of its blocks, the whole network's under None.

    ``fits`` are laws fitted to the whole network's bulk, by name, or the reason why there is none.
    """
    full, problem = analysis.full, analysis.problem
    facts: list[tuple[str, str, Any]] = [
        (key, words, problem[key]) for key, words in _FACTS.items() if problem.get(key) is not None
    ]
    facts += [(key, key.replace("_", " "), value) for key, value in problem.items() if key not in _FACTS]
    numbers = key_numbers(full, bulks[None])
    return {
        "label": label,
        "id": identifier,
        "facts": [(words, str(value) if key == "seed" else _fact(value)) for key, words, value in facts],
        "facts_by_key": {key: _fact(value) for key, _, value in facts},
        "key_numbers": numbers,
        "summary": _summary(analysis, label, numbers),
        "exact": full.spectrum.exact,
        "tables": [
            ("Largest eigenvalues", eigenvalue_rows(full, from_top=True)),
            ("Smallest eigenvalues", eigenvalue_rows(full, from_top=False)),
        ],
        "missed": missed(full),
        "bulk": [*bulk_facts(bulks[None]), *(fit_fact(name, fit) for name, fit in fits.items())],
        "has_data_errors": full.trace.data_stderr is not None,
        "layers": [layer_row(name, block, bulks[name]) for name, block in analysis.layers.items()],
        "layer_traces": [] if analysis.layers else layer_trace_rows(full),
        "unconverged": [
            unconverged_row(label, identifier, name, block) for name, block in _blocks(analysis) if block.unconverged
        ],
        "notes": [note.text for note in analysis.notes],
        "timing": _timing_rows(analysis.timing),
        "trace_method": full.trace.method,
    }


def _summary(analysis: SpectralAnalysis, label: str, numbers: Mapping[str, str]) -> str:
    problem, full = analysis.problem, analysis.full
    how = (
        "All its eigenvalues were computed, so the density and the trace carry no sampling error."
        if full.spectrum.exact
        else f"It was not diagonalised as a whole: its density was estimated from {full.spectrum.num_probes} random "
        "probes and its extreme eigenvalues were found one by one."
    )
    return _unbroken(
        f"This is the {_matrix(problem)} of {_loss(problem)} of {problem.get('model', 'a model')} at the checkpoint "
        f"{label}{_examples(problem)}: a symmetric matrix with a row for each of the n = {full.n:,} parameters. "
        f"{how} Its largest eigenvalue is λ₁ = {numbers['largest']}, its smallest {numbers['smallest']}, and its trace "
        f"{numbers['trace']}; {numbers['negative']} of its eigenvalues are negative."
        + _caveat([full])
        + _about_data(analysis)
    )


def _caveat(blocks: Sequence[BlockAnalysis]) -> str:
    """What must be known of the extreme eigenvalues before they are quoted."""
    edges = [eigenvalue_rows(block, from_top=top) for block in blocks for top in (True, False)]
    if all(rows[0]["certified"] for rows in edges if rows):
        return ""
    return " These extreme eigenvalues are not all certified; the tables below say what is known of each."


def _about_data(analysis: SpectralAnalysis) -> str:
    """What the errors of the data mean, where there are any."""
    if analysis.full.trace.data_stderr is None:
        return ""
    problem = analysis.problem
    taken = f"these {_fact(problem['N'])} examples" if problem.get("N") is not None else "these examples"
    return (
        f" Errors are of the computation; what stands after “data” is the standard error from having {taken} rather "
        "than as many others."
    )


def _movement(analyses: Sequence[SpectralAnalysis], sections: Sequence[Mapping[str, Any]]) -> str:
    first, last = sections[0], sections[-1]
    n = " and ".join(f"{size:,}" for size in dict.fromkeys(analysis.full.n for analysis in analyses))
    problem = analyses[0].problem
    return _unbroken(
        f"This report follows the {_matrix(problem)} of {_loss(problem)} through {len(analyses)} checkpoints, from "
        f"{first['label']} to {last['label']}{_examples(problem)}. It is a symmetric matrix with a row for each of the "
        f"n = {n} parameters. Its largest eigenvalue λ₁ is {first['key_numbers']['largest']} at the first checkpoint "
        f"and {last['key_numbers']['largest']} at the last; its trace {first['key_numbers']['trace']} and "
        f"{last['key_numbers']['trace']}; the share of negative eigenvalues {first['key_numbers']['negative']} and "
        f"{last['key_numbers']['negative']}."
        + _caveat([analyses[0].full, analyses[-1].full])
        + _about_data(analyses[-1])
    )


def _unbroken(sentence: str) -> str:
    """The same with no line end inside ``value ± error`` or ``name = value``."""
    for sign in ("±", "="):
        sentence = sentence.replace(f" {sign} ", f"\N{NO-BREAK SPACE}{sign}\N{NO-BREAK SPACE}")
    return sentence


def _matrix(problem: Mapping[str, Any]) -> str:
    name = str(problem.get("matrix", "Hessian"))
    return _MATRICES.get(name, name)


def _loss(problem: Mapping[str, Any]) -> str:
    return f"the {str(problem['loss']).replace('_', ' ')} loss" if problem.get("loss") else "the loss"


def _examples(problem: Mapping[str, Any]) -> str:
    """The end of a sentence that says what the loss is a mean over."""
    if problem.get("N") is None:
        return ""
    return f", over N = {_fact(problem['N'])} examples" + (f" of {problem['data']}" if problem.get("data") else "")


def _overview_columns(analyses: Sequence[SpectralAnalysis]) -> list[tuple[str, str]]:
    """Keys and headings; facts such as the step appear where some checkpoint knows them."""
    facts = [("step", "Step"), ("train_loss", "Training loss"), ("test_accuracy", "Test accuracy")]
    known = [(key, words) for key, words in facts if any(key in analysis.problem for analysis in analyses)]
    numbers = [("largest", "λ₁"), ("smallest", "λₙ"), ("trace", "Trace"), ("negative", "Negative share")]
    return known + numbers


def _blocks(analysis: SpectralAnalysis) -> Iterator[tuple[str, BlockAnalysis]]:
    yield "whole network", analysis.full
    yield from ((name, block) for name, block in analysis.layers.items())


def _largest_residual(analyses: Sequence[SpectralAnalysis]) -> float:
    return max(
        float(pairs.residuals.max(initial=0.0))
        for analysis in analyses
        for _, block in _blocks(analysis)
        for pairs in (block.largest, block.smallest)
    )


def _tolerances(analyses: Sequence[SpectralAnalysis]) -> str:
    known = [analysis.problem.get("tol") for analysis in analyses]
    return ", ".join(dict.fromkeys(format_number(float(tolerance), digits=1) for tolerance in known if tolerance))


def _timing_rows(timing: Mapping[str, float]) -> list[tuple[str, str]]:
    rows = [
        (words, f"{timing[key]:,.0f}" if key == "num_products" else format_duration(timing[key]))
        for key, words in _TIMINGS.items()
        if key in timing
    ]
    if timing.get("seconds_per_gradient") and timing.get("seconds_per_product"):
        ratio = timing["seconds_per_product"] / timing["seconds_per_gradient"]
        rows.append(("A product costs", f"{ratio:.2f} gradients"))
    return rows


def _fact(value: Any) -> str:
    """A JSON scalar as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
