"""A YAML document as plain values, each with its line: so that whatever is refused later can be pointed at."""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, final

#: The way to a value from the root of a document: keys of mappings, places in lists.
Path: TypeAlias = tuple[str | int, ...]

MAX_SPEC_BYTES = 1 << 20

# YAML 1.2's core schema. YAML 1.1 would read `no` as false, `1:30` as 90 and `1e-3` as text.
_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|(false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,9})?")

#: No file name, column or hub id has these, and the system's calls fail on them.
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")


class SpecError(ValueError):
    """A job spec is refused.

    Args:
        file: The file, as it was named.
        line: Its line, from 1; None if the whole file is meant.
        key: The key with its sections, ``compute.workers``; None if no key is meant.
        problem: What was found and what was wanted.
        num_more: How many other things are wrong.
    """

    def __init__(self, file: str, line: int | None, key: str | None, problem: str, num_more: int = 0) -> None:
        super().__init__(file, line, key, problem, num_more)
        self.file, self.line, self.key, self.problem, self.num_more = file, line, key, problem, num_more

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file} line {self.line}"
        return f"{place}: {self.problem}" + (f" (and {self.num_more} more)" if self.num_more else "")


class Node(Protocol):
    """What is read of a node of a YAML library."""

    id: Any
    value: Any
    start_mark: Any


@final
@dataclass(frozen=True)
class Document:
    """A document's values.

    Args:
        file: The file it was read from.
        values: The root mapping.
        lines: The line, from 1, of each key and list item, by the way to it from the root.
    """

    file: str
    values: Mapping[str, Any]
    lines: Mapping[Path, int] = field(repr=False)


def read_text(path: pathlib.Path) -> str:
    """Returns the text of a spec.

    Raises:
        SpecError: The file cannot be read, is too large, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
        if len(data) > MAX_SPEC_BYTES:
            raise SpecError(str(path), None, None, f"it is larger than {MAX_SPEC_BYTES} bytes; wanted a job spec")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise SpecError(str(path), line, None, "the text is not UTF-8; save the file as UTF-8") from exc
    except OSError as exc:
        raise SpecError(str(path), None, None, f"it cannot be read ({exc.strerror}); wanted a job spec") from exc


def document(file: str, root: Node | None) -> Document:
    """Returns the values under a document's root node.

    Raises:
        SpecError: The root is no mapping, a key is no scalar or stands twice, or a text has unusable characters.
    """
    if root is None:
        raise SpecError(file, 1, None, "the file is empty; wanted a job spec")
    lines: dict[Path, int] = {(): root.start_mark.line + 1}
    reader = _Reader(file, lines)
    if root.id != "mapping":
        raise SpecError(file, lines[()], None, f"it holds {shown(reader.read(root, ()))}; wanted 'key: value' lines")
    return Document(file, reader.mapping(root.value, ()), lines)


@dataclass(frozen=True)
class _Reader:
    """Reads nodes, noting their lines."""

    file: str
    lines: dict[Path, int]

    def read(self, node: Node, place: Path) -> Any:  # noqa: ANN401
        """Returns the value of any node."""
        if node.id == "mapping":
            return self.mapping(node.value, place)
        if node.id == "sequence":
            return self.sequence(node.value, place)
        return self.scalar(node, place)

    def mapping(self, pairs: Sequence[tuple[Node, Node]], place: Path) -> dict[str, Any]:
        """Returns a mapping; its keys are text, whatever they look like."""
        values: dict[str, Any] = {}
        for key, node in pairs:
            line = key.start_mark.line + 1
            if key.id != "scalar":
                raise SpecError(self.file, line, dotted(place), "a key is a list or a mapping; wanted text")
            name, there = self.text(key, place), (*place, key.value)
            if name in values:
                problem = f"key {dotted(there)!r} stands twice, first on line {self.lines[there]}; keep one of the two"
                raise SpecError(self.file, line, dotted(there), problem)
            self.lines[there] = line
            values[name] = self.read(node, there)
        return values

    def sequence(self, nodes: Sequence[Node], place: Path) -> list[Any]:
        """Returns a list."""
        for i, node in enumerate(nodes):
            self.lines[(*place, i)] = node.start_mark.line + 1
        return [self.read(node, (*place, i)) for i, node in enumerate(nodes)]

    def scalar(self, node: Any, place: Path) -> Any:  # noqa: ANN401
        """Returns a scalar; quoted ones are text."""
        text = self.text(node, place)
        if node.style is not None:
            return text
        if _NULL.fullmatch(text):
            return None
        if boolean := _BOOL.fullmatch(text):
            return boolean[1] is None
        if _INT.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else text

    def text(self, node: Node, place: Path) -> str:
        """Returns a scalar as it stands there."""
        text: str = node.value
        if _UNUSABLE.search(text):
            line = node.start_mark.line + 1
            raise SpecError(
                self.file, line, dotted(place), f"{shown(text)} holds a NUL or half a character; wanted plain text"
            )
        return text


def dotted(place: Path) -> str | None:
    """Returns a place as a person writes it, ``source.path[1]``, long keys cut; None for the root."""
    text = ""
    for step in place:
        name = _cut(str(step))
        text += f"[{name}]" if isinstance(step, int) else f".{name}" if text else name
    return text or None


def shown(value: object) -> str:
    """Returns a value as it may stand in a sentence: short, and on one line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
