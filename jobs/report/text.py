"""How values are written on the page: numbers as a person reads them, and foreign text so that nothing hides in it."""

from typing import Final

#: Characters that reorder or break the text around them.
_REORDERING: Final = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def visible(text: str) -> str:
    r"""Returns a text in which characters that a browser would not show, or would obey, are spelled as ``\u202e``.

    These are control characters but for newline and tab, bidirectional controls, lone surrogates and code points that
    are no characters. Joiners stay, for emoji and some scripts are written with them.
    """
    return "".join(f"\\u{ord(char):04x}" if _hides(char) else char for char in text)


def elide(text: str, length: int) -> str:
    """Returns a text of at most `length` characters, its middle left out when it is longer."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def count(number: int) -> str:
    """Returns a whole number with its thousands set apart."""
    return f"{number:,}"


def size(num_bytes: int) -> str:
    """Returns a number of bytes in the largest binary unit that it fills."""
    amount, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{amount:.0f} {units[0]}" if amount >= 100 or units[0] == "B" else f"{amount:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """Returns a duration in seconds, or in hours, minutes and seconds from two minutes on."""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def decimal(number: float) -> str:
    """Returns a number with four significant digits and a true minus sign."""
    return f"{number:.4g}".replace("-", "−").replace("inf", "∞")


def _hides(char: str) -> bool:
    code = ord(char)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return char not in "\n\t"
    nothing = 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return nothing or char in _REORDERING
