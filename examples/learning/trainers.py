"""Settings, arms and optimisers of the three tasks: what a step is, and what it has cost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyhessian_spectra import EmpiricalRisk, Partition
from pyhessian_spectra.optimisers import HessianFree


@dataclass(frozen=True)
class Setting:
    """What all runs of a task share. Batches are in examples."""

    images: int
    batch: int  # of gradients
    small_batch: int  # of Adam, which is also given the large one
    curvatures: tuple[int, int, int]  # how many of a minibatch's examples curvature is taken of
    updates: int  # of Hessian-free optimisers
    rates: tuple[float, ...]  # of Adam, from which the best is chosen for each batch size
    lr: float = 0.1
    damping: float = 0.0
    cg_iterations: int = 30
    stretch: float = 2.0  # longer steps of the whole, for control: as many times as there are blocks
    width: float = 1.0  # of the network, in parts of the paper's
    times: int = 10  # Adam takes that many times the updates
    records: int = 50  # losses are recorded that many times
    held: int = 1000  # on at most that many training images, and as many test images
    memory: float = 0.0  # of averaging, in parts of the course; 0: no averaging
    solves: int = 4  # checkpoints at which systems are solved to a fixed residual
    solve_rtol: float = 0.2
    solve_iterations: int = 300  # at most
    seeds: int = 3


#: A setting of seconds.
FAST = Setting(
    images=200,
    batch=40,
    small_batch=10,
    curvatures=(5, 10, 20),
    updates=3,
    rates=(1e-3, 1e-2),
    cg_iterations=2,
    times=3,
    records=3,
    held=50,
    solves=1,
    seeds=1,
)


@dataclass(frozen=True)
class Data:
    """Training and test inputs with their targets, and what they are."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    description: str


@dataclass(frozen=True)
class Task:
    """A network, its loss and its blocks, and the data that it learns from."""

    name: str
    load: Callable[[str | None, Setting], Data]
    build: Callable[[Data, Setting], nn.Module]
    loss: nn.Module
    blocks: Mapping[str, str | Sequence[str]]
    full: Setting  # all data, the whole network; the paper's sizes of batches are not known to us
    short: Setting
    fast: Setting
    remark: str = ""  # what is less than published in all settings

    @property
    def classifies(self) -> bool:
        """Whether it has accuracies."""
        return isinstance(self.loss, nn.CrossEntropyLoss)


@dataclass(frozen=True)
class Arm:
    """An optimiser: Adam where ``curvature`` is 0, else Hessian-free."""

    batch: int
    curvature: int = 0
    blocks: str = "whole"  # or "layers" or "random"
    cg_momentum: float = 0.95
    stretch: float = 1.0  # times the rate


def adam(batch: int) -> str:
    return f"Adam {batch}"


def hessian_free(curvature: int) -> str:
    return f"Hessian-free {curvature}"


def block_diagonal(curvature: int) -> str:
    return f"block-diagonal {curvature}"


def random_blocks(curvature: int) -> str:
    return f"random blocks {curvature}"


def no_momentum(curvature: int) -> str:
    return f"no CG momentum {curvature}"


def longer_steps(curvature: int) -> str:
    return f"Hessian-free {curvature}, longer steps"


def arms_of(setting: Setting) -> dict[str, Arm]:
    """All optimisers by name; the last two are of the middle curvature batch."""
    batch, middle = setting.batch, setting.curvatures[1]
    found = {adam(size): Arm(size) for size in (setting.small_batch, batch)}
    for curvature in setting.curvatures:
        found[hessian_free(curvature)] = Arm(batch, curvature)
        found[block_diagonal(curvature)] = Arm(batch, curvature, "layers")
        found[random_blocks(curvature)] = Arm(batch, curvature, "random")
    found[no_momentum(middle)] = Arm(batch, middle, "layers", 0.0)
    found[longer_steps(middle)] = Arm(batch, middle, stretch=setting.stretch)
    return found


class Trainer(Protocol):
    """An optimiser of a model, and what it has cost: gradients, in examples, and products of each block."""

    examples: int
    products: dict[str, int]

    def step(self, x: Tensor, y: Tensor) -> None: ...

    def averaged(self) -> AbstractContextManager[None]: ...


class AdamTrainer:
    """Adam (Kingma and Ba 2015) at a fixed rate; ``averaging`` is the decay of the averaged parameters, 0 for none."""

    def __init__(self, model: nn.Module, loss: nn.Module, rate: float, averaging: float) -> None:
        self._model, self._loss = model, loss
        self._adam = torch.optim.Adam(model.parameters(), lr=rate)
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(averaging)) if averaging else None
        self.examples, self.products = 0, {}

    def step(self, x: Tensor, y: Tensor) -> None:
        self._adam.zero_grad()
        self._loss(self._model(x), y).backward()
        self._adam.step()
        self.examples += len(x)
        if self._average is not None:
            self._average.update_parameters(self._model)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        assert self._average is not None
        own = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._model.load_state_dict(self._average.module.state_dict())
        yield
        self._model.load_state_dict(own)


class HessianFreeTrainer:
    """Hessian-free optimisation with the blocks of an arm; random ones are drawn from ``seed``."""

    def __init__(self, model: nn.Module, task: Task, setting: Setting, arm: Arm, averaging: float, seed: int) -> None:
        self._model, self._loss, self._curvature = model, task.loss, arm.curvature
        self._risk: EmpiricalRisk | None = None
        count, generator = len(task.blocks), torch.Generator().manual_seed(seed)
        blocks: dict[str, Any] = {
            "whole": None,
            "layers": task.blocks,
            "random": lambda layout: Partition.at_random(layout, count, generator=generator),
        }
        self.optimizer = HessianFree(
            model.named_parameters(),
            lr=setting.lr * arm.stretch,
            damping=setting.damping,
            partition=blocks[arm.blocks],
            max_cg_iterations=setting.cg_iterations,
            cg_momentum=arm.cg_momentum,
            averaging=averaging,
        )
        self.examples, self.products = 0, {block.label: 0 for block in self.optimizer.partition}

    def step(self, x: Tensor, y: Tensor) -> None:
        whole, part = (x, y), (x[: self._curvature], y[: self._curvature])
        self._risk = EmpiricalRisk(self._model, self._loss, whole) if self._risk is None else self._risk
        risk = self._risk.replace(data=whole)
        self.optimizer.step(risk, risk.replace(data=part))
        self.examples += len(x)
        for solve in self.optimizer.records[-1].solves:
            self.products[solve.label] += solve.num_products

    def averaged(self) -> AbstractContextManager[None]:
        return self.optimizer.averaged()
