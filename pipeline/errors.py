"""Errors of `pipeline`.

```
PipelineError
├── InputError               ValueError         the input is refused, and nothing was written
│   ├── PromptFileNotFoundError  FileNotFoundError  there is no prompt file or folder at that place
│   ├── PromptFileError                         a prompt file cannot be read to its end
│   ├── ColumnNotFoundError  LookupError        a prompt file has no column of that name
│   ├── WhereError                              a condition does not fit its column
│   ├── EmptySelectionError                     a side selects no prompts
│   ├── GrowthError                             a side does not go on from its prompts in an earlier run
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
│   ├── RunNotFoundError     FileNotFoundError  the folder holds no run
│   ├── NothingToVerifyError FileNotFoundError  the folder holds neither a run nor a steer
│   └── ReplayError                             a steer cannot be replayed here
├── BatchMemoryError         MemoryError        a micro-batch does not fit in memory
├── LossError                                   too many prompts failed
│   └── NothingLeftError                        every prompt of a side failed
├── StorageError             OSError            storage failed
│   ├── StoreError                              a write or a read was refused
│   ├── StorageKeyError      ValueError         a key names nothing that a storage may hold
│   ├── QuotaReachedError                       more is stored than the spec allows
│   ├── DifferentBitsError                      two attempts at a unit gave different bits
│   ├── VerificationError                       files of a run or a steer are damaged
│   ├── OtherSteerError                         a replay gave another steer
│   └── DamagedRunError                         what was written is not what is read
└── ResumableError           RuntimeError       the run stopped, and the same command resumes it
    ├── WorkerLostError                         workers died on one unit again and again
    ├── ClusterError                            Ray cannot be started or joined
    ├── OtherNumericsError                      a worker computes another class of bits than the plan
    ├── RunBusyError                            another process works on the run
    └── LeaseLostError                          another process took the run over
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
        shown = (name if len(name) <= 60 else f"{name[:57]}…" for name in self.columns[:20])
        there = ", ".join(shown) + (", …" if len(self.columns) > 20 else "")
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


class GrowthError(InputError):
    """A side does not go on from its prompts in an earlier run.

    Args:
        place: The earlier run's prompts.
        num_earlier: How many they are.
        first: The first of their places, from 0, whose prompt is not found again in order.
    """

    def __init__(self, place: str, num_earlier: int, first: int) -> None:
        super().__init__(place, num_earlier, first)
        self.place, self.num_earlier, self.first = place, num_earlier, first

    def __str__(self) -> str:
        return (
            f"of the {self.num_earlier:,} prompts in {self.place} more than half are not selected in that order now, "
            f"the first of them prompt {self.first} (from 0); wanted the same prompts in the same order, some of them "
            "removed, and new ones at the end only; mend the selection, or write no 'extends:' and fit in a new folder"
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


class LockstepPlanError(InputError):
    """The prompts of a sequential fit's source have no room while they wait at a site.

    Args:
        num_prompts: How many there are.
        fits: How many have room.
        memory: What was planned.
        disk: Bytes that are free for temporary files.
    """

    def __init__(self, num_prompts: int, fits: int, memory: Memory, disk: int) -> None:
        super().__init__(num_prompts, fits, memory, disk)
        self.num_prompts, self.fits, self.memory, self.disk = num_prompts, fits, memory, disk

    def __str__(self) -> str:
        held, waiting, room, disk = (
            f"{count / 2**30:.2f} GiB"
            for count in (
                self.memory.held,
                self.memory.waiting,
                max(0, self.memory.available - (self.memory.worker - self.memory.held)),
                self.disk,
            )
        )
        return (
            f"a sequential fit of {self.num_prompts:,} source prompts holds up to {held} of samples and {waiting} of "
            f"waiting forwards in each worker, which has {room} of memory and {disk} of temporary files for them; "
            f"{self.fits:,} prompts have room: take a limit, more workers, or a smaller max_tokens"
        )


class FormerSteerError(InputError):
    """A sequential fit cannot start from a steer.

    Args:
        place: Where it lies.
        found: What it has.
        wanted: What was wanted.
    """

    def __init__(self, place: str, found: str, wanted: str) -> None:
        super().__init__(place, found, wanted)
        self.place, self.found, self.wanted = place, found, wanted

    def __str__(self) -> str:
        return f"estimation.start: found {self.found} in {self.place}; wanted {self.wanted}"


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


class NothingToVerifyError(InputError, FileNotFoundError):
    """The folder holds neither a run nor a steer."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"neither a run nor a steer at {self.path}: wanted the folder that actmap fit was given as --run, or one "
            "with steer.json and steer.safetensors"
        )


class ReplayError(InputError):
    """A steer cannot be replayed here.

    Args:
        path: The steer.
        problem: Why not, and what to do, as the end of a sentence.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path} cannot be replayed: {self.problem}"


class BatchMemoryError(PipelineError, MemoryError):
    """A micro-batch, or a piece of one, does not fit in memory.

    Args:
        batch: Number of the micro-batch in its unit.
        rows: Rows of the unit, from 0, that ran together.
    """

    def __init__(self, batch: int, rows: tuple[int, ...]) -> None:
        super().__init__(batch, rows)
        self.batch, self.rows = batch, rows

    def __str__(self) -> str:
        rows = f"its {len(self.rows)} prompts" if len(self.rows) > 1 else "its prompt"
        return (
            f"micro-batch {self.batch} of a unit finds no memory for {rows}; take fewer workers, or a smaller "
            "batch_tokens or max_tokens, in a new run"
        )


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

    @property
    def _more(self) -> str:
        more = self.num_lost - len(self.examples)
        return f" and {more} more, which actmap status lists" if more > 0 else ""

    def __str__(self) -> str:
        prompts = "prompt" if self.num_lost == 1 else "prompts"
        return (
            f"{self.num_lost} {prompts} gave no activation, {self.allowed} are allowed: {'; '.join(self.examples)}"
            f"{self._more}; mend these prompts, or raise failures.quarantine_at_most"
        )


class StorageError(PipelineError, OSError):
    """Storage failed."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem


class StoreError(StorageError):
    """A write, or a read, was refused.

    Args:
        path: What was to be written.
        problem: Why it was not.
        what: ``written``, ``read`` or ``used``.
    """

    def __init__(self, path: str, problem: str, what: str = "written") -> None:
        super().__init__(path, problem)
        self.args = path, problem, what
        self.what = what

    def __str__(self) -> str:
        return f"{self.path} cannot be {self.what}: {self.problem}; mend that and run the same command again"


class StorageKeyError(StorageError, ValueError):
    """A key names nothing that a storage may hold."""

    def __init__(self, key: str, problem: str = "wanted a relative name without dots, backslashes or NUL") -> None:
        super().__init__(key, problem)

    def __str__(self) -> str:
        return f"{self.path!r} is no place in a run: {self.problem}"


class DamagedRunError(StorageError):
    """What was written is not what is read."""

    def __init__(self, path: str, problem: str, remedy: str = "start again in a new folder") -> None:
        super().__init__(path, problem)
        self.args = path, problem, remedy
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.problem}; {self.remedy}"


class VerificationError(StorageError):
    """Files of a run, or of a steer, are damaged.

    Args:
        path: The first of them.
        problem: What is wrong with it.
        unit: The unit that it belongs to; empty if to none.
        num_more: How many others are damaged.
        remedy: What to do.
    """

    def __init__(self, path: str, problem: str, unit: str, num_more: int, remedy: str) -> None:
        super().__init__(path, problem)
        self.args = path, problem, unit, num_more, remedy
        self.unit, self.num_more, self.remedy = unit, num_more, remedy

    def __str__(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        more = f", and {self.num_more} more files are" if self.num_more > 1 else ", and 1 more file is"
        return f"{self.path}{unit} is damaged: {self.problem}{more if self.num_more else ''}; {self.remedy}"


class OtherSteerError(StorageError):
    """A replay gave another steer than the one that was replayed.

    Args:
        path: The steer that was replayed.
        problem: The first thing in which they differ.
    """

    def __str__(self) -> str:
        return (
            f"a replay of {self.path} gave another steer: {self.problem}; it was not fitted by this program from this "
            "spec, or a machine computes other bits than its class says: verify the steer, and its run"
        )


class QuotaReachedError(StorageError):
    """More is stored than the spec allows."""

    def __init__(self, stored: int, quota: int) -> None:
        super().__init__(str(stored), str(quota))
        self.args = stored, quota
        self.stored, self.quota = stored, quota

    def __str__(self) -> str:
        return (
            f"the run has stored {self.stored:,} bytes of activations and sketches, store.quota is {self.quota:,}; "
            "raise the quota, or keep less (`activations: sample` or none, `sketches: merged`), and run it again"
        )


class DifferentBitsError(StorageError):
    """Two attempts at a unit gave different bits.

    Args:
        unit: The unit.
        path: The file, or the receipt, in which they differ.
    """

    def __init__(self, unit: str, path: str) -> None:
        super().__init__(unit, path)
        self.unit, self.path = unit, path

    def __str__(self) -> str:
        return (
            f"two attempts at {self.unit} gave different bits, as {self.path} shows; its workers are not of one kind: "
            "find out which computes otherwise, and start again in a new folder"
        )


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


class LeaseLostError(ResumableError):
    """Another process took the run over from this one, which was silent for too long."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return (
            f"another process took over {self.path} while this one stood still; leave the run to it, or run the same "
            "command again when it has ended"
        )


class NothingLeftError(LossError):
    """Every prompt of a side is quarantined."""

    def __str__(self) -> str:
        return f"no prompt of a side gave an activation ({self.num_lost} of them failed): {'; '.join(self.examples)}"
