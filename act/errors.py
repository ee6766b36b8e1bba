"""Errors of `act`.

```
ActError
├── ShapeError            ValueError    a tensor has other axes than were wanted
├── NotFiniteError        ValueError    a tensor holds NaN or infinities
├── EmptyMarginalError    ValueError    a law was asked of no samples
├── CellsError            ValueError    the cells of a law are no law
├── CountsError           ValueError    two laws cannot be coupled in whole numbers
├── EmptyRowError         ValueError    a row of a batch has no real token
├── ProbabilityError      ValueError    a probability lies outside [0, 1]
├── SupportError          ValueError    a support is none of those there are
├── TokensError           ValueError    a support on tokens has no law of tokens
├── EmptySupportError     ValueError    the support of a neuron holds nothing
├── BoundError            ValueError    the bound on a map's error is no bound
├── KnotsError            ValueError    the knots of a map do not ascend
├── PairsError            ValueError    sides that must pair differ in number
├── ThresholdError        ValueError    a threshold of an average precision is none
├── SamplesError          ValueError    a method needs samples that were not given
├── SelectionError        ValueError    a selection of neurons is none of those there are
├── EstimationError       ValueError    an estimation is none of those there are
├── UnknownPoolingError   LookupError   a pooling is none of those there are
├── UnknownMethodError    LookupError   a transport method is none of those there are
├── ProbeError            RuntimeError  a linear probe did not converge
├── HookpointNotFoundError  LookupError a preset or pattern matches no module
├── HookpointPatternError ValueError    a pattern is no regular expression, or names no module
├── HookpointOutputError  ValueError    a module's output has no tensor at that place
├── SiteVisitError        RuntimeError  a site was not visited exactly once
├── SiteOrderError        RuntimeError  forwards visit sites in opposite orders
├── LockstepStateError    RuntimeError  forwards that take turns would meet each other's state
├── SpillError            OSError       what suspended forwards keep cannot be moved out of memory or back
├── ClockError            RuntimeError  nobody can say at which step the model stands
├── OtherModelError       ValueError    a steer does not belong to this model
├── StrengthError         ValueError    a strength is no finite number
├── SteerNotFoundError    FileNotFoundError  a folder holds no steer
├── SteerFileError        ValueError    a steer's files are damaged or of another format
└── SteerExistsError      FileExistsError    a folder holds another steer
```

Each constructor passes its own arguments on, so that an error keeps its type between processes, and `__str__`
says what was found, what was wanted and what to do.
"""

import difflib
from collections.abc import Sequence


class ActError(Exception):
    """Anything that `act` refuses."""


class ShapeError(ActError, ValueError):
    """A tensor has other axes than were wanted."""

    def __init__(self, what: str, found: Sequence[int], wanted: str) -> None:
        super().__init__(what, found, wanted)
        self.what, self.found, self.wanted = what, tuple(found), wanted

    def __str__(self) -> str:
        return f"{self.what} has the shape {list(self.found)}; wanted {self.wanted}"


class NotFiniteError(ActError, ValueError):
    """A tensor holds NaN or infinities."""

    def __init__(self, what: str, count: int, neuron: int) -> None:
        super().__init__(what, count, neuron)
        self.what, self.count, self.neuron = what, count, neuron

    def __str__(self) -> str:
        values = "value that is" if self.count == 1 else "values that are"
        return (
            f"{self.what} holds {self.count} {values} not finite, first at neuron {self.neuron}; "
            "leave out the samples that the model failed on, or run it in a wider dtype"
        )


class EmptyMarginalError(ActError, ValueError):
    """A law was asked of no samples."""

    def __init__(self, num_neurons: int) -> None:
        super().__init__(num_neurons)
        self.num_neurons = num_neurons

    def __str__(self) -> str:
        return f"found 0 samples of {self.num_neurons} neurons; a marginal needs at least 1 sample"


class CellsError(ActError, ValueError):
    """The cells of a law are no law."""

    def __init__(self, problem: str, neuron: int) -> None:
        super().__init__(problem, neuron)
        self.problem, self.neuron = problem, neuron

    def __str__(self) -> str:
        return (
            f"neuron {self.neuron} has {self.problem}; wanted ascending cells with at least 1 sample in the first "
            "and as many samples in all for each neuron"
        )


class CountsError(ActError, ValueError):
    """The numbers of samples of two laws are too large to couple them in whole numbers."""

    def __init__(self, num_source: int, num_target: int) -> None:
        super().__init__(num_source, num_target)
        self.num_source, self.num_target = num_source, num_target

    def __str__(self) -> str:
        return (
            f"the laws have {self.num_source} and {self.num_target} samples, whose least common multiple is 2^62 or "
            "more; leave samples out so that the numbers have a common divisor"
        )


class EmptyRowError(ActError, ValueError):
    """A row of a batch has no real token."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row

    def __str__(self) -> str:
        return f"row {self.row} of the mask has no real token; every row needs at least 1, leave this prompt out"


class ProbabilityError(ActError, ValueError):
    """A probability lies outside [0, 1]."""

    def __init__(self, found: float) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"found the probability {self.found}; quantiles want probabilities from 0 to 1"


class SupportError(ActError, ValueError):
    """A support is none of those there are."""

    def __init__(self, found: object) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return (
            f"found the support {self.found!r}; wanted 'observed', 'tokens', 'unbounded', "
            "or two percentiles with 0 <= low < high <= 100, such as (1, 99)"
        )


class TokensError(ActError, ValueError):
    """A support on tokens has no law of tokens."""

    def __str__(self) -> str:
        return "the support 'tokens' needs the law of single tokens and got none; pass tokens=, or take 'observed'"


class EmptySupportError(ActError, ValueError):
    """The support of a neuron holds nothing."""

    def __init__(self, low: float, high: float, neuron: int) -> None:
        super().__init__(low, high, neuron)
        self.low, self.high, self.neuron = low, high, neuron

    def __str__(self) -> str:
        return (
            f"the support of neuron {self.neuron} is [{self.low}, {self.high}]; wanted low <= high; "
            "for everything write [-inf, inf]"
        )


class BoundError(ActError, ValueError):
    """The bound on a map's error is no bound."""

    def __init__(self, found: float, neuron: int) -> None:
        super().__init__(found, neuron)
        self.found, self.neuron = found, neuron

    def __str__(self) -> str:
        return f"the error of neuron {self.neuron} is bounded by {self.found}; wanted 0 or more, inf for no bound"


class KnotsError(ActError, ValueError):
    """The knots of a map do not ascend."""

    def __init__(self, neuron: int) -> None:
        super().__init__(neuron)
        self.neuron = neuron

    def __str__(self) -> str:
        return f"the knots of neuron {self.neuron} do not ascend; wanted each x at least as large as the one before it"


class PairsError(ActError, ValueError):
    """Sides that must pair differ in their number of samples."""

    def __init__(self, num_source: int, num_target: int) -> None:
        super().__init__(num_source, num_target)
        self.num_source, self.num_target = num_source, num_target

    def __str__(self) -> str:
        return (
            f"actadd pairs source and target samples; found {self.num_source} and {self.num_target}; "
            "give as many of either, or take caa, which is the same without pairs"
        )


class ThresholdError(ActError, ValueError):
    """A threshold of an average precision is none."""

    def __init__(self, found: float) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"found the threshold {self.found}; an average precision wants one of at least 0 and below 1"


class SamplesError(ActError, ValueError):
    """A method needs samples that were not given."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method

    def __str__(self) -> str:
        return (
            f"{self.method} looks at all neurons of a sample together, which laws do not keep; "
            "pass samples=(source, target), both [samples, neurons], or store all activations and refit"
        )


class SelectionError(ActError, ValueError):
    """A selection of neurons is none of those there are."""

    def __init__(self, what: str, found: object, wanted: str) -> None:
        super().__init__(what, found, wanted)
        self.what, self.found, self.wanted = what, found, wanted

    def __str__(self) -> str:
        return f"found the selection's {self.what} {self.found!r}; wanted {self.wanted}"


class EstimationError(ActError, ValueError):
    """An estimation is none of those there are."""

    def __init__(self, what: str, found: object, wanted: str) -> None:
        super().__init__(what, found, wanted)
        self.what, self.found, self.wanted = what, found, wanted

    def __str__(self) -> str:
        return f"found the estimation's {self.what} {self.found!r}; wanted {self.wanted}"


class ProbeError(ActError, RuntimeError):
    """A linear probe did not converge."""

    def __init__(self, num_steps: int) -> None:
        super().__init__(num_steps)
        self.num_steps = num_steps

    def __str__(self) -> str:
        return f"the probe did not converge in {self.num_steps} steps; scale the activations, or take iti-mean"


class UnknownPoolingError(ActError, LookupError):
    """A pooling is none of those there are."""

    def __init__(self, found: str, known: Sequence[str]) -> None:
        super().__init__(found, known)
        self.found, self.known = found, tuple(known)

    def __str__(self) -> str:
        return f"no pooling {self.found!r}; {_choices(self.found, self.known)}"


class UnknownMethodError(ActError, LookupError):
    """A transport method is none of those there are."""

    def __init__(self, found: str, known: Sequence[str]) -> None:
        super().__init__(found, known)
        self.found, self.known = found, tuple(known)

    def __str__(self) -> str:
        return f"no transport method {self.found!r}; {_choices(self.found, self.known)}"


class HookpointNotFoundError(ActError, LookupError):
    """No module of the model answers to a preset or pattern."""

    def __init__(self, hookpoint: str, nearest: Sequence[str]) -> None:
        super().__init__(hookpoint, nearest)
        self.hookpoint, self.nearest = hookpoint, tuple(nearest)

    def __str__(self) -> str:
        return (
            f"hookpoint {self.hookpoint!r} matches no module of this model (a pattern must match the whole name); "
            f"nearest: {', '.join(self.nearest) or 'none, the model has no modules'}"
        )


class HookpointPatternError(ActError, ValueError):
    """A pattern is no regular expression, or names no module."""

    def __init__(self, pattern: str, problem: str) -> None:
        super().__init__(pattern, problem)
        self.pattern, self.problem = pattern, problem

    def __str__(self) -> str:
        return (
            f"hookpoint {self.pattern!r} cannot be used: {self.problem}; "
            "wanted a preset or a regular expression over module names, ending in :i for the i-th output"
        )


class HookpointOutputError(ActError, ValueError):
    """A module's output has no tensor at the place that a hookpoint names."""

    def __init__(self, hookpoint: str, found: str) -> None:
        super().__init__(hookpoint, found)
        self.hookpoint, self.found = hookpoint, found

    def __str__(self) -> str:
        return (
            f"hookpoint {self.hookpoint} returned {self.found} without a tensor at that place; "
            "name the output that holds one with module:i, or leave this module out"
        )


class SiteVisitError(ActError, RuntimeError):
    """A site was not visited exactly once."""

    def __init__(self, hookpoint: str, count: int) -> None:
        super().__init__(hookpoint, count)
        self.hookpoint, self.count = hookpoint, count

    def __str__(self) -> str:
        times = "never" if self.count == 0 else f"{self.count} times"
        wanted = "wanted exactly once, so leave it out of the hookpoints"
        return f"hookpoint {self.hookpoint} is called {times} in a forward; {wanted}"


class SiteOrderError(ActError, RuntimeError):
    """Forwards visit two sites in opposite orders."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first, second)
        self.first, self.second = first, second

    def __str__(self) -> str:
        return (
            f"some batches call {self.first} before {self.second}, others after it, so there is no order in which to "
            "fit them; leave one of them out of the hookpoints, or fit simultaneously"
        )


class LockstepStateError(ActError, RuntimeError):
    """Forwards that take turns would meet each other's state."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"sequential fitting needs forwards that do not touch each other; found {self.found}"


class SpillError(ActError, OSError):
    """What suspended forwards keep cannot be moved out of memory, or back."""

    def __init__(self, errno: int, problem: str, folder: str) -> None:
        super().__init__(errno, problem, folder)
        self.problem, self.folder = problem, folder

    def __str__(self) -> str:
        return (
            f"{self.folder} cannot hold what suspended forwards keep: {self.problem}; "
            "free space there, name another folder, or allow more memory"
        )


class ClockError(ActError, RuntimeError):
    """Nobody can say at which denoising step the model stands."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class OtherModelError(ActError, ValueError):
    """A steer does not belong to this model."""

    def __init__(self, difference: str) -> None:
        super().__init__(difference)
        self.difference = difference

    def __str__(self) -> str:
        return f"the steer was not fitted on this model: {self.difference}"


class StrengthError(ActError, ValueError):
    """A strength is no finite number."""

    def __init__(self, found: object) -> None:
        super().__init__(found)
        self.found = found

    def __str__(self) -> str:
        return f"found the strength {self.found!r}; wanted a finite number: 0 is the model as it is, 1 the whole steer"


class SteerNotFoundError(ActError, FileNotFoundError):
    """A folder holds no steer."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"no steer at {self.path}; wanted a folder with steer.json and steer.safetensors, such as RUN/steer"


class SteerFileError(ActError, ValueError):
    """A steer's files are damaged, of another format, or do not belong together."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path} cannot be loaded: {self.problem}"


class SteerExistsError(ActError, FileExistsError):
    """A folder holds something else than the steer to be saved."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} exists and holds something else; save to a new folder"


def _choices(found: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(str(found), known, n=1)
    meant = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{meant}there are: {', '.join(known)}"
