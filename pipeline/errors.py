"""Errors of `pipeline`.

```
PipelineError
├── InputError               ValueError         the input is refused, and nothing was written
│   ├── PromptFileNotFoundError  FileNotFoundError  there is no prompt file or folder at that place
│   ├── PromptFileError                         a prompt file cannot be read to its end
│   ├── ColumnNotFoundError  LookupError        a prompt file has no column of that name
│   ├── WhereError                              a condition does not fit its column
│   ├── EmptySelectionError                     a side selects no prompts
│   ├── ModelNotFoundError   FileNotFoundError  there is no model at that place, or it has no weights
│   ├── ModelLoadError                          the model's files cannot be loaded
│   ├── TemplateError                           the model has no chat template
│   ├── PromptLengthError                       max_tokens is more than the model has positions for
│   ├── DeviceError                             this machine lacks the device
│   ├── MemoryPlanError                         a worker cannot hold the model and a unit, or a reducer its laws
│   ├── PairsPlanError                          the sides of actadd are no contrast pairs
│   ├── ExactLawError                           exact laws of so many samples cannot be held
│   ├── SampleCountError                        a side has more samples than a sketch can count
│   ├── QuotaError                              the activations would pass the quota
│   ├── OtherPlanError                          the run folder holds a run of another plan
│   └── RunNotFoundError     FileNotFoundError  the folder holds no run
├── LossError                                   too many prompts failed
│   └── NothingLeftError                        every prompt of a side failed
├── StorageError             OSError            storage failed
│   ├── StoreError                              a write was refused
│   └── DamagedRunError                         what was written is not what is read
└── ResumableError           RuntimeError       the run stopped, and the same command resumes it
    ├── WorkerLostError                         workers died on one unit again and again
    ├── ClusterError                            Ray cannot be started or joined
    ├── OtherNumericsError                      a worker computes another class of bits than the plan
    └── RunBusyError                            another process works on the run
```

Each constructor passes its own arguments on, so that an error keeps its type between processes, and `__str__`
says what was found, what was wanted and what to do.
"""

import difflib
from collections.abc import Sequence

from schemas.plan import Memory


class PipelineError(Exception):
    """Anything that `pipeline` refuses or fails at."""


class InputError(PipelineError, ValueError):
    """The input is refused, and nothing was written."""


class PromptFileNotFoundError(InputError, FileNotFoundError):
    """There is no prompt file or folder at that place.

    Args:
        place: The absolute path, or the URL, that was tried.
    """

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place

    def __str__(self) -> str:
        return f"no prompt file or folder at {self.place}; relative paths start at the folder of the spec"


class PromptFileError(InputError):
    """A prompt file, or a folder of them, cannot be read to its end.

    Args:
        place: The file.
        problem: What is wrong with it and what was wanted, as the end of a sentence.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(place, problem)
        self.place, self.problem = place, problem

    def __str__(self) -> str:
        return f"prompts cannot be read from {self.place}: {self.problem}"


class ColumnNotFoundError(InputError, LookupError):
    """A prompt file has no column of that name, or none was named.

    Args:
        place: The file.
        column: The column that was asked for; None if none was named.
        columns: The columns that there are.
    """

    def __init__(self, place: str, column: str | None, columns: Sequence[str]) -> None:
        super().__init__(place, column, columns)
        self.place, self.column, self.columns = place, column, tuple(columns)

    def __str__(self) -> str:
        there = ", ".join(self.columns[:20]) + (", …" if len(self.columns) > 20 else "")
        if self.column is None:
            return f"no column was named for {self.place}; add 'column:' with one of {there}"
        nearest = difflib.get_close_matches(self.column, self.columns, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return f"no column {self.column!r} in {self.place}; wanted one of {there}{hint}"


class WhereError(InputError):
    """A condition does not fit its column.

    Args:
        place: The file.
        column: The column.
        found: What the column holds.
        value: The value that the condition compares it with.
    """

    def __init__(self, place: str, column: str, found: str, value: object) -> None:
        super().__init__(place, column, found, value)
        self.place, self.column, self.found, self.value = place, column, found, value

    def __str__(self) -> str:
        return (
            f"column {self.column!r} of {self.place} holds {self.found}, which cannot be compared with {self.value!r} "
            f"({type(self.value).__name__}); write a value of the column's type under 'where'"
        )


class EmptySelectionError(InputError):
    """A side selects no prompts.

    Args:
        places: Its files.
        num_rows: How many rows they have.
        where: The conditions, as the spec has them.
    """

    def __init__(self, places: Sequence[str], num_rows: int, where: str) -> None:
        super().__init__(places, num_rows, where)
        self.places, self.num_rows, self.where = tuple(places), num_rows, where

    def __str__(self) -> str:
        files = self.places[0] if len(self.places) == 1 else f"{self.places[0]} and {len(self.places) - 1} more files"
        if not self.num_rows:
            return f"no prompts in {files}: there are no rows; name files that have some"
        return (
            f"none of the {self.num_rows} rows of {files} is selected by where: {self.where}; "
            "loosen the conditions or correct their values"
        )


class ModelNotFoundError(InputError, FileNotFoundError):
    """There is no model at that place, or it has no weights."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return (
            f"no model at {self.path}: {self.problem}; wanted a folder with config.json and *.safetensors, or a hub id"
        )


class ModelLoadError(InputError):
    """The model's files are there but cannot be loaded."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"the model at {self.path} cannot be loaded: {self.problem}"


class TemplateError(InputError):
    """The spec wants the chat template of a model that has none."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"the tokenizer of {self.path} has no chat template, which template: chat needs; write template: plain"


class PromptLengthError(InputError):
    """The spec lets prompts grow longer than the model has positions for.

    Args:
        path: The model.
        max_tokens: What the spec allows.
        limit: Positions that the model has.
    """

    def __init__(self, path: str, max_tokens: int, limit: int) -> None:
        super().__init__(path, max_tokens, limit)
        self.path, self.max_tokens, self.limit = path, max_tokens, limit

    def __str__(self) -> str:
        return (
            f"compute.max_tokens is {self.max_tokens}, but the model at {self.path} has positions for {self.limit} "
            f"tokens; write max_tokens: {self.limit} or less"
        )


class DeviceError(InputError):
    """This machine lacks the device."""

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.device = device

    def __str__(self) -> str:
        return (
            f"the device is to be {self.device!r}, which is not here, or has a number although Ray deals out the GPUs; "
            "write auto or cpu"
        )


class MemoryPlanError(InputError):
    """A worker cannot hold the model, a forward and a unit, or the reducers their laws.

    Args:
        memory: What was planned.
    """

    def __init__(self, memory: Memory) -> None:
        super().__init__(memory)
        self.memory = memory

    def __str__(self) -> str:
        parts = ("weights", "forward", "block", "sketch", "reducer", "available")
        weights, forward, block, sketch, reducer, available = (
            f"{getattr(self.memory, part) / 2**30:.2f} GiB" for part in parts
        )
        reducers = f", and a reducer needs {reducer} beside it" if self.memory.reducer else ""
        return (
            f"a worker needs {weights} for weights, {forward} for a forward, twice {block} for a unit's "
            f"activations and {sketch} for its sketches{reducers}, but has {available}; take fewer workers, a smaller "
            "unit_size or batch_tokens, fewer hookpoints, or a smaller dtype"
        )


class PairsPlanError(InputError):
    """The sides of ``actadd`` are no contrast pairs."""

    def __init__(self, num_source: int, num_target: int) -> None:
        super().__init__(num_source, num_target)
        self.num_source, self.num_target = num_source, num_target

    def __str__(self) -> str:
        return (
            f"found {self.num_source:,} source and {self.num_target:,} target prompts for actadd's contrast pairs; "
            "wanted as many of both, and a pooling that gives one sample a prompt; without pairs take caa"
        )


class ExactLawError(InputError):
    """Exact laws of so many samples cannot be held."""

    def __init__(self, num_samples: int, needed: int, available: int) -> None:
        super().__init__(num_samples, needed, available)
        self.num_samples, self.needed, self.available = num_samples, needed, available

    def __str__(self) -> str:
        return (
            f"exact laws of {self.num_samples:,} samples a side need {self.needed / 2**30:.2f} GiB for the widest "
            f"hookpoint, and there are {self.available / 2**30:.2f} GiB; take `law: {{kind: sketch}}`, or fewer prompts"
        )


class SampleCountError(InputError):
    """A side has more samples than a sketch can count."""

    def __init__(self, found: int, most: int) -> None:
        super().__init__(found, most)
        self.found, self.most = found, most

    def __str__(self) -> str:
        return (
            f"a side has {self.found:,} samples, and a sketch counts at most {self.most:,}; take fewer prompts, or "
            "another pooling than all"
        )


class QuotaError(InputError):
    """The activations would pass the quota."""

    def __init__(self, needed: int, quota: int) -> None:
        super().__init__(needed, quota)
        self.needed, self.quota = needed, quota

    def __str__(self) -> str:
        return (
            f"the activations need {self.needed / 2**30:.2f} GiB of disk, store.quota is {self.quota / 2**30:.2f} GiB; "
            "raise the quota, or take fewer prompts or hookpoints"
        )


class OtherPlanError(InputError):
    """The run folder holds a run of another plan."""

    def __init__(self, path: str, difference: str) -> None:
        super().__init__(path, difference)
        self.path, self.difference = path, difference

    def __str__(self) -> str:
        return (
            f"{self.path} holds a run of another plan: {self.difference}; name a new folder, or go back to the old spec"
        )


class RunNotFoundError(InputError, FileNotFoundError):
    """The folder holds no run."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"no run at {self.path}: it has no plan.json; wanted the folder that actmap fit was given as --run"


class LossError(PipelineError):
    """Too many prompts failed.

    Args:
        num_lost: Prompts quarantined so far.
        allowed: Prompts that the spec allows to lose.
        examples: The first of them, in words.
    """

    def __init__(self, num_lost: int, allowed: int, examples: Sequence[str]) -> None:
        super().__init__(num_lost, allowed, examples)
        self.num_lost, self.allowed, self.examples = num_lost, allowed, tuple(examples)

    def __str__(self) -> str:
        prompts = "prompt" if self.num_lost == 1 else "prompts"
        return (
            f"{self.num_lost} {prompts} gave no activation, {self.allowed} are allowed: {'; '.join(self.examples)}; "
            "mend these prompts, or raise failures.quarantine_at_most"
        )


class StorageError(PipelineError, OSError):
    """Storage failed."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem


class StoreError(StorageError):
    """A write was refused."""

    def __str__(self) -> str:
        return f"{self.path} cannot be written: {self.problem}; mend that and run the same command again"


class DamagedRunError(StorageError):
    """What was written is not what is read."""

    def __init__(self, path: str, problem: str, remedy: str = "start again in a new folder") -> None:
        super().__init__(path, problem)
        self.args = path, problem, remedy
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.problem}; {self.remedy}"


class ResumableError(PipelineError, RuntimeError):
    """The run stopped, and the same command resumes it."""


class WorkerLostError(ResumableError):
    """Workers died on one unit again and again."""

    def __init__(self, unit: str, attempts: int, problem: str) -> None:
        super().__init__(unit, attempts, problem)
        self.unit, self.attempts, self.problem = unit, attempts, problem

    def __str__(self) -> str:
        return (
            f"{self.unit} lost its worker {self.attempts} times ({self.problem}), often for want of memory; "
            "take a smaller batch_tokens or fewer workers in a new run, or run the same command again"
        )


class ClusterError(ResumableError):
    """Ray cannot be started or joined."""

    def __init__(self, address: str, problem: str) -> None:
        super().__init__(address, problem)
        self.address, self.problem = address, problem

    def __str__(self) -> str:
        wanted = "'local', or the address of a running cluster"
        return f"Ray at {self.address!r} cannot be used: {self.problem}; wanted {wanted}"


class OtherNumericsError(ResumableError):
    """A worker computes another class of bits than the plan."""

    def __init__(self, wanted: str, found: str) -> None:
        super().__init__(wanted, found)
        self.wanted, self.found = wanted, found

    def __str__(self) -> str:
        what = f"wanted {self.wanted}, found {self.found}"
        return f"a worker computes other bits than the plan: {what}; use machines of one kind"


class RunBusyError(ResumableError):
    """Another process works on the run."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"another process works on {self.path}; wait for it, or name another folder"


class NothingLeftError(LossError):
    """Every prompt of a side is quarantined."""

    def __str__(self) -> str:
        return f"no prompt of a side gave an activation ({self.num_lost} of them failed): {'; '.join(self.examples)}"
