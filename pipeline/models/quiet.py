"""Silence for libraries that print progress and warnings of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

from transformers.utils import logging


@final
class Silence:
    """Contexts in which a library prints nothing but errors. They may overlap: the last that ends gives it back.

    Args:
        logging: The library's module that says how much it prints, as transformers and diffusers have it.
    """

    def __init__(self, logging: Any) -> None:  # noqa: ANN401
        self._logging, self._num_inside = logging, 0
        self._before = (0, False)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A context in which it prints nothing but errors."""
        if self._num_inside == 0:
            self._before = self._logging.get_verbosity(), self._logging.is_progress_bar_enabled()
            self._logging.set_verbosity_error()
            self._logging.disable_progress_bar()
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1
            if self._num_inside == 0:
                level, bars = self._before
                self._logging.set_verbosity(level)
                if bars:
                    self._logging.enable_progress_bar()


#: Keeps transformers quiet.
quiet = Silence(logging).kept
