"""What seeds are made of: a record of any kind with every field filled in, and two steers."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.steers import make_quantile_steer, make_steer

ONE = {"model.norm@2": 4}

_LEAVES: Mapping[Any, Any] = {str: "a", int: 1, float: 0.5, bool: True, bytes: b"\1\0\0\0", Any: {"a": [1, None]}}


def example(kind: Any) -> Any:  # noqa: ANN401
    """Returns a value of a record's type, as deep as the type goes."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{field.name: example(hints[field.name]) for field in dataclasses.fields(kind)})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return (example(arguments[0]),)
    if origin is typing.Literal:
        return arguments[0]
    if origin in {dict, Mapping}:
        words = typing.get_origin(arguments[0]) is typing.Literal
        return dict.fromkeys(typing.get_args(arguments[0]) if words else [example(arguments[0])], example(arguments[1]))
    if origin in {typing.Union, types.UnionType}:
        return example(next(one for one in arguments if one is not types.NoneType))
    return _LEAVES[kind]


def save_steers(folder: Path) -> tuple[Path, Path]:
    """Saves an affine steer and one with knots, and returns their folders."""
    make_steer(ONE).save(folder / "affine")
    make_quantile_steer(ONE).save(folder / "quantile")
    return folder / "affine", folder / "quantile"
