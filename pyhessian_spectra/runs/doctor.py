"""examine: what could go wrong with an analysis, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, RiskOperator
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.blocks import block_operator, chosen_layers, repeatable_gradient
from pyhessian_spectra.curvature.inspection import CalledFunctions, dropout_modules
from pyhessian_spectra.curvature.objective import tensors_in
from pyhessian_spectra.curvature.partition import GroupSpec
from pyhessian_spectra.errors import OutOfMemoryError
from pyhessian_spectra.spectra import LinearOperator, Settings
from pyhessian_spectra.spectra.basis import forecast, free_bytes, readable
from pyhessian_spectra.spectra.cost import bytes_needed, bytes_of_basis, forecast_products, is_built


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
    settings: Settings | None = None,
    *,
    layers: bool | GroupSpec = True,
    matrix: Callable[[EmpiricalRisk], LinearOperator] = HessianOperator,
) -> list[Finding]:
    """Check model and data, take two products with the whole and each layer, and forecast what ``analyze`` would cost.

    The arguments are those of ``analyze``.

    Raises
    ------
    InputError
        What would stop the analysis: parameters or products that are not finite, an operation without a second
        derivative, data or a model that change between two evaluations.
    OutOfMemoryError
        Neither memory nor disk has room for the fewest Lanczos vectors.
    """
    settings = settings or Settings()
    risk = risk.replace(memory_budget=settings.memory_budget)
    counts = f"n = {risk.n:,} parameters, N = {risk.num_examples:,} examples in {risk.num_batches} batches"
    findings = [Finding("ok", counts), *_modules(risk), *_order(risk)]
    gradient_seconds = repeatable_gradient(risk)
    findings.append(Finding("ok", f"two gradients agree; one takes {gradient_seconds:.3g} s"))
    findings += _graph(risk)
    told, product_seconds = _products(matrix(risk))
    findings += told
    groups = chosen_layers(risk.layout, layers)
    whole, *of_layers = forecast_products(settings, [risk.n, *map(len, groups)])
    findings.append(_time("the whole matrix", whole, whole * product_seconds))
    if any(of_layers):
        each = [_product_seconds(block_operator(matrix, risk, group)) for group in groups]
        spent = sum(count * seconds for count, seconds in zip(of_layers, each, strict=True))
        findings.append(_time(f"{len(groups)} layers", sum(of_layers), spent))
    need, free = bytes_needed(settings, risk.n, risk.dtype), free_bytes(torch.device("cpu"))
    findings.append(
        Finding(
            "ok" if need < free else "WARN",
            f"about {readable(need)} for {'the dense matrix' if is_built(settings, risk.n) else 'eigenvectors'}, "
            f"{readable(free)} are free" + ("" if need < free else "; lower the eigenvalues or the exact limit"),
        )
    )
    return findings + _basis(*bytes_of_basis(settings, risk.n, risk.dtype), risk.device, settings.memory_budget)


def _graph(risk: EmpiricalRisk) -> list[Finding]:
    """Parameters that the first batch's loss does not depend on, and attention."""
    point, (_, batch) = risk.point(), next(risk.sample.read())
    called = CalledFunctions()

    def unused() -> list[str]:
        with called:
            outputs = risk.objective.outputs(batch)
        value = risk.objective.loss(outputs, batch)
        if not value.requires_grad:
            return list(risk.layout.names)
        parts = torch.autograd.grad(value, point.coordinates, allow_unused=True)
        return [name for name, part in zip(risk.layout.names, parts, strict=True) if part is None]

    findings, names = [], risk.objective.run(point, batch, unused)
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        findings.append(Finding("WARN", f"{len(names)} parameters do not enter the loss and have zero rows: {shown}"))
    if "scaled_dot_product_attention" in called.names:
        findings.append(Finding("note", "attention runs unfused: its fused kernels have no second derivative"))
    return findings


def _products(op: LinearOperator) -> tuple[list[Finding], float]:
    """Whether two products are symmetric, how the linearisation is held, and the seconds of one."""
    u, v = (op.space.randn(_seeded(seed)) for seed in (0, 1))
    hu = op @ u
    hv, seconds = _timed(op, v)
    scale = op.space.norm(hu) * op.space.norm(v) or 1.0
    asymmetry = abs(op.space.inner(hu, v) - op.space.inner(u, hv)) / scale
    trusted = asymmetry < 1e3 * op.space.eps
    findings = [Finding("ok" if trusted else "WARN", f"products are symmetric to {asymmetry:.1e}, relative")]
    if isinstance(op, RiskOperator):
        size = f": {readable(op.linearised_bytes)}" if op.linearised_bytes else ""
        findings.append(Finding("ok", f"the linearisation was {op.linearised.value}{size}"))
    return findings, seconds


def _product_seconds(op: LinearOperator) -> float:
    """Seconds of a product once the linearisation is there."""
    v = torch.ones(op.space.local_n, dtype=op.dtype, device=op.device)
    op @ v
    return _timed(op, v)[1]


def _timed(op: LinearOperator, v: Tensor) -> tuple[Tensor, float]:
    """A product, and its wall time in seconds."""
    start = time.perf_counter()
    product = op @ v
    if op.device.type == "cuda":
        torch.cuda.synchronize(op.device)
    return product, time.perf_counter() - start


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
    dropout = dropout_modules(risk.model)
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
    first, second = (next(risk.sample.read())[1] for _ in range(2))
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
