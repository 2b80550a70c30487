"""examine: what could go wrong with an analysis, before it starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyhessian_spectra.analysis.analyze import chosen_layers, repeatable_gradient
from pyhessian_spectra.analysis.recipe import Recipe
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, inspection
from pyhessian_spectra.curvature.calling import Batch, tensors_in
from pyhessian_spectra.curvature.operators import RiskOperator, timed
from pyhessian_spectra.errors import OutOfMemoryError
from pyhessian_spectra.spectra.basis import forecast, free_bytes, readable


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Parameters
    ----------
    level : {"ok", "note", "WARN"}
    sentence : str
    """

    level: str
    sentence: str


def examine(
    risk: EmpiricalRisk,
    recipe: Recipe,
    *,
    layers: bool | Sequence[str] = True,
    memory_budget: int | None = None,
    matrix: Callable[..., RiskOperator] = HessianOperator,
) -> list[Finding]:
    """Check model and data, take two products with the whole and each layer, and forecast what ``analyze`` would cost.

    Raises
    ------
    InputError
        What would stop the analysis: parameters or products that are not finite, an operation without a second
        derivative, data or a model that change between two evaluations.
    OutOfMemoryError
        Neither memory nor disk has room for the fewest Lanczos vectors.
    """
    survey = risk.survey
    findings = [
        Finding(
            "ok", f"n = {risk.n:,} parameters, N = {survey.num_examples:,} examples in {survey.num_batches} batches"
        )
    ]
    findings += _modules(risk)
    findings += _order(risk)
    gradient_seconds = repeatable_gradient(risk)
    findings.append(Finding("ok", f"two gradients agree; one takes {gradient_seconds:.3g} s"))
    _, batch = next(risk.batches())
    point = risk.point()
    unused = inspection.unused(risk, point, batch)
    if unused:
        names = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
        findings.append(Finding("WARN", f"{len(unused)} parameters do not enter the loss and have zero rows: {names}"))
    if "scaled_dot_product_attention" in inspection.called_functions(risk, point, batch):
        findings.append(Finding("note", "attention runs unfused: its fused kernels have no second derivative"))

    told, product_seconds = _products(matrix(risk, memory_budget=memory_budget))
    findings += told
    parts = [risk.restrict(group) for group in chosen_layers(risk, layers).values()]
    whole, *of_layers = recipe.forecast([risk.n, *(part.n for part in parts)])
    findings.append(_time("the whole matrix", whole, whole * product_seconds))
    if any(of_layers):
        each = [_product_seconds(matrix(part, memory_budget=memory_budget)) for part in parts]
        spent = sum(count * seconds for count, seconds in zip(of_layers, each, strict=True))
        findings.append(_time(f"{len(parts)} layers", sum(of_layers), spent))
    need, free = recipe.memory(risk.n, risk.dtype), free_bytes(torch.device("cpu"))
    findings.append(
        Finding(
            "ok" if need < free else "WARN",
            f"about {readable(need)} for {'the dense matrix' if recipe.builds(risk.n) else 'eigenvectors'}, "
            f"{readable(free)} are free" + ("" if need < free else "; lower the eigenvalues or the exact limit"),
        )
    )
    return findings + _basis(*recipe.basis(risk.n, risk.dtype), risk.device, memory_budget)


def _products(op: RiskOperator) -> tuple[list[Finding], float]:
    """Whether two products are symmetric, how the linearisation is held, and the seconds of one."""
    u, v = (torch.randn(op.shape[0], generator=_seeded(seed)).to(op.device, op.dtype) for seed in (0, 1))
    hu = op @ u
    hv, seconds = timed(lambda: op @ v, op.device)
    scale = float(torch.linalg.vector_norm(hu) * torch.linalg.vector_norm(v)) or 1.0
    asymmetry = abs(float(hu.double() @ v.double() - u.double() @ hv.double())) / scale
    trusted = asymmetry < 1e3 * torch.finfo(op.dtype).eps
    symmetry = Finding("ok" if trusted else "WARN", f"products are symmetric to {asymmetry:.1e}, relative")
    return [symmetry, Finding("ok", f"the linearisation was {op.linearisation}")], seconds


def _product_seconds(op: RiskOperator) -> float:
    """Seconds of a product once the linearisation is there."""
    v = torch.ones(op.shape[0], dtype=op.dtype, device=op.device)
    op @ v
    return timed(lambda: op @ v, op.device)[1]


def _time(what: str, products: int, seconds: float) -> Finding:
    each = f" of {seconds / products:.3g} s" if products else ""
    return Finding("ok", f"{what}: about {products:,} products{each}, {_duration(seconds)}")


def _basis(least: int, expected: int, most: int, device: torch.device, memory_budget: int | None) -> list[Finding]:
    """Where the Krylov basis will lie."""
    if most == 0:
        return []
    size = f"about {readable(expected)} for the Krylov basis, at most {readable(most)}"
    try:
        return [Finding("ok", f"{size}: {forecast(most, device, memory_budget)}")]
    except OutOfMemoryError:
        place = forecast(least, device, memory_budget)  # what is needed in any case; else there is no analysis
        return [Finding("WARN", f"{size}, which does not fit: the process restarts sooner; at least {place}")]


def _modules(risk: EmpiricalRisk) -> list[Finding]:
    """Dropout, BatchNorm and frozen parameters."""
    modules = list(risk.model.modules())
    findings = []
    dropout = inspection.dropout_modules(risk.model)
    if dropout:
        findings.append(
            Finding("note", f"{len(dropout)} modules with dropout ({dropout[0]}, ...) are off in eval mode")
        )
    norms = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in modules)
    if norms:
        meaning = "running statistics are constants" if risk.mode == "eval" else "statistics of each batch"
        findings.append(Finding("note", f"{norms} BatchNorm modules in {risk.mode} mode: {meaning}"))
    frozen = sum(p.numel() for p in risk.model.parameters() if not p.requires_grad)
    if frozen:
        findings.append(Finding("note", f"{frozen:,} frozen parameters are constants"))
    return findings


def _order(risk: EmpiricalRisk) -> list[Finding]:
    """Whether two passes begin with the same batch."""
    first, second = (next(risk.batches())[1] for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(_tensors(first), _tensors(second), strict=True))
    if same:
        return [Finding("ok", "batches come in the same order each time")]
    harm = "which does not change the sum in eval mode" if risk.mode == "eval" else "which changes batch statistics"
    return [Finding("WARN", f"the loader draws another order each time, {harm}; use shuffle=False to be sure")]


def _tensors(batch: Batch) -> list[Tensor]:
    return tensors_in((batch.inputs, batch.targets))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
