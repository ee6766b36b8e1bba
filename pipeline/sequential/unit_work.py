"""A unit of the source on its way: what was read of it so far."""

from collections.abc import Mapping
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.extract import Extractor, Ran
from pipeline.frames import MOST_TOKENS, PILOT_PROMPTS
from pipeline.sketch import Frame, Grid, HistogramSketch
from pipeline.store.activations import kept_rows
from schemas.plan import LawName, Plan, Unit
from schemas.receipt import Quarantined
from schemas.treatment import Treatment

Frames = Mapping[LawName, Frame]


@final
class UnitWork:
    """A unit, laid out, with its samples and its single tokens at the sites that it has passed.

    Args:
        plan: The plan.
        extractor: Lays it out, and stores it in the end.
        unit: The unit.
        treatment: Which of its prompts are masked, and which micro-batches run in pieces.
        frames: The frames of sites that are known already; others come in time.
    """

    def __init__(
        self, plan: Plan, extractor: Extractor, unit: Unit, treatment: Treatment, frames: Mapping[int, Frames]
    ) -> None:
        self.unit, self._plan, self._extractor, self._treatment = unit, plan, extractor, treatment
        self._frames, self._columns = frames, list(plan.columns.values())
        self._values: dict[int, list[torch.Tensor]] = {}
        self._tokens: dict[int, HistogramSketch] = {}
        self._block = np.full((unit.num_prompts * plan.rows_per_prompt, plan.width), np.nan, np.float32)
        tokens = self._take if plan.sketches("tokens", unit) else None
        self.laid = extractor.forward.lay(extractor.prompts(unit), unit.start, self._block, tokens, treatment)

    def odd(self, site: int) -> tuple[Quarantined, ...]:
        """Returns the prompts with an activation at a site that is not finite, and are not known to be lost."""
        known = {one.row for one in self._treatment.masked}
        rows = self._samples(site).reshape(self.unit.num_prompts, -1)
        found = []
        for row, count in enumerate(self.laid.packed.num_tokens):
            there = min(count, self._plan.rows_per_prompt) * self._plan.sites[site].width
            if self.unit.start + row not in known and not np.isfinite(rows[row, :there]).all():
                name = self._plan.sites[site].hookpoint
                found.append(Quarantined(self.unit.start + row, f"non-finite activation at {name}"))
        return tuple(found)

    def samples(self, site: int) -> torch.Tensor:
        """Returns the samples that count at a site, `[samples, neurons]`, in the order of the prompts."""
        return torch.from_numpy(np.ascontiguousarray(self._samples(site)[self._kept]))

    def frames(self, site: int) -> Frames:
        """Returns the frames of a site, chosen from this unit.

        That of pooled samples is chosen from its first prompts, that of single tokens from the first that go through
        the model, as the maps of the sites before have moved them: so it is the same whoever has the unit.
        """
        chosen: dict[LawName, Frame] = {}
        if self._plan.law["source"].kind == "sketch":
            first = slice(PILOT_PROMPTS * self._plan.rows_per_prompt)
            pilot = self._samples(site)[first][self._kept[first]]
            chosen["source"] = Frame.from_pilot(torch.from_numpy(np.ascontiguousarray(pilot)))
        if self._plan.sketches("tokens", self.unit):
            nothing = torch.empty(0, self._plan.sites[site].width)
            chosen["tokens"] = Frame.from_pilot(torch.cat([nothing, *self._values.get(site, ())])[:MOST_TOKENS])
        return chosen

    def tokens(self, site: int, frames: Frames) -> HistogramSketch | None:
        """Returns the sketch of the single tokens at a site; None if they are not asked for."""
        if not self._plan.sketches("tokens", self.unit):
            return None
        sketch = self._sketch(site, frames)
        for values in self._values.pop(site, ()):
            sketch.update(values)
        return sketch

    def ran(self, seconds: float) -> Ran:
        """Returns what the forwards left, once the last site is behind them.

        Args:
            seconds: What they took.
        """
        block = self.laid.reading.finished()
        lost = self._extractor.judge(self.unit, self.laid.packed, block, self._treatment)
        sketches = [self.tokens(site, self._frames[site]) for site in range(len(self._plan.sites))]
        tokens = [one for one in sketches if one is not None] or None
        return Ran(self.laid.packed, block, tokens, self._treatment, lost, seconds)

    @property
    def _kept(self) -> NDArray[np.bool_]:
        counts = np.array(self.laid.packed.num_tokens, np.int64)
        counts[[one.row - self.unit.start for one in self._treatment.masked]] = 0
        return kept_rows(counts, self._plan.rows_per_prompt)

    def _samples(self, site: int) -> NDArray[np.float32]:
        samples: NDArray[np.float32] = self._block[:, self._columns[site]]
        return samples

    def _take(self, site: int, values: torch.Tensor) -> None:
        """Counts single tokens at a site, or keeps them until its frame is known."""
        if site in self._frames:
            self._sketch(site, self._frames[site]).update(values)
        else:
            self._values.setdefault(site, []).append(values.float().cpu())

    def _sketch(self, site: int, frames: Frames) -> HistogramSketch:
        if site not in self._tokens:
            self._tokens[site] = HistogramSketch.empty(frames["tokens"], Grid(self._plan.precision("tokens")))
        return self._tokens[site]
