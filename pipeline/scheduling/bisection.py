"""Bisection: which rows of a micro-batch end its worker, from probes with some of the rows alone."""

from collections.abc import Generator

Rows = tuple[int, ...]

#: Yields the rows to probe next, takes whether the probe ended its worker, and returns the rows that are to blame.
Search = Generator[Rows, bool, Rows]

#: Searches before the micro-batch is held for harmless. A worker that dies by chance can lead one astray.
SEARCHES = 2


def culprits(rows: Rows) -> Search:
    """Searches the least set of rows that ends a worker; an empty one if nothing does.

    One culprit among n rows takes ``ceil(log2 n)`` probes and two that confirm it. Nobody is blamed for a single death:
    the set that is returned has ended two workers with no other row beside it.

    Args:
        rows: The rows, at least one.
    """
    suspect = yield from _one(rows)
    if (yield from _confirmed(suspect)):
        return suspect
    for _ in range(SEARCHES):
        if not ((yield rows) or (yield rows)):
            return ()
        least = yield from _least(rows, ())
        if (yield from _confirmed(least)):
            return least
    return ()


def _one(rows: Rows) -> Search:
    """Halves the rows as if one of them alone were to blame."""
    while len(rows) > 1:
        half = len(rows) // 2
        rows = rows[:half] if (yield rows[:half]) else rows[half:]
    return rows


def _least(rows: Rows, beside: Rows) -> Search:
    """Returns the least part of the rows that ends a worker together with the rows beside it (Zeller's ``dd``).

    Where neither half does, something of both is needed: the least of the left half beside the right one, and then the
    least of the right half beside that.
    """
    if len(rows) == 1:
        return rows
    left, right = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for half in (left, right):
        if (yield _sorted(half, beside)):
            return (yield from _least(half, beside))
    found = yield from _least(left, _sorted(right, beside))
    return _sorted(found, (yield from _least(right, _sorted(found, beside))))


def _confirmed(rows: Rows) -> Generator[Rows, bool, bool]:
    return (yield rows) and (yield rows)


def _sorted(some: Rows, others: Rows) -> Rows:
    return tuple(sorted(some + others))
