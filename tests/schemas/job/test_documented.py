"""What is written about the spec: the examples are specs, and `docs/spec.md` has every key as the models have it."""

import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.job import Job, read_job

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))

# Defaults that are no value of their own: a section of defaults, or words for what None stands for.
IN_WORDS = {
    "transport": "`linear`",
    "transport.support": "by method",
    "law": "`auto`",
    "estimation": "`simultaneous`",
    "compute.memory": "its share",
    "store.quota": "`20GiB`",
    "source.where": "`{}`",
    "model.height": "the pipeline's",
    "model.width": "the pipeline's",
}


def arguments(annotation: object) -> Iterator[object]:
    """An annotation and all that it is made of."""
    yield annotation
    for argument in typing.get_args(annotation):
        yield from arguments(argument)


def keys(section: type[BaseModel], place: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The keys of a section and of those within; the two sides have the same."""
    for name, field in section.model_fields.items():
        yield place + name, field
        if name != "target" and typing.get_origin(field.annotation) is not Mapping:
            for inner in arguments(field.annotation):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from keys(inner, f"{place}{name}.")


def default(key: str, field: FieldInfo) -> str:
    """A key's default as the document has it, empty where the key must be there or is a section of defaults."""
    if key in IN_WORDS:
        return IN_WORDS[key]
    if field.is_required() or isinstance(field.default, BaseModel):
        return ""
    if field.default is None:
        return "none"
    return f"`{field.default}`" if isinstance(field.default, str) else str(field.default)


def rows() -> list[list[str]]:
    """The cells of the document's tables whose first cell is one key."""
    text = (ROOT / "docs" / "spec.md").read_text()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| `.*$", text, re.M)]


def test_docs_list_every_key_once_with_its_default_and_its_words():
    documented = {row[0].strip("`"): row for row in rows()}
    known: dict[str, list[FieldInfo]] = {}
    for key, field in keys(Job):
        known.setdefault(key, []).append(field)
    assert sorted(row[0].strip("`") for row in rows()) == sorted(known)
    assert {key: row[2] for key, row in documented.items()} == {key: default(key, f[0]) for key, f in known.items()}
    for key, fields in known.items():
        literals = [a for f in fields for a in arguments(f.annotation) if typing.get_origin(a) is typing.Literal]
        words = {word for literal in literals for word in typing.get_args(literal)}
        missing = words - set(re.findall(r"`([^`]+)`", documented[key][1]))
        assert not missing, f"{key} takes {missing} too"


def test_there_are_examples_and_the_docs_list_them():
    listed = re.findall(r"\(\.\./examples/([^)]+)\)", (ROOT / "docs" / "spec.md").read_text())
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "examples")) for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_specs(path):
    job = read_job(path)
    assert Job.model_validate(job.model_dump(mode="json")) == job
