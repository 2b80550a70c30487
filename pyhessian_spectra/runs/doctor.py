"""examine: what could go wrong with an analysis, before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator, RiskOperator
from pyhessian_spectra.curvature.blocks import block_operator, chosen_layers, repeatable_gradient
from pyhessian_spectra.curvature.failures import tensors_in
from pyhessian_spectra.curvature.gram_cost import GramCost, worth_taking
from pyhessian_spectra.curvature.inspection import CalledFunctions, dropout_modules
from pyhessian_spectra.curvature.partition import GroupSpec
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import OutOfMemoryError, UnverifiedError
from pyhessian_spectra.spectra import LinearOperator, Settings
from pyhessian_spectra.spectra.basis import forecast, free_bytes, readable
from pyhessian_spectra.spectra.cost import (
    bytes_needed,
    bytes_of_basis,
    forecast_products,
    is_built,
    number_of_parts,
    products_of_a_part,
    products_of_coupling,
)


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; ``level`` is ok, note, WARN, or FAIL where ``analyze`` would refuse."""

    level: str
    sentence: str


def examine(
    risk: EmpiricalRisk,
    settings: Settings | None = None,
    *,
    layers: bool | GroupSpec = True,
    matrix: Callable[[EmpiricalRisk], LinearOperator] = HessianOperator,
) -> list[Finding]:
    """Check model, data and products, and forecast what ``analyze`` with these arguments would cost."""
    settings = settings or Settings()
    risk = risk.replace(memory_budget=settings.memory_budget)
    counts = f"n = {risk.n:,} parameters, N = {risk.num_examples:,} examples in {risk.num_batches} batches"
    groups = chosen_layers(risk.layout, layers)
    op, parts = matrix(risk), (block_operator(matrix, risk, group) for group in groups)
    sizes = [risk.n, *map(len, groups)]
    forecasts, seconds = forecast_products(settings, sizes), repeatable_gradient(risk)
    return [
        Finding("ok", counts),
        *_modules(risk),
        _order(risk),
        Finding("ok", f"two gradients agree; one takes {seconds:.3g} s"),
        *_graph(risk),
        *_verification(op, settings),
        *_products(op, parts, forecasts),
        *_further(settings, sizes, risk.num_batches),
        *_gram(worth_taking(op, risk, settings, groups, forecasts), seconds, len(groups)),
        *_memory(risk, settings),
    ]


def _modules(risk: EmpiricalRisk) -> Iterator[Finding]:
    """Say what dropout, BatchNorm and frozen parameters mean for the matrix."""
    if dropout := dropout_modules(risk.model):
        yield Finding("note", f"{len(dropout)} modules with dropout ({dropout[0]}, ...) are off in eval mode")
    if norms := sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in risk.model.modules()):
        meaning = "running statistics are constants" if risk.mode == "eval" else "statistics of each batch"
        yield Finding("note", f"{norms} BatchNorm modules in {risk.mode} mode: {meaning}")
    if frozen := sum(p.numel() for p in risk.model.parameters() if not p.requires_grad):
        yield Finding("note", f"{frozen:,} frozen parameters are constants")


def _order(risk: EmpiricalRisk) -> Finding:
    """Check whether two passes begin with the same batch."""
    first, second = (next(risk.sample.read())[1] for _ in range(2))
    pairs = zip(*(tensors_in((batch.inputs, batch.targets)) for batch in (first, second)), strict=True)
    if all(torch.equal(a, b) for a, b in pairs):
        return Finding("ok", "batches come in the same order each time")
    harm = "which does not change the sum in eval mode" if risk.mode == "eval" else "which changes batch statistics"
    return Finding("WARN", f"the loader draws another order each time, {harm}; use shuffle=False to be sure")


def _graph(risk: EmpiricalRisk) -> Iterator[Finding]:
    """Find parameters that the first batch's loss does not depend on, and attention that runs unfused."""
    point, (_, batch) = risk.point(), next(risk.sample.read())
    called = CalledFunctions()

    def unused() -> list[str]:
        with called:
            _, value = risk.objective.evaluate(batch)
        if not value.requires_grad:
            return list(risk.layout.names)
        parts = torch.autograd.grad(value, point.coordinates, allow_unused=True)
        return [name for name, part in zip(risk.layout.names, parts, strict=True) if part is None]

    if names := risk.objective.run(point, batch, unused):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        yield Finding("WARN", f"{len(names)} parameters do not enter the loss and have zero rows: {shown}")
    if "scaled_dot_product_attention" in called.names:
        yield Finding("note", "attention runs unfused: its fused kernels have no second derivative")


def _verification(op: LinearOperator, settings: Settings) -> Iterator[Finding]:
    """Say whether gradients, products and weights are what differences of the loss say."""
    try:
        verdict = verify(op)
        if verdict.found or not verdict.doubts:
            yield Finding("ok", verdict.found or "no curvature of a risk to verify")
        yield from (Finding("WARN", doubt) for doubt in verdict.doubts)
    except UnverifiedError as error:
        yield Finding("WARN" if settings.accept_unverified else "FAIL", str(error))


def _products(op: LinearOperator, parts: Iterator[LinearOperator], forecasts: list[int]) -> Iterator[Finding]:
    """Say whether products are symmetric, whether the linearisation is kept, and how long all products will take."""
    u, v = (op.space.randn(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    hu = op @ u
    hv, seconds = _timed(op, v)
    scale = op.space.norm(hu) * op.space.norm(v) or 1.0
    asymmetry = abs(op.space.inner(hu, v) - op.space.inner(u, hv)) / scale
    level = "ok" if asymmetry < 1e3 * op.space.eps else "WARN"
    yield Finding(level, f"products are symmetric to {asymmetry:.1e}, relative")
    if isinstance(op, RiskOperator):
        size = f": {readable(op.linearised_bytes)}" if op.linearised_bytes else ""
        yield Finding("ok", f"the linearisation was {op.linearised.value}{size}")
    whole, *of_layers = forecasts
    yield _time("the whole matrix", whole, whole * seconds)
    if any(of_layers):
        spent = 0.0
        for part, count in zip(parts, of_layers, strict=True):
            v = torch.ones(part.space.local_n, dtype=part.dtype, device=part.device)
            part @ v  # builds the linearisation
            spent += count * _timed(part, v)[1]
        yield _time(f"{len(of_layers)} layers", sum(of_layers), spent)


def _further(settings: Settings, sizes: list[int], num_batches: int) -> Iterator[Finding]:
    """Say what the coupling of layers and parts of the data take."""
    if coupling := products_of_coupling(settings, sizes):
        yield Finding("ok", f"the coupling of layers: {coupling:,} more products with the whole matrix")
    if parts := number_of_parts(settings, sizes, num_batches):
        each = products_of_a_part(settings, sizes)
        told = f"{parts} parts of the data: {each:,} products each, over a part of the examples"
        yield Finding("ok", f"{told}; together they take about as long as all else")
    if (settings.data_parts or 0) > num_batches:
        yield Finding("FAIL", f"data_parts = {settings.data_parts} needs as many batches, got {num_batches}")


def _gram(cost: GramCost | None, seconds: float, layers: int) -> Iterator[Finding]:
    """Say what the Gauss-Newton part will cost, for ``seconds`` a gradient, and what it may spare."""
    if cost is None:
        return
    told = f"the Gauss-Newton part: {cost.rows:,} rows, {readable(cost.num_bytes)}"
    spared = "; layers whose block of the Hessian is its own take no products" if layers else ""
    yield Finding("ok", f"{told}, about {cost.gradients:,.0f} gradients, {_length(cost.gradients * seconds)}{spared}")


def _timed(op: LinearOperator, v: Tensor) -> tuple[Tensor, float]:
    """A product, and its wall time in seconds."""
    start = time.perf_counter()
    product = op @ v
    if op.device.type == "cuda":
        torch.cuda.synchronize(op.device)
    return product, time.perf_counter() - start


def _time(what: str, products: int, seconds: float) -> Finding:
    """Say how long a number of products will take; ``seconds`` is their sum."""
    each = f" of {seconds / products:.3g} s" if products else ""
    return Finding("ok", f"{what}: about {products:,} products{each}, {_length(seconds)}")


def _length(seconds: float) -> str:
    lengths = {"hours": 3600, "minutes": 60, "seconds": 1}
    unit = next((unit for unit, length in lengths.items() if seconds >= 2 * length), "seconds")
    return f"{seconds / lengths[unit]:.1f} {unit}"


def _memory(risk: EmpiricalRisk, settings: Settings) -> Iterator[Finding]:
    """Say how much memory the matrix or the eigenvectors need, and where the Krylov basis will lie."""
    need, free = bytes_needed(settings, risk.n, risk.dtype), free_bytes(torch.device("cpu"))
    what = "the dense matrix" if is_built(settings, risk.n) else "eigenvectors"
    level, remedy = ("ok", "") if need < free else ("WARN", "; lower the eigenvalues or the exact limit")
    yield Finding(level, f"about {readable(need)} for {what}, {readable(free)} are free{remedy}")
    least, expected, most = bytes_of_basis(settings, risk.n, risk.dtype)
    if most:
        size = f"about {readable(expected)} for the Krylov basis, at most {readable(most)}"
        try:
            yield Finding("ok", f"{size}: {forecast(most, risk.device, settings.memory_budget)}")
        except OutOfMemoryError:  # without room for the least there is no analysis
            place = forecast(least, risk.device, settings.memory_budget)
            yield Finding("WARN", f"{size}, which does not fit: the process restarts sooner; at least {place}")
