"""The heat map's layout: which row and column each site of a steer gets, found in the sites' names."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from typing import final

from act.hookpoint import Hookpoint
from schemas.card import SiteCard


@final
@dataclass(frozen=True)
class Cell:
    """One site's place.

    Args:
        row: Number of its row.
        column: Number of its column.
        hookpoint: Name of the site.
        displacement: How far it is moved, in standard deviations.
    """

    row: int
    column: int
    hookpoint: str
    displacement: float


@final
@dataclass(frozen=True)
class Grid:
    """Sites by row and column.

    Args:
        rows: Label of each row, in execution order.
        columns: Label of each column.
        axis: What the columns are; empty when there is only one.
        cells: The sites.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    axis: str
    cells: tuple[Cell, ...]

    @property
    def highest(self) -> float:
        """Largest displacement of all cells."""
        return max((cell.displacement for cell in self.cells), default=0.0)


def arrange(sites: Sequence[SiteCard]) -> Grid:
    """Returns sites as hookpoint × denoising step, else as kind of site × block, else as one column.

    A block is the first number in the name of a module: ``model.layers.3.norm`` is of the kind ``norm``. A site that
    has no number while others have one stands in a column before or after them, as it is executed.
    """
    points = [Hookpoint.parse(site.hookpoint) for site in sites]
    if any(point.step is not None for point in points):
        axis, places = "denoising step", [(str(Hookpoint(point.module, point.output)), point.step) for point in points]
    else:
        axis, places = "block", [_by_block(str(point)) for point in points]
    if all(number is None for _, number in places):
        axis = ""
    rows = {name: row for row, name in enumerate(dict.fromkeys(name for name, _ in places))}
    numbers = _ordered([number for _, number in places])
    columns = sorted(set(numbers))
    cells = tuple(
        Cell(rows[name], columns.index(number), site.hookpoint, site.displacement)
        for site, (name, _), number in zip(sites, places, numbers, strict=True)
    )
    labels = {-inf: "start", inf: "end" if axis else "displacement"}
    return Grid(_shorten(list(rows)), tuple(labels.get(number, f"{number:.0f}") for number in columns), axis, cells)


def _by_block(name: str) -> tuple[str, int | None]:
    parts = name.split(".")
    for place, part in enumerate(parts):
        if part.isascii() and part.isdecimal():
            return ".".join([*parts[:place], "*", *parts[place + 1 :]]), int(part)
    return name, None


def _ordered(numbers: Sequence[int | None]) -> list[float]:
    """Puts what has no number before all that has one, or after it, by where it stands in the sequence."""
    seen, ordered = False, []
    for number in numbers:
        seen = seen or number is not None
        ordered.append(float(number) if number is not None else inf if seen else -inf)
    return ordered if seen else [inf] * len(ordered)


def _shorten(names: Sequence[str]) -> tuple[str, ...]:
    """Drops the leading parts that names of blocks share, and as much of them as other names begin with."""
    split = [name.split(".") for name in names]
    shared = _shared([parts for parts in split if "*" in parts] or split)
    return tuple(".".join(parts[_drop(parts, shared) :]) for parts in split)


def _shared(names: Sequence[list[str]]) -> list[str]:
    """The leading parts that all names have, the last part of none among them."""
    columns = zip(*(parts[:-1] for parts in names), strict=False)
    return [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]


def _drop(parts: list[str], shared: list[str]) -> int:
    """A name begins with a word: a number alone says nothing."""
    most = len(_shared([parts, [*shared, ""]]))
    while most and (parts[most] == "*" or parts[most].isdecimal()):
        most -= 1
    return most
