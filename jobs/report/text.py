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


def decimal(number: float, digits: int = 4) -> str:
    """Returns a number with so many significant digits, a true minus sign, and no zeros that lead its exponent."""
    mantissa, _, exponent = f"{number:.{digits}g}".partition("e")
    written = f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return written.replace("-", "−").replace("inf", "∞")


def power(base: int, exponent: int) -> str:
    """Returns a power as it is written, such as ``10⁻⁷``."""
    return f"{base}{str(exponent).translate(_SUPERSCRIPTS)}"
