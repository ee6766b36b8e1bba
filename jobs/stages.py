"""The stages of a job: each one announced, timed, and summed over all starts of the run."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from pipeline.errors import DamagedRunError
from pipeline.folder import TIMINGS
from pipeline.ledger import REPAIR
from pipeline.storage import AbstractStorage
from schemas import record
from schemas.events import Advanced, Listener, Notice, StageFinished, StageStarted
from schemas.timings import Timings


@final
class Stages:
    """Times the stages of a job and tells a listener.

    Args:
        listen: Takes the events.
    """

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall time of each stage so far."""
        return dict(self._seconds)

    @contextmanager
    def stage(self, name: str, total: int = 0, done: int = 0, unit: str = "") -> Iterator[None]:
        """A context that is one stage; one that fails is not announced as finished."""
        self._listen(StageStarted(name, total, done, unit))
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self._seconds[name] += seconds
        self._listen(StageFinished(name, seconds))

    def advance(self, name: str, amount: int) -> None:
        """Tells that a stage did some of its work."""
        self._listen(Advanced(name, amount))

    def notice(self, sentence: str) -> None:
        """Tells the user something."""
        self._listen(Notice(sentence))


def read_timings(storage: AbstractStorage) -> Timings:
    """Returns how long a run took so far.

    Raises:
        DamagedRunError: A byte of them is not as it was written.
    """
    try:
        return record.unseal(Timings, storage.read(TIMINGS))
    except FileNotFoundError:
        return Timings()
    except record.RecordError as exc:
        raise DamagedRunError(storage.place(TIMINGS), str(exc), REPAIR) from exc
