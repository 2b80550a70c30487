"""One run of the reproduction of block-diagonal Hessian-free: training, its course, and what is measured beside it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.learning.trainers import (
    AdamTrainer,
    Data,
    HessianFreeTrainer,
    Setting,
    Task,
    Trainer,
    arms_of,
    block_diagonal,
)
from examples.store import Run
from pyhessian_spectra import EmpiricalRisk, GGNOperator, Partition, ShiftedOperator, cg

RULE = (
    "A run counts if all losses that were recorded of it are finite; every other run is set aside with all pairs that "
    "it would be in, and counted. A run that learns little counts: that is a result."
)
#: Adam's rates are tuned on this seed, which is not judged.
TUNING_SEED = 1000
_TIMINGS = 5


def start(task: Task, data: Data, setting: Setting, seed: int) -> nn.Module:
    """The network that all arms of a seed start from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return task.build(data, setting)


def minibatches(examples: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endlessly the indices of minibatches, in epochs drawn from the seed; what is left of an epoch is lost."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(examples, generator=generator).split(size):
            if len(batch) == size:
                yield batch


def schedule(updates: int, records: int) -> list[int]:
    """The updates after which losses are recorded, from 0 to the last."""
    return sorted({round(float(each)) for each in np.linspace(0, updates, records + 1)})


def once(run: Run, *, task: Task, data: str | None, setting: Setting) -> Run:
    """Train one network; all arms of a seed share the start, and those of one batch size the order of batches."""
    arm, seed, known = arms_of(setting)[run["arm"]], run["seed"], task.load(data, setting)
    model, (x, y) = start(task, known, setting, seed), known.train
    updates = setting.updates * (1 if arm.curvature else setting.times)
    averaging = 1 - 1 / max(2.0, setting.memory * updates) if setting.memory else 0.0
    trainer: Trainer
    if arm.curvature:
        trainer = HessianFreeTrainer(model, task, setting, arm, averaging, seed)
    else:
        trainer = AdamTrainer(model, task.loss, run["rate"], averaging)
    places = schedule(updates, setting.records)
    solved_at = places[:: math.ceil(len(places) / setting.solves)] if measures_solves(run, setting) else []
    batches, course, found = minibatches(len(x), arm.batch, seed), Course(task, known, setting), {}
    wall = cpu = 0.0
    for update in range(updates + 1):
        if update in places:
            course.record(update, wall, cpu, model, trainer, averages=averaging > 0 and update > 0)
        if update in solved_at:
            found.setdefault("solves", []).append({"update": update, **solves(task, model, known, setting)})
        if update == updates or not course.finite:
            break
        batch, before = next(batches), (time.perf_counter(), time.process_time())
        with warnings.catch_warnings():  # steps that are taken back are counted
            warnings.simplefilter("ignore", RuntimeWarning)
            trainer.step(x[batch], y[batch])
        wall, cpu = wall + time.perf_counter() - before[0], cpu + time.process_time() - before[1]
    if isinstance(trainer, HessianFreeTrainer):
        found |= solver_facts(trainer)
    return {"counts": course.finite, "course": course.columns if course.finite else None} | found


class Course:
    """What is recorded of a run, a list a quantity: losses and accuracies on held images, time and counted work."""

    def __init__(self, task: Task, data: Data, setting: Setting) -> None:
        self._task = task
        held = {"train": data.train, "test": data.test}
        self._held = {split: (x[: setting.held], y[: setting.held]) for split, (x, y) in held.items()}
        self.columns: dict[str, list[Any]] = {}
        self.finite = True

    def record(
        self, update: int, wall: float, cpu: float, model: nn.Module, trainer: Trainer, *, averages: bool
    ) -> None:
        """Add a record; time is that of training alone."""
        row: dict[str, Any] = {"update": update, "seconds": rounded(wall), "cpu_seconds": rounded(cpu)}
        row |= {"examples": trainer.examples, "products": dict(trainer.products)}
        for split in SPLITS:
            row |= self._evaluated(model, split)
        self.finite = all(math.isfinite(row[f"{split}_loss"]) for split in SPLITS)
        if averages:
            with trainer.averaged():
                row["averaged_accuracy"] = self._evaluated(model, "test").get("test_accuracy")
        elif self._task.classifies:
            row["averaged_accuracy"] = row["test_accuracy"]
        for key, value in row.items():
            self.columns.setdefault(key, []).append(value)

    @torch.no_grad()
    def _evaluated(self, model: nn.Module, split: str) -> dict[str, float]:
        x, y = self._held[split]
        outputs = model(x)
        found = {f"{split}_loss": rounded(float(self._task.loss(outputs, y)))}
        if self._task.classifies:
            found[f"{split}_accuracy"] = rounded(100 * float((outputs.argmax(dim=1) == y).double().mean()))
        return found


SPLITS = ("train", "test")


def rounded(value: float) -> float:
    """To five digits, as published."""
    return float(f"{value:.5g}")


def solver_facts(trainer: HessianFreeTrainer) -> Run:
    """Steps that were taken back, that met negative curvature, after which the minibatch's loss was higher.

    For each block medians over all steps: of its iterations, and of the last residual over the first.
    """
    records = trainer.optimizer.records
    facts: Run = {"taken_back": sum(record.rejected is not None for record in records)}
    facts["negative_curvature"] = sum(record.negative_curvature for record in records)
    facts["rises"] = sum(record.loss_after > record.loss for record in records)
    for key, of in (
        ("iterations", lambda solve: solve.iterations),
        ("residual", lambda solve: solve.residuals[-1] / max(solve.residuals[0], 1e-300)),
    ):
        values = {label: [of(record.solves[i]) for record in records] for i, label in enumerate(trainer.products)}
        facts[key] = {label: rounded(float(np.median(each))) for label, each in values.items()}
    return facts


def measures_solves(run: Run, setting: Setting) -> bool:
    """Whether systems are solved to a fixed residual along this run: block-diagonal ones of the middle curvature."""
    return bool(run["arm"] == block_diagonal(setting.curvatures[1]) and run["seed"] != TUNING_SEED)


def solves(task: Task, model: nn.Module, data: Data, setting: Setting) -> Run:
    """Iterations from zero to a fixed relative residual, of the whole and of each block, at the parameters as they are.

    Of the blocks ``together`` too, where they take their iterations side by side until their joint residual is that
    part of the whole gradient's norm. Gradient and curvature are of the same examples, so that each system has a
    solution also without damping.
    """
    x, y = data.train
    risk = EmpiricalRisk(model, task.loss, (x[: setting.curvatures[1]], y[: setting.curvatures[1]]))
    op, gradient = GGNOperator(risk, point=risk.live()), risk.gradient()
    found: dict[str, Any] = {"converged": {}, "iterations": {}}
    joint = np.zeros(setting.solve_iterations + 1)
    for label, part, indices in parts_of(task, op):
        solved = cg(
            ShiftedOperator(part, setting.damping),
            -gradient[indices],
            max_iterations=setting.solve_iterations,
            rtol=setting.solve_rtol,
        )
        found["iterations"][label] = solved.num_iterations
        found["converged"][label] = solved.status == "converged"
        if label != "whole":
            residuals = solved.residuals
            joint += np.pad(residuals, (0, len(joint) - len(residuals)), mode="edge") ** 2
    there = joint <= (setting.solve_rtol * float(gradient.norm())) ** 2
    found["iterations"]["together"] = int(there.argmax()) if there.any() else setting.solve_iterations
    found["converged"]["together"] = bool(there.any())
    return found


def parts_of(task: Task, op: GGNOperator) -> Iterator[tuple[str, GGNOperator, Tensor]]:
    """The whole and the blocks of a matrix, with their labels and coordinates."""
    yield "whole", op, torch.arange(op.n)
    for block in Partition.of(op.risk.layout, task.blocks):
        yield block.label, op.block(block.names), block.indices


def costs(run: Run, *, task: Task, data: str | None, setting: Setting) -> Run:
    """Seconds (of CPU) that a gradient takes for an example, and what the rest of a step costs in such gradients.

    For each curvature batch: a linearisation, and a product with the whole and with each block; each an example.
    """
    known = task.load(data, setting)
    model, (x, y) = start(task, known, setting, run["seed"]), known.train
    risk = EmpiricalRisk(model, task.loss, (x[: setting.batch], y[: setting.batch]))
    one = seconds(risk.gradient) / setting.batch
    found: dict[str, Any] = {"parameters": risk.n, "gradient_seconds": one, "linearisation": {}, "product": {}}
    found["loss"] = rounded(seconds(risk.loss) / setting.batch / one)
    for curvature in setting.curvatures:
        part = risk.replace(data=(x[:curvature], y[:curvature]))

        def linearise(part: EmpiricalRisk = part) -> GGNOperator:
            op = GGNOperator(part, point=part.live())
            op.linearise()
            return op

        found["linearisation"][str(curvature)] = rounded(seconds(linearise) / curvature / one)
        for label, block, _ in parts_of(task, linearise()):
            vector = torch.ones(block.n) / block.n**0.5
            taken = seconds(lambda block=block, vector=vector: block @ vector) / curvature / one
            found["product"].setdefault(label, {})[str(curvature)] = rounded(taken)
    return found


def seconds(call: Callable[[], Any]) -> float:
    """The median CPU time of a few calls, after one that does not count."""
    call()
    taken = []
    for _ in range(_TIMINGS):
        before = time.process_time()
        call()
        taken.append(time.process_time() - before)
    return float(np.median(taken))


def equivalents(run: Run, measured: Run, setting: Setting) -> list[float]:
    """The work until each record, in gradients of one example: what each part of a step costs is counted in these."""
    course, arm = run["course"], arms_of(setting)[run["arm"]]
    found = []
    for update, examples, products in zip(course["update"], course["examples"], course["products"], strict=True):
        work = float(examples)
        if arm.curvature:
            size, cost = str(arm.curvature), measured["product"]
            work += update * (arm.batch * measured["loss"] + arm.curvature * measured["linearisation"][size])
            for label, count in products.items():
                work += arm.curvature * count * cost.get(label, cost["whole"])[size]
        found.append(float(f"{work:.4g}"))
    return found
