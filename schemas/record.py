"""How our records are written down: frozen dataclasses as canonical JSON, read back strictly.

Canonical means that equal records give equal bytes, so a record can be hashed. Strict means that a file
which is not exactly such a record is refused with the place of the first difference.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
T = TypeVar("T")

MAX_RECORD_BYTES = 64 << 20


class RecordError(ValueError):
    """A file does not hold the record that was asked for."""

    def __init__(self, place: str, found: str, wanted: str) -> None:
        super().__init__(place, found, wanted)
        self.place, self.found, self.wanted = place, found, wanted

    def __str__(self) -> str:
        return f"{self.place}: found {self.found}, wanted {self.wanted}"


def dump(record: object) -> bytes:
    """Returns a record as canonical JSON: keys sorted, UTF-8, one trailing newline.

    Raises:
        ValueError: A number is NaN or infinite, which JSON has no word for.
    """
    return (json.dumps(_plain(record), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load(cls: type[T], data: bytes) -> T:
    """Returns the record of type `cls` that `dump` wrote.

    Raises:
        RecordError: The bytes are no JSON, or a field is missing, unknown or of another type.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(cls.__name__, f"{len(data)} bytes", f"at most {MAX_RECORD_BYTES}")
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise RecordError(cls.__name__, "bytes that are no JSON", "a JSON object") from exc
    return typing.cast("T", _read(cls, tree, cls.__name__))


def digest(record: object) -> str:
    """Returns the SHA-256 of a record's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(dump(record)).hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _read(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = _expect(value, list, place)
        return tuple(_read(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(items))
    if origin in {dict, Mapping}:
        items = _expect(value, dict, place)
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in items.items()}
    if origin in {typing.Union, types.UnionType}:
        return None if value is None and type(None) in arguments else _read(arguments[0], value, place)
    if origin is typing.Literal:
        if value not in arguments:
            raise RecordError(place, repr(value), f"one of {', '.join(map(repr, arguments))}")
        return value
    if kind is Any:
        return value
    return _expect(value, kind, place)


def _read_dataclass(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    items = _expect(value, dict, place)
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    if set(items) != set(names):
        odd = sorted(set(items) ^ set(names))
        raise RecordError(place, f"the keys {', '.join(sorted(items))}", f"{', '.join(names)} (differing: {', '.join(odd)})")
    return kind(**{name: _read(hints[name], items[name], f"{place}.{name}") for name in names})


def _expect(value: Any, kind: Any, place: str) -> Any:  # noqa: ANN401
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecordError(place, f"{type(value).__name__} {str(value)[:60]!r}", kind.__name__)
    return value
