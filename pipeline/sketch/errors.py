"""Errors of `pipeline.sketch`.

```
PipelineError
└── SketchError
    ├── GridError          ValueError   a grid has no cells of that kind
    ├── SketchShapeError   ValueError   a tensor has other axes, or another dtype, than were wanted
    ├── OtherFrameError    ValueError   two sketches count in different frames or grids
    ├── CountOverflowError OverflowError  a sketch would hold more samples than it can count
    │   └── ExactLimitError                 a sketch would keep more values than it may
    ├── LostValuesError    TypeError    values are wanted of a sketch that has only counts
    ├── SketchWordsError   ValueError   words are not those of a sketch
    └── NoSketchError      ValueError   there is nothing to merge
```

Each constructor passes its own arguments on, so that an error keeps its type between processes, and `__str__`
says what was found, what was wanted and what to do.
"""

from collections.abc import Sequence

from pipeline.errors import PipelineError


class SketchError(PipelineError):
    """Anything that a sketch refuses."""


class GridError(SketchError, ValueError):
    """A grid has no cells of that kind."""

    def __init__(self, precision: int, octaves: int) -> None:
        super().__init__(precision, octaves)
        self.precision, self.octaves = precision, octaves

    def __str__(self) -> str:
        return (
            f"found a grid of precision {self.precision} and {self.octaves} octaves; wanted a precision from 1 to 10, "
            "2 octaves or more, and at most 23 of both together, such as Grid(5, 15)"
        )


class SketchShapeError(SketchError, ValueError):
    """A tensor has other axes, or another dtype, than were wanted."""

    def __init__(self, what: str, found: Sequence[int], dtype: str, wanted: str) -> None:
        super().__init__(what, found, dtype, wanted)
        self.what, self.found, self.dtype, self.wanted = what, tuple(found), dtype, wanted

    def __str__(self) -> str:
        return f"{self.what} has the shape {list(self.found)} and the dtype {self.dtype}; wanted {self.wanted}"


class OtherFrameError(SketchError, ValueError):
    """Two sketches count in different frames or grids, so that their cells are not the same cells."""

    def __init__(self, difference: str) -> None:
        super().__init__(difference)
        self.difference = difference

    def __str__(self) -> str:
        return (
            f"these sketches cannot be merged: {self.difference}; sketch both from the same plan, "
            "which fixes one frame and one grid for all its units"
        )


class CountOverflowError(SketchError, OverflowError):
    """A sketch would hold more samples than its 32-bit cells can count."""

    def __init__(self, found: int, limit: int) -> None:
        super().__init__(found, limit)
        self.found, self.limit = found, limit

    def __str__(self) -> str:
        return (
            f"a sketch would hold {self.found} samples a neuron; it counts to {self.limit}, so sketch fewer in one law"
        )


class ExactLimitError(CountOverflowError):
    """A sketch would keep more values than it may."""

    def __str__(self) -> str:
        return (
            f"a sketch would keep {self.found} values a neuron; it keeps up to {self.limit}, so merge it instead, "
            "or turn it into a histogram first"
        )


class LostValuesError(SketchError, TypeError):
    """Values are wanted of a sketch that has only counts."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"a {self.found} cannot be folded into a sketch that keeps values: it has none any more; merge the two"


class SketchWordsError(SketchError, ValueError):
    """Words are not those of a sketch: damaged, cut, or of another grid."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"these words hold no sketch: {self.problem}; sketch the unit again"


class NoSketchError(SketchError, ValueError):
    """There is nothing to merge."""

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "found 0 sketches to merge; wanted at least 1, so start from an empty sketch of the frame"
