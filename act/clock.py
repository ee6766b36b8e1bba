"""Where a model stands while it runs: at which denoising step, and on which rows of the batch.

A language model is always at the same place. A denoiser runs once a step, on a batch that classifier-free
guidance doubles or calls twice; only the half that sees the prompt is read and steered.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import nn

from act.errors import ClockError


class AbstractClock(ABC):
    """Says at which step the model stands and which rows of an output belong to the prompts."""

    @property
    @abstractmethod
    def step(self) -> int | None:
        """The denoising step, from 0; None when the model has none."""

    @abstractmethod
    def rows(self, num_rows: int) -> slice:
        """Returns the rows that belong to the prompts, of an output of `num_rows` rows."""

    @abstractmethod
    def following(self) -> AbstractContextManager[object]:
        """Returns a context in which the clock follows the model."""


@final
class StillClock(AbstractClock):
    """The clock of a model without steps: every row, always."""

    @property
    def step(self) -> None:
        """None: there are no steps."""
        return

    def rows(self, num_rows: int) -> slice:
        """Returns all rows."""
        return slice(0, num_rows)

    def following(self) -> AbstractContextManager[object]:
        """Returns an empty context: there is nothing to follow."""
        return nullcontext()


@final
class DenoisingClock(AbstractClock):
    """The clock of a diffusers pipeline: reads the timestep that its denoiser is called with.

    A step is known by its timestep, not by counting calls, so the clock needs no reset between images, and a
    pipeline that runs other timesteps takes the nearest one. Guidance halves are told apart by what the denoiser
    gets: both in one batch, the unconditional half first, which is then the same latents twice; or a second call
    for it, on the very latents of the first call, within the same step of the pipeline's loop.

    Args:
        pipeline: A diffusers pipeline with a `unet` or a `transformer`.
        timesteps: The timestep of each step; empty to number them as they appear.

    Raises:
        ClockError: The pipeline has no denoiser.
    """

    def __init__(self, pipeline: Any, timesteps: Sequence[float] = ()) -> None:  # noqa: ANN401
        self._name, self._denoiser = _denoiser(pipeline)
        self._fixed = tuple(timesteps)
        self._seen: list[float] = []
        # Forwards that take turns have a context each, and so a call and a pipeline of their own.
        self._call: ContextVar[_Call | None] = ContextVar("call", default=None)
        self._watched: ContextVar[Any] = ContextVar("pipeline", default=pipeline)

    @property
    def timesteps(self) -> tuple[float, ...]:
        """The timestep of each step: as given, or as seen so far."""
        return self._fixed or tuple(self._seen)

    @property
    def step(self) -> int:
        """The step whose timestep is nearest to that of the running call; of two equally near ones the earlier."""
        now, known = self._running().timestep, self.timesteps
        return min(range(len(known)), key=lambda index: abs(known[index] - now))

    def rows(self, num_rows: int) -> slice:
        """Returns the conditional rows; none in a call that a denoiser gets for the unconditional half alone.

        Raises:
            ClockError: No step is running, or the output has not a row for each row that the denoiser was given.
        """
        call = self._running()
        if num_rows != call.num_rows:
            raise ClockError(
                f"a hookpoint's output has {num_rows} rows where {self._name} was given {call.num_rows}, so its rows "
                "are no prompts; wanted an output with a row a prompt, leave this hookpoint out"
            )
        return slice(0, 0) if call.repeated else slice(num_rows // 2 if call.doubled else 0, num_rows)

    def following(self) -> AbstractContextManager[object]:
        """Returns a context in which every call of the denoiser sets the clock."""
        return self._denoiser.register_forward_pre_hook(self._on_call, with_kwargs=True)

    @contextmanager
    def watching(self, pipeline: Any) -> Iterator[None]:  # noqa: ANN401
        """A context in which another pipeline runs the denoiser, one that is like this clock's."""
        token = self._watched.set(pipeline)
        try:
            yield
        finally:
            self._watched.reset(token)

    def _running(self) -> "_Call":
        call = self._call.get()
        if call is None:
            raise ClockError(f"{self._name} has not been called yet, so no step is running; run the whole pipeline")
        return call

    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        timestep = kwargs.get("timestep", args[1] if len(args) > 1 else None)
        latents = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        if timestep is None or not isinstance(latents, torch.Tensor):
            raise ClockError(
                f"{self._name} was called without a timestep and latents, which are needed to know the step"
            )
        now = float(timestep.flatten()[0]) if isinstance(timestep, torch.Tensor) else float(timestep)
        # The loop's own timestep is a new object in every turn of the loop: it tells a second call of one step from
        # the first call of another image that starts from the same latents. Where the pipeline does not show it, the
        # argument stands in: pipelines that call twice compute it once.
        shown = getattr(self._watched.get(), "_current_timestep", None)
        turn = timestep if shown is None else shown
        before = self._call.get()
        repeated = before is not None and before.repeats(latents, now, turn)
        self._call.set(_Call(now, len(latents), self._doubled(latents), repeated, weakref.ref(latents), turn))
        if not self._fixed and now not in self._seen:
            self._seen.append(now)

    def _doubled(self, latents: torch.Tensor) -> bool:
        if not getattr(self._watched.get(), "do_classifier_free_guidance", False):
            return False
        half = len(latents) // 2
        doubled = len(latents) % 2 == 0 and torch.equal(latents[:half], latents[half:])
        if not doubled and self._name == "unet":
            raise ClockError(
                f"{type(self._watched.get()).__name__} guides its unet with {len(latents)} rows that are not the same "
                "latents twice, so the rows of the prompts are not known; wanted plain classifier-free guidance"
            )
        return doubled


@final
@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a denoiser: its timestep, its rows, and what tells whether it repeats the call before it."""

    timestep: float
    num_rows: int
    doubled: bool
    repeated: bool
    latents: "weakref.ref[torch.Tensor]"
    turn: object

    def repeats(self, latents: torch.Tensor, timestep: float, turn: object) -> bool:
        """Returns whether a call with these arguments is this one once more, for the other half of the guidance."""
        return self.latents() is latents and self.timestep == timestep and self.turn is turn


def _denoiser(pipeline: Any) -> tuple[str, nn.Module]:  # noqa: ANN401
    for name in ("unet", "transformer"):
        module = getattr(pipeline, name, None)
        if isinstance(module, nn.Module):
            return name, module
    raise ClockError(
        f"{type(pipeline).__name__} has no unet and no transformer; only denoisers of these names are known"
    )
