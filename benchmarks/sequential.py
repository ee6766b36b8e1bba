"""Claim: fitting sites one after the other costs about one plain forward, however many sites there are."""

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import pyarrow.parquet as pq
import torch
import transformers
from torch import nn

from act.capture import Capture, hooked
from act.estimation import Sequential
from act.hookpoint import Hookpoint, modules_of, select
from act.lockstep import Passage
from act.lockstep.spill import Spill
from act.marginal import Marginal
from act.pooling import TokenSpans, pool
from act.sequential import Turn, fit_sequentially, survey
from act.site_fit import SiteLaws, fit_site
from act.tokens import TokenLaws
from act.transport import AbstractMap, Transport, fit
from benchmarks.finding import Effort, Finding, Spread, Wanted, alternate
from benchmarks.runs import STATEMENTS, Setting, stages_of
from jobs.demo import find_model
from schemas.plan import Site

#: Prompts a side, statements a prompt, and rounds.
SIZES = {Effort.USUAL: ((64, 1, 4), (64, 5, 2)), Effort.LONG: ((64, 1, 2), (64, 5, 2), (1024, 1, 1))}
MOST = {64: 1.10, 1024: 1.20}

#: Prompts a side of runs on workers, and rounds.
WORKERS = (256, 1)
UNIT_SIZE = 32

BATCH = 8
MOST_TOKENS = 64

#: Sentences a side for which the prefix is run again before each site or layer, as others do.
AGAIN = 8


@final
@dataclass(frozen=True, eq=False)
class Passes:
    """A model without its head, its sites, and batches of both sides.

    Args:
        model: The model.
        sites: All layernorms, in execution order.
        source: Batches of the source.
        target: Batches of the target.
    """

    model: nn.Module
    sites: Sequence[Site]
    source: Sequence[dict[str, torch.Tensor]]
    target: Sequence[dict[str, torch.Tensor]]

    @property
    def batches(self) -> list[dict[str, torch.Tensor]]:
        """The batches of both sides."""
        return [*self.source, *self.target]

    def run(self, batch: dict[str, torch.Tensor]) -> None:
        """One forward."""
        with torch.inference_mode():
            self.model(**batch, use_cache=False)

    def plain(self) -> None:
        """Forwards of all batches, nothing read."""
        for batch in self.batches:
            self.run(batch)

    def passages(self, side: Sequence[dict[str, torch.Tensor]], *, moved: bool) -> list[Passage]:
        """A side's batches, ready to be suspended."""
        return [
            Passage(partial(self.run, batch), TokenSpans.from_mask(batch["attention_mask"]), moved) for batch in side
        ]

    def within(self, budget: int) -> Spill:
        """The sequential fit of all sites with a budget of bytes for what waits; returns what moved it out."""
        with tempfile.TemporaryDirectory() as folder, Spill(modules_of(self.model), budget, Path(folder)) as spill:
            self.lockstep(self.sites, turn=spill.turn)
        return spill

    def lockstep(self, sites: Sequence[Site], turn: Turn | None = None) -> None:
        """The sequential fit of some sites, its dry run on one row included."""
        modules = modules_of(self.model)
        row = {name: value[:1] for name, value in self.source[0].items()}
        hookpoints = select([site.hookpoint.replace(".", r"\.") for site in sites], modules)
        found, alone = survey(modules, hookpoints, [partial(self.run, row)])
        passages = self.passages(self.source, moved=True), self.passages(self.target, moved=False)
        fit_sequentially(modules, found, *passages, "mean", Transport(), Sequential(), turn or alone)

    def run_again(self) -> None:
        """The sequential fit as it is done without lockstep: the prefix again for every site, both sides."""
        modules, maps = modules_of(self.model), dict[str, AbstractMap]()
        for site in self.sites:
            source = self._prefix(modules, site.hookpoint, self.source, maps)
            target = self._prefix(modules, site.hookpoint, self.target, {})
            maps[site.hookpoint] = fit("linear", Marginal.from_samples(source), Marginal.from_samples(target))

    def _prefix(
        self,
        modules: Mapping[str, nn.Module],
        last: str,
        side: Sequence[dict[str, torch.Tensor]],
        maps: Mapping[str, AbstractMap],
    ) -> torch.Tensor:
        """Returns what a side has at a site when the sites before it are moved."""
        samples: list[torch.Tensor] = []

        def visit(hookpoint: Hookpoint, module: nn.Module, output: torch.Tensor) -> torch.Tensor | None:
            if hookpoint.module == last:
                samples.append(pool("mean", output, spans))
                raise _Enough
            return maps[hookpoint.module](output) if maps else None

        places = [Hookpoint(site.hookpoint) for site in self.sites if site.hookpoint in maps] + [Hookpoint(last)]
        with hooked(modules, places, visit):
            for batch in side:
                spans = TokenSpans.from_mask(batch["attention_mask"])
                with contextlib.suppress(_Enough):
                    self.run(batch)
        return torch.cat(samples)

    def simultaneous(self) -> None:
        """The simultaneous fit of all sites."""
        tokens = TokenLaws([site.width for site in self.sites])
        sides = self._read(self.source, tokens), self._read(self.target, None)
        for number, samples in enumerate(zip(*sides, strict=True)):
            fit_site(self.sites[number], Transport(), SiteLaws.of(samples, tokens.law(number)))

    def _read(self, side: Sequence[dict[str, torch.Tensor]], tokens: TokenLaws | None) -> list[torch.Tensor]:
        pooled: list[list[torch.Tensor]] = [[] for _ in self.sites]
        modules = modules_of(self.model)
        capture = Capture(modules, self.sites, "mean", lambda site, one: pooled[site].append(one), tokens=tokens)
        with capture.reading():
            for batch in side:
                with capture.batch(TokenSpans.from_mask(batch["attention_mask"])):
                    self.run(batch)
        return [torch.cat(parts) for parts in pooled]


def measure(effort: Effort) -> list[Finding]:
    """Runs all arms in turn, on one thread, and compares their CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [_compare(passes_of(size, each), size, each, rounds) for size, each, rounds in SIZES[effort]]
        found += [[_within_an_eighth(passes_of(64, 5))], [_against_running_again(passes_of(AGAIN, 5))]]
    finally:
        torch.set_num_threads(threads)
    return [*itertools.chain(*found), *_on_workers(*WORKERS)]


def passes_of(num_prompts: int, each: int) -> Passes:
    """Returns SmolLM2-135M, its 61 layernorms, and both sides in batches of eight prompts, of some statements each."""
    folder = find_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = pq.read_table(STATEMENTS).column("statement").to_pylist()
    prompts = [" ".join(texts[start : start + each]) for start in range(0, 2 * num_prompts * each, each)]
    source, target = (list(_batches(tokenizer, prompts[side::2])) for side in (0, 1))
    modules = modules_of(model)
    made = Passes(model, (), source, target)
    sites, _ = survey(modules, select("layernorms", modules), [partial(made.run, source[0])])
    return Passes(model, sites, source, target)


def _batches(tokenizer: Any, texts: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:  # noqa: ANN401
    ids = sorted((tokenizer(text)["input_ids"][:MOST_TOKENS] for text in texts), key=len)
    for start in range(0, len(ids), BATCH):
        rows = ids[start : start + BATCH]
        width = max(map(len, rows))
        tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            tokens[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        yield {"input_ids": tokens, "attention_mask": mask}


def _compare(one: Passes, size: int, each: int, rounds: int) -> list[Finding]:
    few = [*one.sites[:: max(1, len(one.sites) // 8)][:7], one.sites[-1]]
    arms: dict[str, Callable[[], None]] = {
        "plain": one.plain,
        "all": partial(one.lockstep, one.sites),
        "again": one.plain,
        "few": partial(one.lockstep, few),
        "simultaneous": one.simultaneous,
    }
    costs: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds):
        order = list(arms.items())
        for name, arm in order if round_ % 2 == 0 else reversed(order):
            costs[name].append(cpu_of(arm))
    plain = [(first + second) / 2 for first, second in zip(costs["plain"], costs["again"], strict=True)]
    place = f"2 x {size} prompts of {each}"
    tokens = sum(int(batch["attention_mask"].sum()) for batch in one.batches)
    note = f"{len(one.batches)} batches, {tokens:,} tokens; a plain forward of all takes {min(plain):.1f} CPU seconds"
    return [
        Finding(
            f"sequential fit of {len(one.sites)} layernorms / plain forward, CPU, {place}",
            "x",
            _ratio(costs["all"], plain),
            Wanted("under", MOST[size]),
            (note,),
        ),
        Finding(f"the same of {len(few)} layernorms / plain forward, {place}", "x", _ratio(costs["few"], plain)),
        Finding(
            f"sequential fit of {len(one.sites)} layernorms / of {len(few)}, {place}",
            "x",
            _ratio(costs["all"], costs["few"]),
            Wanted("under", 1.10),
        ),
        Finding(
            f"simultaneous fit / plain forward, {place}",
            "x",
            _ratio(costs["simultaneous"], plain),
            Wanted("under", 1.06),
        ),
        Finding(f"a plain forward / itself, {place}: the noise", "x", _ratio(costs["plain"], costs["again"])),
    ]


def _within_an_eighth(one: Passes) -> Finding:
    """A budget of an eighth of what waits, to a file, against no limit."""
    live = one.within(1 << 60).peak
    moved = 0

    def bounded() -> None:
        nonlocal moved
        moved = one.within(live // 8).moved

    free = partial(one.lockstep, one.sites)
    pairs = alternate(3, lambda _: cpu_of(bounded), lambda _: cpu_of(free))
    costs = [with_limit / without for with_limit, without in pairs]
    note = f"{live / 2**20:.0f} MiB wait at once without a limit; {moved / 2**30:.2f} GiB were moved out with it"
    claim = "sequential fit with room for an eighth of what waits / without a limit, CPU, 2 x 64 prompts of 5"
    return Finding(claim, "x", Spread.of(costs), Wanted("under", 1.4), (note,))


def _against_running_again(one: Passes) -> Finding:
    """The prefix run again before every site, on both sides, against lockstep."""
    lockstep = [cpu_of(partial(one.lockstep, one.sites))]
    slow = cpu_of(one.run_again)
    lockstep.append(cpu_of(partial(one.lockstep, one.sites)))
    claim = f"running the prefix again before every site / lockstep, CPU, 2 x {AGAIN} prompts of 5"
    return Finding(claim, "x", Spread.of([slow / fast for fast in lockstep]), Wanted("at least", 25.0))


def _on_workers(num_prompts: int, rounds: int) -> list[Finding]:
    """Sequential runs, as commands, on two workers of a thread each and on one, on the wall."""
    two, one = (Setting(num_prompts, UNIT_SIZE, workers=count, estimation="sequential") for count in (2, 1))
    pairs = list(alternate(rounds, lambda _: stages_of(two), lambda _: stages_of(one)))
    notes = [
        f"{kind}: extract the target {fit['extract']:.1f} s, sequence the source {fit['sequence']:.1f} s, in all "
        f"{sum(fit.values()):.1f} s"
        for pair in pairs
        for kind, fit in zip(("two workers", "one worker"), pair, strict=True)
    ]
    place = f"2 x {num_prompts} prompts of 1 in units of {UNIT_SIZE}"
    return [
        Finding(
            f"a sequential run on two workers / on one, the wall, both sides, {place}",
            "x",
            Spread.of([_sides(two) / _sides(one) for two, one in pairs]),
            Wanted("under", 0.7),
            (*notes, "the source begins with its actors and their models, which are loaded anew"),
        ),
        Finding(
            f"the same with start-up, laying out and the rest, {place}",
            "x",
            Spread.of([sum(two.values()) / sum(one.values()) for two, one in pairs]),
        ),
    ]


def _sides(stages: Mapping[str, float]) -> float:
    return stages["extract"] + stages["sequence"]


class _Enough(BaseException):
    """The site that is read was reached."""


def cpu_of(work: Callable[[], object]) -> float:
    """Runs something and returns its CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _ratio(of: Sequence[float], to: Sequence[float]) -> Spread:
    return Spread.of([one / other for one, other in zip(of, to, strict=True)])
