"""The laws that are drawn, against the activations that the runs were made of."""

import weakref

import numpy as np
import pytest
import torch

from act.marginal import Marginal
from act.steer import load
from jobs.report.laws import NUM_NEURONS, NUM_OF_ONE_SITE, NeuronLaws, most_moved
from pipeline.laws import Laws
from pipeline.storage import LocalStorage
from schemas.plan import SIDES, LawName, Plan, SideName, Unit
from tests.jobs.report.runs import BLOCKS, SHIFTS, SKETCHED, Block, Shifts, laws_of, make_block, make_plan, make_run

QUANTILE = {"transport": {"method": "quantile"}}

#: Runs whose activations are stored, and runs that keep none.
KINDS = {"exact": {}, "exact quantile": QUANTILE, "sketch": SKETCHED, "sketch quantile": SKETCHED | QUANTILE}


def drawn(folder: LocalStorage) -> tuple[NeuronLaws, ...]:
    plan, laws = laws_of(folder)
    return most_moved(plan, load(folder.root / "steer"), laws)


def samples_of(plan: Plan, side: SideName, neuron: NeuronLaws) -> np.ndarray:
    """The activations of a neuron that a run was made of, whether or not they were kept."""
    column = plan.columns[neuron.moved.hookpoint].start + neuron.moved.neuron
    blocks = [make_block(plan, unit, SHIFTS) for unit in plan.units() if unit.side == side]
    return np.concatenate(blocks)[:, column]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, LocalStorage]:
    return {
        kind: make_run(tmp_path_factory.mktemp("run") / "music", make_plan(BLOCKS, **spec))
        for kind, spec in KINDS.items()
    }


@pytest.fixture(scope="module", params=KINDS)
def run(request, runs) -> LocalStorage:
    return runs[request.param]


@pytest.fixture(scope="module")
def neurons(run) -> tuple[NeuronLaws, ...]:
    return drawn(run)


def test_the_most_moved_neurons_come_first_and_at_most_two_of_a_site(neurons):
    found = [(neuron.moved.hookpoint, neuron.moved.neuron) for neuron in neurons]
    assert found[:3] == [(BLOCKS[2], 5), (BLOCKS[2], 1), (BLOCKS[6], 3)]
    assert len(found) == NUM_NEURONS == len(set(found))
    sites = [site for site, _ in found]
    assert max(map(sites.count, sites)) == NUM_OF_ONE_SITE
    far = [neuron.moved.displacement for neuron in neurons]
    assert far == sorted(far, reverse=True)
    assert far[0] == pytest.approx(20, rel=0.2)


def test_laws_are_shares_of_the_samples_and_the_transported_law_lies_on_the_target(run, neurons):
    plan, laws = laws_of(run)
    for neuron in neurons:
        number = [site.hookpoint for site in plan.sites].index(neuron.moved.hookpoint)
        for side, law, mean in zip(SIDES, (neuron.source, neuron.target), neuron.means, strict=False):
            samples = samples_of(plan, side, neuron)
            reached = np.searchsorted(np.sort(samples), neuron.edges) / len(samples)
            # A law of cells may put a cell's samples on the wrong side of an edge, and no others.
            wrong = float(laws.marginal(side, number).rank_error[neuron.moved.neuron])
            assert np.abs(np.cumsum(law) - (reached[1:] - reached[0])).max() <= 2 * wrong + 1e-9
            assert mean == pytest.approx(samples.mean(), abs=1e-4 * float(samples.std()))
            assert 0.9 < law.sum() <= 1 + 1e-9
        assert neuron.means[2] == pytest.approx(neuron.means[1], abs=0.02 * float(samples.std()))
        assert np.abs(np.cumsum(neuron.transported) - np.cumsum(neuron.target)).max() < 0.2
    assert neuron.means[0] != pytest.approx(neuron.means[1], abs=0.02 * float(samples.std()))


@pytest.mark.parametrize("kind", ["exact", "exact quantile"])
def test_of_exact_laws_all_is_numpys(runs, kind):
    plan, steer = laws_of(runs[kind])[0], load(runs[kind].root / "steer")
    for neuron in drawn(runs[kind]):
        place = slice(neuron.moved.neuron, neuron.moved.neuron + 1)
        source, target = (samples_of(plan, side, neuron) for side in SIDES)
        transport = steer.maps[neuron.moved.hookpoint].of(place)
        moved = transport(torch.from_numpy(source[:, None]))[:, 0].numpy()
        laws = [samples.astype(np.float64) for samples in (source, target, moved)]
        ends = np.array([np.quantile(samples, [0.005, 0.995]) for samples in laws])
        low, high = ends[:, 0].min(), ends[:, 1].max()
        room = 0.03 * (high - low)
        num_bins = int(np.clip(2.5 * np.sqrt(min(map(len, laws))), 16, 60))
        np.testing.assert_allclose(neuron.edges, np.linspace(low - room, high + room, num_bins + 1), rtol=1e-9)
        for samples, law in zip(laws, (neuron.source, neuron.target, neuron.transported), strict=True):
            np.testing.assert_allclose(law, np.histogram(samples, neuron.edges)[0] / len(samples), atol=1e-12)
        np.testing.assert_allclose(neuron.means, [samples.mean() for samples in laws], rtol=1e-5)


def test_the_curve_is_the_map_over_its_support(run, neurons):
    steer = load(run.root / "steer")
    for neuron in neurons:
        transport = steer.maps[neuron.moved.hookpoint].of(slice(neuron.moved.neuron, neuron.moved.neuron + 1))
        x, y = neuron.curve
        low, high = np.clip([float(transport.low), float(transport.high)], neuron.edges[0], neuron.edges[-1])
        assert (x[0], x[-1]) == (low, high)
        assert (np.diff(x) > 0).all()
        assert (np.diff(y) >= 0).all()
        assert (len(x) == 2) == (steer.card.method == "linear")
        between = np.linspace(low, high, 1001)
        wanted = transport(torch.from_numpy(between)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(np.interp(between, x, y), wanted, rtol=1e-5, atol=1e-5 * np.ptp(y))


def test_one_site_at_a_time_is_in_memory(run, monkeypatch):
    plan, laws = laws_of(run)
    alive: list[tuple[int, weakref.ref[Marginal]]] = []
    asked: list[tuple[str, int]] = []
    marginal = Laws.marginal

    def watched(self: Laws, law: LawName, site: int) -> Marginal:
        assert {number for number, found in alive if found()} <= {site}
        found = marginal(self, law, site)
        asked.append((law, site))
        alive.append((site, weakref.ref(found)))
        return found

    monkeypatch.setattr(Laws, "marginal", watched)
    found = most_moved(plan, load(run.root / "steer"), laws)
    sites = [site.hookpoint for site in plan.sites]
    shown = sorted({sites.index(neuron.moved.hookpoint) for neuron in found})
    assert asked == [("source", n) for n in range(len(sites))] + [(side, n) for n in shown for side in SIDES]


def test_a_selection_leaves_neurons_that_are_not_drawn(tmp_path):
    chosen = {"by": "w2", "top": 1, "of": "sites", "across": "model"}
    transport = {"method": "linear", "select": chosen}
    plan = make_plan(BLOCKS[:3], transport=transport, **SKETCHED)
    neurons = drawn(make_run(tmp_path / "run", plan, {(BLOCKS[2], 5): 20.0}))
    assert [neuron.moved.hookpoint for neuron in neurons] == [BLOCKS[2], BLOCKS[2]]


@pytest.mark.parametrize("kind", [{}, SKETCHED])
def test_a_neuron_without_spread_is_not_drawn(tmp_path, kind):
    def constant(plan: Plan, unit: Unit, shifts: Shifts) -> Block:
        return np.full((unit.num_prompts, 8), 1 if unit.side == "source" else 3, np.float32)

    assert drawn(make_run(tmp_path / "run", make_plan(["norm"], **kind), make_block=constant)) == ()


@pytest.mark.parametrize("kind", [{}, SKETCHED])
def test_a_neuron_that_is_nearly_always_one_value_is_drawn_over_its_whole_range(tmp_path, kind):
    def spike(plan: Plan, unit: Unit, shifts: Shifts) -> Block:
        block = np.zeros((unit.num_prompts, plan.width), np.float32)
        block[0] = 5 if unit.side == "source" else -2
        return block

    compute = {"workers": 0, "max_tokens": 64, "unit_size": 500, "batch_tokens": 4096}
    plan = make_plan(["norm"], prompts=(500, 500), compute=compute, **kind)
    neuron = drawn(make_run(tmp_path / "run", plan, make_block=spike))[0]
    assert neuron.edges[0] < -2 < 5 < neuron.edges[-1]
    assert neuron.source.sum() == pytest.approx(1)
    assert neuron.source.max() == pytest.approx(499 / 500)
