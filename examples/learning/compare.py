"""What the three tasks have in common: tune Adam, run all arms seed by seed, judge, draw, write."""

from __future__ import annotations

import functools
import math
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from examples.experiment import judge, parse, write
from examples.learning.claims import ENOUGH, criteria
from examples.learning.figures import draw_course, draw_curvature
from examples.learning.judgements import at_end, fewest
from examples.learning.runs import RULE, TUNING_SEED, costs, equivalents, once, rounded
from examples.learning.trainers import Setting, Task, arms_of
from examples.store import Run, finished, run_all
from pyhessian_spectra.plots.style import theme

TITLE = "Adam, Hessian-free and block-diagonal Hessian-free, compared."
#: Settings that options change.
CHANGED = ("updates", "width", "seeds")


def more(parser: ArgumentParser, tasks: Sequence[Task]) -> None:
    """The options of these experiments."""
    names = [task.name for task in tasks]
    if len(names) > 1:
        parser.add_argument("--task", choices=names, default=names[0])
    parser.add_argument("--full", action="store_true", help="the full setting, not the shortened one")
    parser.add_argument("--updates", type=int, help="of Hessian-free optimisers")
    parser.add_argument("--width", type=float, help="of the network, in parts of the paper's")
    parser.add_argument("--seeds", type=int, help="how many; the runs are in their order")
    parser.add_argument("--processes", type=int, default=1, help="runs side by side")
    parser.add_argument("--runs", type=Path, help="file of finished runs; by default one in --out")
    parser.add_argument("--finished", action="store_true", help="judge and draw the runs that have ended; start none")


@theme()
def run_task(tasks: Sequence[Task], script: str, argv: Sequence[str] | None = None) -> None:
    """Train, judge and draw one of the tasks, as the options ask for."""
    options = parse(TITLE, argv, functools.partial(more, tasks=tasks))
    task = next(each for each in tasks if each.name == getattr(options, "task", each.name))
    given = task.fast if options.fast else task.full if options.full else task.short
    asked = {key: value for key in CHANGED if (value := getattr(options, key)) is not None}
    setting = replace(given, **asked)
    path = options.runs or options.out / f"{task.name}{'_fast' * options.fast}.jsonl"
    numbers = gather(task, setting, path, options.data, range(options.seed, options.seed + setting.seeds), options)
    least = fewest(numbers)
    findings = judge(criteria(task, setting), numbers, fast=options.fast, fewest=least, enough=ENOUGH)
    figures = {task.name: draw_course(task, numbers), f"{task.name}_curvature": draw_curvature(task, numbers)}
    flags = f" --task {task.name}" * (task is not tasks[0]) + " --full" * options.full
    flags += "".join(f" --{key} {value:g}" for key, value in asked.items())
    write(
        options,
        script,
        numbers,
        findings,
        figures,
        {},
        shortened=told(setting, task),
        name=task.name,
        flags=flags,
    )


def gather(task: Task, setting: Setting, path: Path, data: str | None, seeds: range, options: Any) -> dict[str, Any]:
    """Costs, tuned rates and all runs, with what each has cost in gradient equivalents."""
    how = {"task": task, "data": data, "setting": setting}
    same = {"task": task.name, "updates": setting.updates, "width": setting.width}
    (measured,) = run_all(functools.partial(costs, **how), [{"what": "costs", "seed": seeds[0], **same}], path)
    arms, train = arms_of(setting), functools.partial(once, **how)
    grid = [
        {"arm": name, "seed": TUNING_SEED, "rate": rate, **same}
        for name, arm in arms.items()
        if not arm.curvature
        for rate in setting.rates
    ]
    tried = run_all(train, grid, path, processes=options.processes)
    tuning = tune(grid, tried)
    tuned = {name: row["rate"] for name, row in tuning.items()}
    planned = [
        {"arm": name, "seed": seed, "rate": rounded(tuned.get(name, setting.lr * arm.stretch)), **same}
        for seed in seeds
        for name, arm in arms.items()
    ]
    runs = finished(planned, path) if options.finished else planned
    found = run_all(train, runs, path, processes=options.processes)
    joined = [run | each for run, each in zip(runs, found, strict=True)]
    for run in joined:
        if run["counts"]:
            run["course"]["equivalents"] = equivalents(run, measured, setting)
            run["products"] = run["course"].pop("products")[-1]
    return {
        "data": task.load(data, setting).description,
        "rule": RULE,
        "setting": asdict(setting),
        "parameters": measured["parameters"],
        "costs": measured,
        "tuning": tuning,
        "set_aside": sum(not run["counts"] for run in joined),
        "runs": joined,
    }


def tune(grid: Sequence[Run], tried: Sequence[Run]) -> dict[str, Any]:
    """For each arm the rate with the lowest training loss at the end, and whether it is the grid's first or last."""
    found: dict[str, Any] = {}
    for run, each in zip(grid, tried, strict=True):
        row = found.setdefault(run["arm"], {"losses": {}})
        row["losses"][run["rate"]] = math.exp(at_end("train_loss")(each)) if each["counts"] else None
    for row in found.values():
        finite = {rate: loss for rate, loss in row["losses"].items() if loss is not None}
        row["rate"] = min(finite, key=lambda rate: finite[rate])
        row["at_the_edge"] = row["rate"] in (min(row["losses"]), max(row["losses"]))
        row["losses"] = {f"{rate:g}": loss for rate, loss in row["losses"].items()}
    return found


def told(setting: Setting, task: Task) -> str:
    """What is shorter than in the full setting."""
    full = task.full
    apart = [
        f"{words} {new}, not {old}"
        for words, new, old in (
            ("training images:", f"{setting.images:,}", f"{full.images:,}"),
            ("minibatches of", f"{setting.batch:,}", f"{full.batch:,}"),
            ("curvature batches of", listed(setting.curvatures), listed(full.curvatures)),
            ("updates:", f"{setting.updates:,}", f"{full.updates:,}"),
            ("width:", f"{setting.width:g}", f"{full.width:g}"),
            ("CG iterations:", str(setting.cg_iterations), str(full.cg_iterations)),
        )
        if new != old
    ]
    return "; ".join(apart + [task.remark] * bool(task.remark)) or "nothing"


def listed(sizes: Sequence[int]) -> str:
    return " / ".join(f"{size:,}" for size in sizes)
