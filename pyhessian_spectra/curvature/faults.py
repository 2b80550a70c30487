"""Where the fault of a wrong derivative lies, found by taking a model apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.failures import tensors_in
from pyhessian_spectra.curvature.inspection import custom_functions
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import SpectraError


def place_of_fault(risk: EmpiricalRisk, batch: Batch, is_refuted: Callable[[EmpiricalRisk], bool]) -> str:
    """The first module called whose own derivatives are wrong, else the loss, and functions that may be why; in words.

    Modules return before those that they are part of, so that the first is the innermost. Each is tried alone, as a
    function of its parameters and of the inputs of its first call.
    """
    objective = risk.objective
    names = {module: name for name, module in objective.model.named_modules()}
    called: dict[nn.Module, nn.Module] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if module in names and module not in called:
            called[module] = _Alone(module, args, kwargs)

    def evaluate() -> tuple[Any, list[str]]:
        outputs, value = objective.evaluate(batch)
        return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, outputs), custom_functions(value)

    hook = register_module_forward_hook(note, with_kwargs=True)
    try:
        outputs, functions = objective.run(risk.point(), batch, evaluate)
    finally:
        hook.remove()

    def wrong(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], targets: Any) -> bool:
        try:
            data = [(torch.zeros(1), targets)]
            return is_refuted(EmpiricalRisk(model, loss_fn, data, mode=objective.mode, weight=lambda _: 1.0))
        except SpectraError:  # a module without parameters and inputs, or one that works in its place only
            return False

    why = f", which may be due to {', '.join(functions)}" if functions else ""
    why += " (pass use_reentrant=False to checkpoint)" if "CheckpointFunction" in functions else ""
    for module, alone in called.items():
        if wrong(alone, _random_sum, torch.zeros(1)):
            where = f"module {names[module]!r}" if names[module] else "the forward of the model itself"
            return f"look at {where} ({type(module).__name__}){why}"
    if outputs is not objective.model and wrong(
        _Alone(nn.Identity(), (outputs,), {}), objective.loss_fn, batch.targets
    ):
        return f"look at the loss{why}"
    return f"look at what is computed outside of modules{why}"


class _Alone(nn.Module):
    """A module with the floating inputs of one call as parameters."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        super().__init__()
        self.module = module
        self._leaves, self._form = tree_flatten((args, kwargs))
        self._varied = [i for i, x in enumerate(self._leaves) if isinstance(x, Tensor) and x.is_floating_point()]
        self.inputs = nn.ParameterList(nn.Parameter(self._leaves[i].detach().clone()) for i in self._varied)

    def forward(self, _: Tensor) -> Any:
        leaves = list(self._leaves)
        for i, x in zip(self._varied, self.inputs, strict=True):
            leaves[i] = x.view_as(x)  # which the module may change in place
        args, kwargs = tree_unflatten(leaves, self._form)
        return self.module(*args, **kwargs)


def _random_sum(outputs: Any, _: Any) -> Tensor:
    """A random linear function of a module's outputs."""
    generator, total = torch.Generator().manual_seed(1), torch.zeros(())
    for x in tensors_in(outputs):
        if x.is_floating_point():
            total = total + (torch.randn(x.shape, generator=generator).to(x) * x).sum()
    return total
