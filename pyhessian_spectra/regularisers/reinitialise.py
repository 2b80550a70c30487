"""Re-initialisation of the weights along which the loss curves most (Rahimi et al. 2020), and its controls."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyhessian_spectra.curvature.parameters import trainable_layout
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError
from pyhessian_spectra.regularisers.owned import own_weights
from pyhessian_spectra.regularisers.scores import LIMIT, SCORES, curvature_scores, weights_of
from pyhessian_spectra.spectra.results import Floats
from pyhessian_spectra.spectra.space import fresh_generator

#: The choices that the paper leaves open, and the controls that it lacks.
UNITS = ("weight", "row", "column")
SCOPES = ("layer", "pooled")
INITS = ("zeros", "uniform", "xavier", "own")
SELECTIONS = ("top", "bottom", "random")

#: Quantiles of the scores that are logged.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)

# The paper gives no range for uniform values; this is the default of Keras' RandomUniform.
_UNIFORM = 0.05

Init = Callable[[torch.Size, torch.Generator], Tensor]


@dataclass(frozen=True)
class Reinitialisation:
    """What one step has reset.

    Parameters
    ----------
    coordinates : mapping of str to Tensor
        Ascending flat indices (c,), int64, of the weights that were reset, by parameter name.
    quantiles : mapping of str to ndarray
        Quantiles 0, .25, .5, .75, .9 and 1 of all the parameter's scores, float64; empty for a random selection.
    before, after : float
        The loss on the step's data, in the loss' units.
    cleared : tuple of str
        The optimiser's state tensors that were set to zero at these coordinates.
    seed : int
        The generator's initial seed.
    """

    coordinates: Mapping[str, Tensor]
    quantiles: Mapping[str, Floats]
    before: float
    after: float
    cleared: tuple[str, ...]
    seed: int


class CurvatureReinitializer:
    """Reset the ``k`` per cent of a model's weights with the largest scores of its layers' Hessians.

    Rahimi et al. (2020) call it after each epoch. What they leave open is an argument; scores are exact, see
    :func:`curvature_scores`. Biases are neither scored nor reset.

    Parameters
    ----------
    model : torch.nn.Module
        Its chosen weights change with each step, all else stays.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``.
    k : float
        Per cent of the units that are reset, between 0 and 100; rounded to whole units, at least one.
    layers : int or str or sequence of str
        The last so many layers, or names or globs.
    score : {"sum", "mean", "diagonal"}
        Sum and mean order the weights of a layer alike, and differ where layers are pooled.
    unit : {"weight", "row", "column"}
        What is reset: single weights, or all that enter one of the layer's units (a row of torch's weight), or all that
        leave one unit of the layer below (a column); of linear layers and plain convolutions. The score of several is
        their sum, or mean with ``score="mean"``.
    scope : {"layer", "pooled"}
        ``k`` per cent of each weight tensor, or of all together.
    init : {"zeros", "uniform", "xavier", "own"} or callable
        Zeros; uniform within 0.05; Glorot's uniform; as the layer's ``reset_parameters`` draws; or ``(shape,
        generator) -> tensor``.
    select : {"top", "bottom", "random"}
        The largest scores, or as controls the smallest, or units at random, which takes no Hessian. Of equal scores the
        earlier units count as the larger, or smaller, ones.
    optimizer : torch.optim.Optimizer, optional
        Its state is set to zero where weights are reset.
    mode : {"eval", "train"}
        The mode of the model in which scores and losses are taken.
    limit : int
        Most products of the Hessian for a layer without closed form.
    generator : torch.Generator, optional
        By default one with a new seed, which the log has.

    Attributes
    ----------
    names : tuple of str
        The weights that may be reset.
    log : list of Reinitialisation
        All steps so far.

    Raises
    ------
    InputError
        Another choice than these, ``k`` outside (0, 100), unknown layers or ones without weights, weights that are tied
        or share memory, an optimiser that does not hold the weights, or, when a step is taken, one whose state cannot
        be cleared. Nothing is reset then.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> reset = CurvatureReinitializer(model, torch.nn.MSELoss(), k=50)
    >>> reset.step((torch.tensor([[1.0, -2.0]]), torch.zeros(1, 1))).coordinates
    {'weight': tensor([1])}
    >>> model.weight[0, 1].item()
    0.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        *,
        k: float = 10.0,
        layers: int | str | Sequence[str] = 1,
        score: str = "sum",
        unit: str = "weight",
        scope: str = "layer",
        init: str | Init = "zeros",
        select: str = "top",
        optimizer: torch.optim.Optimizer | None = None,
        mode: str = "eval",
        limit: int = LIMIT,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(k, bool) or not isinstance(k, (int, float)) or not 0 < k < 100:
            raise InputError(f"k must be a percentage between 0 and 100, both excluded, got {k!r}")
        given = (
            ("score", score, SCORES),
            ("unit", unit, UNITS),
            ("scope", scope, SCOPES),
            ("select", select, SELECTIONS),
        )
        for argument, value, known in given:
            if value not in known:
                raise InputError(f"{argument} must be one of {', '.join(known)}, got {value!r}")
        if not callable(init) and init not in INITS:
            raise InputError(f"init must be one of {', '.join(INITS)}, or a function, got {init!r}")
        self.names = weights_of(model, trainable_layout(model)[0], layers)
        if not self.names:
            raise InputError("layers names no layer; name some, or say how many of the last ones")
        self._model, self._loss_fn, self._optimizer = model, loss_fn, optimizer
        self._weights = own_weights(model, self.names, optimizer, unit)
        self._k, self._score, self._unit, self._scope, self._init, self._select = k, score, unit, scope, init, select
        self._mode, self._limit = mode, limit
        self._generator = fresh_generator() if generator is None else generator
        self.log: list[Reinitialisation] = []

    def step(self, data: Iterable[Any]) -> Reinitialisation:
        """Score the weights on ``data`` (batches, or one batch), reset the chosen ones in place, and log it."""
        # the model may have got other parameters since
        self._weights = own_weights(self._model, self.names, self._optimizer, self._unit)
        risk = EmpiricalRisk(self._model, self._loss_fn, data, params=self.names, mode=self._mode)
        states = {name: self._state(name) for name in self.names}
        before, scores = risk.loss(), self._scores(risk)
        masks = self._chosen(scores)
        fresh = {name: self._fresh(name) for name in self.names if bool(masks[name].any())}
        with torch.no_grad():
            for name, values in fresh.items():
                weight, mask = self._weights[name], masks[name].to(values.device)
                weight.copy_(torch.where(mask, values, weight))
                for tensor in states[name].values():
                    tensor.masked_fill_(mask.to(tensor.device), 0)
        quantiles = {name: np.quantile(s.double().cpu().numpy(), QUANTILES) for name, s in scores.items()}
        done = Reinitialisation(
            {name: masks[name].flatten().nonzero()[:, 0].cpu() for name in self.names},
            {} if self._select == "random" else quantiles,
            before,
            risk.loss(),
            tuple(f"{name} {key}" for name in fresh for key in states[name]),
            self._generator.initial_seed(),
        )
        self.log.append(done)
        return done

    def _scores(self, risk: EmpiricalRisk) -> dict[str, Tensor]:
        """What the weights are ranked by, the largest first."""
        if self._select == "random":
            shapes = risk.layout.shapes.items()
            return {name: torch.rand(shape, generator=self._generator, dtype=torch.float64) for name, shape in shapes}
        return curvature_scores(risk, self.names, score=self._score, limit=self._limit)

    def _chosen(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masks of the weights' shapes."""
        labels = {name: _labels(s.shape, self._unit).to(s.device) for name, s in scores.items()}
        units = {name: self._of_units(s.flatten(), labels[name].flatten()) for name, s in scores.items()}
        pools = [list(units)] if self._scope == "pooled" else [[name] for name in units]
        chosen: dict[str, Tensor] = {}
        for names in pools:
            pooled = torch.cat([units[name] for name in names])
            count = max(1, round(self._k / 100 * len(pooled)))
            order = torch.sort(pooled, descending=self._select != "bottom", stable=True).indices
            picked = torch.zeros_like(pooled, dtype=torch.bool)
            picked[order[:count]] = True
            chosen.update(zip(names, picked.split([len(units[name]) for name in names]), strict=True))
        return {name: chosen[name][labels[name]] for name in scores}

    def _of_units(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The units' scores (u,) from those of the weights (p,)."""
        sums = torch.zeros(int(labels.max()) + 1, dtype=torch.float64, device=scores.device)
        sums.index_add_(0, labels, scores.double())
        return sums / (len(labels) / len(sums)) if self._score == "mean" else sums

    def _fresh(self, name: str) -> Tensor:
        """New values for all of a weight, of its shape, dtype and device."""
        weight, generator = self._weights[name], self._generator
        values = torch.zeros(weight.shape, dtype=weight.dtype, device=generator.device)
        if callable(self._init):
            values = self._init(weight.shape, generator)
            if not isinstance(values, Tensor) or values.shape != weight.shape or values.is_complex():
                shape = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
                raise InputError(f"init must give a real tensor {tuple(weight.shape)} for {name}, and gave {shape}")
            if not torch.isfinite(values).all():
                raise InputError(f"init gave NaN or infinite values for {name}; nothing was reset")
        elif self._init == "uniform":
            values.uniform_(-_UNIFORM, _UNIFORM, generator=generator)
        elif self._init == "xavier":
            nn.init.xavier_uniform_(values, generator=generator)
        elif self._init == "own":
            values = _as_the_layer_draws(self._model, name, generator)
        return values.detach().to(weight)

    def _state(self, name: str) -> dict[str, Tensor]:
        """The optimiser's state of a weight that belongs to its coordinates."""
        weight = self._weights[name]
        state = self._optimizer.state.get(weight, {}) if self._optimizer else {}
        found = {
            key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == weight.shape
        }
        for key, value in state.items():
            single = (
                value is None or isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
            )
            if key not in found and not single:
                raise InputError(
                    f"the optimizer's state {key!r} of {name} has no entry for each weight and cannot be cleared where "
                    "weights are reset; take an optimizer such as SGD or Adam"
                )
        return found


def _labels(shape: torch.Size, unit: str) -> Tensor:
    """The number of each weight's unit, of the weight's shape."""
    if unit == "weight":
        return torch.arange(math.prod(shape)).view(shape)
    axis = UNITS.index(unit) - 1
    view = [-1 if i == axis else 1 for i in range(len(shape))]
    return torch.arange(shape[axis]).view(view).expand(shape)


def _as_the_layer_draws(model: nn.Module, name: str, generator: torch.Generator) -> Tensor:
    """A weight from ``reset_parameters`` of a copy of its module; the global random state is put back."""
    owner, _, own = name.rpartition(".")
    module = copy.deepcopy(model.get_submodule(owner)).cpu()
    if not callable(reset := getattr(module, "reset_parameters", None)):
        raise InputError(
            f"{type(module).__name__}, which owns {name}, has no reset_parameters; take init='xavier' or a function"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        reset()
    return module.get_parameter(own)
