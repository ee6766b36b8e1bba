"""Errors of `jobs`: what a command cannot do with what it was given.

```
JobError
├── EmptyPromptError  ValueError  a model was asked to go on from nothing
├── NoSteerError      ValueError  a strength was named, but no steer
├── SameNameError     ValueError  two specs of one command have the same name
└── TakenNameError    ValueError  a spec of several has the name of the catalogue beside their runs
```

Each constructor passes its own arguments on, and `__str__` says what was found, what was wanted and what to do.
"""


class JobError(Exception):
    """Anything that `jobs` refuses."""


class EmptyPromptError(JobError, ValueError):
    """A model was asked to go on from nothing."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"prompt {self.number} is empty; wanted text that the model can go on from"


class NoSteerError(JobError, ValueError):
    """A strength was named, but no steer."""

    def __init__(self, strength: float) -> None:
        super().__init__(strength)
        self.strength = strength

    def __str__(self) -> str:
        return f"found the strength {self.strength:g} without a steer; name one with --steer, or leave --strength out"


class SameNameError(JobError, ValueError):
    """Several specs of one command have the same name."""

    def __init__(self, name: str, count: int) -> None:
        super().__init__(name, count)
        self.name, self.count = name, count

    def __str__(self) -> str:
        return (
            f"found {self.count} specs of the name {self.name!r}; each run goes into a folder of its name: rename them"
        )


class TakenNameError(JobError, ValueError):
    """A spec of several has the name of the catalogue beside their runs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"found a spec of the name {self.name!r}, in which the runs keep their laws; wanted another name"
