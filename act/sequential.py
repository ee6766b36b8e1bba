"""Sequential estimation: each site is fitted on activations that the maps before it have moved.

Rodriguez et al., ICLR 2025, section 3.3 (causal estimation). Every batch's forward stands in its hook while the map is
fitted (`act.lockstep`), so that all sites together cost about one forward.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from torch import nn

from act.capture import check_called, visits
from act.errors import EstimationError, SelectionError, SiteVisitError
from act.estimation import Fitted, Sequential
from act.hookpoint import Hookpoint
from act.lockstep import Lockstep, Passage
from act.lockstep.module_state import Isolation, ModuleState
from act.lockstep.order import in_order
from act.pooling import Pooling
from act.site_fit import SiteLaws, fit_site
from act.steer import Steer
from act.tokens import TokenLaws
from act.transport import AbstractMap, Transport
from schemas.card import SiteCard
from schemas.plan import Site

#: Reads sites: `Lockstep.read` or `Lockstep.read_last`.
Read = Callable[..., list[list[torch.Tensor | None]]]

#: Returns what a turn of a passage is surrounded by.
Turn = Callable[[int], AbstractContextManager[object]]


def survey(
    modules: Mapping[str, nn.Module],
    hookpoints: Sequence[Hookpoint],
    forwards: Sequence[Callable[[], object]],
    tokens: int | None = None,
) -> tuple[tuple[Site, ...], Turn]:
    """Returns the sites in execution order, and what keeps forwards out of each other's way, after a dry run.

    What a forward replaces in the modules, such as tables that grow with the longest prompt, each passage gets for
    itself; the model is left as it was.

    Args:
        modules: The model's modules by name.
        hookpoints: Hookpoints without a step.
        forwards: Each runs the model once. One is enough if all visit the same sites; the longest shows most.
        tokens: Tokens of the first, when every site must have one output a token; None when sites differ.

    Raises:
        SiteVisitError: A hookpoint is never called.
        SiteOrderError: Forwards visit sites in opposite orders.
        LockstepStateError: A forward writes into tensors of the model.
        ShapeError: A site's output has not one vector a token.
    """
    state = ModuleState(modules)
    found = [
        visits(modules, hookpoints, forward, tokens=tokens if number == 0 else None)
        for number, forward in enumerate(forwards)
    ]
    sites = in_order(found)
    check_called(hookpoints, sites)
    state.check_unwritten()  # before anything is put back: what was written may go with what was replaced
    replaced = state.replaced()
    state.restore(replaced)
    return sites, Isolation(modules, replaced).turn if replaced else nullcontext


def check_selection(transport: Transport) -> None:
    """Checks that sites can be fitted one by one.

    Raises:
        SelectionError: The selection ranks across the model: all laws would have to be known before the first map.
    """
    chosen = transport.select
    if chosen is not None and (chosen.of == "sites" or chosen.across == "model"):
        raise SelectionError("ranks", str(chosen), "neurons within each site, as sites are fitted one after the other")


def passes(num_sites: int, blocks: int | None) -> list[list[range]]:
    """Returns the groups of sites that each pass over the prompts fits, one after the other.

    Without blocks one pass fits every site by itself; with them a pass fits one group.
    """
    if blocks is None:
        return [[range(site, site + 1) for site in range(num_sites)]]
    count = min(blocks, num_sites)
    bounds = [num_sites * part // count for part in range(count + 1)]
    return [[range(start, stop)] for start, stop in itertools.pairwise(bounds)]


def fit_sequentially(
    modules: Mapping[str, nn.Module],
    sites: Sequence[Site],
    source: Sequence[Passage],
    target: Sequence[Passage],
    pooling: Pooling,
    transport: Transport,
    how: Sequential,
    turn: Turn = nullcontext,
) -> Fitted:
    """Returns the maps of all sites, fitted one after the other.

    Args:
        modules: The model's modules by name.
        sites: The sites, in an order in which every passage visits those that it does: `survey` finds them.
        source: The micro-batches of the source.
        target: Those of the target.
        pooling: How the real tokens of a prompt become its sample.
        transport: What kind of map to fit.
        how: Groups, passages that do not come, and what to start from.
        turn: What each turn of a passage is surrounded by, see `act.lockstep.Lockstep`.

    Raises:
        SiteVisitError: Some passage does not visit a site.
        EstimationError: The steer to start from has other sites.
        LockstepStateError: The model is in training mode, or a forward writes into it.
        SelectionError: The selection ranks across the model.
    """
    check_selection(transport)
    state = ModuleState(modules)
    fit = _Fit(sites, transport, how, _read_at_once(modules, sites, target, pooling, turn))
    for number, groups in enumerate(passes(len(sites), how.blocks)):
        if all(site in fit.maps for group in groups for site in group):
            continue
        mine = _from(turn, len(target) + number * len(source))
        lockstep = Lockstep(modules, sites, pooling, source, tokens=fit.take_tokens, turn=mine)
        for site, known in fit.maps.items():
            lockstep.move(site, known)
        with lockstep.running():
            for group in groups[:-1]:
                fit.fit(lockstep, lockstep.read, group)
            fit.fit(lockstep, lockstep.read_last, groups[-1])
    state.check_unwritten()
    return fit.fitted()


def _from(turn: Turn, first: int) -> Turn:
    """Returns turns whose numbers begin later: what earlier forwards left is not for those of another pass."""
    return lambda number: turn(first + number)


def _read_at_once(
    modules: Mapping[str, nn.Module], sites: Sequence[Site], passages: Sequence[Passage], pooling: Pooling, turn: Turn
) -> list[list[torch.Tensor | None]]:
    """Returns what passages have at each site when nothing is moved, one after the other: none waits for another."""
    lockstep = Lockstep(modules, sites, pooling, passages, turn=turn)
    with lockstep.running():
        return lockstep.read_last(*range(len(sites)))


@final
class _Fit:
    """The maps of all sites, as they come.

    Args:
        sites: The sites.
        transport: What kind of map to fit.
        how: How to fit them.
        target: What each passage of the target has at each site.

    Attributes:
        maps: The map of each site that was fitted; None where a side has no samples.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        transport: Transport,
        how: Sequential,
        target: Sequence[Sequence[torch.Tensor | None]],
    ) -> None:
        self._sites, self._transport, self._how, self._target = sites, transport, how, target
        self._lines: dict[int, SiteCard] = {}
        self._num_samples = (0, 0)
        self._tokens = TokenLaws([site.width for site in sites])
        self.maps: dict[int, AbstractMap | None] = {}
        if how.start is not None:
            self._take_over(how.start)

    def take_tokens(self, site: int, passage: int, tokens: torch.Tensor) -> None:
        """Counts single tokens of the source."""
        self._tokens(site, tokens)

    def fit(self, lockstep: Lockstep, read: Read, group: Sequence[int]) -> None:
        """Fits the sites of a group on what all passages have there, and lets these go on with the maps."""
        unknown = [site for site in group if site not in self.maps]
        if not unknown:
            return
        for site, samples in zip(unknown, read(*unknown), strict=True):
            self._fit_one(site, samples)
        for site in unknown:
            lockstep.move(site, self.maps[site])

    def fitted(self) -> Fitted:
        """Returns all that has a map."""
        maps = {self._sites[site].hookpoint: one for site, one in sorted(self.maps.items()) if one is not None}
        lines = [line for site, line in sorted(self._lines.items())]
        return Fitted(maps, lines, self._num_samples)

    def _fit_one(self, site: int, samples: Sequence[torch.Tensor | None]) -> None:
        if self._how.unreached == "refuse" and any(one is None for one in [*samples, *self._target[site]]):
            raise SiteVisitError(self._sites[site].hookpoint, 0)
        source, target = _joined(samples), _joined(self._target[site])
        if source is None or target is None:
            self.maps[site] = None
            return
        self._num_samples = max(self._num_samples[0], len(source)), max(self._num_samples[1], len(target))
        laws = SiteLaws.of((source, target), self._tokens.law(site))
        self.maps[site], self._lines[site] = fit_site(self._sites[site], self._transport, laws)

    def _take_over(self, start: Steer) -> None:
        numbers = {site.hookpoint: number for number, site in enumerate(self._sites)}
        for line in start.card.sites:
            if line.hookpoint not in numbers:
                raise EstimationError("start", line.hookpoint, "a steer whose sites are all among the hookpoints")
            self.maps[numbers[line.hookpoint]] = start.maps[line.hookpoint]
            self._lines[numbers[line.hookpoint]] = line
        self._num_samples = start.card.source.num_samples, start.card.target.num_samples


def _joined(samples: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Returns the samples of a side in the order of its passages, `[samples, neurons]`; None if there are none."""
    there = [one.cpu() for one in samples if one is not None]
    return torch.cat(there) if there else None
