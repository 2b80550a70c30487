"""The console script: commands, options, and errors in one sentence."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyhessian_spectra._version import __version__
from pyhessian_spectra.errors import SpectraError

# Set to see where an error came from instead of its sentence alone.
_TRACEBACK = "PYHESSIAN_SPECTRA_TRACEBACK"


def main() -> None:
    """Run the command line; exit status 2 for wrong input, 1 for a failure, 130 after Ctrl-C."""
    warnings.simplefilter("ignore")  # what a user must know is said in the report or in an error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's notice; what was finished is kept
    if os.environ.get(_TRACEBACK):
        commands(standalone_mode=False)
        return
    try:
        sys.exit(commands(standalone_mode=False))
    except (click.Abort, KeyboardInterrupt):
        status = _say("interrupted before anything was finished", 130)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except SpectraError as error:
        status = _say(str(error), error.exit_status)
    except Exception as error:
        status = _say(*_unforeseen(error))
    sys.exit(status)


def _unforeseen(error: Exception) -> tuple[str, int]:
    """A sentence and an exit status for an error that is not this package's own."""
    message = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    if isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message:
        return "out of memory; lower --batch-size, --memory, --eigenvalues or --exact-limit", 1
    return f"{type(error).__name__}: {message} (set {_TRACEBACK}=1 to see where)", 1


def _say(sentence: str, status: int) -> int:
    click.echo(f"pyhessian-spectra: {sentence}", err=True)
    return status


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pyhessian-spectra")
def commands() -> None:
    """Hessian spectra of neural networks from saved checkpoints."""


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


_checkpoints = click.argument(
    "checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="CKPT..."
)

_problem_options = _options(
    click.option("--problem", metavar="MODULE:FUNCTION", help="Your own factory: checkpoint path -> EmpiricalRisk."),
    click.option("--model", help="A built-in architecture: mlp, lenet, resnet20, ..., vgg11_bn, resnet18, lstm, gpt."),
    click.option("--model-arg", "model_args", multiple=True, metavar="KEY=VALUE", help="What shapes do not tell."),
    click.option("--data", help="digits, or a path: an MNIST or CIFAR-10 directory, an .npz, a text file."),
    click.option("--loss", help="cross_entropy or mse; by default what the targets call for."),
    click.option("--split", type=click.Choice(["train", "test"]), help="Part of the data; default train."),
    click.option("--num-examples", type=click.IntRange(min=1), help="The first N examples only."),
    click.option("--normalize/--no-normalize", default=None, help="Standardise the inputs; default yes."),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Examples at a time; default a tenth of them.",
    ),
    click.option("--mode", type=click.Choice(["eval", "train"]), help="Of BatchNorm; default eval."),
    click.option("--dtype", type=click.Choice(["float32", "float64"]), help="Of all products; default float32."),
    click.option("--device", help="Default cpu."),
    click.option("--params", multiple=True, metavar="GLOB", help="Restrict the Hessian to these parameters."),
    click.option("--trust-pickle", is_flag=True, help="Unpickle a checkpoint, which runs the code it holds."),
)

_analysis_options = _options(
    click.option(
        "--matrix",
        default="hessian",
        show_default=True,
        type=click.Choice(["hessian", "ggn", "residual", "fisher"]),
        help="The Hessian H, its Gauss-Newton matrix G, the residual H - G, or the empirical Fisher matrix.",
    ),
    click.option(
        "--eigenvalues", default=10, show_default=True, type=click.IntRange(min=1), help="Pairs at each edge."
    ),
    click.option("--probes", default=2, show_default=True, type=click.IntRange(min=2), help="Of the quadrature."),
    click.option("--steps", default=40, show_default=True, type=click.IntRange(min=1), help="Lanczos steps a probe."),
    click.option(
        "--exact-limit",
        default=3000,
        show_default=True,
        type=click.IntRange(min=0),
        help="Largest n for the exact Hessian.",
    ),
    click.option(
        "--tol", default=1e-4, show_default=True, type=click.FloatRange(min=0), help="Relative residual of the edges."
    ),
    click.option(
        "--max-steps", default=300, show_default=True, type=click.IntRange(min=1), help="Of one Lanczos process."
    ),
    click.option(
        "--rtol", default=0.02, show_default=True, type=click.FloatRange(min=0), help="Error of the trace to stop at."
    ),
    click.option(
        "--trace-probes", default=30, show_default=True, type=click.IntRange(min=2), help="Most samples of the trace."
    ),
    click.option(
        "--layers",
        multiple=True,
        metavar="GLOB",
        help="Modules to report on; 'all', 'none'; default those with weights.",
    ),
    click.option(
        "--memory",
        type=click.FloatRange(min=0),
        metavar="GIB",
        help="For kept linearisations, and as much for Lanczos vectors; default half of what is free.",
    ),
    click.option("--seed", default=0, show_default=True, type=int, help="Of the probes."),
)

_out_options = _options(
    click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where the report goes."),
    click.option("--force", is_flag=True, help="Replace a report that is there already."),
    click.option("--fresh", is_flag=True, help="Compute anew what a run that was interrupted has kept."),
)


@commands.command()
@_out_options
@click.option("--seed", default=0, show_default=True, type=int, help="Of the training and the probes.")
def demo(out: Path, force: bool, fresh: bool, seed: int) -> None:
    """Train a small classifier on handwritten digits and report on its checkpoints."""
    from pyhessian_spectra.cli import run

    run.demo(out, force=force, fresh=fresh, seed=seed, command=_command())


@commands.command()
@_checkpoints
@_problem_options
@_analysis_options
@_out_options
def report(checkpoints: tuple[Path, ...], out: Path, force: bool, fresh: bool, **options: Any) -> None:
    """Analyse checkpoints and write DIR/report.html, results.json, spectra.npz and figures/."""
    from pyhessian_spectra.cli import run

    run.report(checkpoints, run.Settings.of(**options), out, force=force, fresh=fresh, command=_command())


@commands.command()
@_checkpoints
@_problem_options
@_analysis_options
def doctor(checkpoints: tuple[Path, ...], **options: Any) -> None:
    """Check checkpoints, model and data, and forecast time and memory, before anything long starts."""
    from pyhessian_spectra.cli import run

    sys.exit(run.doctor(checkpoints, run.Settings.of(**options)))


def _command() -> list[str]:
    return ["pyhessian-spectra " + shlex.join(sys.argv[1:])]
