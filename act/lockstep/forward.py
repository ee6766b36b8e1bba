"""One forward that can stop inside a hook, and go on later."""

import contextvars
from collections.abc import Callable
from typing import final

from greenlet import GreenletExit, getcurrent, greenlet

from act.lockstep.thread_state import ThreadState, Turn


@final
class Forward(greenlet):
    """A forward of a model in a stack of its own: `go_on` runs it until it stops at a site, or ends.

    It belongs to the thread that made it. What torch keeps per thread, and context variables, are its own.

    Args:
        number: Number of its batch.
        run: Runs the model on the batch.

    Attributes:
        number: Number of its batch.
        ending: Whether it is being unwound: a hook that it meets on its way out must not stop it.
    """

    def __init__(self, number: int, run: Callable[[], object]) -> None:
        super().__init__(self._run_to_the_end)
        self.number, self.ending = number, False
        self._forward = run
        self._state = ThreadState.here()
        self._turn: Turn | None = None
        self._at: int | None = None
        self.gr_context = contextvars.copy_context()

    @staticmethod
    def current() -> "Forward | None":
        """Returns the forward that is running, or None outside of all."""
        found = getcurrent()
        return found if isinstance(found, Forward) else None

    def go_on(self) -> int | None:
        """Runs it until it stops; returns the number of the site where it stands, or None once it has ended.

        Raises:
            Exception: Whatever the model raised.
        """
        with self._state.entered() as self._turn:
            self.parent = getcurrent()
            at: int | None = self.switch()
            return at

    def check(self) -> None:
        """Checks that it can be stopped here. Called from inside the forward.

        Raises:
            LockstepStateError: It stands inside a transform, whose levels cannot be left and entered again.
        """
        assert self._turn is not None
        self._turn.check()

    def stop(self, site: int) -> None:
        """Stands at a site until the next `go_on`. Called from inside the forward."""
        assert self._turn is not None
        self._state = self._turn.state()
        assert self.parent is not None, "whoever gives it a turn is its parent"
        self.parent.switch(site)

    def unwind(self) -> None:
        """Ends it where it stands; what its frames clean up is cleaned up in its own state."""
        self.ending = True
        if self.dead or not bool(self):  # it has ended, or never began
            return
        with self._state.entered() as self._turn:
            self.parent = getcurrent()
            self.throw(GreenletExit)

    def _run_to_the_end(self) -> None:
        self._forward()
