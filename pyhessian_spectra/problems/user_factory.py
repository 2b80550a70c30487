"""The user's own code: where it is found, and ``package.module:function``, which builds a problem."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pyhessian_spectra.curvature.risk import EmpiricalRisk
from pyhessian_spectra.errors import InputError, SpectraError


@contextmanager
def current_directory_first() -> Iterator[None]:
    """``sys.path`` with the current directory in front, as under ``python -m``, and as it was afterwards."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    # A module written a moment ago is not in the import system's cached listing of its directory.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def call_user_factory(spec: str, checkpoint: str) -> EmpiricalRisk:
    """Import the function that ``spec`` names and call it with the path; errors name the user's file and line."""
    module_name, colon, function_name = spec.partition(":")
    if not (colon and module_name and function_name.isidentifier()):
        raise InputError(f"--problem {spec!r} does not name a function; write it as package.module:function")
    if module_name.endswith(".py") or os.sep in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace(os.sep, ".")
        raise InputError(f"--problem takes a module, not a file; write {dotted}:{function_name} for {spec!r}")
    with current_directory_first():
        with _told_in_one_sentence(f"importing {module_name} for --problem {spec}"):
            function = _import(spec, module_name, function_name)
        with _told_in_one_sentence(f"--problem {spec}"):
            risk = function(checkpoint)
    if not isinstance(risk, EmpiricalRisk):
        raise InputError(f"--problem {spec} returned a {type(risk).__name__}; it must return an EmpiricalRisk")
    return risk


def _import(spec: str, module_name: str, function_name: str) -> Callable[[str], Any]:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # That the module itself is not there is another thing than that it imports one which is not.
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise
        missing = f"there is no module {error.name} in {Path.cwd()} or among the installed packages"
        raise InputError(f"--problem {spec}: {missing}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        origin = getattr(module, "__file__", None) or module_name
        raise InputError(f"--problem {spec}: {origin} has no function {function_name}")
    try:
        inspect.signature(function).bind("path")
    except TypeError as error:
        needed = "must take one argument, the path of the checkpoint"
        raise InputError(f"--problem {spec}: {function_name} {needed} ({error})") from None
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
