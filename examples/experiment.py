"""What all reproductions share: options, what decides a claim, and how numbers, verdicts and figures are written."""

from __future__ import annotations

import argparse
import io
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

#: "Most runs" are at least this share of those that count.
MOST = 0.8
#: Fewer runs than this under one condition decide nothing.
FEWEST = 5
#: Medians "stay" if the largest is at most this many times the smallest.
STAYS = 1.5
#: Numbers of one experiment -> whether the claim holds, and the numbers that say so.
Judgement = Callable[[dict[str, Any]], tuple[bool, str]]


def parse(
    description: str | None, argv: Sequence[str] | None = None, more: Callable[[ArgumentParser], None] | None = None
) -> Namespace:
    """The options that all experiments have; ``more`` adds some of its own."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="directory for the figures and the numbers")
    parser.add_argument("--fast", action="store_true", help="a small setting that takes seconds, and gives no verdict")
    parser.add_argument("--data", help="image directory; without it scikit-learn's digits stand in")
    parser.add_argument("--seed", type=int, default=0)
    if more is not None:
        more(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Criterion:
    """A claim of a paper, the rule that decides it in words, and the same rule as a function."""

    claim: str
    statement: str
    rule: str
    decide: Judgement


@dataclass(frozen=True)
class Finding:
    """What became of a criterion: ``verdict`` is "came out", "did NOT come out", or why there is none."""

    claim: str
    statement: str
    rule: str
    verdict: str
    evidence: str

    def __str__(self) -> str:
        return f"({self.claim}) {self.verdict}: {self.statement} [{self.evidence}]"


def judge(
    criteria: Sequence[Criterion], numbers: dict[str, Any], *, fast: bool, fewest: int, enough: int = FEWEST
) -> list[Finding]:
    """Apply each criterion; ``fewest`` is the smallest number of counted runs under any condition.

    An experiment whose every verdict comes from an interval of paired differences may be content with fewer runs than
    others, since the interval tells how few they are: ``enough``.
    """
    none = "no verdict from a fast run" if fast else ""
    if not none and fewest < enough:
        none = f"no verdict: only {fewest} runs of one condition count"
    findings = []
    for each in criteria:
        if none:
            findings.append(Finding(each.claim, each.statement, each.rule, none, "not judged"))
            continue
        holds, evidence = each.decide(numbers)
        verdict = "came out" if holds else "did NOT come out"
        findings.append(Finding(each.claim, each.statement, each.rule, verdict, evidence))
    return findings


def tally(findings: Sequence[dict[str, str]]) -> dict[str, dict[str, int]]:
    """How many criteria of each claim there are, came out, and had no verdict."""
    found: dict[str, dict[str, int]] = {}
    for each in findings:
        row = found.setdefault(each["claim"], {"all": 0, "came out": 0, "none": 0})
        row["all"] += 1
        row["came out"] += each["verdict"] == "came out"
        row["none"] += each["verdict"].startswith("no verdict")
    return found


def stays(medians: Sequence[float]) -> tuple[bool, float]:
    """Whether medians stay, and how many times the smallest the largest is (infinite where a sign changes)."""
    ratio = max(medians) / min(medians) if min(medians) > 0 else float("inf")
    return ratio <= STAYS, ratio


def write(
    options: Namespace,
    script: str,
    numbers: dict[str, Any],
    findings: Sequence[Finding],
    figures: Mapping[str, Figure],
    spectra: Mapping[str, np.ndarray],
    *,
    shortened: str,
    name: str | None = None,
    flags: str = "",
) -> None:
    """Save the numbers with the command that made them, the spectra and the figures; print what came out.

    The files are called ``name``, by default as the script is; ``flags`` are those of the experiment's own options.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    flags += " --fast" * options.fast
    flags += f" --data {Path(options.data).name.upper()}_DIR" if options.data else ""
    path = Path(script)
    name = name or path.stem
    document = {
        "command": f"python -m examples.{path.parent.name}.{path.stem}{flags} --seed {options.seed}",
        "shortened": shortened,
        "numbers": numbers,
        "findings": [vars(finding) for finding in findings],
    }
    (options.out / f"{name}.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    if spectra:
        np.savez_compressed(options.out / f"{name}.npz", **{key: _rounded(values) for key, values in spectra.items()})
    for title, figure in figures.items():
        save_figure(figure, options.out / f"{title}.png")
    for finding in findings:
        print(finding, flush=True)


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Median and the tenth and ninetieth percentile, for the record."""
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    return {"p10": float(low), "median": float(middle), "p90": float(high)}


def new_figure(rows: int, columns: int, *, width: float = 8.0, height: float = 3.2) -> tuple[Figure, np.ndarray]:
    """A figure and its axes, shape (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def page_template(folder: Path, name: str = "page") -> jinja2.Template:
    """The template of a page of experiments, ``{name}.rst.jinja`` in their folder, with filters for numbers."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["sig"] = lambda value, digits=2: f"{value:.{digits}g}"
    environment.filters["percent"] = lambda value, digits=0: f"{value:.{digits}%}".replace("%", " %")
    environment.filters["thousands"] = lambda value: f"{value:,.0f}"
    return environment.get_template(f"{name}.rst.jinja")


def save_figure(figure: Figure, path: Path) -> None:
    """A PNG with a palette of 256 colours, a third of the size of one without."""
    drawn = io.BytesIO()
    figure.savefig(drawn, facecolor="white", dpi=150)
    image = Image.open(drawn).convert("RGB")
    image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32 with the last 11 bits of the mantissa zero, 1.2e-4 of each value at most, so that it compresses."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 10)) & np.uint32(0xFFFFF800)).view(np.float32)
