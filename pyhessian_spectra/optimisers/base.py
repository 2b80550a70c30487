"""What optimisers with curvature share: closures become risks, and a step that leads nowhere is taken back.

They own no derivative: a step asks a risk at the model's live parameters for its loss, its gradient and an operator.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyhessian_spectra.curvature.parameters import ParameterLayout
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.risk_operator import RiskOperator
from pyhessian_spectra.errors import InputError, NonFiniteError
from pyhessian_spectra.optimisers.checks import (
    num_examples,
    require_agreement,
    require_dependence,
    require_fewer,
    require_range,
    require_repeatable,
    require_state,
)
from pyhessian_spectra.optimisers.moves import LineSearch, Trial, average, placed
from pyhessian_spectra.optimisers.proposals import Proposal
from pyhessian_spectra.optimisers.records import StepRecord
from pyhessian_spectra.spectra.operator import LinearOperator
from pyhessian_spectra.spectra.space import VectorSpace

#: A loss at parameters that are as they are: a risk, or a function that returns the loss, or the loss and the outputs.
Closure = Callable[[], Any] | EmpiricalRisk


class CurvatureOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` whose direction comes from a curvature matrix at the live parameters.

    Attributes
    ----------
    layout : ParameterLayout
        Names and positions of the parameters: names as given by ``model.named_parameters()``, else numbers.
    records : list of StepRecord
        What each step since the start, or since loading, did.
    """

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        averaging: float,
        line_search: LineSearch | None,
        group: Any | None,
    ) -> None:
        require_range("averaging", averaging, below=1)
        if line_search is not None and not callable(line_search):
            raise InputError(f"line_search must be a function such as backtracking, got {line_search!r}")
        self.records: list[StepRecord] = []
        self._averaging, self._line_search, self._group = averaging, line_search, group
        try:
            super().__init__(params, defaults)
        except InputError:
            raise
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"these parameters cannot be optimised: {error}") from error
        self._arrange()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own, as ``torch.optim.Optimizer`` does; blocks are formed anew."""
        known = {"params", "param_names", "name", "initial_lr", *self._SETTINGS}
        for key in param_group if isinstance(param_group, dict) else ():
            if key not in known:
                raise InputError(f"a parameter group has no setting {key!r}; there are {', '.join(self._SETTINGS)}")
        steps = self.param_groups[0]["num_steps"] if self.param_groups else 0
        super().add_param_group({**param_group, "optimiser": type(self).__name__, "num_steps": steps})
        if hasattr(self, "layout"):
            before = dict(self.__dict__)
            try:
                self._arrange()
            except Exception:
                self.__dict__.update(before)
                self.param_groups.pop()
                raise

    @property
    def _num_steps(self) -> int:
        """Steps so far; a number of each group, since that is what every way of saving an optimiser saves."""
        return int(self.param_groups[0]["num_steps"])

    @_num_steps.setter
    def _num_steps(self, count: int) -> None:
        for group in self.param_groups:
            group["num_steps"] = count

    def _arrange(self) -> None:
        """Lay out the trainable parameters as one vector."""
        named: dict[str, Tensor] = {}
        places: set[int] = set()
        for group in self.param_groups:
            require_range("lr", group["lr"])
            numbers = range(len(named), len(named) + len(group["params"]))
            for name, p in zip(group.get("param_names") or map(str, numbers), group["params"], strict=True):
                if name in named or id(p) in places:
                    raise InputError(
                        f"there are two parameters {name!r}, or one twice; pass named_parameters() of one model, or "
                        "parameters() without names, each once"
                    )
                if p.is_inference() or any(n > 1 and step == 0 for n, step in zip(p.shape, p.stride(), strict=True)):
                    raise InputError(
                        f"{name} cannot be changed in place: it is expanded, or was made in inference mode; clone it"
                    )
                named[name] = p
                places.add(id(p))
        self._lay_out(named)

    def _lay_out(self, named: dict[str, Tensor]) -> None:
        self._closures = EmpiricalRisk.from_closure(named, _nothing, group=self._group)
        self.layout: ParameterLayout = self._closures.layout
        self._params = [named[name] for name in self.layout.names]
        self._point = Point(self.layout, tuple(self._params), {})
        self._space = VectorSpace(self.layout.n, dtype=self._closures.dtype, device=self._closures.device)
        self._seen = self._signature()
        self._checked = False  # what the first step that is taken here, of a new run or a resumed one, is given

    def _signature(self) -> list[tuple[Any, ...]]:
        """What the layout depends on, which may change between steps: parameters are frozen, or converted."""
        every = (p for group in self.param_groups for p in group["params"])
        return [(id(p), p.dtype, p.device, p.shape) for p in every if p.requires_grad]

    def _settings(self) -> dict[str, dict[str, Any]]:
        """The group that each parameter belongs to, by name: its settings as schedulers have left them."""
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        return {name: groups[id(p)] for name, p in zip(self.layout.names, self._params, strict=True)}

    def _risk(self, closure: Closure) -> EmpiricalRisk:
        """The closure as a risk whose coordinates are the optimiser's parameters."""
        if not isinstance(closure, EmpiricalRisk):
            if not callable(closure):
                raise InputError(
                    f"step needs a closure that returns (loss, outputs), or an EmpiricalRisk, got "
                    f"{type(closure).__name__}"
                )
            return self._closures.replace(data=[closure])
        own = {id(p) for p in closure.model.parameters()}
        for name, p in zip(self.layout.names, self._params, strict=True):
            if id(p) not in own:
                raise InputError(f"the risk's model does not have the optimiser's parameter {name}; build both from it")
        return closure.along(self.layout)

    @torch.no_grad()
    def step(self, closure: Closure, subset: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Take one step.

        Parameters
        ----------
        closure : EmpiricalRisk or callable
            The minibatch, from which loss and gradient are taken: ``EmpiricalRisk(model, loss_fn, (x, y))``, or a
            function without arguments that returns ``(loss, outputs)``, or the loss alone where no Gauss-Newton matrix
            is asked for. It does not call ``backward``, and is called several times a step. A risk calls the model in
            its own mode, with right second derivatives on every device and without changing running statistics; a
            function calls it as it is.
        subset : EmpiricalRisk or callable, optional
            The part of the minibatch on which the curvature is taken, strictly smaller; by default the minibatch.

        Returns
        -------
        Tensor
            The minibatch's loss before the step, a scalar. ``records[-1]`` says what the step did.

        Raises
        ------
        NonFiniteError
            The loss, its gradient or a product is NaN or infinite. Parameters are as before.
        InputError
            The closure returns no loss with a graph to the parameters; a subset is not smaller, as far as risks, or
            closures that return outputs, tell; or what a risk raises.

        Warns
        -----
        RuntimeWarning
            The step, or the loss after it, is NaN or infinite, or the line search finds nothing better: the parameters
            are taken back to what they were.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("a step needs derivatives; take it outside of torch.inference_mode()")
        if self._signature() != self._seen:
            self._arrange()
        risk = self._risk(closure)
        if not self._checked:
            require_dependence(risk, self._point)
            require_agreement(risk.sample.processes, self._params, self._shared())
        loss, gradient = risk.loss_and_gradient(self._point)
        for name, value in (("loss", loss), ("gradient", gradient.sum())):
            if not math.isfinite(float(value)):
                raise NonFiniteError(f"the {name} is NaN or infinite before the step; look at the batch, or lower lr")
        if not self._checked:
            require_repeatable(risk, self._point, float(loss))
        proposal = self._propose(risk, None if subset is None else self._risk(subset), gradient)
        lrs = [require_range("lr", group["lr"]) for group in self._settings().values()]
        parts = zip(lrs, self.layout.unflatten(proposal.direction), strict=True)
        step = self.layout.flatten([lr * part for lr, part in parts])
        norm = self._space.norm(step)
        trial = Trial(self._params, self.layout.unflatten(step), lambda: risk.loss(self._point))
        loss_after, factor, rejected = trial.take(
            self._line_search, loss=float(loss), slope=self._space.inner(gradient, step), norm=norm
        )
        self._num_steps, self._checked = self._num_steps + 1, True
        record = StepRecord(
            step=self._num_steps,
            loss=float(loss),
            loss_after=loss_after,
            predicted=-factor * (proposal.slope + factor * proposal.curvature / 2),
            gradient_norm=self._space.norm(gradient),
            step_norm=norm,
            factor=factor,
            damping=proposal.damping,
            solves=proposal.solves,
            rejected=rejected,
        )
        self.records.append(record)
        if self._averaging and rejected is None:
            average(self.state, self._params, self._averaging)
        self._finish(record, proposal)
        if rejected is not None:
            warnings.warn(f"step {record.step} is taken back: {rejected}", RuntimeWarning, stacklevel=4)
        return loss

    def _operator(
        self, curvature: Callable[..., LinearOperator], risk: EmpiricalRisk, subset: EmpiricalRisk | None
    ) -> LinearOperator:
        """The curvature at the live parameters; raises InputError if its examples are not fewer than the gradient's."""
        full = num_examples(risk)  # of the gradient's closure, as long as the curvature's has not been called
        op = curvature((subset or risk).unchecked(), point=self._point)
        if isinstance(op, RiskOperator):
            op.linearise()
        if subset is not None:
            require_fewer(num_examples(subset), full)
        return op

    def _shared(self) -> dict[str, Any]:
        """What all ranks must have alike, by name."""
        return {"settings": [[group[key] for key in self._SETTINGS] for group in self.param_groups]}

    @abstractmethod
    def _propose(self, risk: EmpiricalRisk, subset: EmpiricalRisk | None, gradient: Tensor) -> Proposal:
        """The direction of the next step; parameters are not touched."""

    def _finish(self, record: StepRecord, proposal: Proposal) -> None:
        """What is remembered of a step for the next."""

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the parameters are their exponential average over the steps (Polyak and Juditsky 1992).

        ``average <- averaging * average + (1 - averaging) * parameters`` after each step, from the first one on. Raises
        InputError if ``averaging`` is 0 or no step was taken.
        """
        if not all("average" in self.state[p] for p in self._params):
            raise InputError("there is no average yet; pass averaging=, such as .99, and take a step")
        with placed(self._params, [self.state[p]["average"] for p in self._params]):
            yield

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; raises InputError for one of another optimiser or of other parameters."""
        require_state(state_dict, self)
        super().load_state_dict(state_dict)
        self._checked = False

    def __getstate__(self) -> dict[str, Any]:
        own = {key: value for key, value in self.__dict__.items() if key in self._COPIED}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "layout" in state:  # a copy, whose parameters are other tensors
            params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            self._lay_out(dict(zip(self.layout.names, params, strict=True)))

    #: What a group of parameters may have of its own.
    _SETTINGS: tuple[str, ...]

    #: What a copy of an optimiser has of it, beside what torch copies.
    _COPIED: tuple[str, ...] = ("records", "layout", "_averaging", "_line_search", "_group")


def _nothing() -> None:
    """Stands for a closure until the first step gives one."""
