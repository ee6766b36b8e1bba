"""A sketch as 32-bit integers, so that an array of integers stores it exactly.

A neuron's row holds what was kept of its values, counts or the values' bits, and after it `EXTRA_WORDS` words that
say the rest: what kind of row it is, its frame, its scale, extremes, moments and what was not finite. A row can be
read without the others.
"""

import torch

from pipeline.sketch.arrays import MAX_EXPONENT, MIN_EXPONENT, SketchArrays
from pipeline.sketch.errors import SketchWordsError
from pipeline.sketch.frame import Frame
from pipeline.sketch.grid import Grid

#: First byte of the word that says what kind of row it is.
MAGIC = 0x53

#: Words of a row after its counts: 1 for the kind, 4 for the frame and 12 for the rest of the state.
EXTRA_WORDS = 17

FRAME_WORDS = 5

WORD_MASK = (1 << 32) - 1


def kind_word(kind: int, grid: Grid) -> int:
    """Returns the word that says what a row holds: a kind of sketch, from 1 to 255, and its grid."""
    return MAGIC << 24 | kind << 16 | grid.precision << 8 | grid.octaves


def frame_words(kind: int, frame: Frame, grid: Grid) -> list[torch.Tensor]:
    """Returns the word of the kind and the words of the frame, five of `[neurons, 1]`, int32."""
    kinds = torch.full_like(frame.exponent, kind_word(kind, grid))
    parts = (kinds, frame.centre.view(torch.int32), frame.exponent, frame.widest, frame.moment_exponent)
    return [part[:, None] for part in parts]


def read_frame(words: torch.Tensor, kind: int, grid: Grid) -> Frame:
    """Returns the frame of rows, given their words from the one that says the kind.

    Raises:
        SketchWordsError: They are rows of another kind or grid, or no frame.
    """
    wanted = kind_word(kind, grid)
    for found in words[:, 0][words[:, 0] != wanted].tolist():
        raise SketchWordsError(f"found the mark {found & WORD_MASK:08x}, wanted {wanted:08x}, {kind=} of {grid}")
    frame = Frame(
        words[:, 1].clone().view(torch.float32),
        *(words[:, place].clone() for place in range(2, FRAME_WORDS)),
    )
    _refuse("a centre that is not finite", ~frame.centre.isfinite())
    _refuse("an exponent out of range", _outside(frame.exponent, MIN_EXPONENT, frame.widest))
    _refuse("a widest exponent out of range", frame.widest > MAX_EXPONENT)
    _refuse("a moment exponent out of range", _outside(frame.moment_exponent, MIN_EXPONENT, MAX_EXPONENT))
    return frame


def state_words(state: SketchArrays) -> list[torch.Tensor]:
    """Returns the words of a state other than its counts, `[neurons, 1]` or `[neurons, 2]` each, int32."""
    ends = (state.exponent, state.low.view(torch.int32), state.high.view(torch.int32))
    # What was not finite, and what is far, is at most as many as there are samples, below 2^31.
    small = (_word(state.second_low), state.nans.int(), state.plus_infs.int(), state.minus_infs.int(), state.far.int())
    return [
        *(part[:, None] for part in ends),
        *(torch.stack([_word(part), _word(part >> 32)], dim=1) for part in (state.first, state.second_high)),
        *(part[:, None] for part in small),
    ]


def read_state(counts: torch.Tensor, words: torch.Tensor, frame: Frame) -> SketchArrays:
    """Returns the state of rows, given their counts and their words after the frame: a copy, which may be updated.

    Raises:
        SketchWordsError: They are not what any sketch holds.
    """
    nans, plus_infs, minus_infs, far = (words[:, place].long() for place in range(8, 12))
    state = SketchArrays(
        exponent=words[:, 0].clone(),
        counts=counts.clone(memory_format=torch.contiguous_format),
        low=words[:, 1].clone().view(torch.float32),
        high=words[:, 2].clone().view(torch.float32),
        first=_wide(words[:, 3:5]),
        second_high=_wide(words[:, 5:7]),
        second_low=words[:, 7].long() & WORD_MASK,
        nans=nans,
        plus_infs=plus_infs,
        minus_infs=minus_infs,
        far=far,
    )
    _refuse("an exponent outside its frame", _outside(state.exponent, frame.exponent, frame.widest))
    _check_counts(state)
    return state


def _check_counts(state: SketchArrays) -> None:
    finite = state.counts.sum(dim=1)
    samples = finite + state.nans + state.plus_infs + state.minus_infs
    _refuse("a count below 0", (state.counts < 0).any(dim=1))
    _refuse("another number of samples than its first neuron", samples != samples[:1])
    _refuse("extremes that do not belong to its counts", (state.low <= state.high) != (finite > 0))


def _word(whole: torch.Tensor) -> torch.Tensor:
    """Returns the lower 32 bits of integers, int64, as int32."""
    low = whole & WORD_MASK
    return torch.where(low < 1 << 31, low, low - (1 << 32)).int()


def _wide(words: torch.Tensor) -> torch.Tensor:
    """Returns the integers of two words each, `[neurons, 2]`, int64, the lower word first."""
    return (words[:, 1].long() << 32) | (words[:, 0].long() & WORD_MASK)


def _outside(found: torch.Tensor, low: torch.Tensor | int, high: torch.Tensor | int) -> torch.Tensor:
    return (found < low) | (found > high)


def _refuse(problem: str, wrong: torch.Tensor) -> None:
    if wrong.any():
        raise SketchWordsError(f"neuron {int(wrong.nonzero()[0])} has {problem}")
