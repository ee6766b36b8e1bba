"""The rules of the scheduler, one by one, on a simulated crew."""

import dataclasses
from collections import deque

import pytest

from pipeline.errors import DifferentBitsError, StoreError, WorkerLostError
from pipeline.scheduling import Extract, Finished, Policy, Scheduler, Settle, Task
from pipeline.scheduling.case import Case
from pipeline.scheduling.roster import Entry
from schemas.receipt import Output, Quarantined, Split
from schemas.treatment import Crumb, Probe, Treatment
from tests.pipeline.scheduling.simulation import Fates, Records, SimulatedCrew, Worker, receipt_of, units


def simulated(num_places: int = 2, **fates) -> SimulatedCrew:
    return SimulatedCrew(num_places, Records(), Fates(**fates))


def run(crew: SimulatedCrew, number: int, policy: Policy | None = None):
    return list(Scheduler(crew, crew.records, policy).run(iter(units(number))))


def attempts(crew: SimulatedCrew, unit: int) -> list[tuple[int, Extract]]:
    return [(place, task) for place, task in crew.submitted if isinstance(task, Extract) and task.unit.index == unit]


def name(task: Task) -> tuple[int, int]:
    """Unit and number of an attempt."""
    assert not isinstance(task, Probe)
    return task.unit.index, task.treatment.attempt


def ends(crew: SimulatedCrew, fates: dict[tuple[int, int], str], seconds: float = 1.0) -> None:
    """Lets attempts, given by unit and number, end as told."""
    crew.script = lambda place, task: (
        (seconds, fates[name(task)]) if isinstance(task, Extract) and name(task) in fates else None
    )


def test_units_are_drawn_only_when_there_is_room_and_in_order():
    crew, drawn = simulated(3), []

    def draw():
        for unit in units(40):
            drawn.append(unit)
            yield unit

    for landed, _ in enumerate(Scheduler(crew, crew.records).run(draw())):
        assert len(drawn) <= landed + 1 + 3 * 2
    assert [task.unit.index for _, task in crew.submitted] == list(range(40))
    assert crew.longest == 2


def test_nobody_gets_a_second_unit_before_everybody_has_a_first():
    crew = simulated(4)
    scheduler = Scheduler(crew, crew.records)
    scheduler.muster()
    while len(scheduler._roster.places) > scheduler._roster.num_ready:
        scheduler._turn()
    list(scheduler.run(units(6)))
    assert {place for place, _ in crew.submitted[:4]} == {0, 1, 2, 3}


def test_the_first_in_a_lost_workers_queue_is_the_suspect_and_is_retried_elsewhere_and_the_others_are_not_blamed():
    crew = simulated(2)
    ends(crew, {(0, 1): "died"})
    assert len(run(crew, 4)) == 4
    (lost_at, _), (retried_at, second) = attempts(crew, 0)
    assert lost_at != retried_at
    assert not second.treatment.careful
    assert all(not task.treatment.careful for unit in range(1, 4) for _, task in attempts(crew, unit))


def test_a_unit_whose_reply_was_lost_is_not_run_again():
    crew = simulated(1)
    ends(crew, {(0, 1): "lost reply"})
    assert {receipt.attempt for receipt in run(crew, 1)} == {1}
    assert len(attempts(crew, 0)) == 1


def test_every_submission_of_a_unit_has_its_own_number():
    crew = simulated(2, death=0.05, dawdling=0.1)
    run(crew, 30, Policy(attempts=20))
    assert len(crew.submitted) > 35
    numbers = [name(task) for _, task in crew.submitted if isinstance(task, Extract)]
    assert len(set(numbers)) == len(numbers)


def test_want_of_memory_halves_the_micro_batches_again_and_again_and_then_a_culprit_is_searched():
    crew = simulated(2)
    ends(crew, {(0, 1): "memory", (0, 2): "memory"})
    assert len(run(crew, 1)) == 1
    assert [task.treatment.parts for _, task in attempts(crew, 0)] == [1, 2, 4]
    assert not crew.records.remembered

    greedy = simulated(2, poison={(5,): "memory"})
    (receipt,) = run(greedy, 1)
    assert [task.treatment.parts for _, task in attempts(greedy, 0)] == [1, 2, 4, 8, 8]
    assert receipt.quarantined == (Quarantined(5, "out of memory alone"),)


def test_a_culprit_is_found_masked_and_remembered():
    crew = simulated(2, poison={(16 + 11,): "died"})
    landed = {receipt.unit: receipt for receipt in run(crew, 3)}
    culprit = (Quarantined(27, "killed its worker (died)"),)
    assert [receipt.quarantined for _, receipt in sorted(landed.items())] == [(), culprit, ()]
    assert crew.records.remembered == {units(3)[1]: culprit}
    careful = [task.treatment.careful for _, task in attempts(crew, 1)]
    assert careful == [False, False, True, True]
    probes = [task for _, task in crew.submitted if isinstance(task, Probe)]
    assert {probe.batch for probe in probes} == {1}
    assert len(probes) == 3 + 2
    assert not any(task.treatment.careful for unit in (0, 2) for _, task in attempts(crew, unit))


def test_known_culprits_are_masked_from_the_first_attempt():
    crew = simulated(1, poison={(3,): "died"})
    crew.records.remember(units(1)[0], (Quarantined(3, "killed its worker (died)"),))
    assert len(run(crew, 1)) == 1
    assert len(crew.starts) == len(crew.submitted) == 1


def test_nothing_waits_behind_what_is_likely_to_end_its_worker():
    crew, behind = simulated(1, poison={(3,): "died"}), []
    submit = crew.submit

    def watch(place, task):
        queue = crew._workers[place].queue
        behind.append(any(isinstance(one, Probe) or one.treatment.careful for one in queue))
        submit(place, task)

    crew.submit = watch  # type: ignore[method-assign]
    assert len(run(crew, 20, Policy(window=3))) == 20
    assert crew.longest == 3
    assert not any(behind)


def test_units_that_kill_without_a_breadcrumb_stop_the_run():
    crew = simulated(2)
    crew.script = lambda place, task: (1.0, "died") if task.unit.index == 0 else None
    crew.records.crumb = lambda unit: None  # type: ignore[method-assign]
    with pytest.raises(WorkerLostError, match=r"source unit 0 lost its worker 5 times .*no prompt is to blame"):
        run(crew, 1)
    assert len(crew.starts) == 2 + 5


def test_the_breadcrumb_of_another_attempt_says_nothing():
    crew = simulated(1)
    crew.script = lambda place, task: (1.0, "died")
    crew.records.crumb = lambda unit: Crumb("source", 0, 2, 0, (0, 1), 0)  # type: ignore[method-assign]
    with pytest.raises(WorkerLostError):
        run(crew, 1)
    assert not any(isinstance(task, Probe) for _, task in crew.submitted)


def test_deaths_that_no_prompt_is_to_blame_for_stop_the_run_when_there_are_too_many():
    crew = simulated(2)
    crew.script = lambda place, task: (1.0, "died") if isinstance(task, Extract) else None
    with pytest.raises(WorkerLostError, match="no prompt is to blame"):
        run(crew, 1)
    assert not crew.records.remembered


def test_a_cluster_on_which_everything_dies_does_not_spin():
    crew = simulated(4)
    crew.script = lambda place, task: (1.0, "died")
    with pytest.raises(WorkerLostError):
        run(crew, 1000)
    assert len(crew.starts) <= 4 + 2 * 3 * 5 + 1


def test_a_hung_worker_is_stopped_at_its_deadline_and_the_unit_retried():
    crew = simulated(2)
    ends(crew, {(5, 1): "hang"})
    assert len(run(crew, 100)) == 100
    assert len(crew.stopped) == 1
    assert len(attempts(crew, 5)) == 2
    assert 60 < crew.now() < 120


def test_a_hung_worker_at_the_end_of_a_run_is_not_waited_for():
    crew = simulated(2)
    ends(crew, {(5, 1): "hang"})
    assert len(run(crew, 8)) == 8
    assert crew.now() < 30


def test_units_that_began_before_anything_was_known_get_a_deadline_once_it_is():
    crew = simulated(2)
    ends(crew, {(0, 1): "hang"})
    assert len(run(crew, 100)) == 100
    assert len(crew.stopped) == 1
    assert crew.now() < 200


def test_the_first_receipt_of_a_short_run_shows_what_is_slow():
    crew = simulated(2)
    ends(crew, {(0, 1): "hang"})
    assert len(run(crew, 2)) == 2
    assert crew.now() < 30


def test_a_worker_that_has_nothing_to_do_is_left_alone():
    crew = simulated(2)
    crew.script = lambda place, task: (2000.0, "done")
    assert len(run(crew, 1)) == 1
    assert len(crew.starts) == 2


def test_a_prompt_that_hangs_is_found_and_the_deadline_told():
    crew = simulated(2, poison={(20,): "hang"})
    landed = {receipt.unit: receipt for receipt in run(crew, 6, Policy(deadline=30))}
    assert landed[1].quarantined == (Quarantined(20, "hung its worker (deadline of 30 s)"),)


def test_time_that_the_driver_spends_elsewhere_is_no_workers_fault():
    crew = simulated(2)
    for _ in Scheduler(crew, crew.records).run(units(10)):
        crew._time += 10_000
        for moment, (_, order, happen) in enumerate(crew._moments):
            crew._moments[moment] = (crew._time + order / 1000, order, happen)
    assert not crew.stopped


def slow_last(crew: SimulatedCrew, seconds: float = 1000.0) -> None:
    """Lets the first attempt at the last of 9 units take long."""
    crew.script = lambda place, task: (seconds, "done") if name(task) == (8, 1) else (1.6, "done")


def test_a_straggler_is_given_to_an_idle_worker_and_the_first_receipt_wins():
    crew = simulated(3)
    slow_last(crew)
    landed = run(crew, 9)
    assert sorted(receipt.unit for receipt in landed) == list(range(9))
    (slow_at, _), (fast_at, _) = attempts(crew, 8)
    assert slow_at != fast_at
    assert crew.now() < 20


def test_nothing_is_raced_while_something_waits():
    crew = simulated(2)
    crew.script = lambda place, task: (100.0 if task.unit.index == 0 else 1.6, "done")
    assert len(run(crew, 30)) == 30
    first = [number for number, (_, task) in enumerate(crew.submitted) if task.unit.index == 0]
    assert first[0] == 0
    assert all(number >= 30 for number in first[1:])


def finishing_twice(second: dict) -> SimulatedCrew:
    """A crew on which both copies of a raced unit land, the loser while another straggler is awaited."""
    crew = simulated(4)
    crew.script = lambda place, task: {
        (4, 1): (8.0, "done"), (4, 2): (1.6, "done"), (5, 1): (15.0, "done"), (5, 2): (15.0, "done")
    }.get(name(task), (1.6, "done"))  # fmt: skip

    def commit(task, seconds):
        receipt = receipt_of(task.unit, task.treatment.attempt)
        raced = name(task) == (4, 1)
        return dataclasses.replace(receipt, **second) if raced else receipt

    crew._commit = commit  # type: ignore[method-assign]
    return crew


OTHER_BITS = {"outputs": (Output("activations", "4.1", 1, 7, "9" * 64),)}


def test_a_loser_with_the_same_bits_is_dropped_quietly():
    crew = finishing_twice({})
    landed = run(crew, 6)
    assert [receipt.attempt for receipt in landed if receipt.unit == 4] == [2]


def test_a_loser_with_other_bits_is_an_alarm():
    with pytest.raises(DifferentBitsError, match=r"source unit 4 .* 4\.2"):
        run(finishing_twice(OTHER_BITS), 6)


def test_a_loser_that_ran_in_pieces_may_have_other_bits():
    assert len(run(finishing_twice(OTHER_BITS | {"splits": (Split(0, 2),)}), 6)) == 6


def test_an_error_of_our_own_comes_out_as_it_is():
    crew = simulated(2)
    crew.script = lambda place, task: StoreError("x", "full") if task.unit.index == 3 else None
    with pytest.raises(StoreError, match="full"):
        run(crew, 9)


def test_a_probe_that_fails_has_not_ended_its_worker():
    crew = simulated(1, poison={(5,): "died"})
    crew.script = lambda place, task: (
        MemoryError("x") if isinstance(task, Probe) and 5 not in task.rows else None
    )  # fmt: skip
    (receipt,) = run(crew, 1)
    assert [one.row for one in receipt.quarantined] == [5]


def test_an_error_of_a_copy_that_lost_does_no_harm():
    crew = finishing_twice({})
    finish = crew._finish

    def fail_late(place, worker, task, seconds):
        if name(task) == (4, 1):
            crew._fail(place, worker, StoreError("x", "full"))
        else:
            finish(place, worker, task, seconds)

    crew._finish = fail_late  # type: ignore[method-assign]
    assert len(run(crew, 6)) == 6
    assert crew.now() > 15, "the loser failed before the run was over"


def test_a_place_without_room_stalls_nobody():
    crew = simulated(3)
    start = crew.start
    crew.start = lambda place: start(place) if place else crew._workers.setdefault(place, Worker())  # type: ignore[method-assign,assignment]
    assert len(run(crew, 20)) == 20
    assert crew.now() < 100


def test_without_any_worker_the_run_stops_when_a_start_has_taken_too_long():
    crew = simulated(3, no_room=1.0)
    with pytest.raises(WorkerLostError, match="no worker was ready for 70 s"):
        run(crew, 20, Policy(start_deadline=70))
    assert crew.now() == 70


def test_a_place_where_workers_die_while_they_load_is_given_up_and_the_others_go_on():
    crew = simulated(2)
    later = crew._later
    crew._later = lambda seconds, worker, happen: later(  # type: ignore[method-assign]
        seconds, worker, (lambda: crew.lose(0, "died")) if crew._workers.get(0) is worker else happen
    )
    assert len(run(crew, 20)) == 20
    assert crew.starts.count(0) == 3


def test_workers_that_all_die_while_they_load_stop_the_run():
    crew = simulated(2, bad_start=1.0)
    with pytest.raises(WorkerLostError, match="while it loaded the model"):
        run(crew, 20)
    assert len(crew.starts) == 6


def test_frames_are_settled_before_units_and_their_culprits_found_as_theirs_are():
    crew = simulated(2, poison={(3,): "died"})
    scheduler = Scheduler(crew, crew.records)
    first = units(1)[0]
    scheduler.settle([("source", first), ("tokens", first)])
    settled = [task for _, task in crew.submitted if isinstance(task, Settle)]
    assert [task.law for task in settled][-2:] == ["source", "tokens"]
    assert len(settled) == 4 + 1, "what is found for one frame is known to the next"
    assert crew.records.known(first) == (Quarantined(3, "killed its worker (died)"),)
    (receipt,) = scheduler.run([first])
    assert receipt.quarantined == (Quarantined(3, "killed its worker (died)"),)
    assert receipt.attempt == 1


def test_another_run_goes_on_with_the_same_workers_and_hears_nothing_of_the_first():
    crew = simulated(3)
    slow_last(crew, 30.0)
    scheduler = Scheduler(crew, crew.records)
    assert len(list(scheduler.run(units(9)))) == 9
    crew.script, crew.records.receipts = lambda place, task: None, {}
    assert sorted(receipt.unit for receipt in scheduler.run(units(30))) == list(range(30))
    assert len(crew.starts) == 3


def test_a_run_that_its_caller_abandons_is_forgotten():
    crew = simulated(2)
    scheduler = Scheduler(crew, crew.records)
    for receipt in scheduler.run(units(9)):
        assert receipt.unit < 9
        break
    assert sorted(receipt.unit for receipt in scheduler.run(units(5))) == list(range(5))


def test_what_a_stranger_finished_is_not_taken():
    crew = simulated(1)
    crew._events.append(Finished(0, Extract(units(9)[8], Treatment()), receipt_of(units(9)[8], 1)))
    assert [receipt.unit for receipt in run(crew, 1)] == [0]


def entries(*cases: Case) -> deque[Entry]:
    for case in cases:
        case.copies += 1
    return deque(Entry(case, case.task(), 0.0) for case in cases)


def test_behind_a_lost_reply_only_a_plain_attempt_is_blamed():
    crew = simulated(1)
    scheduler, (first, second) = Scheduler(crew, crew.records), units(2)
    crew.records.commit(first, receipt_of(first, 1))
    plain = Case(second, None, (), attempts=3)
    suspect = scheduler._suspect(entries(Case(first, None, (), attempts=3), plain))
    assert suspect is not None
    assert suspect.case is plain
    behind = entries(Case(first, None, (), attempts=3), Case(second, None, (), attempts=1))
    assert behind[1].case.alone
    assert scheduler._suspect(behind) is None
    assert len(behind) == 1


def test_behind_a_copy_that_lost_its_race_nobody_is_blamed():
    crew = simulated(1)
    loser, other = (Case(unit, None, (), attempts=3) for unit in units(2))
    loser.done = True
    queue = entries(loser, other)
    assert Scheduler(crew, crew.records)._suspect(queue) is None
    assert [entry.case for entry in queue] == [other]


def test_a_unit_that_runs_elsewhere_too_does_not_go_back():
    crew = simulated(1)
    scheduler, case = Scheduler(crew, crew.records), Case(units(1)[0], None, (), attempts=3)
    case.copies = 2
    scheduler._return(case)
    assert not scheduler._returned
    scheduler._return(case)
    assert list(scheduler._returned) == [case]
