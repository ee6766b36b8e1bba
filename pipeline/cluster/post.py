"""A post: one worker's actor, and the calls that it has not answered."""

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, final

from pipeline.scheduling import Extract, Settle, Task

#: How an actor's call ended: it came back, it raised, its process is gone, was killed for want of memory, or it is not
#: known whether it ran.
Ending = Literal["done", "raised", "died", "memory", "unreachable"]


@final
@dataclass(eq=False)
class Call:
    """A call of an actor.

    Args:
        what: The task; ``ready`` and ``turn`` are calls of the crew's own.
        arguments: What a call of the crew's own takes.
        ref: Ray's reference, kept so that Ray keeps the result.
        future: Ends with the call.
    """

    what: Task | Literal["ready", "turn"]
    arguments: tuple[Any, ...]
    ref: Any
    future: "Future[Any]"


@final
class Post:
    """An actor and its calls, which it answers in order.

    Args:
        ray: Ray.
        actor: The actor.
        tell: Called, on a thread of Ray's, whenever a call ends.
    """

    def __init__(self, ray: Any, actor: Any, tell: Callable[["Post"], None]) -> None:  # noqa: ANN401
        self._ray, self.actor, self._tell = ray, actor, tell
        self.calls: deque[Call] = deque()
        #: Process id, once it is ready.
        self.pid: int | None = None
        #: When it has to have answered, if it could not be reached.
        self.answer_by: float | None = None
        #: When it was asked last whether it is there.
        self.asked = 0.0
        self._ping: Future[Any] | None = None
        self.call("ready")

    def call(self, what: Task | Literal["ready", "turn"], *arguments: Any) -> None:  # noqa: ANN401
        """Puts a call at the end of its queue."""
        ref = self._remote(what, arguments)
        self.calls.append(Call(what, arguments, ref, self._watched(ref)))

    def _watched(self, ref: Any) -> "Future[Any]":  # noqa: ANN401
        future: Future[Any] = ref.future()
        future.add_done_callback(lambda _: self._tell(self))
        return future

    def _remote(self, what: Task | Literal["ready", "turn"], arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
        if isinstance(what, str):
            return getattr(self.actor, what).remote(*arguments)
        if isinstance(what, Extract):
            return self.actor.extract.remote(what.unit, what.treatment)
        if isinstance(what, Settle):
            return self.actor.settle_frame.remote(what.law, what.treatment)
        return self.actor.probe.remote(what)

    def ended(self) -> tuple[Call, Ending, Any] | None:
        """Takes the first call out of the queue if it has ended; returns how, and its result or error.

        A call that may not have run stays where it is.
        """
        if not self.calls or not self.calls[0].future.done():
            return None
        call, error = self.calls[0], self.calls[0].future.exception()
        ending = self._ending(error)
        if ending != "unreachable":
            self.calls.popleft()
        return call, ending, call.future.result() if error is None else error

    def ping(self) -> None:
        """Asks an actor that could not be reached whether it is there."""
        self.asked = time.monotonic()
        self._ping = self._watched(self.actor.ready.remote())

    def answered(self) -> Ending | None:
        """Returns how the ping ended; None as long as it has not."""
        return None if self._ping is None or not self._ping.done() else self._ending(self._ping.exception())

    def repeat(self) -> None:
        """Calls again, in order, what may not have run. Its calls are safe to repeat."""
        self.answer_by = self._ping = None
        calls, self.calls = self.calls, deque()
        for call in calls:
            if call.future.done() and self._ending(call.future.exception()) == "unreachable":
                self.call(call.what, *call.arguments)
            else:
                self.calls.append(call)

    def kill(self, *, here: bool) -> None:
        """Ends the process, whatever it does.

        Args:
            here: Whether it runs on this machine. A signal ends even a stopped process at once, which Ray does not.
        """
        if here and self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, signal.SIGKILL)
        self._ray.kill(self.actor)

    def _ending(self, error: BaseException | None) -> Ending:
        exceptions = self._ray.exceptions
        if error is None:
            return "done"
        if isinstance(error, exceptions.OutOfMemoryError):
            return "memory"
        if isinstance(error, exceptions.ActorUnavailableError):
            return "unreachable"
        if isinstance(error, exceptions.RayTaskError) or not isinstance(error, exceptions.RayError):
            return "raised"
        return "died"
