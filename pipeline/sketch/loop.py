"""The loop that `compiled` has compiled: plain functions of arrays and numbers, in the words that Numba knows.

It takes a few rows of a tile of neurons at a time. One sweep over them, in vector registers, finds each neuron's
extremes, sums its moments and writes its keys into a buffer, all with the scale that the neuron has so far. If a
neuron then turns out to hold values that its scale does not reach, that are not finite, or whose squares have no
room in a short sum, its values are read once more, one at a time. Then the keys are counted.

Reading in pieces changes no bit, since coarsening commutes with counting. A product and a sum are never contracted
into one rounding, and no sum of floats is reassociated. Numba computes with int32 in int64: where a narrow type
matters for speed a cast says so.

Neuron n of the tile that starts at `start` is neuron `start + n` of the frame and of the state.
"""

import math

import numpy as np

from pipeline.sketch.tiles import (
    Block,
    Floats,
    FrameTuple,
    GridTuple,
    Integer,
    Ints,
    Real,
    Span,
    StateTuple,
    Sums,
    Tile,
)

#: Digits of a moment's integer up to which the sum of the squares of a sweep, below 2^(2 · 27 + 7), fits an int64.
NEAR_BITS = 27

LIMB = 32
LIMB_MASK = (1 << LIMB) - 1

#: Digits of the lower half of an integer that is squared in two limbs, and what its cross term leaves in the upper.
HALF, HALF_MASK = 22, (1 << 22) - 1
CROSS, CROSS_MASK = LIMB - HALF - 1, (1 << (LIMB - HALF - 1)) - 1


def fold(block: Block, frame: FrameTuple, state: StateTuple, grid: GridTuple, tile: Tile) -> None:
    """Counts a block: one tile of neurons after the other, and in each of them sweep after sweep."""
    neurons, width = frame.centre.shape[0], tile.centre.shape[0]
    height = tile.keys.shape[0] // width
    for start in range(0, neurons, width):
        part = min(width, neurons - start)
        open_tile(frame, state, grid, tile, start, part)
        for row in range(0, block.rows, height):
            span = Span(row * block.stride + start, min(height, block.rows - row), start, part)
            sweep(block, span, grid, tile)
            settle(block, span, state, grid, tile)
            count(state.counts[start * grid.num :], tile.keys, span.rows, width, part)


def open_tile(frame: FrameTuple, state: StateTuple, grid: GridTuple, tile: Tile, start: Integer, part: Integer) -> None:
    """Sets the neurons' numbers, at the scale of the frame or at the one that they have reached."""
    exponents, counts = state.exponent, state.counts
    frame_centre, frame_exponent, frame_widest = frame.centre, frame.exponent, frame.widest
    frame_moment, precision, moment_bits = frame.moment_exponent, grid.precision, grid.moment_bits
    centre, scale, quanta, limit = tile.centre, tile.scale, tile.quanta, tile.limit
    widest, moment, atom = tile.widest, tile.moment, tile.atom
    for n in range(part):
        place, exponent = start + n, np.int64(exponents[start + n])
        if frame_exponent[place] > exponent:
            widen(counts, place * grid.num + grid.last, frame_exponent[place] - exponent, grid)
            exponent = np.int64(frame_exponent[place])
            exponents[place] = exponent
        centre[n], widest[n], moment[n] = frame_centre[place], frame_widest[place], frame_moment[place]
        scale[n], quanta[n] = power(precision - exponent), power(moment_bits - np.int64(moment[n]))
        limit[n] = power(reached(exponent, np.int64(widest[n]), np.int64(moment[n]), grid))
        atom[n] = n * grid.num + grid.last


def reached(exponent: Integer, widest: Integer, moment: Integer, grid: GridTuple) -> Integer:
    """Returns the binary logarithm of the distance from the centre up to which a sweep is right.

    The cells reach it, or can reach no farther, and the square of its integer has room.
    """
    near, edge = NEAR_BITS - grid.moment_bits + moment, exponent + grid.reach
    return near if exponent >= widest or near < edge else edge


def power(exponent: Integer) -> Real:
    """Returns `2^exponent` as float32, for the exponents of normal numbers."""
    return np.int32((exponent + 127) << 23).view(np.float32)


def widen(counts: Ints, atom: Integer, doublings: Integer, grid: GridTuple) -> None:
    """Coarsens the counts of the neuron whose atom is at a place, in place, as `Grid.coarsen` does again and again."""
    # A cell's target is never farther out than the cell, and what is farther in has moved already.
    unit = 1 << grid.precision
    for cell in range(1, grid.last):
        target = cell
        for _ in range(doublings):
            target = (target + 1) >> 1 if target <= 2 * unit else target - unit
            if target == 1:
                break
        right, left = counts[atom + cell], counts[atom - cell]
        counts[atom + cell] = 0
        counts[atom - cell] = 0
        counts[atom + target] += right
        counts[atom - target] += left


def sweep(block: Block, span: Span, grid: GridTuple, tile: Tile) -> None:
    """Fills the tile's extremes, sums and keys; right for the neurons within their limit."""
    begin, rows, part = span.begin, span.rows, span.width
    centre, scale, quanta, atom = tile.centre[:part], tile.scale[:part], tile.quanta[:part], tile.atom[:part]
    low, high, first, second = tile.low[:part], tile.high[:part], tile.first[:part], tile.second[:part]
    width = tile.centre.shape[0]
    low[:] = 0x7FFFFFFF
    high[:] = -0x7FFFFFFF
    first[:] = 0
    second[:] = 0
    # Two rows at once load and store the neurons' numbers half as often.
    for row in range(0, rows - 1, 2):
        here, keys = begin + row * block.stride, row * width
        values, keys_0 = block.values[here : here + part], tile.keys[keys : keys + part]
        here, keys = here + block.stride, keys + width
        others, keys_1 = block.values[here : here + part], tile.keys[keys : keys + part]
        for n in range(part):
            order_0, order_1 = order(values[n]), order(others[n])
            low[n], high[n] = min(low[n], min(order_0, order_1)), max(high[n], max(order_0, order_1))
            distance_0, distance_1 = values[n] - centre[n], others[n] - centre[n]
            steps_0, steps_1 = whole(distance_0, quanta[n]), whole(distance_1, quanta[n])
            first[n] += steps_0 + steps_1
            second[n] += steps_0 * steps_0 + steps_1 * steps_1
            keys_0[n] = np.int32(atom[n] + key(distance_0, scale[n], grid))
            keys_1[n] = np.int32(atom[n] + key(distance_1, scale[n], grid))
    if rows & 1:
        here, keys = begin + (rows - 1) * block.stride, (rows - 1) * width
        values, keys_0 = block.values[here : here + part], tile.keys[keys : keys + part]
        for n in range(part):
            order_0, distance_0 = order(values[n]), values[n] - centre[n]
            low[n], high[n] = min(low[n], order_0), max(high[n], order_0)
            steps_0 = whole(distance_0, quanta[n])
            first[n] += steps_0
            second[n] += steps_0 * steps_0
            keys_0[n] = np.int32(atom[n] + key(distance_0, scale[n], grid))


def order(value: Real) -> Integer:
    """Returns an int32 that grows with the float32, with -0.0 below 0.0 and NaN at either end."""
    return flip(np.float32(value).view(np.int32))


def flip(bits: Integer) -> Integer:
    """Returns the bits of a float32 as the int32 of `order`, and the other way round."""
    return np.int32(bits ^ np.int32(np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


def whole(distance: Real, quanta: Real) -> Integer:
    """Returns `rint(distance * quanta)`, an int64; anything where that passes an int32."""
    return np.int64(np.int32(np.rint(distance * quanta)))


def key(distance: Real, scale: Real, grid: GridTuple) -> Integer:
    """Returns the signed key of a distance, an int32 from `-last` to `last` whatever the bits."""
    steps = np.ceil(np.abs(distance) * scale)
    bits = np.float32(steps + (steps if steps > grid.unit else grid.unit)).view(np.int32)
    cell = np.int32(np.int32(bits + grid.offset) >> grid.shift)
    # What is not at the centre is not in its cell, even where the product underflows to 0.
    cell = np.int32(max(np.int32(min(cell, grid.last)), np.int32(distance != 0)))
    sign = np.int32(np.float32(distance).view(np.int32) >> np.int32(31))
    return np.int32(np.int32(cell ^ sign) - sign)


def settle(block: Block, span: Span, state: StateTuple, grid: GridTuple, tile: Tile) -> None:
    """Adds what the sweep found to the state, and reads the values of a neuron again where that is not right."""
    centre, limit, lows, highs, first, second = tile.centre, tile.limit, tile.low, tile.high, tile.first, tile.second
    lowest, highest, firsts, uppers, lowers = state.low, state.high, state.first, state.second_high, state.second_low
    for n in range(span.width):
        place, square = span.start + n, second[n]
        low, high = np.int32(flip(lows[n])).view(np.float32), np.int32(flip(highs[n])).view(np.float32)
        # NaN is the smallest or the largest of all by its bits, and within no limit; nor are infinities.
        if abs(low - centre[n]) <= limit[n] and abs(high - centre[n]) <= limit[n]:
            stretch(lowest, highest, place, low, high)
            add(firsts, uppers, lowers, place, first[n], square >> LIMB, square & LIMB_MASK)
        else:
            reread(block, span, n, state, grid, tile)


def stretch(lows: Floats, highs: Floats, place: Integer, low: Real, high: Real) -> None:
    """Widens a neuron's extremes to hold two values."""
    # Adding 0 makes -0.0 to 0.0.
    lows[place] = min(lows[place], low + np.float32(0.0))
    highs[place] = max(highs[place], high + np.float32(0.0))


def add(
    firsts: Sums, uppers: Sums, lowers: Sums, place: Integer, first: Integer, upper: Integer, lower: Integer
) -> None:
    """Adds to a neuron's moments, and carries from the lower limb of the squares to the upper."""
    lower += lowers[place]
    firsts[place] += first
    uppers[place] += upper + (lower >> LIMB)
    lowers[place] = lower & LIMB_MASK


def reread(block: Block, span: Span, n: Integer, state: StateTuple, grid: GridTuple, tile: Tile) -> None:
    """Counts what is not finite apart, widens the neuron as far as the rest needs, and keys it value by value."""
    values, begin, stride, place = block.values, span.begin + n, block.stride, span.start + n
    keys, width, lows, highs = tile.keys, tile.centre.shape[0], state.low, state.high
    centre, quanta, atom, farthest = tile.centre[n], tile.quanta[n], tile.atom[n], np.float32(0.0)
    for row in range(span.rows):
        value = values[begin + row * stride]
        if math.isfinite(value):
            stretch(lows, highs, place, value, value)
            farthest = max(farthest, abs(value - centre))
    rescale(place, n, farthest, state, grid, tile)
    scale = tile.scale[n]
    for row in range(span.rows):
        value = values[begin + row * stride]
        keys[row * width + n] = np.int32(atom + key(value - centre, scale, grid))
        if math.isfinite(value):
            add_far(state, place, np.rint((value - centre) * quanta), grid)
        else:
            # It is keyed as the centre, of which the count is told here.
            keys[row * width + n] = atom
            state.counts[place * grid.num + grid.last] -= 1
            count_apart(state, place, value)


def rescale(place: Integer, n: Integer, farthest: Real, state: StateTuple, grid: GridTuple, tile: Tile) -> None:
    """Widens a neuron until its cells reach a distance, or as far as it may."""
    exponent, widest = np.int64(state.exponent[place]), np.int64(tile.widest[n])
    need = widest
    if not math.isinf(farthest):
        fraction, binary = math.frexp(farthest)
        reach = np.int64(binary - grid.reach - (1 if fraction == 0.5 else 0))
        need = min(widest, reach)
    if need > exponent and farthest > 0:
        widen(state.counts, place * grid.num + grid.last, need - exponent, grid)
        state.exponent[place] = need
        tile.scale[n] = power(grid.precision - need)
        tile.limit[n] = power(reached(need, widest, np.int64(tile.moment[n]), grid))


def count_apart(state: StateTuple, place: Integer, value: np.float32) -> None:
    """Counts a value that is not finite."""
    if math.isnan(value):
        state.nans[place] += 1
    elif value > 0:
        state.plus_infs[place] += 1
    else:
        state.minus_infs[place] += 1


def add_far(state: StateTuple, place: Integer, steps: Real, grid: GridTuple) -> None:
    """Adds one integer of any size to the moments: its square is put together from its two halves."""
    if np.abs(steps) >= grid.far:
        state.far[place] += 1
        return
    whole_steps = np.int64(steps)
    high, low = whole_steps >> HALF, whole_steps & HALF_MASK
    cross, square = high * low, low * low
    upper = (high * high << (2 * HALF - LIMB)) + (cross >> CROSS) + (square >> LIMB)
    lower = ((cross & CROSS_MASK) << (HALF + 1)) + (square & LIMB_MASK)
    add(state.first, state.second_high, state.second_low, place, whole_steps, upper, lower)


def count(counts: Ints, keys: Ints, rows: Integer, width: Integer, part: Integer) -> None:
    """Adds 1 to the cell of each key."""
    for row in range(rows):
        for n in range(row * width, row * width + part):
            # An index without a sign: Numba does not look whether it counts from the end.
            counts[np.uint32(keys[n])] += 1


#: What `fold` calls, itself or through others.
CALLED = (
    open_tile, reached, power, widen, sweep, order, flip, whole, key, settle, stretch, add, reread, rescale,
    count_apart, add_far, count,
)  # fmt: skip
