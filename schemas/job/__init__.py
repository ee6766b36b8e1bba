"""The job spec: what a person writes, in YAML, to have a steer fitted.

`read_job` is the way in. Only this package imports pydantic and YAML; `schemas.document` holds the values with their
lines, `schemas.refusal` words what is refused. A field's `description` ends the sentence "wanted …". `docs/spec.md`
lists every key.
"""

from schemas.document import SpecError
from schemas.job.model import HUB_ID, CausalLM, TextToImage
from schemas.job.prompts import Range, Side
from schemas.job.read import read_job
from schemas.job.section import from_base
from schemas.job.spec import PADDING, Compute, Failures, Job, Law, Store
from schemas.job.transport import DetZero, Selection, Transport

__all__ = [
    "HUB_ID",
    "PADDING",
    "CausalLM",
    "Compute",
    "DetZero",
    "Failures",
    "Job",
    "Law",
    "Range",
    "Selection",
    "Side",
    "SpecError",
    "Store",
    "TextToImage",
    "Transport",
    "from_base",
    "read_job",
]
