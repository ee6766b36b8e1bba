"""How a person reads values and foreign text, on a terminal and on the report's page."""

import unicodedata
from typing import Final

#: Categories of characters that a terminal or browser obeys, that break a line, or that nobody sees.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

#: What is of these categories and stays: breaks that are wanted, joiners, and signs of Arabic, Syriac and Kaithi.
_SEEN: Final = frozenset(
    "\n\t\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
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

    These are control characters but for newline and tab, characters of format such as bidirectional controls, blanks
    without a width and tags, lone surrogates and code points that are no characters, spelled as Python does. Joiners
    stay, for emoji and some scripts are written with them.
    """
    return "".join(_spelled(ord(char)) if _hides(char) else char for char in text)


def _spelled(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _hides(char: str) -> bool:
    code = ord(char)
    nothing = 0xFDD0 <= code <= 0xFDEF or code & 0xFFFE == 0xFFFE
    return nothing or (unicodedata.category(char) in _UNSEEN and char not in _SEEN)
