"""How our records are written down: frozen dataclasses as canonical JSON, read back strictly.

Canonical means that equal records give equal bytes, so a record can be hashed. Strict means that a file
which is not exactly such a record is refused with the place of the first difference. A sealed record carries
its own checksum, so that a changed byte is found.
"""

import base64
import binascii
import dataclasses
import hashlib
import json
import math
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

MAX_RECORD_BYTES = 64 << 20
MAX_DEPTH = 64

_INTEGERS = range(-(1 << 63), 1 << 63)
_WORDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    bytes: "bytes in base64",
}
_CHECKSUM = "checksum"


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
    tree = parse(cls.__name__, data)
    return typing.cast("T", _read(cls, tree, cls.__name__))


#: Metadata of a field that older records lack. It is written only where it is not its default.
LATER = {"later": True}


def seal(record: object) -> bytes:
    """Returns a record as `dump` does, with a ``checksum`` over the rest of it.

    Raises:
        ValueError: A number is NaN or infinite.
    """
    return dump(_plain(record) | {_CHECKSUM: digest(record)})


def unseal(cls: type[T], data: bytes) -> T:
    """Returns the record of type `cls` that `seal` wrote, byte for byte.

    Raises:
        RecordError: As `load`, or a byte is not as it was written.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise RecordError(cls.__name__, f"{len(data)} bytes", f"at most {MAX_RECORD_BYTES}")
    tree = _expect(parse(cls.__name__, data), dict, cls.__name__)
    tree.pop(_CHECKSUM, None)
    record = typing.cast("T", _read(cls, tree, cls.__name__))
    if seal(record) != data:
        raise RecordError(cls.__name__, "bytes that are not as they were written", "a record with its own checksum")
    return record


def parse(place: str, data: bytes) -> Any:  # noqa: ANN401
    """Returns what JSON says, if `dump` could have said it.

    Args:
        place: What the bytes are, for the error.
        data: UTF-8.

    Raises:
        RecordError: They are no JSON, or JSON with a key twice, numbers that are not finite, lone surrogates, or
            more than `MAX_DEPTH` levels.
    """
    try:
        tree = json.loads(data.decode(), object_pairs_hook=_once)
        _check(tree, place, MAX_DEPTH)
    except RecordError:
        raise
    except (ValueError, RecursionError) as exc:
        raise RecordError(place, "bytes that are no JSON", "a JSON object") from exc
    return tree


def digest(record: object) -> str:
    """Returns the SHA-256 of a record's canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(dump(record)).hexdigest()


def _plain(value: Any) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if not (_came_later(f) and getattr(value, f.name) == f.default)]
        return {f.name: _plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise RecordError("JSON", f"the key {_shown(twice)} twice", "each key once")
    return tree


def _check(tree: Any, place: str, depth: int) -> None:  # noqa: ANN401
    """Refuses what JSON permits and `dump` never writes."""
    if depth == 0:
        raise RecordError(place, f"more than {MAX_DEPTH} levels", "fewer")
    if isinstance(tree, float) and not math.isfinite(tree):
        raise RecordError(place, str(tree), "a finite number")
    if isinstance(tree, str):
        tree.encode()
    if isinstance(tree, list):
        for item in tree:
            _check(item, place, depth - 1)
    if isinstance(tree, dict):
        for key, item in tree.items():
            key.encode()
            _check(item, place, depth - 1)


def _read(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        items = _expect(value, list, place)
        return tuple(_read(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(items))
    if origin in {dict, Mapping}:
        items = _expect(value, dict, place)
        if typing.get_origin(arguments[0]) is typing.Literal:
            _expect_keys(items, typing.get_args(arguments[0]), place)
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in items.items()}
    if origin in {typing.Union, types.UnionType}:
        (other,) = (argument for argument in arguments if argument is not types.NoneType)
        return None if value is None else _read(other, value, place)
    if origin is typing.Literal:
        # True == 1 == 1.0, but only one of them was written.
        if not any(type(value) is type(word) and value == word for word in arguments):
            raise RecordError(place, _shown(value), f"one of {', '.join(map(repr, arguments))}")
        return value
    if kind is bytes:
        return _read_bytes(_expect(value, str, place), place)
    return value if kind is Any else _expect(value, kind, place)


def _read_bytes(value: str, place: str) -> bytes:
    try:
        return base64.b64decode(value.encode(), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RecordError(place, _shown(value), _WORDS[bytes]) from exc


def _read_dataclass(kind: Any, value: Any, place: str) -> Any:  # noqa: ANN401
    items = _expect(value, dict, place)
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind) if field.name in items or not _came_later(field)]
    _expect_keys(items, names, place)
    return kind(**{name: _read(hints[name], items[name], f"{place}.{name}") for name in names})


def _came_later(field: "dataclasses.Field[Any]") -> bool:
    return LATER.items() <= field.metadata.items()


def _expect_keys(items: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    """Refuses all keys but these, of which none may be missing."""
    missing, unknown = [name for name in names if name not in items], sorted(items.keys() - set(names))
    if missing:
        raise RecordError(place, f"no {', '.join(missing)}", f"the keys {', '.join(names)}")
    if unknown:
        raise RecordError(place, f"the unknown key {_shown(unknown[0])}", f"the keys {', '.join(names)}")


def _expect(value: Any, kind: Any, place: str) -> Any:  # noqa: ANN401
    if kind is float and type(value) is int and value in _INTEGERS:
        return float(value)
    if type(value) is not kind:
        raise RecordError(place, _shown(value), _WORDS.get(kind, kind.__name__))
    if kind is int and value not in _INTEGERS:
        raise RecordError(place, "an integer of more than 64 bits", "a smaller one")
    return value


def _shown(value: Any) -> str:  # noqa: ANN401
    if value is None or isinstance(value, dict | list):
        return _WORDS.get(type(value), "null")
    text = repr(value)
    return f"{_WORDS[type(value)]}, {text if len(text) <= 60 else text[:57] + '...'}"
