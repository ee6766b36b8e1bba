import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from act.errors import LockstepStateError
from act.hookpoint import modules_of
from act.lockstep import Lockstep, Passage
from act.lockstep.ledger import Ledger, key, live_bytes
from schemas.plan import Site
from tests.act.lockstep.models import Case, Kind, language_model
from tests.act.lockstep.oracle import Batch, Sides, fitted
from tests.architectures import tiny, tokens

KINDS: tuple[Kind, ...] = "norms", "projections"
ATTENTIONS = "sdpa", "eager"
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


def sites_of(case: Case, kind: Kind) -> list[Site]:
    return [Site(name, "", 0) for name in case.sites(kind)]


def in_memory() -> dict[int, torch.UntypedStorage]:
    """Every storage that Python knows of, wherever it is held, but for frozen objects."""
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    storages = [one.untyped_storage() for one in tensors if one.layout is torch.strided]
    return {key(storage): storage for storage in storages}


@contextmanager
def frozen() -> Iterator[None]:
    """A context in which the collector forgets what there is, so that looking through the rest is quick."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def held_when_suspended(case: Case, sites: list[Site], *, moved: bool) -> list[int]:
    """Bytes that came into memory since before the first source batch's forward began, at each site where it stands.

    Counted without a ledger, and without what is not the forward's: its samples and the maps.
    """
    batch = case.sides[0][0]
    lockstep = Lockstep(case.modules, sites, "mean", [Passage(batch.run, batch.spans, moved)])
    gc.collect()
    found, before = [], in_memory()
    with frozen(), lockstep.running():
        for site in range(len(sites)):
            ((sample,),) = lockstep.read(site)
            assert sample is not None
            known = {*before, key(sample.untyped_storage())}
            found.append(sum(storage.nbytes() for number, storage in in_memory().items() if number not in known))
            lockstep.move(site, fitted([sample], [sample + 1], "linear") if moved else None)
            others = [part for one in lockstep._maps.values() if one is not None for part in one.tensors().values()]
            before |= {key(part.untyped_storage()): part.untyped_storage() for part in others}
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "attention"),
    [
        *((family, attention) for family in ("gpt2", "llama", "gemma3_text", "mixtral") for attention in ATTENTIONS),
        ("mamba", None),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moved", [False, True])
def test_planned_bytes_are_those_that_a_suspended_forward_holds(
    family: str, attention: str | None, kind: Kind, *, moved: bool
) -> None:
    case = language_model(family, attention)
    sites = sites_of(case, kind)

    held = held_when_suspended(case, sites, moved=moved)

    assert live_bytes(case.modules, sites, case.sides[0][0].run) == held
    assert min(held) > 0


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3_text", "falcon"])
@pytest.mark.parametrize("shape", [(2, 5), (3, 12)])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fake_tensors_plan_the_same_bytes(
    family: str, attention: str, shape: tuple[int, int], mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    model, ids = tiny(family, attention), tokens(*shape)
    # Padded: transformers looks whether a mask is all ones, and does without it; of a fake one it cannot know.
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([shape[1] - 1]), 0)
    modules = modules_of(model)

    def run(ids: torch.Tensor, mask: torch.Tensor) -> None:
        with mode():
            model(input_ids=ids, attention_mask=mask, use_cache=False)

    sides: Sides = [Batch(lambda: run(ids, mask))], []
    for kind in KINDS:
        sites = sites_of(Case(modules, sides), kind)
        real = live_bytes(modules, sites, lambda: run(ids, mask))
        with FakeTensorMode(allow_non_fake_inputs=True) as fakes:
            given = fakes.from_tensor(ids), fakes.from_tensor(mask)
            fake = live_bytes(modules, sites, partial(run, *given))
        assert fake == real


class Gated(nn.Module):
    """Multiplies what two layers return: while `up` runs, the other factor is on the value stack alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


def test_a_forward_holds_what_is_on_its_value_stack() -> None:
    model, x = Gated(), torch.ones(2, 3, 4)
    sites = [Site(name, "", 0) for name in ("gate", "up", "down")]
    output, unused = 2 * 3 * 6 * 4, Site("nowhere", "", 0)

    bytes_of = live_bytes(modules_of(model) | {"nowhere": nn.Identity()}, [*sites, unused], lambda: model(x))

    assert bytes_of == [output, 2 * output, output + 2 * 3 * 4 * 4, 0]
    case = Case(modules_of(model), ([Batch(lambda: model(x))], []))
    assert bytes_of[:3] == held_when_suspended(case, sites, moved=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("operation", "num_elements"),
    [
        (lambda x: x.view(-1), 0),
        (lambda x: x.t(), 0),
        (lambda x: x.contiguous(), 0),
        (lambda x: x.to(torch.float32), 0),
        (lambda x: nn.functional.dropout(x, 0.5, training=False), 0),
        (lambda x: x.chunk(2), 0),
        (lambda x: x.detach().add_(1), 0),
        (lambda x: torch.add(x, 1, out=torch.empty(0)), 6),
        (lambda x: x.t().contiguous(), 6),
        (lambda x: x.t().reshape(-1), 6),
        (lambda x: x.to(torch.float64), 12),
        (lambda x: [x + 1, (x + 2, {"a": x + 3})], 18),
        (lambda x: x.split([1, 1])[0].clone(), 3),
        (lambda x: torch.full((5,), 1.0), 5),
        (lambda x: torch.sort(x), 18),
        (lambda x: (x + 1)[0, :1], 6),
        (lambda x: x.to_sparse(), 0),
        (lambda x: torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,)), 6),
    ],
)
def test_it_notes_storages_that_an_operation_made_and_no_others(
    mode: Callable[[], AbstractContextManager[Any]], operation: Callable[[torch.Tensor], Any], num_elements: int
) -> None:
    x, ledger = torch.arange(6.0).view(2, 3), Ledger()

    with mode(), ledger.following(0):
        kept = operation(x)

    assert ledger.live(0) == 4 * num_elements
    del kept
    assert ledger.alive(0) == []


def test_each_passage_has_its_own() -> None:
    ledger, kept = Ledger(), []

    for number in (3, 5, 3):
        with ledger.following(number):
            kept.append(torch.ones(number))
    with ledger.following(5):
        view = kept[0][:1]

    assert [ledger.live(number) for number in (3, 5, 7)] == [24, 20, 0]
    assert view.untyped_storage().nbytes() == 12


def test_dead_references_are_forgotten_while_it_runs() -> None:
    ledger = Ledger()

    with ledger.following(0):
        x = torch.ones(2)
        for _ in range(300):
            x = x + 1
        assert len(ledger._running) <= 65

    assert ledger.live(0) == 8


def test_a_forward_that_stops_inside_an_operation_is_refused_and_ended() -> None:
    inner = nn.Linear(3, 3).eval().requires_grad_(False)
    ended = []

    @torch.library.custom_op("actmap_test::through", mutates_args=())
    def through(x: torch.Tensor) -> torch.Tensor:
        try:
            return inner(x) + 1
        finally:
            ended.append(True)

    passages = [Passage(lambda: through(torch.ones(2, 1, 3)), None, moved=False) for _ in range(2)]
    lockstep = Lockstep({"inner": inner}, [Site("inner", "", 0)], "mean", passages, turn=Ledger().following)
    with pytest.raises(LockstepStateError, match="inside an operation"), lockstep.running():
        lockstep.read(0)

    assert ended == [True]
    assert _get_current_dispatch_mode_stack() == []
    assert torch.equal(through(torch.zeros(1, 3)), inner(torch.zeros(1, 3)) + 1)
