"""The figures of the report."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from jobs.report.grid import Grid
from jobs.report.laws import NeuronLaws
from jobs.report.pushforward import Values
from jobs.report.svg import Ink, drawing, inline
from jobs.report.text import duration, elide
from jobs.text import visible

#: Up to so many cells each says its site and value; more are one image, which stays small.
MOST_CELLS = 2000

ROW: Final = 22
CHAR: Final = 6.2
BAR_ROW: Final = 26
LABEL_LENGTH: Final = 52


def heat_map(grid: Grid) -> Markup:
    """Returns displacement by site: the deeper the colour, the farther it is moved, from none to `Grid.highest`."""
    labels = [elide(visible(row), LABEL_LENGTH) for row in grid.rows]
    margin = CHAR * max(map(len, labels)) + 16
    cell = float(np.clip(720 / len(grid.columns), 22, 64))
    width, height = cell * len(grid.columns), float(ROW * len(grid.rows))
    figure_width, figure_height = margin + width + 8, height + 46
    with drawing(figure_width, figure_height) as figure:
        axes = figure.add_axes(
            (margin / figure_width, 42 / figure_height, width / figure_width, height / figure_height)
        )
        axes.set(xlim=(0, len(grid.columns)), ylim=(len(grid.rows), 0), xlabel=grid.axis)
        axes.set_yticks(np.arange(len(labels)) + 0.5, labels)
        axes.set_xticks(np.arange(len(grid.columns)) + 0.5, grid.columns)
        axes.tick_params(length=0, labelsize=11)
        axes.spines[:].set_visible(False)
        titles = _cells(axes, grid, cell) if len(grid.cells) <= MOST_CELLS else _image(axes, grid)
        return inline(figure, "Displacement of each site, in standard deviations", titles)


def neuron_laws(neuron: NeuronLaws) -> Markup:
    """Returns the laws of one neuron above its map: both over the same activations."""
    with drawing(340, 330) as figure:
        top = figure.add_axes((0.135, 0.57, 0.82, 0.37))
        bottom = figure.add_axes((0.135, 0.125, 0.82, 0.345), sharex=top)
        _draw_laws(top, neuron)
        _draw_map(bottom, neuron)
        name = f"Laws and map of neuron {neuron.moved.neuron} of {visible(neuron.moved.hookpoint)}"
        return inline(figure, name, {})


def stage_bars(stages: Mapping[str, float]) -> Markup:
    """Returns the seconds of each stage as bars."""
    labels = [elide(visible(stage), 20) for stage in stages]
    seconds = list(stages.values())
    height = BAR_ROW * len(labels) + 8
    margin = 1.3 * CHAR * max(map(len, labels), default=0) + 14
    with drawing(520, height) as figure:
        axes = figure.add_axes((margin / 520, 0, 1 - (margin + 90) / 520, 1))
        axes.barh(labels, seconds, height=0.56, color=Ink.ACCENT)
        axes.set(xlim=(0, max([*seconds, 1e-9])), ylim=(len(labels) - 0.5, -0.5))
        axes.set_axis_off()
        for row, (label, value) in enumerate(zip(labels, seconds, strict=True)):
            axes.annotate(label, (0, row), (-10, 0), textcoords="offset points", ha="right", va="center", fontsize=13)
            style: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 13, "color": Ink.MUTED}
            axes.annotate(duration(value), (value, row), (8, 0), textcoords="offset points", **style)
        return inline(figure, "Wall time of each stage", {})


def _cells(axes: Axes, grid: Grid, width: float) -> dict[str, str]:
    titles = {}
    for number, cell in enumerate(grid.cells):
        depth, name = _depth(cell.displacement, grid), f"cell{number}"
        gap = 1.5 / width
        place = (cell.column + gap / 2, cell.row + 0.04)
        axes.add_patch(Rectangle(place, 1 - gap, 0.92, facecolor=Ink.ACCENT, alpha=depth, linewidth=0, gid=name))
        titles[name] = f"{visible(cell.hookpoint)}: {cell.displacement:.3f} sd"
        if width >= 50:
            ink = Ink.ON_ACCENT if depth > 0.6 else Ink.TEXT
            middle = (cell.column + 0.5, cell.row + 0.5)
            axes.text(*middle, f"{cell.displacement:.2f}", ha="center", va="center", color=ink, fontsize=11)
    return titles


def _image(axes: Axes, grid: Grid) -> dict[str, str]:
    """Draws all cells as one image of the accent colour, whose opacity is the value."""
    shades = np.zeros((len(grid.rows), len(grid.columns), 4))
    shades[..., :3] = np.array([0x2A, 0x86, 0x94]) / 255  # an image cannot follow the theme: this suits both
    for cell in grid.cells:
        shades[cell.row, cell.column, 3] = _depth(cell.displacement, grid)
    extent = (0, len(grid.columns), len(grid.rows), 0)
    image: AxesImage = axes.imshow(shades, interpolation="none", aspect="auto", extent=extent)
    image.set_zorder(0)
    return {}


def _depth(displacement: float, grid: Grid) -> float:
    return 0.05 + 0.95 * displacement / grid.highest if grid.highest > 0 else 0.05


def _draw_laws(axes: Axes, neuron: NeuronLaws) -> None:
    edges = neuron.edges
    axes.stairs(100 * neuron.source, edges, fill=True, color=Ink.MUTED, alpha=0.28, linewidth=0)
    axes.stairs(_percent(neuron.target), edges, color=Ink.TEXT, linewidth=1.3)
    axes.stairs(_percent(neuron.transported), edges, color=Ink.ACCENT, linewidth=2)
    highest = max(100 * law.max() for law in (neuron.source, neuron.target, neuron.transported))
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.06 * highest))
    _name(axes, "% of samples")
    axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=5)
    axes.tick_params(labelbottom=False, labelsize=11)


def _name(axes: Axes, name: str) -> None:
    """Names the vertical axis above its end, where no number is in the way, and puts its power of ten to the right."""
    axes.yaxis.get_offset_text().set(x=1, horizontalalignment="right")
    axes.annotate(name, (0, 1), (-6, 5), "axes fraction", textcoords="offset points", color=Ink.MUTED, fontsize=11)


def _percent(law: Values) -> Values:
    """Empty bins become NaN, where no line is drawn."""
    return np.where(law > 0, 100 * law, np.nan)


def _draw_map(axes: Axes, neuron: NeuronLaws) -> None:
    left, right = neuron.edges[[0, -1]].tolist()
    inside, moved = neuron.curve
    low, high = inside[[0, -1]].tolist()
    axes.axvspan(low, high, color=Ink.ACCENT, alpha=0.12, linewidth=0)
    axes.plot([left, right], [left, right], color=Ink.MUTED, linewidth=1, linestyle=(0, (2, 3)))
    for ends in ([left, low], [high, right]):
        if ends[0] < ends[1]:
            axes.plot(ends, ends, color=Ink.ACCENT, linewidth=1.2)
    axes.plot(inside, moved, color=Ink.ACCENT, linewidth=2)
    axes.set(xlabel="activation a", ylim=_room(np.array([left, right, *moved])))
    _name(axes, "T(a)")
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=11)


def _room(values: Values) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low - 0.06 * (high - low), high + 0.06 * (high - low)
