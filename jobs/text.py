"""How a person reads values and foreign text, on a terminal and on the report's page."""

from typing import Final

#: Characters that reorder or break the text around them.
_REORDERING: Final = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def size(num_bytes: int) -> str:
    """Returns a number of bytes in the largest binary unit that it fills, such as ``1.5 GiB``."""
    amount, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    return f"{amount:.0f} {units[0]}" if amount >= 100 or units[0] == "B" else f"{amount:.1f} {units[0]}"


def visible(text: str) -> str:
    r"""Returns a text in which what nobody would see, or a terminal or browser would obey, is spelled as ``\x1b``.

    These are control characters but for newline and tab, bidirectional controls, lone surrogates and code points that
    are no characters, spelled as Python does. Joiners stay, for emoji and some scripts are written with them.
    """
    return "".join(_spelled(ord(char)) if _hides(char) else char for char in text)


def _spelled(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _hides(char: str) -> bool:
    code = ord(char)
    if code < 0x20 or 0x7F <= code < 0xA0:
        return char not in "\n\t"
    nothing = 0xD800 <= code <= 0xDFFF or 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return nothing or char in _REORDERING
