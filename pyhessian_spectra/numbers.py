"""Numbers become text here, with as many digits as their errors leave."""

from __future__ import annotations

import math

from pyhessian_spectra.errors import InputError

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# A value has at most so many digits, however small its error is.
_MAX_DIGITS = 7
# Numbers with these exponents, from 0.001 to just below ten million, are written in fixed notation.
_FIXED = range(-3, 7)
# Smaller errors are easier to read as powers of ten than as rows of zeros.
_SMALLEST_FIXED_ERROR = -5


def format_number(value: float, *, digits: int = 3) -> str:
    """Write a number with ``digits`` significant digits; thousands are grouped and never rounded away.

    >>> format_number(15668.2), format_number(-0.04321), format_number(1.5e-9, digits=2)
    ('15,668', '−0.0432', '1.5×10⁻⁹')
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    mantissa, exponent = _scientific(value, digits)
    if exponent in _FIXED:
        return _fixed(value, digits - 1 - exponent)
    return _fixed(mantissa, digits - 1) + _power(exponent)


def format_with_error(value: float, error: float) -> str:
    """Write ``value ± error`` with the digits that mean something.

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
    mantissa, times, power = format_number(value, digits=_MAX_DIGITS).partition("×")
    plain = (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + times + power
    if error == 0:
        return f"{plain} (exact)"
    if not math.isfinite(error):
        return f"{format_number(value)} (error unknown)"
    error_digits = 2 if _scientific(error, 1)[0] <= 2 else 1
    _, error_exponent = _scientific(error, error_digits)
    _, value_exponent = _scientific(value, _MAX_DIGITS) if value else (0.0, error_exponent)
    shown_error = format_number(error, digits=error_digits)
    if value_exponent - error_exponent >= _MAX_DIGITS:
        return f"{plain} ± {shown_error}"
    exponent = max(value_exponent, error_exponent)
    places = error_digits - 1 - error_exponent
    if exponent not in _FIXED:
        scaled = (_fixed(number / 10.0**exponent, places + exponent) for number in (value, error))
        return f"({' ± '.join(scaled)}){_power(exponent)}"
    if error_exponent >= _SMALLEST_FIXED_ERROR:
        shown_error = _fixed(error, places)
    return f"{_fixed(value, places)} ± {shown_error}"


def format_headline(value: float, error: float, data: float | None, examples: int | None = None) -> str:
    """Write a value with the largest of its errors, that of the computation or that of the data, and no more digits.

    >>> format_headline(2.147464, 3e-6, 0.32, 1438), format_headline(25.3, 7.2, 1.8)
    ('2.1 ± 0.3 from 1,438 examples', '25 ± 7')
    """
    if data is None or not data > error:
        return format_with_error(value, error)
    return format_with_error(value, data) + ("" if examples is None else f" from {examples:,} examples")


def format_duration(seconds: float) -> str:
    """Write seconds in the unit that a person would use.

    >>> format_duration(0.0042), format_duration(0.25), format_duration(59.96), format_duration(7190)
    ('4.2 ms', '250 ms', '1 min 0 s', '2 h 0 min')
    """
    if seconds < 1:
        return f"{float(f'{1000 * seconds:.2g}'):g} ms"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def _scientific(value: float, digits: int) -> tuple[float, int]:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return float(mantissa), int(exponent)


def _power(exponent: int) -> str:
    return f"×10{str(exponent).translate(_SUPERSCRIPTS)}"


def _fixed(value: float, places: int) -> str:
    """Write fixed notation, without decimals where ``places`` is negative; a zero has no minus sign."""
    text = f"{value:,.{max(0, places)}f}"
    return text.replace("-", "\N{MINUS SIGN}") if text.strip("-0.,") else text.lstrip("-")
