"""The console script: commands, options, and errors in one sentence."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from pyhessian_spectra._version import __version__
from pyhessian_spectra.cli import options
from pyhessian_spectra.errors import SpectraError

# Set to see where an error came from instead of its sentence alone.
_TRACEBACK = "PYHESSIAN_SPECTRA_TRACEBACK"


def main() -> None:
    """Run the command line; exit status 2 for wrong input, 1 for a failure, 130 after Ctrl-C."""
    warnings.simplefilter("ignore")  # what a user must know is said in the report or in an error
    if os.environ.get("RANK", "0") != "0":  # of processes that torchrun started, the first speaks
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until this process ends
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
        return "out of memory; lower --batch-size, --memory-budget, --num-eigenvalues or --exact-limit", 1
    return f"{type(error).__name__}: {message} (set {_TRACEBACK}=1 to see where)", 1


def _say(sentence: str, status: int) -> int:
    click.echo(f"pyhessian-spectra: {sentence}", err=True)
    return status


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pyhessian-spectra")
def commands() -> None:
    """Hessian spectra of neural networks from saved checkpoints."""


@commands.command()
@options.out
@options.seed
def demo(out: Path, force: bool, fresh: bool, seed: int) -> None:
    """Train a small classifier on handwritten digits and report on its checkpoints."""
    from pyhessian_spectra.cli import run

    run.demo(out, force=force, fresh=fresh, seed=seed, command=_command())


@commands.command()
@options.checkpoints
@options.problem
@options.analysis
@options.out
def report(checkpoints: tuple[Path, ...], out: Path, force: bool, fresh: bool, **given: Any) -> None:
    """Analyse checkpoints and write DIR/report.html, results.json, spectra.npz and figures/."""
    from pyhessian_spectra.cli import run

    run.report(checkpoints, run.Request.of(**given), out, force=force, fresh=fresh, command=_command())


@commands.command()
@options.checkpoints
@options.problem
@options.analysis
def doctor(checkpoints: tuple[Path, ...], **given: Any) -> None:
    """Check checkpoints, model and data, and forecast time and memory, before anything long starts."""
    from pyhessian_spectra.cli import run

    sys.exit(run.doctor(checkpoints, run.Request.of(**given)))


def _command() -> list[str]:
    return ["pyhessian-spectra " + shlex.join(sys.argv[1:])]
