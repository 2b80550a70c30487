"""``package.module:function``: a problem that the user's own code builds."""

from __future__ import annotations

import importlib
import inspect
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError, SpectraError
from pyhessian_spectra.problems.importing import current_directory_first


def call_user_factory(spec: str, checkpoint: str | os.PathLike[str]) -> EmpiricalRisk:
    """Import the function that ``spec`` names and call it with the path of the checkpoint.

    Parameters
    ----------
    spec : str
        ``package.module:function``, found as ``python -m`` would find it: in the current directory, then on
        ``sys.path``, which is the same afterwards.
    checkpoint : path-like
        Handed on as a string.

    Raises
    ------
    InputError
        The function cannot be imported, raises, or returns anything but an EmpiricalRisk. The sentence names the
        user's file and line.
    """
    module_name, colon, function_name = spec.partition(":")
    if not (colon and module_name and function_name.isidentifier()):
        raise InputError(f"--problem {spec!r} does not name a function; write it as package.module:function")
    if module_name.endswith(".py") or os.sep in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise InputError(f"--problem takes a module, not a file; write {dotted}:{function_name} for {spec!r}")
    with current_directory_first():
        function = _import(spec, module_name, function_name)
        with _told_in_one_sentence(f"--problem {spec}"):
            risk = function(os.fspath(checkpoint))
    if not isinstance(risk, EmpiricalRisk):
        raise InputError(
            f"--problem {spec} returned a {type(risk).__name__}; it must return a pyhessian_spectra.EmpiricalRisk"
        )
    return risk


def _import(spec: str, module_name: str, function_name: str) -> Callable[[str], Any]:
    try:
        with _told_in_one_sentence(f"importing {module_name} for --problem {spec}"):
            module = importlib.import_module(module_name)
    except InputError as error:
        cause = error.__cause__
        # The module itself is not there, which is another thing than a module that it imports in turn.
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{module_name}.".startswith(f"{cause.name}."):
            raise InputError(
                f"--problem {spec}: there is no module {cause.name} in {Path.cwd()} or among the installed packages"
            ) from None
        raise
    function = getattr(module, function_name, None)
    if not callable(function):
        origin = getattr(module, "__file__", None) or module_name
        raise InputError(f"--problem {spec}: {origin} has no function {function_name}")
    try:
        inspect.signature(function).bind("path")
    except TypeError as error:
        raise InputError(
            f"--problem {spec}: {function_name} must take one argument, the path of the checkpoint ({error})"
        ) from None
    except ValueError:  # a function written in C need not have a signature
        pass
    return function


@contextmanager
def _told_in_one_sentence(what: str) -> Iterator[None]:
    """Errors of the user's code as one sentence with its file and line; this package's own already are sentences."""
    try:
        yield
    except (SpectraError, torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        message = " ".join(str(error).split()) or "no message"
        raise InputError(f"{what} failed with {type(error).__name__}: {message} ({_where(error)})") from error


def _where(error: BaseException) -> str:
    """File and line of the user's code that an error came through last."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = ("site-packages", "<frozen", str(Path(__file__).parent), str(Path(traceback.__file__).parent))
    own = [frame for frame in frames if not any(part in frame.filename for part in foreign)]
    frame = (own or list(frames))[-1]
    return f"{frame.filename}, line {frame.lineno}"
