"""Matplotlib figures as SVG inside a page: its text is text, its colours follow the page's light or dark theme."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Final, final
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

#: One typographic point of a figure is one CSS pixel of the page.
POINTS_PER_INCH: Final = 72

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_DROPPED = (f"{_SVG}metadata", f"{_SVG}style")
_FONT = re.compile(r"font: [^;]*?([\d.]+)px [^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@final
class Ink(StrEnum):
    """Colours of a figure. Each is a code that no figure means literally: the page's style sheet says what it is."""

    TEXT = "#010101"
    MUTED = "#020202"
    LINE = "#030303"
    ACCENT = "#040404"
    ON_ACCENT = "#050505"


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A context that gives an empty figure to draw on, in which text is never read as a formula.

    Args:
        width: Width in pixels of the page.
        height: Height in pixels of the page.
    """
    settings = {
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "actmap",
        "font.size": 11,
        "axes.linewidth": 1,
        "axes.facecolor": "none",
        "axes.edgecolor": Ink.LINE,
        "axes.labelcolor": Ink.MUTED,
        "axes.labelsize": 11,
        "axes.unicode_minus": True,
        "axes.formatter.limits": (-3, 4),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": Ink.TEXT,
        "xtick.color": Ink.LINE,
        "ytick.color": Ink.LINE,
        "xtick.labelcolor": Ink.MUTED,
        "ytick.labelcolor": Ink.MUTED,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The reader's browser has the glyphs; Matplotlib's own font, in which it measures, may lack some.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font", category=UserWarning)
        yield Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), facecolor="none")


def inline(figure: Figure, label: str, titles: Mapping[str, str]) -> Markup:
    """Returns a figure as an ``<svg>`` element, safe inside HTML. To be called within `drawing`.

    Args:
        figure: The figure.
        label: What it shows, for who cannot see it.
        titles: Text that appears over an element, by the element's `gid`.
    """
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    _prune(root)
    names = _rename(root, titles)
    for element in root.iter():
        _clean(element, names)
    width, height = (figure.get_size_inches() * POINTS_PER_INCH).tolist()
    root.attrib = {"viewBox": root.attrib["viewBox"], "width": f"{width:g}", "height": f"{height:g}"}
    root.attrib |= {"role": "img", "aria-label": label}
    # The serialiser has escaped all text.
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _prune(element: ElementTree.Element) -> None:
    for child in list(element):
        _prune(child)
        if child.tag in _DROPPED or (child.tag == f"{_SVG}defs" and not len(child)):
            element.remove(child)


def _rename(root: ElementTree.Element, titles: Mapping[str, str]) -> set[str]:
    """Adds titles; returns the ids that the figure refers to itself, the only ones that may stay."""
    wanted: set[str] = set()
    for element in root.iter():
        if (identity := element.get("id", "")) in titles:
            title = ElementTree.Element(f"{_SVG}title")
            title.text = titles[identity]
            element.insert(0, title)
        wanted |= {element.get(_LINK, "").removeprefix("#")}
        wanted |= {found for value in element.attrib.values() for found in _REFERENCE.findall(value)}
    return wanted - {""}


def _clean(element: ElementTree.Element, wanted: set[str]) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    if element.get("id") not in wanted:
        element.attrib.pop("id", None)
    if link := element.attrib.pop(_LINK, None):
        element.set("href", link)
    for name in ("style", "fill", "stroke"):
        if value := element.get(name):
            element.set(name, _FONT.sub(r"font-size: \1px", _themed(value)))


def _themed(value: str) -> str:
    for ink in Ink:
        value = value.replace(ink, f"var(--{ink.name.lower().replace('_', '-')})")
    return value
