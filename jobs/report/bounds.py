"""The figure of proven errors: how far each site's maps may be from those of all exact samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from act.transport.affine import LARGEST
from jobs.report.svg import Ink, drawing, inline
from jobs.report.text import power, rough
from jobs.text import visible
from schemas.card import SiteCard

#: Marks at most. More sites than that share marks: each stands for neighbours, and for the worst of them.
MOST_MARKS = 200

WIDTH: Final = 1060
HEIGHT: Final = 250
LEFT, RIGHT, BOTTOM, TOP = 48, 20, 44, 22  # room around the axes


@final
@dataclass(frozen=True)
class Mark:
    """The bound at one site, or at some that follow each other.

    Args:
        first: Number of the first site, from 1.
        last: Number of the last site.
        median: Proven error of the median neuron, in standard deviations; of several sites the largest.
        worst: The same of the worst neuron.
        title: What it is, in words.
    """

    first: int
    last: int
    median: float
    worst: float
    title: str


def bound(error: float) -> str:
    """Returns a proven error as it is written: with two digits, and ``none`` where there is no bound."""
    return rough(error) if error < LARGEST else "none"


def marks(sites: Sequence[SiteCard]) -> list[Mark]:
    """Returns the bounds of sites, at most `MOST_MARKS`, in the order of the sites."""
    found = []
    for numbers in np.array_split(np.arange(len(sites)), min(len(sites), MOST_MARKS)):
        here = [sites[number] for number in numbers]
        median, worst = max(site.error_median for site in here), max(site.error_worst for site in here)
        others = f" … {here[-1].hookpoint} ({len(here)} sites)" if len(here) > 1 else ""
        title = f"{visible(here[0].hookpoint + others)}: median {bound(median)} sd, worst {bound(worst)} sd"
        found.append(Mark(int(numbers[0]) + 1, int(numbers[-1]) + 1, median, worst, title))
    return found


def error_bounds(sites: Sequence[SiteCard]) -> Markup | None:
    """Returns the proven errors of sites on a logarithmic scale: of each a dot for the median and a bar for the worst.

    What has no bound is a triangle at the upper edge, and what is 0 has no mark. None if there is no number to draw.
    """
    drawn = marks(sites)
    finite = [error for mark in drawn for error in (mark.median, mark.worst) if 0 < error < LARGEST]
    if not finite:
        return None
    low, high = 10.0 ** np.floor(np.log10(0.8 * min(finite))), 10.0 ** np.ceil(np.log10(1.25 * max(finite)))
    with drawing(WIDTH, HEIGHT) as figure:
        area = (LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (BOTTOM + TOP) / HEIGHT)
        axes = figure.add_axes(area)
        shared = "; each mark is the worst of several" if len(drawn) < len(sites) else ""
        axes.set(xlim=(0.5, len(sites) + 0.5), ylim=(low, high), yscale="log")
        axes.set_xlabel(f"site, in execution order{shared}")
        _scale(axes)
        titles = {f"bound{number}": mark.title for number, mark in enumerate(drawn)}
        _draw(axes, drawn, low, high)
        for mark, name in zip(drawn, titles, strict=True):  # what the pointer finds: as wide as the site, and unseen
            here = ((mark.first - 0.5, low), mark.last - mark.first + 1, high - low)
            axes.add_patch(Rectangle(*here, facecolor=Ink.ACCENT, alpha=0, linewidth=0, gid=name))
        return inline(figure, "Proven error of each site's maps, in standard deviations", titles)


def _scale(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(round(np.log10(value)))))
    axes.grid(axis="y", color=Ink.LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=11)
    axes.annotate("sd", (0, 1), (-6, 8), "axes fraction", textcoords="offset points", color=Ink.MUTED, fontsize=11)


def _draw(axes: Axes, drawn: Sequence[Mark], low: float, high: float) -> None:
    x = np.array([(mark.first + mark.last) / 2 for mark in drawn])
    median, worst = (np.array([getattr(mark, name) for mark in drawn]) for name in ("median", "worst"))
    step = (WIDTH - LEFT - RIGHT) / len(drawn)
    moved, bounded = worst > 0, worst < LARGEST
    axes.vlines(x[moved], np.clip(median, low, high)[moved], np.clip(worst, low, high)[moved], Ink.MUTED, linewidth=1.2)
    bars: dict[str, Any] = {"marker": "_", "color": Ink.MUTED, "markersize": min(9.0, 0.7 * step), "markeredgewidth": 2}
    dots: dict[str, Any] = {
        "marker": "o",
        "color": Ink.ACCENT,
        "markersize": min(6.0, 0.7 * step),
        "markeredgewidth": 0,
    }
    shown = (median > 0) & (median < LARGEST)
    axes.plot(x[moved & bounded], worst[moved & bounded], linestyle="", **bars)
    axes.plot(x[shown], median[shown], linestyle="", zorder=3, **dots)
    axes.plot(x[~bounded], np.full_like(x, high)[~bounded], linestyle="", color=Ink.TEXT, marker="^", clip_on=False)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if abs(exponent) <= 3 else power(10, exponent)
