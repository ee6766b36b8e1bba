"""The inputs of a run as a file system tells them: so a finished run is known again without reading its prompts."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from pyarrow import fs

from pipeline import machine
from pipeline.errors import InputError
from pipeline.folder import INPUTS
from pipeline.models import files
from pipeline.prompts.files import find_files
from pipeline.storage import AbstractStorage
from schemas import record
from schemas.job import Job
from schemas.plan import Plan


@final
@dataclass(frozen=True)
class InputFile:
    """A file, as it lay there.

    Args:
        path: Its absolute path.
        size: Its size in bytes.
        modified: When it was modified last, in nanoseconds.
    """

    path: str
    size: int
    modified: int


@final
@dataclass(frozen=True)
class Inputs:
    """What a run is made of.

    Args:
        spec: SHA-256 of the spec.
        files: The files of its prompts, its model and the steer that it starts from.
    """

    spec: str
    files: tuple[InputFile, ...]

    @classmethod
    def of(cls, located: Job, spec: bytes) -> "Inputs | None":
        """Returns the inputs of a job as they are now; None where no disk of this machine tells: they are read then.

        Args:
            located: The job, with absolute paths.
            spec: The file that it was read from.
        """
        if located.extends is not None:
            return None
        try:
            found = tuple(map(_seen, _paths(located)))
        except (InputError, OSError, ValueError):
            return None
        return cls(hashlib.sha256(spec).hexdigest(), found)

    @classmethod
    def written(cls, storage: AbstractStorage) -> "Inputs | None":
        """Returns what a run was made of, or None if that is not known."""
        try:
            return record.unseal(cls, storage.read(INPUTS))
        except (FileNotFoundError, record.RecordError):
            return None

    def write(self, storage: AbstractStorage) -> None:
        """Writes down what a finished run was made of.

        Raises:
            StoreError: The storage refuses.
        """
        if Inputs.written(storage) != self:
            storage.write(INPUTS, record.seal(self))


def same_numerics(plan: Plan) -> bool:
    """Returns whether this machine computes the bits of a plan."""
    wanted = plan.numerics
    device = machine.pick_device(plan.spec["compute"]["device"])
    return machine.numerics(device, wanted.dtype, wanted.threads, wanted.attention) == wanted


def _paths(located: Job) -> Iterator[Path]:
    """Yields the files that a job reads.

    Raises:
        ValueError: One is not on a disk of this machine.
    """
    for side in (located.source, located.target):
        for file in find_files(side.path):
            if not isinstance(file.filesystem, fs.LocalFileSystem):
                raise ValueError(file.place)
            yield Path(file.path)
    model = located.model
    folder = files.find_folder(model.path, model.revision, getattr(model, "gguf_file", None))
    yield from _files(folder)
    if located.estimation.start is not None:
        yield from _files(Path(located.estimation.start).resolve())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _seen(path: Path) -> InputFile:
    status = path.stat()
    return InputFile(str(path), status.st_size, status.st_mtime_ns)
