"""The console script: commands, options, and errors in one sentence."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from pyhessian_spectra._version import __version__
from pyhessian_spectra.errors import SpectraError
from pyhessian_spectra.spectra.settings import Settings

# Where this variable is set, an error shows where it came from instead of one sentence.
_TRACEBACK = "PYHESSIAN_SPECTRA_TRACEBACK"


def main() -> None:
    """Run the command line; exit status 2 for wrong input, 1 for a failure, 130 after Ctrl-C."""
    warnings.simplefilter("ignore")  # what a user must know is said in the report or in an error
    if os.environ.get("RANK", "0") != "0":  # torchrun has started several processes, of which only the first prints
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until this process ends
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's notice; what was finished is kept
    if os.environ.get(_TRACEBACK):
        commands(standalone_mode=False)
        return
    try:
        sys.exit(commands(standalone_mode=False))
    except (click.Abort, KeyboardInterrupt):
        sentence, status = "interrupted before anything was finished", 130
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SpectraError as error:
        sentence, status = str(error), error.exit_status
    except Exception as error:
        sentence, status = f"{unforeseen(error)} (set {_TRACEBACK}=1 to see where)", 1
    click.echo(f"pyhessian-spectra: {sentence}", err=True)
    sys.exit(status)


def unforeseen(error: BaseException) -> str:
    """Name the type and the first line of an error from elsewhere; where memory ran out, say what to do."""
    message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return "out of memory; lower --batch-size, --memory-budget, --num-eigenvalues or --exact-limit"
    return f"{type(error).__name__}: {message}"


# A number, and the letter of its unit: none for bytes, K for 1024 of them, and so on.
_SIZE = re.compile(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*(?:([KMGT])(?:I?B)?|B)?\s*", re.IGNORECASE)


def size(value: str) -> int:
    """Read a number of bytes with a unit, such as ``512MiB``; the help shows this function's name as what to give."""
    match = _SIZE.fullmatch(value)
    if match is None:
        raise click.BadParameter(f"{value!r} is not a size; write it as 512MiB or 4GiB")
    return int(float(match[1]) * 1024 ** " KMGT".index((match[2] or " ").upper()))


def _from_field(field: dataclasses.Field) -> click.Option:
    """Make the option of one setting."""
    minimum, choices, help = (field.metadata[key] for key in ("minimum", "choices", "help"))
    names = [f"--{field.name.replace('_', '-')}"]
    if isinstance(field.default, bool):
        return click.Option(names, is_flag=True, help=help)
    number = click.FloatRange(min=minimum) if isinstance(field.default, float) else click.IntRange(min=minimum)
    kind = size if field.name == "memory_budget" else click.Choice(choices) if choices else number
    return click.Option(names, type=kind, default=field.default, show_default=True, help=help)


_PATH, _POSITIVE, _MODE = click.Path(path_type=Path), click.IntRange(min=1), click.Choice(["eval", "train"])
_SEED = click.Option(["--seed"], default=0, show_default=True, type=int, help="Seed of the random probes.")

_CHECKPOINTS = click.Argument(["checkpoints"], nargs=-1, required=True, type=_PATH, metavar="CKPT...")
_PROBLEM = [
    click.Option(["--problem"], metavar="MODULE:FUNCTION", help="Your own factory: checkpoint path -> EmpiricalRisk."),
    click.Option(["--model"], help="Built-in architecture: mlp, lenet, resnet20, ..., vgg11_bn, resnet18, lstm, gpt."),
    click.Option(
        ["--model-arg", "model_args"], multiple=True, metavar="KEY=VALUE", help="A setting that shapes do not tell."
    ),
    click.Option(["--data"], help="digits, or a path: an MNIST or CIFAR-10 directory, an .npz, a text file."),
    click.Option(["--loss"], help="cross_entropy or mse; by default what the targets call for."),
    click.Option(
        ["--split"],
        type=click.Choice(["train", "test", "both"]),
        help="Part of the data, default train; or one by one.",
    ),
    click.Option(["--num-examples"], type=_POSITIVE, help="The first N examples only."),
    click.Option(["--normalize/--no-normalize"], default=None, help="Standardise the inputs; default yes."),
    click.Option(["--batch-size"], type=_POSITIVE, help="Examples in a batch; default a tenth of all examples."),
    click.Option(
        ["--mode"], type=_MODE, help="Whether BatchNorm uses running (eval, default) or batch (train) statistics."
    ),
    click.Option(["--dtype"], type=click.Choice(["float32", "float64"]), help="Precision; float32 by default."),
    click.Option(["--device"], help="Where to compute, such as cpu (the default) or cuda:0."),
    click.Option(["--params"], multiple=True, metavar="GLOB", help="Restrict the matrix to these parameters."),
    click.Option(["--prefix"], metavar="NAME.", help="What the names of the network's tensors begin with in the file."),
    click.Option(["--trust-pickle"], is_flag=True, help="Unpickle a checkpoint, which runs the code it holds."),
    click.Option(
        ["--matrix"],
        default="hessian",
        show_default=True,
        type=click.Choice(
            ["hessian", "ggn", "residual", "fisher", "relative-hessian", "filter-hessian", "log-hessian"]
        ),
        help="The Hessian H, its Gauss-Newton matrix G, the residual H - G, the empirical Fisher matrix, or H relative "
        "to each weight, relative to the norms of filters, or in logarithms of weights.",
    ),
    *map(_from_field, dataclasses.fields(Settings)),
    click.Option(
        ["--layers"], multiple=True, metavar="GLOB|all|none", help="Modules to analyse; by default those with weights."
    ),
    _SEED,
]

_WHERE = [
    click.Option(["--out"], required=True, type=_PATH, metavar="DIR", help="Where the report goes."),
    click.Option(["--title"], help="The page's title; by default it says what was analysed."),
]
_OUT = [
    *_WHERE,
    click.Option(["--force"], is_flag=True, help="Replace a report that is there already."),
    click.Option(["--fresh"], is_flag=True, help="Compute anew what a run that was interrupted has kept."),
]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pyhessian-spectra")
def commands() -> None:
    """Hessian spectra of neural networks from saved checkpoints."""


@commands.command(params=[*_OUT, _SEED])
def demo(**given: Any) -> None:
    """Train a small classifier on handwritten digits and report on its checkpoints."""
    from pyhessian_spectra.cli import run

    run.demo(**given)


_LABEL = click.Option(["--label", "labels"], multiple=True, help="What a checkpoint is called: one for each, in order.")


_TRACKED = [
    click.Argument(["checkpoints"], nargs=-1, type=_PATH, metavar="CKPT..."),
    click.Option(["--track", "tracks"], multiple=True, type=_PATH, help="What a SpectrumTracker recorded, also alone."),
]


@commands.command(params=[*_TRACKED, *_PROBLEM, _LABEL, *_OUT])
def report(
    checkpoints: tuple[Path, ...],
    tracks: tuple[Path, ...],
    labels: tuple[str, ...],
    out: Path,
    force: bool,
    fresh: bool,
    title: str | None,
    **given: Any,
) -> None:
    """Analyse checkpoints and write DIR/report.html, results.json, spectra.npz and figures/."""
    from pyhessian_spectra.cli import run

    if not checkpoints and not tracks:
        raise click.UsageError("Missing argument 'CKPT...'; or give --track FILE.")
    request = run.Request.of(**given)
    run.report(checkpoints, request, out, labels=labels, tracks=tracks, title=title, force=force, fresh=fresh)


_COMPARED = [
    click.Argument(["arguments"], nargs=-1, required=True, metavar="CKPT|PATTERN|RESULTS|CSV..."),
    click.Option(
        ["--reference"],
        metavar="NAME",
        help="What the others are compared with, a path's end or a label; default the first.",
    ),
    click.Option(
        ["--correlate", "correlations"],
        multiple=True,
        metavar="COLUMN[:QUANTITY[@BLOCK]]",
        help="Rank correlation with a number given of checkpoints; default test_* with lambda_1 and trace.",
    ),
]


@commands.command(params=[*_COMPARED, *_PROBLEM, *_WHERE])
def compare(
    arguments: tuple[str, ...],
    reference: str | None,
    correlations: tuple[str, ...],
    out: Path,
    title: str | None,
    **given: Any,
) -> None:
    """Compare checkpoints, analysing what has no results yet; several processes with one DIR share the work."""
    from pyhessian_spectra.cli.compare import compare
    from pyhessian_spectra.cli.request import Request

    compare(arguments, Request.of(**given), out, reference=reference, correlations=correlations, title=title)


@commands.command(params=[_CHECKPOINTS, *_PROBLEM])
def doctor(checkpoints: tuple[Path, ...], **given: Any) -> None:
    """Check checkpoints, model and data, and forecast time and memory, before anything long starts."""
    from pyhessian_spectra.cli import run

    sys.exit(run.doctor(checkpoints, run.Request.of(**given)))
