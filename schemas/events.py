"""What a job tells while it runs: values handed to a callback, never prints."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class StageStarted:
    """A stage begins.

    Args:
        stage: Its name: ``plan``, ``repair``, ``model``, ``workers``, ``reuse``, ``frames``, ``extract``, ``reduce``,
            ``fit``, ``save``.
        total: Amount of work, in `unit`s; 0 when it cannot be counted.
        done: Work found finished from an earlier run.
        unit: What is counted: ``prompts``, ``sites``.
    """

    stage: str
    total: int = 0
    done: int = 0
    unit: str = ""


@final
@dataclass(frozen=True)
class Advanced:
    """A stage did some of its work."""

    stage: str
    amount: int


@final
@dataclass(frozen=True)
class StageFinished:
    """A stage is done.

    Args:
        stage: Its name.
        seconds: Wall time that it took.
    """

    stage: str
    seconds: float


@final
@dataclass(frozen=True)
class Notice:
    """Something that the user should know, in one sentence."""

    sentence: str


Event = StageStarted | Advanced | StageFinished | Notice
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener of whoever does not listen."""
