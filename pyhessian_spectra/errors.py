"""Every error that the package raises on purpose.

The message is one sentence that names what was given, what was expected and what to do next. The command line prints it
and exits with :attr:`SpectraError.exit_status`; a traceback means a bug in this package.
"""

from __future__ import annotations

from typing import Any


class SpectraError(Exception):
    """Base class of errors that one sentence explains to the user."""

    exit_status = 1


class InputError(SpectraError, ValueError):
    """The input is wrong: an argument, a checkpoint, a dataset or a model that cannot be analysed."""

    exit_status = 2


class NonFiniteError(InputError):
    """A parameter, a loss or a product holds NaN or infinity."""


class SecondDerivativeError(InputError):
    """An operation of the model cannot be differentiated twice."""


class UnverifiedError(InputError):
    """A product, a gradient or the weights of batches are not what differences of the loss say that they should be."""


class ConvergenceError(SpectraError, RuntimeError):
    """An iteration ended before its tolerance was met.

    Attributes
    ----------
    partial : object
        What was reached, of the type that the call would have returned; ``converged`` says which entries are converged.
    """

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial


class OutOfMemoryError(SpectraError, MemoryError):
    """The device or the host ran out of memory, or a forecast says that it would."""


class Interrupted(SpectraError, KeyboardInterrupt):
    """The user stopped a long computation; ``partial`` holds what was finished."""

    exit_status = 130

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial
