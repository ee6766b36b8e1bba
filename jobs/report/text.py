"""How numbers are written on the page, as a person reads them."""

from typing import Final

_SUPERSCRIPTS: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def elide(text: str, length: int) -> str:
    """Returns a text of at most `length` characters, its middle left out when it is longer."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def count(number: int) -> str:
    """Returns a whole number with its thousands set apart."""
    return f"{number:,}"


def duration(seconds: float) -> str:
    """Returns a duration in seconds, or in hours, minutes and seconds from two minutes on."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def decimal(number: float) -> str:
    """Returns a number with four significant digits and a true minus sign."""
    return _written(f"{number:.4g}")


def rough(number: float) -> str:
    """Returns a number with two significant digits, zeros at its end too, so that a column of them can be compared."""
    if 100 <= abs(number) < 1e6:
        return _written(f"{number:,.0f}")
    return _written(f"{number:#.2g}".removesuffix(".")) if number else "0"


def power(base: int, exponent: int) -> str:
    """Returns a power as it is written, such as ``10⁻⁷``."""
    return f"{base}{str(exponent).translate(_SUPERSCRIPTS)}"


def _written(number: str) -> str:
    """Leaves out the zeros that lead an exponent."""
    mantissa, _, exponent = number.partition("e")
    whole = f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return whole.replace("-", "−").replace("inf", "∞")
