"""Numbers as text, with as many digits as their errors leave."""

from __future__ import annotations

import math

import numpy as np

from pyhessian_spectra.errors import InputError
from pyhessian_spectra.spectra.results import Eigenpairs, Floats, TraceEstimate

_MINUS, _PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Digits of a value whose error is smaller than a reader can use.
_MAX_DIGITS = 7
# Fixed notation from 0.001 up to, but not including, ten million.
_FIXED = range(-3, 7)
# Smaller errors are easier to read as powers of ten than as rows of zeros.
_SMALLEST_FIXED_ERROR = -5


def format_number(value: float, *, digits: int = 3) -> str:
    """A number to ``digits`` significant digits; thousands are grouped and never rounded away.

    >>> format_number(15668.2), format_number(-0.04321), format_number(1.5e-9, digits=2)
    ('15,668', '−0.0432', '1.5×10⁻⁹')
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    mantissa, exponent = _scientific(value, digits)
    if exponent in _FIXED:
        return _fixed(value, max(0, digits - 1 - exponent))
    return f"{_signed(mantissa)}×10{str(exponent).translate(_SUPERSCRIPTS)}"


def format_with_error(value: float, error: float) -> str:
    """``value ± error`` with the digits that mean something.

    The error keeps one significant digit, two where that one would be 1 or 2, and nothing left of the decimal point
    is rounded away. An error of 0 says that the value is exact up to rounding; NaN or infinity, that nothing is known.

    >>> format_with_error(15668.3, 262.4)
    '15,668 ± 262'
    >>> format_with_error(3.21042, 0.0003)
    '3.2104 ± 0.0003'
    >>> format_with_error(-2.5, 0.0)
    '−2.5 (exact)'
    """
    if error < 0:
        raise InputError(f"error must not be negative, got {error}; an error is a distance")
    if not math.isfinite(value):
        return "not finite"
    if error == 0:
        return f"{_plain(value)} (exact)"
    if not math.isfinite(error):
        return f"{format_number(value)} (error unknown)"
    error_digits = _error_digits(error)
    _, error_exponent = _scientific(error, error_digits)
    _, value_exponent = _scientific(value, _MAX_DIGITS) if value else ("", error_exponent)
    shown_error = format_number(error, digits=error_digits)
    if value_exponent - error_exponent >= _MAX_DIGITS:
        return f"{_plain(value)} {_PLUS_MINUS} {shown_error}"
    exponent = max(value_exponent, error_exponent)
    places = error_digits - 1 - error_exponent
    if exponent in _FIXED:
        if error_exponent >= _SMALLEST_FIXED_ERROR:
            shown_error = _fixed(error, max(0, places))
        return f"{_fixed(value, max(0, places))} {_PLUS_MINUS} {shown_error}"
    places += exponent
    scaled = (_fixed(number / 10.0**exponent, max(0, places)) for number in (value, error))
    return f"({f' {_PLUS_MINUS} '.join(scaled)})×10{str(exponent).translate(_SUPERSCRIPTS)}"


def format_duration(seconds: float) -> str:
    """Seconds in the unit a person would use.

    >>> format_duration(0.0042), format_duration(59.96), format_duration(3700)
    ('4.2 ms', '1 min 0 s', '1 h 2 min')
    """
    if seconds < 1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {round(whole % 3600 / 60)} min"


def eigenvalue_errors(pairs: Eigenpairs) -> Floats:
    """What stands after ``±``, shape (k,): reach of the certified interval, the residual where there is none."""
    if pairs.lower is None or pairs.upper is None:
        return pairs.residuals
    return np.maximum(pairs.upper - pairs.eigenvalues, pairs.eigenvalues - pairs.lower)


def trace_error(trace: TraceEstimate) -> float:
    """What stands after ``±``: half the width of the 95 % confidence interval, 0 when exact."""
    low, high = trace.interval(0.95)
    return (high - low) / 2


def _error_digits(error: float) -> int:
    return 2 if _scientific(error, 1)[0] in "12" else 1


def _scientific(value: float, digits: int) -> tuple[str, int]:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return mantissa, int(exponent)


def _fixed(value: float, places: int) -> str:
    return _signed(f"{value:,.{places}f}")


def _plain(value: float) -> str:
    """At most seven digits, trailing zeros dropped."""
    if value == 0:
        return "0"
    mantissa, exponent = _scientific(value, _MAX_DIGITS)
    if exponent in _FIXED:
        text = f"{value:,.{max(0, _MAX_DIGITS - 1 - exponent)}f}"
        return _signed(text.rstrip("0").rstrip(".") if "." in text else text)
    return f"{_signed(mantissa.rstrip('0').rstrip('.'))}×10{str(exponent).translate(_SUPERSCRIPTS)}"


def _signed(text: str) -> str:
    """With a true minus sign, and none before a zero."""
    if text.startswith("-"):
        return _MINUS + text[1:] if text.strip("-0.,") else text[1:]
    return text
