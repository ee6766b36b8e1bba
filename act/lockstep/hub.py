"""Lockstep: every batch's forward waits inside its hook until the map of the site where they stand is known.

``read`` lets all forwards run up to a site and returns what they have there; ``move`` says which map they go on with.
Nothing here knows an architecture: a forward is whatever a callable does, a site whatever a hook sees.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from greenlet import GreenletExit
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from act.apply import move_rows
from act.capture import hooked
from act.clock import AbstractClock, StillClock
from act.errors import LockstepStateError
from act.hookpoint import Hookpoint
from act.lockstep.forward import Forward
from act.lockstep.offload import Offloaded
from act.pooling import Pooling, TokenSpans, as_tokens, pool
from act.transport import AbstractMap
from schemas.plan import Site

#: Takes the number of a site, that of a passage, and what the passage has there.
PassageSink = Callable[[int, int, torch.Tensor], None]


@final
@dataclass(frozen=True, eq=False)
class Passage:
    """One micro-batch's way through the model.

    Args:
        run: Runs the model on it, alone: nothing that it changes may be seen by the run of another.
        spans: The real tokens of its rows; None when all are real.
        moved: Whether maps are applied to it: those of the source are moved, those of the target are not.
    """

    run: Callable[[], object]
    spans: TokenSpans | None
    moved: bool


@final
class Lockstep:
    """Forwards that go through a model together, from site to site. For one thread, and within `running`.

    A site that a forward visits several times is read at the first visit; its map moves every one.

    Args:
        modules: The model's modules by name.
        sites: The sites, in an order in which every forward visits those that it does.
        pooling: How the real tokens of a prompt become its sample.
        passages: The micro-batches.
        clock: The model's clock.
        sink: Takes what a passage has at each site that it visits, pooled, before its map: also where that is known
            already, and nobody reads it.
        tokens: Takes the activations of the real tokens of passages that are moved, `[tokens, neurons]`, likewise.
        turn: Returns a context for each turn of a passage, by its number: `act.lockstep.spill` has one.

    Raises:
        LockstepStateError: A module is in training mode, in which forwards may depend on one another.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        sites: Sequence[Site],
        pooling: Pooling,
        passages: Sequence[Passage],
        clock: AbstractClock | None = None,
        sink: PassageSink | None = None,
        tokens: PassageSink | None = None,
        turn: Callable[[int], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        if any(module.training for module in modules.values()):
            raise LockstepStateError("training mode; call model.eval() first")
        self._modules, self._pooling, self._passages = modules, pooling, passages
        self._clock, self._sink, self._tokens, self._turn = clock or StillClock(), sink, tokens, turn
        self._numbers = {Hookpoint.parse(site.hookpoint): number for number, site in enumerate(sites)}
        self._offloaded = Offloaded(modules)
        self._maps: dict[int, AbstractMap | None] = {}
        self._samples: dict[tuple[int, int], torch.Tensor] = {}
        self._visited: set[tuple[int, int]] = set()
        self._passing: frozenset[int] = frozenset()
        self._forwards: list[Forward] = []
        self._at: list[int | None] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which the forwards live. Leaving it unwinds them, also after an exception in one of them."""
        places = dict.fromkeys(site.place for site in self._numbers)
        with self._clock.following(), hooked(self._modules, list(places), self._visit):
            self._samples.clear()
            self._visited.clear()
            self._forwards = [Forward(number, passage.run) for number, passage in enumerate(self._passages)]
            self._at = [-1] * len(self._passages)
            try:
                yield
            finally:
                self._unwind()

    def read(self, *sites: int) -> list[list[torch.Tensor | None]]:
        """Runs every forward up to the last of some sites; every site before the first has to be moved.

        Those before the last are read and passed unmoved, so what lies behind them is no longer what their maps would
        make of it: with several sites, the next ones are for a `running` of their own.

        Returns:
            For each site what each forward has there, pooled, `[samples, neurons]`; None for a forward that does not
            visit it.

        Raises:
            Exception: Whatever the model raised.
        """
        for forward in self._coming(sites):
            with self._turn(forward.number):
                self._at[forward.number] = forward.go_on()
        return self._taken(sites)

    def read_last(self, *sites: int) -> list[list[torch.Tensor | None]]:
        """Reads sites as `read` does, and ends each forward at the last of them: nothing is asked of what lies behind.

        Raises:
            Exception: Whatever the model raised.
        """
        for forward in self._coming(sites):
            with self._turn(forward.number):
                forward.go_on()
                forward.unwind()
            self._at[forward.number] = None
        return self._taken(sites)

    def move(self, site: int, transport: AbstractMap | None) -> None:
        """Says which map forwards that are moved go on with at a site; None leaves them as they are.

        A site that has its map before it is reached stops nobody.
        """
        moves = transport is not None and bool(transport.moves.any())
        self._maps[site] = transport.at(1.0) if transport is not None and moves else None

    def _coming(self, sites: Sequence[int]) -> Iterator[Forward]:
        """Yields the forwards that have not come as far as the last of some sites."""
        self._passing = frozenset(sites[:-1])
        for forward in self._forwards:
            at = self._at[forward.number]
            if at is not None and at < sites[-1]:
                assert at in self._maps or at == -1, "a site before has no map"
                yield forward

    def _taken(self, sites: Sequence[int]) -> list[list[torch.Tensor | None]]:
        return [[self._samples.pop((site, number), None) for number in range(len(self._passages))] for site in sites]

    def _visit(self, hookpoint: Hookpoint, module: nn.Module, output: Any) -> Any:  # noqa: ANN401
        forward = Forward.current()
        if forward is None:
            return None
        if forward.ending:  # the model caught what unwinds it
            raise GreenletExit
        tensor = hookpoint.of(output)
        rows = self._clock.rows(len(tensor))
        site = self._numbers.get(Hookpoint(hookpoint.module, hookpoint.output, self._clock.step))
        if site is None or rows.stop == rows.start:
            return None
        forward.check()
        if (site, forward.number) not in self._visited:
            self._visited.add((site, forward.number))
            self._take(forward.number, site, tensor[rows])
        if site not in self._maps:
            if site in self._passing:
                return None
            forward.stop(site)
            self._offloaded.bring(hookpoint.module)
        transport = self._map(site, tensor.device)
        if transport is None or not self._passages[forward.number].moved:
            return None
        return hookpoint.put(output, move_rows(tensor, rows, transport, str(hookpoint)))

    def _map(self, site: int, device: torch.device) -> AbstractMap | None:
        transport = self._maps[site]
        if transport is not None:
            transport = self._maps[site] = transport.to(device)
        return transport

    def _take(self, number: int, site: int, activation: torch.Tensor) -> None:
        """Pools what a forward has at a site. What is kept of it is not the forward's, so its modes do not see it."""
        unknown, passage = site not in self._maps, self._passages[number]
        if not unknown and self._sink is None:
            return
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            tokens = as_tokens(activation.detach())
            spans = passage.spans or TokenSpans.full(tokens.shape[0], tokens.shape[1])
            samples = pool(self._pooling, tokens, spans)
            if unknown:
                self._samples[site, number] = samples
            if self._sink is not None:
                self._sink(site, number, samples)
            if self._tokens is not None and passage.moved:
                self._tokens(site, number, pool("all", tokens, spans))

    def _unwind(self) -> None:
        """Ends all forwards, in reverse order; an error of one does not keep the others."""
        with ExitStack() as stack:
            stack.callback(self._offloaded.send_away)
            for forward in self._forwards:
                stack.callback(self._unwind_one, forward)
        self._forwards = []

    def _unwind_one(self, forward: Forward) -> None:
        if not forward.dead:
            with self._turn(forward.number):
                forward.unwind()
