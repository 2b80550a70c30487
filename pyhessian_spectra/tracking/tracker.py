"""SpectrumTracker: curvature while a model trains, in one line of the training loop."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyhessian_spectra.analysis.stability import Stability, stability_of
from pyhessian_spectra.curvature import EmpiricalRisk, HessianOperator
from pyhessian_spectra.curvature.verification import verify
from pyhessian_spectra.errors import InputError, SpectraError
from pyhessian_spectra.shown import one_line
from pyhessian_spectra.tracking.checks import require_count, require_quantities, require_share
from pyhessian_spectra.tracking.eigenvalues import Eigenvalues
from pyhessian_spectra.tracking.moment import Moment, Quantity
from pyhessian_spectra.tracking.pace import Pace
from pyhessian_spectra.tracking.probe import fingerprint, held, require_quiet, untouched
from pyhessian_spectra.tracking.traces import Traces
from pyhessian_spectra.tracking.track import Measured, Record, Track, TrackFile


class SpectrumTracker:
    """Follows the curvature of a loss on probe data while a model trains.

    ``tracker.step(optimizer)`` after each ``optimizer.step()`` is all that a training loop needs. What trains is not
    touched: no random number of the global generators is drawn, no ``.grad``, buffer, mode or parameter changes, so
    that the weights are those of a run without it, bit for bit. An error ends the tracking and not the training.

    Parameters
    ----------
    model : torch.nn.Module
        As it is trained, without a wrapper for several processes.
    loss_fn : callable
        ``loss_fn(outputs, targets) -> scalar``, as for :class:`EmpiricalRisk`.
    data : pair or iterable of batches
        Probe data, read once and held. Several batches give errors of the data as well.
    every : int
        Measure after each ``every`` steps at most.
    budget : float or None
        Share of the time of training that measurements may take: those that would take more are left out. None
        measures each time.
    certify_every : int
        Every so many measurements, and in the first, all is found from the beginning, with bounds on what may have been
        missed; in between it is followed. With a budget, certificates wait until they fit.
    quantities : sequence, optional
        What to measure, in this order; by default ``[Eigenvalues(), Traces()]``.
    path : path-like, optional
        A file of JSON lines to which each record is appended at once.
    on_record : callable, optional
        Called with each record, such as :func:`to_tensorboard` and :func:`to_wandb` give it.
    mode : {"eval", "train"}
        Whether BatchNorm uses running statistics, or those of the probe batches. Dropout is off.
    unpack, select, params, weight :
        As for :class:`EmpiricalRisk`.

    Attributes
    ----------
    track : Track
        The records so far.
    num_steps : int
        Steps so far.

    Raises
    ------
    InputError
        Probe data that are empty, on another device or do not fit the model, a loss that is random or not finite, an
        argument out of range, or a file of another run.

    Examples
    --------
    >>> model, loss_fn = nn.Linear(2, 1), nn.MSELoss()
    >>> x, y = torch.eye(2), torch.ones(2, 1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> tracker = SpectrumTracker(model, loss_fn, (x, y), every=1, budget=None)
    >>> for _ in range(3):
    ...     optimizer.zero_grad()
    ...     loss = loss_fn(model(x), y)
    ...     loss.backward()
    ...     optimizer.step()
    ...     _ = tracker.step(optimizer, loss=loss)
    >>> print(f"{tracker.track.records[-1].get('lambda_1').value:.3f}")  # of x^T x, which does not move
    3.000
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        data: Iterable[Any],
        *,
        every: int = 20,
        budget: float | None = 0.1,
        certify_every: int = 50,
        quantities: Sequence[Quantity] | None = None,
        path: str | os.PathLike[str] | None = None,
        on_record: Callable[[Record], Any] | None = None,
        mode: str = "eval",
        unpack: Callable[[Any], tuple[Any, Any]] | None = None,
        select: Callable[[Any], Tensor | tuple[Tensor, ...]] | None = None,
        params: str | Sequence[str] | None = None,
        weight: Callable[[Any], float] | None = None,
    ) -> None:
        budget = None if budget is None else require_share("budget", budget)
        self._pace = Pace(require_count("every", every, 1), budget, require_count("certify_every", certify_every, 1))
        asked = [Eigenvalues(), Traces()] if quantities is None else quantities
        self._quantities: list[Quantity] = require_quantities(asked)
        if on_record is not None and not callable(on_record):
            raise InputError(f"on_record must be a function of a Record, got {on_record!r}")
        how: dict[str, Any] = {"mode": mode, "unpack": unpack, "select": select, "params": params, "weight": weight}
        with untouched():
            try:
                batches = [held(batch) for batch in ([data] if isinstance(data, tuple) else data)]
            except TypeError:
                raise InputError(
                    f"data must be a pair (inputs, targets) or batches, got {type(data).__name__}"
                ) from None
            self._risk = EmpiricalRisk(model, loss_fn, batches, **how)
        with untouched(self._risk.device):
            require_quiet(self._risk)
        self._batches = [self._risk.replace(data=[batch]) for batch in batches]
        self._signature = self._signed()
        about = {
            "model": type(self._risk.model).__name__,
            "n": self._risk.n,
            "dtype": str(self._risk.dtype).removeprefix("torch."),
            "mode": mode,
            "examples": self._risk.num_examples,
            "batches": self._risk.num_batches,
            "fingerprint of modules and data": fingerprint(self._risk.model, batches),
            "quantities": [type(each).__name__ for each in self._quantities],
        }
        self.track, self.num_steps = Track(about), 0
        self._file, self._on_record = None if path is None else TrackFile(Path(path)), on_record
        if self._file is not None:
            try:
                self.track.records.extend(self._file.begin(about))
            except OSError as error:
                raise InputError(f"{path} cannot be written ({error.strerror}); give another path") from None
        self._resumable = bool(self.track.records)
        self._previous: Tensor | None = None
        self._ended = ""

    def __repr__(self) -> str:
        return one_line(
            self, [f"{self.num_steps:,} steps", f"{len(self.track.records)} records", f"n = {self._risk.n:,}"]
        )

    def step(
        self, optimizer: torch.optim.Optimizer | None = None, *, loss: Tensor | float | None = None
    ) -> Record | None:
        """Count a step of training, and measure if it is time to.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer, optional
            From its state the edge of stability is worked out.
        loss : Tensor or float, optional
            The training loss, for the record.

        Returns
        -------
        Record or None
            None where nothing was measured.

        Warns
        -----
        RuntimeWarning
            Once, where tracking ends: the loss is NaN, the model has changed, a product fails. With the first
            record, where it could not be seen that derivatives are right.
        """
        self._require_taken_up()
        self.num_steps += 1
        due, certify = (False, False) if self._ended else self._pace.due(self.num_steps)
        found = self.measure(optimizer, loss=loss, certify=certify) if due else None
        wanted = any(each.needs_previous for each in self._quantities) and not self._ended
        self._previous = self._risk.live().flat() if wanted and self._pace.may(self.num_steps + 1) else None
        return found

    def measure(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss: Tensor | float | None = None,
        certify: bool = True,
    ) -> Record | None:
        """Measure now, whatever the budget says, and look for everything from the beginning if it is to ``certify``.

        For the beginning and the end of training. Arguments and result are those of :meth:`step`.
        """
        self._require_taken_up()
        if self._ended:
            return None
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        start, products = time.perf_counter(), 0
        doubts: tuple[str, ...] = ()
        told: dict[str, Any] = {}
        values: list[Measured] = []
        try:
            with untouched(self._risk.device):
                told = {"loss": _number(loss), "lr": _rate(optimizer)}
                self._require_unchanged(told["loss"])
                moment = self._moment(optimizer, told["lr"], certify=certify)
                if moment.stability is not None:
                    told |= {"threshold": moment.stability.threshold, "formula": moment.stability.formula}
                if not self.track.records:
                    doubts = verify(HessianOperator(self._risk)).doubts
                for quantity in self._quantities:
                    values += quantity.measure(moment)
                products = moment.products + moment.hessian.num_products
                del moment  # and with it the graphs of the probe data
        except Exception as error:
            self._ended = str(error) if isinstance(error, SpectraError) else f"{type(error).__name__}: {error}"
        if self._risk.device.type == "cuda":
            torch.cuda.synchronize(self._risk.device)
        now = time.perf_counter()
        self._pace.spend(now - start, certify=certify)
        record = Record(
            self.num_steps,
            tuple(values),
            products=products,
            seconds=now - start,
            elapsed=self._pace.elapsed,
            ended=self._ended,
            **told,
        )
        self.track.records.append(record)
        self._write(record)
        for doubt in doubts:
            warnings.warn(doubt, RuntimeWarning, stacklevel=2)
        if self._ended:
            warnings.warn(f"tracking ends at step {self.num_steps}: {self._ended}", RuntimeWarning, stacklevel=2)
        return record

    def _moment(self, optimizer: torch.optim.Optimizer | None, lr: float | None, *, certify: bool) -> Moment:
        stability: Stability | None = None
        if optimizer is not None:
            stability = stability_of(optimizer, self._risk.layout, self._params())
        return Moment(self._risk, self._batches, stability, lr, self._previous, certify, self._pace.budget is not None)

    def _write(self, record: Record) -> None:
        """Append a record to the file, and show it; if that fails, tracking goes on without."""
        try:
            if self._file is not None:
                self._file.add(record)
        except OSError as error:
            path = self._file.path if self._file is not None else ""
            told = f"{path} cannot be written ({error.strerror}); records are kept in memory only"
            warnings.warn(told, RuntimeWarning, stacklevel=3)
            self._file = None
        try:
            if self._on_record is not None:
                self._on_record(record)
        except Exception as error:
            warnings.warn(f"on_record failed and is not called again: {error}", RuntimeWarning, stacklevel=3)
            self._on_record = None

    def _params(self) -> list[Tensor]:
        return list(self._risk.live().coordinates)

    def _signed(self) -> list[tuple[Any, ...]]:
        """What must not change while training."""
        named = self._risk.model.named_parameters()
        return [(name, id(p), p.shape, p.dtype, p.device, p.requires_grad) for name, p in named]

    def _require_taken_up(self) -> None:
        if self._resumable:
            raise InputError(
                f"{self._file.path if self._file else 'the file'} has records up to step "
                f"{self.track.records[-1].step:,}; load_state_dict() the tracker's state that was saved beside the "
                "checkpoint, or give another path"
            )

    def _require_unchanged(self, loss: float | None) -> None:
        if self._signed() != self._signature:
            raise InputError(
                "the model's parameters are others than at the beginning, or have another shape, dtype, device or "
                "requires_grad; build another tracker where the model changes"
            )
        if loss is not None and not math.isfinite(loss):
            raise InputError(f"the training loss is {loss}")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on with the same numbers, to be saved beside the checkpoint."""
        return {
            "num_steps": self.num_steps,
            "pace": self._pace.state_dict(),
            "ended": self._ended,
            "previous": self._previous,
            "about": dict(self.track.about),
            "quantities": [each.state_dict() for each in self._quantities],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; later records of the file no longer count, and stay in it.

        Raises InputError for the state of a tracker of another model, other data or other quantities.
        """
        if not isinstance(state_dict, dict) or state_dict.get("about") != self.track.about:
            raise InputError("this is not the state of such a tracker; build it of the same model, data and quantities")
        self.num_steps, self._ended = state_dict["num_steps"], state_dict["ended"]
        self._pace.load_state_dict(state_dict["pace"])
        self._previous = state_dict["previous"]
        for quantity, state in zip(self._quantities, state_dict["quantities"], strict=True):
            quantity.load_state_dict(state)
        self.track.records[:] = [record for record in self.track.records if record.step <= self.num_steps]
        if self._file is not None:
            try:
                self._file.resume(self.num_steps)
            except OSError as error:
                raise InputError(f"{self._file.path} cannot be written ({error.strerror}); give another path") from None
        self._resumable = False


def _number(loss: Tensor | float | None) -> float | None:
    return None if loss is None else float(torch.as_tensor(loss).detach())


def _rate(optimizer: torch.optim.Optimizer | None) -> float | None:
    """The learning rate that all groups share, or None."""
    rates = (
        {float(group["lr"]) for group in optimizer.param_groups if "lr" in group} if optimizer is not None else set()
    )
    return rates.pop() if len(rates) == 1 else None
