"""From a YAML file to a job."""

import typing
from pathlib import Path

import yaml
from pydantic import ValidationError

from schemas.document import Node, SpecError, document, read_text
from schemas.job.spec import Job
from schemas.refusal import refusal

MAX_SPEC_DEPTH = 16
MAX_SPEC_EVENTS = 10_000


def read_job(path: Path) -> Job:
    """Returns the job that a YAML file describes.

    Raises:
        SpecError: The file is no spec; the error names the line, the key, and what was wanted there.
    """
    spec = document(str(path), _compose(str(path), read_text(path)))
    try:
        return Job.model_validate(spec.values)
    except ValidationError as exc:
        raise refusal(spec, exc.errors(), Job) from exc


def _compose(file: str, text: str) -> Node | None:
    """Returns the root node of a document that is plain: no aliases, no anchors, no tags, no deep nesting."""
    try:
        depth = 0
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if number > MAX_SPEC_EVENTS:
                raise SpecError(file, None, None, f"found more than {MAX_SPEC_EVENTS:,} keys and values; wanted fewer")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            exotic = isinstance(event, yaml.NodeEvent) and (event.anchor or getattr(event, "tag", None))
            if exotic or depth > MAX_SPEC_DEPTH:
                problem = "an alias, an anchor or a tag" if exotic else f"more than {MAX_SPEC_DEPTH} levels"
                line = event.start_mark.line + 1 if event.start_mark else None
                raise SpecError(file, line, None, f"found {problem}; wanted plain keys and values")
        return typing.cast("Node | None", yaml.compose(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else None
        raise SpecError(file, line, None, f"it is not valid YAML: {exc.problem}; wanted 'key: value' lines") from exc
    except yaml.YAMLError as exc:
        raise SpecError(file, None, None, f"it is not valid YAML: {str(exc).splitlines()[0]}") from exc
