"""RiskOperator: a curvature matrix of a risk as a linear operator, whatever the matrix."""

from __future__ import annotations

import copy
import enum
import functools
import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyhessian_spectra.curvature import autodiff
from pyhessian_spectra.curvature.batches import Batch
from pyhessian_spectra.curvature.point import Point
from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.curvature.savings import measured_bytes
from pyhessian_spectra.errors import InputError, SpectraError
from pyhessian_spectra.spectra.basis import free_bytes
from pyhessian_spectra.spectra.operator import LinearOperator, Observation, TermwiseOperator
from pyhessian_spectra.spectra.space import VectorSpace

# Examples that show in which dtype a model computes.
_FEW = 4

# Products taken together in one backward pass share its overhead and the inputs but need more cache. On MLPs,
# convolutions and LSTMs of both precisions 32 together took 0.2 to 0.7 of the time if a batch's linearisation has less
# than 1 MiB beside its inputs, and up to twice the time from 4 MiB on. So 16 MiB of intermediate values are taken
# together, but at most 32 products, and single ones if only 4 fit.
_BATCHED_BYTES, _FEWEST_COLUMNS, _MOST_COLUMNS = 2**24, 5, 32


class Linearised(enum.Enum):
    """Whether the linearisations of an operator's batches are kept between products."""

    UNDECIDED = "undecided: no product has been taken yet"
    KEPT = "kept between products"
    REBUILT = "rebuilt for each product"


@dataclass
class _Decision:
    """What an operator's first products have decided; shared with its copies at other points."""

    linearised: Linearised = Linearised.UNDECIDED
    num_bytes: int = 0  # of all linearisations, on the rank that holds most
    batch_bytes: int = 0  # of one batch's without its inputs, on average, on the rank where it is largest
    columns_agree: bool | None = None  # whether products taken together equal single ones


class RiskOperator(TermwiseOperator):
    """A curvature matrix of a risk at a point.

    If the linearisations of all batches fit the memory budget on all ranks, they are kept between products; if not,
    they are rebuilt for each product. Products raise InputError if the model or the loss fails.

    Parameters
    ----------
    risk : EmpiricalRisk
    point : Point, optional
        By default a copy of the model's current parameters.
    memory_budget : int, optional
        Bytes that kept linearisations may take, by default the risk's budget. With 0 they are always rebuilt.
    columns : int, optional
        Number of products to take in one backward pass if many are asked for at once, at least 1; by default the number
        expected to be fastest.

    Attributes
    ----------
    risk : EmpiricalRisk
    point : Point
    units : str
        Of its eigenvalues.
    """

    units = "loss / parameter^2"

    def __init__(
        self,
        risk: EmpiricalRisk,
        *,
        point: Point | None = None,
        memory_budget: int | None = None,
        columns: int | None = None,
    ) -> None:
        if not isinstance(risk, EmpiricalRisk):
            raise InputError(
                f"an EmpiricalRisk is needed, got {type(risk).__name__}; pass EmpiricalRisk(model, loss_fn, data)"
            )
        if columns is not None and columns < 1:
            raise InputError(f"columns must be at least 1, got {columns}")
        super().__init__(risk.n, dtype=risk.dtype, device=risk.device)
        self.risk, self.point = risk, risk.point() if point is None else point
        self._budget = risk.memory_budget if memory_budget is None else memory_budget
        self._columns, self._decision = columns, _Decision()
        self._kept: list[tuple[float, autodiff.Linearisation]] | None = None
        self._versions: tuple[int, ...] = ()  # of the coordinates the linearisations were built at
        self._is_twin = False  # a float64 version of an operator in another dtype
        self._is_new = False  # at another point: a first product may be the only one there

    @property
    def linearised(self) -> Linearised:
        """Whether linearisations are kept between products; the first product decides it."""
        return self._decision.linearised

    @property
    def linearised_bytes(self) -> int:
        """Bytes of the kept linearisations, on the rank that holds most; 0 if they are rebuilt."""
        return self._decision.num_bytes if self.linearised is Linearised.KEPT else 0

    @abstractmethod
    def _linearise(self, batch: Batch) -> autodiff.Linearisation:
        """The linearisation of one batch."""

    def at(self, point: Point) -> RiskOperator:
        """This matrix at another point of the same risk, else InputError is raised; only products cost anything."""
        if point.layout.shapes != self.risk.layout.shapes:
            raise InputError("the point has other coordinates than the operator; take it from the same risk")
        other = copy.copy(self)
        other.point, other._kept, other._is_new = point, None, True
        return other

    def linearise(self) -> None:
        """Build the linearisations now, if this operator keeps them, rather than with the first products."""
        self._is_new = False
        self._decide()

    def block(self, params: str | Sequence[str]) -> RiskOperator:
        """The diagonal block of some parameters, named as for :meth:`EmpiricalRisk.restrict`, at the same point.

        Linearisations that this operator keeps serve its blocks too. Passes of a product end at these parameters.
        """
        self.linearise()
        part = copy.copy(self)
        part.risk = self.risk.restrict(params)
        part.point = self.point.restrict(part.risk.layout)
        part.space = VectorSpace(part.risk.n, dtype=self.dtype, device=self.device)
        part._decision = copy.copy(self._decision)
        part._versions = part._current_versions()
        if self._kept is not None:
            part._kept = [(weight, kept.block(part.risk.layout)) for weight, kept in self._kept]
        return part

    def reference(self) -> RiskOperator | None:
        """This matrix in float64; if that is its dtype, or the model does not compute in it, at other parameters.

        These differ from its own by their rounding.
        """
        other, precise = copy.copy(self), torch.float64
        if self.dtype == precise or not self.computes_in(precise):
            generator = torch.Generator().manual_seed(0)
            signs = self.space.rademacher(generator) * self.point.flat()
            other.point = self.point.moved(signs, self.space.eps)
        else:
            other.risk, other.point = self.risk.replace(dtype=precise), self.point.cast(self.risk.model, precise)
            other.space = VectorSpace(self.n, dtype=precise, device=self.device)
            other._is_twin = True
        if self._budget is not None:
            other._budget = max(0, self._budget - self.linearised_bytes)
        other._kept, other._decision = None, _Decision()
        return other

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether the model computes in this dtype throughout where its parameters are in it, on its first batch."""
        objective = self.risk.objective
        if dtype not in objective.fails_in:
            objective.fails_in[dtype] = self._fails_in(dtype)
        works = not objective.fails_in[dtype] and objective.computed_in.get(dtype, dtype) == dtype
        return all(self.risk.sample.processes.gather(works))

    def _fails_in(self, dtype: torch.dtype) -> bool:
        try:
            point = self.point.cast(self.risk.model, dtype)
            for _, batch in itertools.islice(self.risk.sample.read(dtype), 1):
                try:
                    autodiff.computed_in(self.risk.objective, point, batch.rows(0, _FEW))
                except SpectraError:  # of a model that needs its whole batch
                    autodiff.computed_in(self.risk.objective, point, batch)
        except (SpectraError, RuntimeError, TypeError):  # such as of devices without it
            return True
        return False

    def product(self, v: Tensor) -> Tensor:
        """The product with ``v`` (n,), or columns (n, k), with a graph: to be differentiated in the point and in ``v``.

        At ``risk.live()`` this gives gradients of curvature penalties in the model's parameters. Columns share one
        forward pass and one gradient. In a process group it is the mean over this rank's batches only, like gradients
        before data parallelism averages them.
        """
        self._check(v)
        return self.risk.sample.local_mean(lambda batch: self._with_graph(batch, v))

    def _with_graph(self, batch: Batch, v: Tensor) -> Tensor:
        def call() -> Tensor:
            linearisation = self._linearise(batch)
            if v.dim() == 1:
                return linearisation.matvec(v, create_graph=True)
            # one by one: torch's vmap over double backward is wrong for some operations
            return torch.stack([linearisation.matvec(column, create_graph=True) for column in v.unbind(1)], dim=1)

        return self.risk.objective.run(self.point, batch, call)

    def _matvec(self, v: Tensor) -> Tensor:
        return self._mean(v, None, 0)[0]

    def _observe(self, v: Tensor, look: Observation) -> tuple[Tensor, Tensor, Tensor]:
        product, seen = self._mean(v, look, len(look(v)))
        return product, self.risk.sample.shares, seen

    def _mean(self, v: Tensor, look: Observation | None, num_looks: int) -> tuple[Tensor, Tensor]:
        self._decide()
        mean, shape = self.risk.sample.observed_mean, self._product_shape
        if self._kept is not None:
            return mean(lambda kept: kept.matvec(v), shape, look, num_looks, over=self._kept)
        once = functools.partial(self._once, v=v, last=True)
        product = mean(once, shape, look, num_looks, over=self.risk.batches(self.point))
        self._require_precision()
        return product

    def _require_precision(self) -> None:
        """Raise InputError if this is a twin in float64 of which some part is computed in a lower precision."""
        found = self.risk.objective.computed_in.get(self.dtype, self.dtype)
        if self._is_twin and found != self.dtype:
            raise InputError(f"the model computes in {found} also where its parameters are in {self.dtype}")

    def _once(self, batch: Batch, v: Tensor, **how: bool) -> Tensor:
        """One batch's product, with a linearisation that is built for it and dropped."""
        return self.risk.objective.run(self.point, batch, lambda: self._linearise(batch).matvec(v, **how))

    @property
    def _product_shape(self) -> tuple[int, ...]:
        return (self.n,)

    def _matmat(self, v: Tensor) -> Tensor:
        self._decide()
        rows = v.T.contiguous()
        step = self._columns_at_once(rows)
        return torch.cat([self._rows(rows[i : i + step]) for i in range(0, len(rows), step)]).T

    def _rows(self, rows: Tensor) -> Tensor:
        """The products with the rows of (k, n) in one backward pass; shape (k, n)."""
        if len(rows) == 1:
            return self._matvec(rows[0])[None]
        return self.risk.sample.mean(lambda kept: kept.matmat(rows), rows.shape, over=self._kept)

    def _columns_at_once(self, rows: Tensor) -> int:
        """Number of products in one backward pass: ``columns``, or by sizes (not timings) that all ranks share."""
        decision = self._decision
        if self._kept is None:
            return 1
        width = self._columns or _BATCHED_BYTES // max(self.n * self.dtype.itemsize, decision.batch_bytes)
        if self._columns is None:
            width = 1 if width < _FEWEST_COLUMNS else min(width, _MOST_COLUMNS)
        width = min(width, len(rows))
        if width > 1 and decision.columns_agree is None:
            decision.columns_agree = self._agrees_with_single(rows[:width])
        return max(1, width) if decision.columns_agree else 1

    def _agrees_with_single(self, rows: Tensor) -> bool:
        """Whether products taken together agree with single ones, for one linear combination of the rows.

        ``vmap``, which takes them together, fails for some operations and is wrong for others (torch 2.13: batch_norm
        in train mode); single products are always right.
        """
        try:
            block = self._rows(rows)
        except InputError:
            return False
        signs = torch.where(torch.arange(len(rows), device=self.device) % 3 == 1, -1.0, 1.0).to(self.dtype)
        rounding = 100 * len(rows) * self.space.eps * block.abs().max()
        return bool((signs @ block - self._matvec(signs @ rows)).abs().max() <= rounding)

    def _decide(self) -> None:
        """Keep the linearisations of all batches or of none: the order of batches may change between passes."""
        versions = self._current_versions()
        if self._kept is not None and versions != self._versions:  # the parameters have changed in place
            self._kept = None
        self._versions = versions
        if self.linearised is Linearised.UNDECIDED:
            self._kept = self._decided_together()
            self._require_precision()
        elif self._is_new:
            self._is_new = False
        elif self.linearised is Linearised.KEPT and self._kept is None:
            self._kept = [(weight, self._linearise(batch)) for weight, batch in self.risk.batches(self.point)]

    def _current_versions(self) -> tuple[int, ...]:
        return tuple(c._version for c in self.point.coordinates)

    def _decided_together(self) -> list[tuple[float, autodiff.Linearisation]] | None:
        """The linearisations with their weights, or None if they do not fit the budget on some rank."""
        sample = self.risk.sample
        budget = free_bytes(self.device) // 2 if self._budget is None else self._budget
        kept: list[tuple[float, autodiff.Linearisation]] = []
        size, inputs, fits, failure = 0, 0, budget > 0, None
        count = sample.survey.num_local
        try:
            for weight, batch in self.risk.batches(self.point) if fits else ():
                linearisation, taken = measured_bytes(functools.partial(self._linearise, batch))
                kept.append((weight, linearisation))
                size, inputs = size + taken, inputs + min(taken, batch.input_bytes)
                fits = size * count / len(kept) <= budget
                if not fits:
                    break
        except Exception as error:
            failure = error
        sample.processes.agree(failure)
        everyone = sample.processes.gather((fits, size, (size - inputs) // max(1, len(kept))))
        together = all(fit for fit, _, _ in everyone)
        self._decision.linearised = Linearised.KEPT if together else Linearised.REBUILT
        self._decision.num_bytes = max(taken for _, taken, _ in everyone)
        self._decision.batch_bytes = max(each for _, _, each in everyone)
        return kept if together else None


def leaves_of(op: LinearOperator) -> Iterator[RiskOperator]:
    """The curvature matrices that an operator is, or is composed of."""
    if isinstance(op, RiskOperator):
        yield op
    for part in op.parts:
        yield from leaves_of(part)
