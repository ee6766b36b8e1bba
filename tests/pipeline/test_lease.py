import contextlib
import dataclasses
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.errors import LeaseLostError, PipelineError, RunBusyError, StoreError
from pipeline.lease import BEATS, Clock, Lease, LeaseRecord, Process
from pipeline.storage import AbstractStorage, LocalStorage
from pipeline.storage.objects import ObjectStorage
from schemas import record

#: A lease that is to run out, and one whose owner is to be seen alive, however busy this machine is.
SECONDS, LONG = 0.24, 2.0
ELSEWHERE = Process("elsewhere", "another-boot", "pid:[1]", 77, "12")


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    if request.param == "local":
        return LocalStorage(tmp_path / "run")
    return ObjectStorage(f"memory://{secrets.token_hex(4)}")


@dataclass
class Told:
    """A clock that goes on only by sleeping; `then` is called at each sleep, with the time."""

    time: float = 1000.0
    then: Callable[[float], object] = lambda _: None
    slept: list[float] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.slept.append(seconds)
        self.then(self.time)


@pytest.fixture
def disk(tmp_path):
    return LocalStorage(tmp_path / "run")


def own(storage: AbstractStorage, epoch: int = 1, owner: Process = ELSEWHERE) -> LeaseRecord:
    """Makes another process the owner of an epoch."""
    theirs = LeaseRecord(epoch, secrets.token_hex(8), owner)
    assert storage.create(f"lease/{epoch:08}.json", record.seal(theirs))
    return theirs


def contents(storage: AbstractStorage) -> dict[str, bytes]:
    names = storage.keys()
    return {name: storage.read(name) for name in names}


def test_a_run_that_nobody_holds_is_taken_and_given_back(storage):
    for epoch in (1, 2, 3):
        lease = Lease(storage)
        with lease.held():
            lease.check()
            assert lease.epoch == epoch
            files = [f"lease/{epoch:08}.beat", f"lease/{epoch:08}.json"]
            assert storage.keys("lease") == files, "what earlier owners left is swept"
        assert storage.keys("lease") == [*files, f"lease/{epoch:08}.released"]
        assert lease.epoch == 0
        with pytest.raises(LeaseLostError):
            lease.check()


def test_it_is_given_back_by_a_driver_that_fails(disk):
    with pytest.raises(KeyError), Lease(disk).held():
        raise KeyError
    assert disk.exists("lease/00000001.released")


def test_one_lease_can_be_held_again(disk):
    lease = Lease(disk)
    with lease.held():
        pass
    with lease.held():
        lease.check()
        assert lease.epoch == 2
        with pytest.raises(AssertionError):
            lease.acquire()


def test_an_owner_that_is_alive_is_named(storage):
    with Lease(storage, seconds=LONG).held():
        for _ in range(2):
            with pytest.raises(RunBusyError) as caught, Lease(storage, seconds=LONG).held():
                pytest.fail("two hold it")
            assert storage.uri in str(caught.value)
            assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
        assert storage.keys("lease") == ["lease/00000001.beat", "lease/00000001.json"]


def test_who_waits_gets_it_as_soon_as_it_is_given_back(disk):
    first, second = Lease(disk, seconds=LONG), Lease(disk, seconds=LONG)
    first.acquire()
    threading.Timer(0.4, first.release).start()
    start = time.monotonic()
    with second.held(wait=30):
        assert second.epoch == 2
        assert 0.4 <= time.monotonic() - start < LONG


def test_an_owner_elsewhere_is_believed_dead_only_after_its_silence(storage):
    own(storage)
    storage.note("lease/00000001.beat", b"7")
    told = Told()
    lease = Lease(storage, told.clock, seconds=30)
    lease.acquire()
    assert lease.epoch == 2
    assert 30 <= told.time - 1000 <= 30 + 2 * 30 / BEATS
    lease.release()


def test_a_heartbeat_is_all_that_counts(disk):
    """An owner elsewhere, whose clock nobody asks: it beats, is refused, stops, and is taken over."""
    own(disk)
    told = Told()
    told.then = lambda time: disk.note("lease/00000001.beat", str(time).encode()) if time < 1100 else None
    lease = Lease(disk, told.clock, seconds=30)
    with pytest.raises(RunBusyError, match="process 77 on elsewhere"):
        lease.acquire()
    assert told.time < 1010
    with pytest.raises(RunBusyError):
        lease.acquire(wait=50)
    assert 1050 < told.time < 1065
    lease.acquire(wait=500)
    assert lease.epoch == 2
    assert 1125 < told.time < 1140
    lease.release()


def test_a_wall_clock_that_jumps_changes_nothing(disk, monkeypatch):
    own(disk)
    walls, told = iter([3600.0, -3600.0] * 1000), Told()
    monkeypatch.setattr(time, "time", lambda: 1e9 + next(walls))
    told.then = lambda time: disk.note("lease/00000001.beat", str(time).encode()) if time < 1100 else None
    lease = Lease(disk, told.clock, seconds=30)
    with pytest.raises(RunBusyError):
        lease.acquire()
    lease.acquire(wait=500)
    assert 1125 < told.time < 1140
    lease.release()


def test_a_watcher_that_stood_still_believes_nobody_dead(disk):
    """It slept for hours, in which the owner went on: what it sees on waking is a heartbeat."""
    own(disk)
    told, beats = Told(), iter(range(100))

    def doze(_):
        told.time += 10_000
        disk.note("lease/00000001.beat", str(next(beats)).encode())

    told.then = doze
    with pytest.raises(RunBusyError):
        Lease(disk, told.clock, seconds=30).acquire(wait=100_000)


def test_a_watcher_starts_again_when_another_takes_the_run(disk):
    own(disk)
    told = Told()

    def take(time):
        if time > 1020 and not disk.exists("lease/00000002.json"):
            own(disk, 2)

    told.then = take
    lease = Lease(disk, told.clock, seconds=30)
    lease.acquire()
    assert lease.epoch == 3
    assert told.time > 1050
    lease.release()


def test_a_number_that_was_used_and_swept_is_not_used_again(disk):
    """A taker that was slow to create finds its number free, for a later owner swept it."""
    own(disk, 1)
    told = Told()
    create = disk.create

    def slow(key, data):
        if key == "lease/00000002.json":
            own(disk, 3)
            disk.delete("lease/00000001.json")
            monkey.undo()
        return create(key, data)

    with pytest.MonkeyPatch.context() as monkey:
        monkey.setattr(disk, "create", slow)
        lease = Lease(disk, told.clock, seconds=30)
        lease.acquire()
    assert lease.epoch == 4
    assert told.time >= 1060
    assert disk.keys("lease") == ["lease/00000004.beat", "lease/00000004.json"]
    lease.release()


@pytest.mark.parametrize("end", ["taken", "wiped", "wiped and taken", "damaged"])
def test_an_owner_that_lost_it_says_so_and_writes_no_more(storage, end):
    lease = Lease(storage, seconds=SECONDS)
    lease.acquire()
    lease.check()
    if end.startswith("wiped"):
        storage.delete_all("lease")
    if end.endswith("taken"):
        own(storage, 1 if end.startswith("wiped") else 2)
    if end == "damaged":
        storage.write("lease/00000001.json", b"{}")
    time.sleep(2 * SECONDS / BEATS)
    with pytest.raises(LeaseLostError, match=storage.uri):
        lease.check()
    left = contents(storage)
    time.sleep(SECONDS / 2)
    lease.release()
    assert contents(storage) == left


def test_a_lease_that_was_lost_stays_lost(disk):
    lease = Lease(disk)
    lease.acquire()
    own(disk, 2)
    with pytest.raises(LeaseLostError):
        lease.check()
    disk.delete("lease/00000002.json")
    with pytest.raises(LeaseLostError):
        lease.check()
    lease.release()


def test_the_heartbeat_notices_by_itself(disk):
    before = set(threading.enumerate())
    lease = Lease(disk, seconds=SECONDS)
    lease.acquire()
    own(disk, 2)
    (heartbeat,) = set(threading.enumerate()) - before
    heartbeat.join(10)
    assert not heartbeat.is_alive()
    disk.delete("lease/00000002.json")
    with pytest.raises(LeaseLostError):
        lease.check()
    lease.release()


def test_a_heartbeat_outlives_storage_that_fails_for_a_while(disk, monkeypatch):
    def fail(*_):
        raise StoreError("place", "no space")

    with Lease(disk, seconds=SECONDS).held():
        with monkeypatch.context() as patch:
            patch.setattr(disk, "note", fail)
            time.sleep(SECONDS / BEATS * 3)
        seen, start = disk.read("lease/00000001.beat"), time.monotonic()
        while disk.read("lease/00000001.beat") == seen:
            assert time.monotonic() - start < 10
            time.sleep(0.01)


def test_storage_that_fails_at_the_end_hides_no_error(disk, monkeypatch):
    def fail(*_):
        raise StoreError("place", "no space")

    with pytest.raises(KeyError), Lease(disk).held():  # noqa: PT012
        monkeypatch.setattr(disk, "create", fail)
        raise KeyError


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\xfe", b"not sealed"])
def test_an_owner_that_cannot_be_read_is_known_by_its_heartbeat(disk, data):
    disk.write("lease/00000007.json", data)
    disk.write("lease/README", b"no lease")
    disk.write("lease/12.json", b"none either")
    told, beats = Told(), iter(range(5))

    def beat(_):
        count = next(beats, None)
        if count is not None:
            disk.note("lease/00000007.beat", bytes([count, 255]))

    told.then = beat
    lease = Lease(disk, told.clock, seconds=30)
    with pytest.raises(RunBusyError, match="no readable name"):
        lease.acquire()
    lease.acquire(wait=100)
    assert lease.epoch == 8
    assert told.time >= 1030
    lease.release()


def test_a_flipped_byte_makes_no_owner_dead(disk):
    theirs = record.seal(LeaseRecord(1, "0", dataclasses.replace(Process.this(), started="1")))
    disk.write("lease/00000001.json", theirs.replace(b'"started": "1"', b'"started": "2"'))
    told = Told()
    lease = Lease(disk, told.clock, seconds=30)
    lease.acquire()
    assert told.time >= 1030
    lease.release()


def test_a_link_in_the_place_of_the_next_lease_is_refused(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("lease/README", b"")
    (tmp_path / "lease" / "00000001.json").symlink_to("/etc/hostname")
    with pytest.raises(StoreError, match="link"):
        Lease(storage).acquire()


def test_what_cannot_exclude_says_so_and_still_tells_the_loser(storage, monkeypatch):
    assert Lease(storage).excludes
    guarantees = dataclasses.replace(storage.guarantees, first_wins=False)
    monkeypatch.setattr(type(storage), "guarantees", guarantees)
    lease = Lease(storage)
    assert not lease.excludes
    with lease.held():
        storage.write("lease/00000001.json", record.seal(LeaseRecord(1, "put over ours", ELSEWHERE)))
        with pytest.raises(LeaseLostError):
            lease.check()


def test_of_racing_threads_one_holds_it(storage):
    own(storage, 5, dataclasses.replace(Process.this(), started="1"))
    leases = [Lease(storage, seconds=LONG) for _ in range(6)]
    start, refused = threading.Barrier(6), []

    def take(lease):
        start.wait()
        try:
            lease.acquire()
        except RunBusyError as exc:
            refused.append(exc)

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lease.epoch for lease in leases) == [0, 0, 0, 0, 0, 6]
    assert len(refused) == 5
    for lease in leases:
        lease.release()


def test_a_process_is_told_from_others():
    this = Process.this()
    assert this == Process.this()
    assert not this.has_ended()
    assert dataclasses.replace(this, started="1").has_ended(), "its number is used again"
    assert dataclasses.replace(this, pid=2**22 + 1).has_ended(), "there is no such number"
    for other in ({"boot": "other"}, {"namespace": "pid:[1]"}, {"host": "other"}, {"boot": "", "namespace": ""}):
        assert not dataclasses.replace(this, pid=2**22 + 1, **other).has_ended(), other
    for number in (0, -1, -(2**40), 2**31, 2**62):
        assert not dataclasses.replace(this, pid=number).has_ended()
    assert str(dataclasses.replace(this, host="a\x1b[2Jb\n")) == f"process {os.getpid()} on a?[2Jb?"


def test_a_child_that_nobody_waited_for_has_ended():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = Path(f"/proc/{child.pid}/stat").read_text().split()[21]
    process = dataclasses.replace(Process.this(), pid=child.pid, started=started)
    assert not process.has_ended()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.has_ended()
    child.communicate()
    assert process.has_ended()


def test_errors_cross_processes():
    for error in (LeaseLostError("/runs/one"), RunBusyError("/runs/one")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert "/runs/one" in str(error)


DRIVER = """
import os, sys
from pathlib import Path
from pipeline.lease import Lease
from pipeline.errors import LeaseLostError, RunBusyError
from pipeline.storage.local import LocalStorage
lease = Lease(LocalStorage(Path(sys.argv[1])), seconds=float(sys.argv[2]))
def say(word): print(word, flush=True)
say("ready")
for line in sys.stdin:
    word = line.strip()
    try:
        if word == "acquire":
            lease.acquire()
            say(f"epoch {lease.epoch}")
        elif word == "check":
            lease.check()
            say("mine")
        elif word == "fork":
            child = os.fork()
            if child == 0:
                try:
                    lease.check()
                    say("the child's")
                except LeaseLostError:
                    say(f"child {os.getpid()}")
                lease.release()
                os.read(0, 1)
                os._exit(0)
        elif word == "release":
            lease.release()
            say("released")
    except (LeaseLostError, RunBusyError) as exc:
        say(f"{type(exc).__name__}: {exc}")
"""


class Driver:
    """A process that does what it is told."""

    def __init__(self, root, seconds):
        line = [sys.executable, "-c", DRIVER, str(root), str(seconds)]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, word):
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def hear(self):
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, word):
        self.tell(word)
        return self.hear()

    def send(self, number):
        self.process.send_signal(number)


@pytest.fixture
def drivers(tmp_path):
    """Starts some drivers of one run, all at once."""
    started = []

    def start(count, seconds):
        new = [Driver(tmp_path / "run", seconds) for _ in range(count)]
        started.extend(new)
        assert [driver.hear() for driver in new] == ["ready"] * count
        return new

    yield start
    for driver in started:
        with contextlib.suppress(ProcessLookupError):
            driver.send(signal.SIGKILL)
        driver.process.communicate()


def test_of_three_takers_of_a_killed_drivers_run_one_wins(drivers):
    owner, *takers = drivers(4, LONG)
    assert owner.ask("acquire") == "epoch 1"
    refusal = takers[0].ask("acquire")
    assert refusal.startswith("RunBusyError")
    assert f"process {owner.process.pid} on" in refusal
    owner.send(signal.SIGKILL)
    for taker in takers:
        taker.tell("acquire")
    said = [taker.hear() for taker in takers]
    assert sorted(word[:12] for word in said) == ["RunBusyError", "RunBusyError", "epoch 2"]
    winner = takers[said.index("epoch 2")]
    assert all(f"process {winner.process.pid} on" in word for word in said if word != "epoch 2")
    assert winner.ask("check") == "mine"


def test_the_run_of_a_dead_process_of_this_machine_is_taken_at_once_even_from_its_fork(drivers, tmp_path):
    """Of a lease of minutes no second is waited for. The fork has all that the dead process had, and keeps nothing."""
    owner, taker = drivers(2, 600.0)
    assert owner.ask("acquire") == "epoch 1"
    child = int(owner.ask("fork").removeprefix("child "))
    assert not (tmp_path / "run" / "lease" / "00000001.released").exists()
    assert owner.ask("check") == "mine"
    owner.send(signal.SIGKILL)
    owner.process.wait()
    os.kill(child, 0)
    start = time.monotonic()
    assert taker.ask("acquire") == "epoch 2"
    assert time.monotonic() - start < 10


def test_a_driver_that_was_stopped_past_its_lease_has_lost_it(drivers, tmp_path):
    owner, taker = drivers(2, SECONDS)
    assert owner.ask("acquire") == "epoch 1"
    owner.send(signal.SIGSTOP)
    start = time.monotonic()
    assert taker.ask("acquire") == "epoch 2"
    assert time.monotonic() - start >= SECONDS
    owner.send(signal.SIGCONT)
    assert owner.ask("check").startswith("LeaseLostError")
    assert owner.ask("release") == "released"
    assert taker.ask("check") == "mine"
    assert not (tmp_path / "run" / "lease" / "00000002.released").exists()
    assert not (tmp_path / "run" / "lease" / "00000001.released").exists()


def test_all_errors_are_ours():
    assert issubclass(LeaseLostError, PipelineError)
