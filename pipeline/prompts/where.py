"""The conditions of a selection: which rows of a batch meet them."""

import contextlib
import functools
from collections.abc import Mapping
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import WhereError
from schemas.job import Range

Scalar: TypeAlias = bool | int | float | str
Condition: TypeAlias = Scalar | tuple[Scalar, ...] | Range

# Numbers up to here are exact as float64, whose range text is read in.
_EXACT = 2**53

# How a cell without a value is written in a text file, where a number or a truth value is expected.
_NULLS = pa.array(["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"], pa.string())


def matching(place: str, columns: Mapping[str, pa.Array], where: Mapping[str, Condition]) -> pa.BooleanArray:
    """Returns which rows meet all conditions; a row without a value in such a column does not.

    Args:
        place: The file, for errors.
        columns: The columns that conditions are on, each `[rows]`.
        where: The conditions by column; at least one.

    Raises:
        WhereError: A condition does not fit its column.
    """
    masks = [_meets(place, name, columns[name], condition) for name, condition in where.items()]
    return pc.fill_null(functools.reduce(pc.and_, masks), False)  # noqa: FBT003


def values(condition: Condition) -> tuple[Scalar, ...]:
    """Returns the values that a condition compares with."""
    if isinstance(condition, Range):
        return tuple(bound for bound in (condition.min, condition.max) if bound is not None)
    return condition if isinstance(condition, tuple) else (condition,)


def text_type(condition: Condition) -> pa.DataType:
    """Returns what a condition reads cells as that have no type of their own."""
    first, *_ = compared = values(condition)
    if isinstance(first, bool):
        return pa.bool_()
    if isinstance(first, str):
        return pa.string()
    large = any(isinstance(value, int) and abs(value) > _EXACT for value in compared)
    return pa.int64() if large else pa.float64()


def read_text(place: str, name: str, column: pa.StringArray, condition: Condition) -> pa.Array:
    """Returns a column of text as the type that its condition asks for.

    Raises:
        WhereError: A cell cannot be read as that.
    """
    kind = text_type(condition)
    if pa.types.is_string(kind):
        return column
    cells = pc.utf8_trim_whitespace(column)
    filled = pc.if_else(pc.is_in(cells, value_set=_NULLS), None, cells)
    try:
        return pc.cast(filled, kind)
    except pa.ArrowInvalid as exc:
        raise WhereError(place, name, f"text that is not {kind} throughout", values(condition)[0]) from exc


def _meets(place: str, name: str, column: pa.Array, condition: Condition) -> pa.BooleanArray:
    column = _plain(column)
    scalars = {value: _scalar(place, name, column.type, value) for value in values(condition)}
    try:
        if isinstance(condition, Range):
            low = [pc.greater_equal(column, scalars[condition.min])] if condition.min is not None else []
            high = [pc.less_equal(column, scalars[condition.max])] if condition.max is not None else []
            return functools.reduce(pc.and_, low + high)
        return functools.reduce(pc.or_, [pc.equal(column, scalar) for scalar in scalars.values()])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
        raise WhereError(place, name, str(column.type), values(condition)[0]) from exc


def _plain(column: pa.Array) -> pa.Array:
    """Returns a column in a type that Arrow compares."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_float16(column.type):
        return pc.cast(column, pa.float32())
    return pc.cast(column, pa.large_string()) if pa.types.is_string_view(column.type) else column


def _scalar(place: str, name: str, kind: pa.DataType, value: Scalar) -> pa.Scalar:
    """Returns a value as a column of type `kind` is compared with it."""
    if not _fits(kind, value):
        raise WhereError(place, name, str(kind), value)
    try:
        if pa.types.is_floating(kind):
            # Compared in the column's own precision, so that 0.1 equals what a float32 column holds of it.
            return pa.scalar(float(value), kind)
        if pa.types.is_integer(kind) and isinstance(value, int):
            with contextlib.suppress(pa.ArrowInvalid, OverflowError):
                return pa.scalar(value, kind)
        return pa.scalar(value).cast(kind) if pa.types.is_temporal(kind) else pa.scalar(value)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OverflowError) as exc:
        raise WhereError(place, name, str(kind), value) from exc


def _fits(kind: pa.DataType, value: Scalar) -> bool:
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    # Dates and times are written as text in a spec.
    text_like = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return isinstance(value, str) and (text_like or pa.types.is_temporal(kind))
