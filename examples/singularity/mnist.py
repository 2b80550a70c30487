"""Exact spectra of 784-h-h-10 networks as h grows, and before and after training on images and on random inputs.

python -m examples.singularity.mnist --data MNIST_DIR --out docs/results/singularity
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from examples.experiment import FEWEST, MOST, STAYS, Criterion, judge, new_figure, parse, quantiles, stays, write
from examples.singularity.common import NEAR_ZERO, SMALL, exact_hessian, fan_in_start, images, network, risk_at
from examples.singularity.descent import RULE, Runs, train
from examples.singularity.rotation import Rotation
from examples.singularity.zeros import forced_zeros
from pyhessian_spectra import HessianOperator, eigsh
from pyhessian_spectra.analysis.bulk import split_bulk
from pyhessian_spectra.plots.style import theme

INPUTS, MOMENTS = ("images", "random inputs"), ("before", "after")
COLOURS = {"images": "#0173b2", "random inputs": "#de8f05"}
#: Eigenvalues above this part of the largest are counted.
TENTH = 0.1


def judged(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The conditions that enough runs count for; the others decide nothing."""
    return {key: entry for key, entry in numbers["conditions"].items() if entry["runs"] >= FEWEST}


def trained(numbers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of these, the ones on images after training, by width."""
    return {key: entry for key, entry in judged(numbers).items() if key.endswith("images, after")}


def sharpens(numbers: dict[str, Any]) -> tuple[bool, str]:
    near = [entry["near_zero"]["median"] for entry in trained(numbers).values()]
    return bool(np.all(np.diff(near) > 0)), "medians " + ", ".join(f"{value:.1%}" for value in near)


def number_stays(numbers: dict[str, Any]) -> tuple[bool, str]:
    counts = [entry["above_tenth"]["median"] for entry in trained(numbers).values()]
    holds, ratio = stays(counts)
    return holds, f"medians {', '.join(f'{value:g}' for value in counts)}: a factor {ratio:.2f}"


def values_stay(numbers: dict[str, Any]) -> tuple[bool, str]:
    judged = []
    for name in ("lambda_1", "lambda_10"):
        medians = [entry[name]["median"] for entry in trained(numbers).values()]
        judged.append((*stays(medians), f"{name} {', '.join(f'{value:.2g}' for value in medians)}"))
    told = "; ".join(f"{medians}: a factor {ratio:.2f}" for _, ratio, medians in judged)
    return all(holds for holds, *_ in judged), told


def small_negative(numbers: dict[str, Any]) -> tuple[bool, str]:
    shares = [entry["small_negative_share"] for entry in trained(numbers).values()]
    deep = [entry["smallest_over_largest"]["median"] for entry in trained(numbers).values()]
    told = f"shares {', '.join(f'{s:.0%}' for s in shares)}; median lambda_n / lambda_1 "
    return all(share >= MOST for share in shares), told + ", ".join(f"{value:.3f}" for value in deep)


def inputs_differ(moment: str) -> Any:
    """The judgement of (e) at one moment."""

    def decide(numbers: dict[str, Any]) -> tuple[bool, str]:
        apart, told = True, []
        for key, random in judged(numbers).items():
            real = judged(numbers).get(key.replace("random inputs", "images"))
            if real is None or not key.endswith(f"random inputs, {moment}"):
                continue
            for name, shown in (("trace_over_top", "tr / lambda_1"), ("above_tenth", "count above a tenth")):
                (low, high), (least, most) = real[name]["range"], random[name]["range"]
                apart &= least > high
                told.append(f"h = {real['hidden']}: {shown} {low:.3g} to {high:.3g} against {least:.3g} to {most:.3g}")
        return apart, "; ".join(told)

    return decide


CRITERIA = (
    Criterion(
        "a",
        "a larger network sharpens the mass at zero (images)",
        f"the median share of eigenvalues within {NEAR_ZERO:.0%} of lambda_1 about zero grows with every width",
        sharpens,
    ),
    Criterion(
        "a",
        "a larger network leaves the number of edges (images)",
        f"the medians of the number of eigenvalues above {TENTH:g} lambda_1 lie within a factor {STAYS:g}",
        number_stays,
    ),
    Criterion(
        "a",
        "a larger network leaves the values of the edges (images)",
        f"the medians of lambda_1, and those of lambda_10, lie within a factor {STAYS:g}",
        values_stay,
    ),
    Criterion(
        "d",
        "small negative eigenvalues remain after training (images)",
        f"at every width {MOST:.0%} of the runs have one below zero by more than rounding and none below "
        f"-{SMALL:g} lambda_1",
        small_negative,
    ),
    *(
        Criterion(
            "e",
            f"random inputs change the profile {moment} training",
            "at every width that has both, every run on random inputs has a larger tr / lambda_1, and more eigenvalues "
            f"above {TENTH:g} lambda_1, than any run on images",
            inputs_differ(moment),
        )
        for moment in MOMENTS
    ),
)


@theme()
def main(argv: list[str] | None = None) -> None:
    """Train on both kinds of input, diagonalise before and after, compare, draw."""
    options = parse(__doc__, argv)
    images_widths, random_widths, untrained, count, wanted, tries = (6, 8, 12), (12,), 12, 200, FEWEST, 16
    limits: dict[str, Any] = {"tolerance": 1e-3, "stages": [1000] * 4, "evaluations": 800}
    if options.fast:
        images_widths, random_widths, untrained, count, wanted, tries = (8, 10), (10,), 8, 30, 1, 4
        limits = {"tolerance": 5e-2, "stages": [300] * 2, "evaluations": 100}
    (x, y), description = images(options, count)
    generator = torch.Generator().manual_seed(options.seed)
    noise = torch.randn(x.shape, generator=generator) * x.std() + x.mean()
    rotations = {INPUTS[0]: Rotation.onto(x), INPUTS[1]: Rotation.onto(noise)}
    classes = int(y.max()) + 1
    attempts, conditions, spectra, drawn = {}, {}, {}, None
    for hidden in images_widths:
        points: dict[str, list[Tensor]] = {}
        for kind, rotation in rotations.items():
            starts = [
                rotation.into(fan_in_start(network(x.shape[1], hidden, classes), options.seed + index), hidden)
                for index in range(tries)
            ]
            if hidden == untrained:
                points[f"h = {hidden}, {kind}, before"] = starts[:wanted]
            if kind == INPUTS[0] or hidden in random_widths:
                runs = train_until(rotation.model(hidden, classes), (rotation.x, y), starts, wanted, limits)
                attempts[f"h = {hidden}, {kind}"] = summary(runs)
                print(f"h = {hidden}, {kind}: {summary(runs)}", flush=True)
                points[f"h = {hidden}, {kind}, after"] = [run.parameters[0] for run in runs if run.counted[0]]
        for key, each in points.items():
            rows = []
            for flat in each:
                rotation = rotations[key.split(", ")[1]]
                entry, values, dense = diagonalise(rotation, hidden, flat, y)
                if drawn is None and key.endswith("after"):
                    drawn = rotation.back(dense, hidden), hidden
                rows.append((entry, values))
                print(f"{key}: {entry}", flush=True)
            if rows:
                conditions[key] = condensed(hidden, [entry for entry, _ in rows])
                spectra[key] = np.stack([values for _, values in rows])
    if drawn is None:
        raise SystemExit("no run met the tolerance; allow more steps or evaluations")
    numbers = {
        "data": description,
        "rule": RULE,
        "classes": classes,
        "constant_pixels": int((x == x[0]).all(dim=0).sum()),
        **limits,
        "step": "1 / lambda_1, measured at the start and before each stage",
        "attempts": attempts,
        "conditions": conditions,
    }
    # two widths at least are needed, and one of them on random inputs
    enough = len(trained(numbers)) > 1 and any(INPUTS[1] in key for key in judged(numbers))
    fewest = min(entry["runs"] for entry in (judged(numbers) if enough else conditions).values())
    findings = judge(CRITERIA, numbers, fast=options.fast, fewest=fewest)
    figures = {"mnist": draw_growth(*drawn, spectra), "random_inputs": draw_inputs(spectra)}
    shortened = (
        f"{count} images and at most h = {images_widths[-1]}; starts are tried in order, at most {tries} a width "
        f"and kind of input, until {wanted} count; random inputs, and spectra before training, at h = {untrained} only"
    )
    write(options, __file__, numbers, findings, figures, spectra, shortened=shortened)


def train_until(
    model: nn.Module, data: tuple[Tensor, Tensor], starts: list[Tensor], wanted: int, limits: dict[str, Any]
) -> list[Runs]:
    """Runs from one start after another until enough of them count."""
    runs: list[Runs] = []
    for start in starts:
        runs.append(descend(model, data, start, **limits))
        if sum(bool(run.counted[0]) for run in runs) == wanted:
            break
    return runs


def descend(
    model: nn.Module, data: tuple[Tensor, Tensor], at: Tensor, *, tolerance: float, stages: list[int], evaluations: int
) -> Runs:
    """Gradient descent in stages of so many steps, each of length 1 / lambda_1 where the stage begins; then L-BFGS."""
    steps = 0
    for stage, length in enumerate(stages, 1):
        op = HessianOperator(risk_at(model, at, data))
        top = float(eigsh(op, 1, which="LA", tol=1e-3, generator=torch.Generator().manual_seed(0)).eigenvalues[0])
        limit = evaluations if stage == len(stages) else 0
        reached = {"tolerance": tolerance, "max_steps": length, "max_evaluations": limit}
        run = train(model.float(), (data[0].float(), data[1]), at[None].float(), step=1 / top, **reached)
        steps += int(run.steps[0])
        at = run.parameters[0]
        if run.gradient_norms[0] <= 1.01 * tolerance:
            break
    return replace(run, steps=np.array([steps]))


def summary(runs: list[Runs]) -> dict[str, Any]:
    """How many runs count, and what became of each."""
    told: dict[str, Any] = {"tried": len(runs), "counted": sum(bool(run.counted[0]) for run in runs)}
    for name in ("losses", "gradient_norms", "errors", "steps", "evaluations"):
        told[name] = [getattr(run, name)[0].item() for run in runs]
    return told


def diagonalise(rotation: Rotation, hidden: int, at: Tensor, y: Tensor) -> tuple[dict[str, Any], np.ndarray, Tensor]:
    """All n eigenvalues of the exact Hessian, ascending, what they say, and the matrix in rotated coordinates."""
    clock = time.perf_counter()
    model, data = rotation.model(hidden, int(y.max()) + 1), (rotation.x, y)
    risk, dense, unseen = risk_at(model, at, data), exact_hessian(model, at, data), rotation.unseen(hidden)
    values = np.sort(np.concatenate([torch.linalg.eigvalsh(dense).numpy(), np.zeros(unseen)]))
    top, n = values[-1], len(values)
    forced = forced_zeros(model, at, rotation.x)
    residual = float((dense @ forced.directions.T).norm(dim=0).max())
    rounding = max(n * float(np.finfo(np.float64).eps) * float(np.abs(values).max()), residual)
    entry = {
        "loss": risk.loss(),
        "gradient_norm": float(risk.gradient().norm()),
        "lambda_1": float(top),
        "lambda_10": float(values[-10]),
        "trace_over_top": float(values.sum() / top),
        "above_tenth": int((values > TENTH * top).sum()),
        "near_zero": float((np.abs(values) < NEAR_ZERO * top).mean()),
        "smallest_over_largest": float(values[0] / top),
        "negative_beyond_rounding": bool(values[0] < -rounding),
        "edges_above": split_bulk(values).num_above,
        "zeros_found": int((np.abs(values) <= rounding).sum()),
        "zeros_forced": len(forced) + unseen,
        "causes": {**forced.causes, "unseen inputs": unseen},
        "forced_residual": residual / top,
        "seconds": round(time.perf_counter() - clock, 1),
    }
    return entry, values, dense


def condensed(hidden: int, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """What one condition's runs have in common, beside the runs themselves."""
    negative = [e["negative_beyond_rounding"] and e["smallest_over_largest"] > -SMALL for e in entries]
    told: dict[str, Any] = {"hidden": hidden, "runs": len(entries), "small_negative_share": float(np.mean(negative))}
    for name in (
        "lambda_1",
        "lambda_10",
        "trace_over_top",
        "above_tenth",
        "near_zero",
        "smallest_over_largest",
        "loss",
    ):
        values = np.array([entry[name] for entry in entries], dtype=float)
        told[name] = {**quantiles(values), "range": [float(values.min()), float(values.max())]}
    return {**told, "each": entries}


def draw_growth(matrix: Tensor, hidden: int, spectra: dict[str, np.ndarray]) -> Figure:
    """Figure 1: one full Hessian, and the profiles of trained networks as h grows."""
    figure, axes = new_figure(1, 2, width=8.4, height=3.8)
    heat, ax = axes[0]
    step = max(1, math.ceil(len(matrix) / 400))
    pooled = strongest(matrix.numpy(), step)
    top = float(np.abs(pooled).max())
    norm = SymLogNorm(1e-3 * top, linscale=0.7, vmin=-top, vmax=top)
    image = heat.imshow(pooled, cmap="RdBu_r", norm=norm, interpolation="nearest")
    bar = figure.colorbar(image, ax=heat, shrink=0.85, label="[loss / parameter$^2$]")
    decades = 10.0 ** np.arange(math.ceil(math.log10(1e-3 * top)), math.floor(math.log10(top)) + 1)
    bar.set_ticks([*-decades[::-1], 0, *decades], minor=False)
    bar.minorticks_off()
    heat.set(xticks=[], yticks=[], title=f"Hessian after training, h = {hidden}, n = {len(matrix):,}")
    heat.set_xlabel(f"strongest entry of each {step} by {step} block")
    heat.grid(visible=False)
    growing = {key.split(",")[0]: rows for key, rows in spectra.items() if key.endswith("images, after")}
    for (width, rows), colour in zip(growing.items(), ("#fdae61", "#3288bd", "#440154"), strict=False):
        for index, values in enumerate(rows):
            label = None if index else f"{width}, n = {len(values):,}"
            for each, look in ((values[::-1], "-"), (-values, ":")):
                positive = each[each > 0] / values[-1]
                rank = np.arange(1, len(positive) + 1)
                ax.plot(rank, positive, look, color=colour, linewidth=0.9, alpha=0.85, label=label)
                label = None
    ax.set(xscale="log", yscale="log", ylim=(1e-7, 2), xlabel="rank (dotted: negative, by magnitude)")
    ax.set(ylabel=r"|eigenvalue| / $\lambda_1$", title="Images, after training")
    ax.legend(fontsize=7, loc="lower left")
    return figure


def strongest(matrix: np.ndarray, step: int) -> np.ndarray:
    """The entry of largest magnitude, with its sign, of each block of ``step`` rows and columns."""
    blocks = -(-len(matrix) // step)
    padded = np.zeros((blocks * step, blocks * step))
    padded[: len(matrix), : len(matrix)] = matrix
    cells = padded.reshape(blocks, step, blocks, step).swapaxes(1, 2).reshape(blocks, blocks, -1)
    return np.take_along_axis(cells, np.abs(cells).argmax(axis=2)[..., None], axis=2)[..., 0]


def draw_inputs(spectra: dict[str, np.ndarray]) -> Figure:
    """Figure 2: images against random inputs before and after training, and the two numbers that tell them apart."""
    figure, axes = new_figure(1, 3, width=9.6, height=3.2)
    for ax, moment in zip(axes[0], MOMENTS, strict=False):
        widths = [key.split(", ")[0] for key in spectra if key.endswith(f"{INPUTS[1]}, {moment}")]
        for kind in INPUTS if widths else ():
            for index, values in enumerate(spectra[f"{widths[-1]}, {kind}, {moment}"]):
                positive = values[values > 0][::-1] / values[-1]
                rank, label = np.arange(1, len(positive) + 1), None if index else kind
                ax.plot(rank, positive, color=COLOURS[kind], linewidth=0.9, alpha=0.8, label=label)
        title = f"{moment} training, {widths[-1] if widths else ''}"
        ax.set(xscale="log", yscale="log", xlabel="rank", title=title, ylim=(1e-6, 2))
    axes[0, 0].set_ylabel(r"eigenvalue / $\lambda_1$")
    axes[0, 0].legend(fontsize=7, loc="lower left")
    ax = axes[0, 2]
    for key, rows in spectra.items():
        _, kind, moment = key.split(", ")
        across = [values.sum() / values[-1] for values in rows]
        counted = [(values > TENTH * values[-1]).sum() for values in rows]
        face = COLOURS[kind] if moment == "after" else "none"
        ax.plot(across, counted, "o", color=COLOURS[kind], markerfacecolor=face, markersize=4.5, alpha=0.9)
    for label, look in (("before training", {"markerfacecolor": "none"}), ("after training", {})):
        ax.plot([], [], "o", color="#6e7781", markersize=4.5, label=label, **look)
    ax.set(xscale="log", yscale="log", xlabel=r"tr H / $\lambda_1$", title="each run, all widths")
    ax.set_ylabel(r"eigenvalues above $\lambda_1$ / 10")
    ax.legend(fontsize=7, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
