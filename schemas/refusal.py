"""Words what pydantic refuses in a job spec: one sentence that says where, what was found and what was wanted."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from schemas.document import Document, Path, SpecError, dotted, shown

# Of so many errors the first is looked for: a file has room for many more, and to word one takes a millisecond.
_MOST_ERRORS = 100

# Longer texts are near to no word of ours, and finding that out would take seconds.
_LONGEST_WORD = 100

# What others call our words, where the letters alone would not lead there.
_ALSO_CALLED = {"avg": "mean", "average": "mean", "half": "float16", "fp16": "float16", "fp32": "float32"}


@final
class ConflictError(ValueError):
    """A key of a section does not go with what stands in another section.

    Args:
        key: The key, within the section whose validator raises.
        wanted: What was wanted there.
    """

    def __init__(self, key: str, wanted: str) -> None:
        super().__init__(key, wanted)
        self.key, self.wanted = key, wanted

    def __str__(self) -> str:
        return self.wanted


@final
@dataclass(frozen=True)
class _Finding:
    """One thing that is wrong.

    Args:
        place: The key that is wrong, missing or unknown.
        missing: The key is not there.
        problem: The sentence.
    """

    place: Path
    missing: bool
    problem: str


def refusal(spec: Document, errors: Sequence[Mapping[str, Any]], job: type) -> SpecError:
    """Returns the error that names the first thing that is wrong in a spec.

    Missing keys come last: often they are there, misspelt.

    Args:
        spec: The document.
        errors: What `pydantic.ValidationError.errors` lists.
        job: The model that the document was validated as.
    """
    findings: dict[Path, _Finding] = {}
    for error in errors[:_MOST_ERRORS]:
        finding = _finding(spec, error, job)
        findings.setdefault(finding.place, finding)
    # Of a union, pydantic lists what each member misses: what is wrong with the whole says it best.
    whole = [f for f in findings.values() if not any(f.place[:n] in findings for n in range(1, len(f.place)))]
    first = min(whole, key=lambda f: (f.missing, _line(spec, f.place)))
    num_more = len(whole) - 1 + len(errors[_MOST_ERRORS:])
    return SpecError(spec.file, _line(spec, first.place), dotted(first.place), first.problem, num_more)


def _line(spec: Document, place: Path) -> int:
    """Returns the line of a key, or of the nearest section around it that is there."""
    return next(spec.lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in spec.lines)


def _finding(spec: Document, error: Mapping[str, Any], job: type) -> _Finding:
    kind, value = error["type"], error["input"]
    section, _ = _walk(job, error["loc"][:-1])
    _, field = _walk(job, error["loc"])
    place = _place(spec.values, error["loc"], section)
    if kind == "extra_forbidden":
        return _Finding(place, missing=False, problem=_unknown(place, section, job))
    if kind == "missing":
        return _Finding(
            place, missing=True, problem=f"key {dotted(place)!r} is missing; wanted {_wanted(field, _words(field))}"
        )
    if kind in {"union_tag_not_found", "union_tag_invalid"}:
        key = str(error["ctx"]["discriminator"]).strip("'")
        words = tuple(word for option in _sections(field.annotation) for word in _words(_fields(option)[key]))
        place = (*place, key)
        if kind == "union_tag_not_found":
            return _Finding(
                place, missing=True, problem=f"key {dotted(place)!r} is missing; wanted {_wanted(None, words)}"
            )
        return _Finding(place, missing=False, problem=_wrong(place, value[key], None, words))
    if kind == "value_error":
        cause = error["ctx"]["error"]
        if isinstance(cause, ConflictError) and isinstance(value, Mapping):
            place, value = (*place, cause.key), value[cause.key]
        return _Finding(place, missing=False, problem=f"{dotted(place)!r} is {shown(value)}; wanted {cause}")
    return _Finding(place, missing=False, problem=_wrong(place, value, field, _words(field)))


def _place(values: Mapping[str, Any], loc: Path, section: type) -> Path:
    """Returns the steps of pydantic's `loc` that are keys, without those that name a member of a union."""
    place: Path = ()
    here: Any = values
    for step in loc:
        known = range(len(here)) if isinstance(here, list) else here if isinstance(here, dict) else ()
        if step in known:
            here = here[step]
            place = (*place, step)
    absent = len(loc) > len(place) and loc[-1] in _fields(section) and place[-1:] != loc[-1:]
    return (*place, loc[-1]) if absent else place


def _walk(job: type, loc: Path) -> tuple[type, Any]:
    """Returns the section that `loc` leads into, and the last field that it passes."""
    section, field = job, None
    options: tuple[type, ...] = ()
    for step in loc:
        tagged = [option for option in options if any(step in _words(f) for f in _fields(option).values())]
        if tagged:
            section, options = tagged[0], ()
        elif isinstance(step, str) and step in _fields(section):
            field = _fields(section)[step]
            options = tuple(_sections(field.annotation))
            section = options[0] if len(options) == 1 else section
    return section, field


def _fields(section: type) -> Mapping[str, Any]:
    """Returns a pydantic model's fields."""
    return typing.cast("Mapping[str, Any]", getattr(section, "model_fields", {}))


def _sections(annotation: Any) -> Iterator[type]:  # noqa: ANN401
    """Yields the models within an annotation."""
    if isinstance(annotation, type) and _fields(annotation):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections(argument)


def _words(field: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Returns the fixed vocabulary of a field, empty if it has none."""
    return tuple(_literals(field.annotation)) if field is not None else ()


def _literals(annotation: Any) -> Iterator[Any]:  # noqa: ANN401
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        for argument in typing.get_args(annotation):
            yield from _literals(argument)


def _wanted(field: Any, words: Sequence[Any]) -> str:  # noqa: ANN401
    if field is not None and field.description:
        return str(field.description)
    if words:
        return ("one of " if len(words) > 1 else "") + ", ".join(map(str, words))
    keys = [key for section in _sections(field.annotation) for key in _fields(section)]
    return f"a section with keys of {', '.join(dict.fromkeys(keys))}"


def _wrong(place: Path, value: object, field: Any, words: Sequence[Any]) -> str:  # noqa: ANN401
    """Words a value that is not what was wanted."""
    key = dotted(place)
    return f"{key!r} is {shown(value)}; wanted {_wanted(field, words)}{_hint(value, words, 0.5)}"


def _unknown(place: Path, section: type, job: type) -> str:
    """Words an unknown key: who else takes it, or the nearest one here or, failing that, anywhere."""
    key, known = str(place[-1]), tuple(_fields(section))
    found = shown(key)
    where = f"under {dotted(place[:-1])!r}" if len(place) > 1 else "at the top"
    hint = _kinds(place, job) or _elsewhere(place, job, 1) or _hint(key, known, 0.6) or _elsewhere(place, job, 0.6)
    return f"unknown key {found} {where}; wanted one of {', '.join(known)}{hint}"


def _kinds(place: Path, job: type) -> str:
    """Says for which kinds of its section a key is, empty if for none."""
    _, field = _walk(job, place[:-1])
    options = [s for s in _sections(field.annotation) if place[-1] in _fields(s)] if field is not None else []
    kinds = [str(kind) for option in options for kind in next(filter(None, map(_words, _fields(option).values())), ())]
    return f"; {shown(place[-1])} is for {', '.join(kinds)}" if kinds else ""


def _elsewhere(place: Path, job: type, cutoff: float) -> str:
    """Asks for the nearest key in another place, empty if none is near."""
    homes: dict[str, Path] = {}
    for home in sorted(_homes(job), key=len):
        if home != place:
            homes.setdefault(str(home[-1]), home)
    nearest = _nearest(str(place[-1]), list(homes), cutoff)
    return f"; did you mean {dotted(homes[nearest[0]])!r}?" if nearest else ""


def _homes(section: type, place: Path = ()) -> Iterator[Path]:
    """Yields the place of each key of a section and of those within it; keys that a person makes up have none."""
    for name, field in _fields(section).items():
        yield (*place, name)
        if typing.get_origin(field.annotation) is not Mapping:
            for inner in _sections(field.annotation):
                yield from _homes(inner, (*place, name))


def _hint(value: object, words: Sequence[Any], cutoff: float) -> str:
    """Returns the nearest of some words as a question, empty if none is near."""
    known = [str(word) for word in words]
    if not isinstance(value, str):
        return ""
    alias = _ALSO_CALLED.get(value.lower())
    nearest = [alias] if alias in known else _nearest(value.lower(), known, cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _nearest(text: str, words: Sequence[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(text, words, n=1, cutoff=cutoff) if len(text) <= _LONGEST_WORD else []
