"""Who may work on a run: the holder of its lease.

All that a storage must give is that the first of several creators of a file wins. Epochs are numbered; whoever creates
``lease/00000007.json`` owns epoch 7, and the owner of the highest epoch owns the run. While it works, its heartbeat
counts in ``lease/00000007.beat``; at its end it creates ``lease/00000007.released``. The next epoch may be taken when
the newest is released, when its owner is a process of this machine that has ended, or when its heartbeat stood still
for as long as a lease lasts. That is measured by the watcher's own monotonic clock: what another machine, or a wall
clock, takes the time to be does not matter. An owner that stood still for so long has lost the run, and finds that out
by `Lease.check`.
"""

import contextlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from pipeline.errors import LeaseLostError, RunBusyError, StorageError
from pipeline.folder import LEASE
from pipeline.storage import AbstractStorage
from schemas import record

_EPOCH: Final = re.compile(rf"{LEASE}/(\d{{8,18}})\.(json|beat|released)")

BEATS: Final = 6  #: In the time that a lease lasts.


@final
@dataclass(frozen=True)
class Clock:
    """The time of one who watches another's heartbeat.

    Args:
        now: Seconds since some moment, never set back.
        sleep: Waits for seconds.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@final
@dataclass(frozen=True)
class Process:
    """A process, told from all others.

    Args:
        host: Name of its machine, for people.
        boot: The kernel's name for this run of the machine; empty where there is none.
        namespace: What its number is a number in: containers on one machine count their processes each for itself.
        pid: Its number.
        started: When it started, in ticks since the machine did: numbers are used again.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> "Process":
        """The process that asks."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        except OSError:  # not on every system
            boot = namespace = ""
        return cls(socket.gethostname(), boot, namespace, os.getpid(), _started(os.getpid()) or "")

    def has_ended(self) -> bool:
        """Whether it is known to have ended; of processes on other machines and in other containers that is not."""
        here = Process.this()
        # Copies of a virtual machine share even the name of the boot, so the host counts too.
        ours = (here.host, here.boot, here.namespace) == (self.host, self.boot, self.namespace)
        if not (here.boot and ours and 0 < self.pid < 1 << 31):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # it is another user's
        # Where /proc hides other users' processes there is nothing to read, and it may be the one.
        return _started(self.pid) not in {None, self.started}

    def __str__(self) -> str:
        host = "".join(sign if sign.isprintable() else "?" for sign in self.host)
        return f"process {self.pid} on {host}"


@final
@dataclass(frozen=True)
class LeaseRecord:
    """What an owner writes.

    Args:
        epoch: The number of the lease, from 1.
        nonce: Random; no two takers write the same bytes.
        owner: The process that holds it.
    """

    epoch: int
    nonce: str
    owner: Process


@final
class Lease:
    """The lease of one run, for one process.

    Args:
        storage: Where the run lies.
        clock: How silence is measured.
        seconds: How long an owner may be silent before others take the run over.
    """

    def __init__(self, storage: AbstractStorage, clock: Clock = Clock(), seconds: float = 30.0) -> None:
        self._storage, self._clock, self._seconds = storage, clock, seconds
        self._mine: LeaseRecord | None = None
        self._last = 0
        self._beats: threading.Thread | None = None
        self._stop, self._lost = threading.Event(), threading.Event()

    @property
    def excludes(self) -> bool:
        """Whether the storage lets one of several takers win.

        Where it does not, of drivers that start at the same moment each may go on for a while. `check` tells all but
        one of them; until then they do the same work twice, and write the same bits.
        """
        return self._storage.guarantees.first_wins

    @property
    def epoch(self) -> int:
        """The number of the lease that this process holds; 0 if it holds none."""
        return 0 if self._mine is None else self._mine.epoch

    @property
    def last_epoch(self) -> int:
        """The number of the lease that this process took last, also once it is given back; 0 if it took none."""
        return self._last

    @contextlib.contextmanager
    def held(self, wait: float = 0.0) -> Iterator[None]:
        """A context in which this process owns the run, until `check` says otherwise.

        Args:
            wait: Seconds to wait for an owner that is alive.

        Raises:
            RunBusyError: There still is one.
            StorageError: The storage refuses.
        """
        try:
            self.acquire(wait)
            yield
        finally:
            self.release()

    def acquire(self, wait: float = 0.0) -> None:
        """Takes the run, from an owner that ended or has been silent for too long if there is one.

        Raises:
            RunBusyError: The owner was seen alive, and was so still after `wait` seconds.
            StorageError: The storage refuses.
        """
        if self._mine is not None:
            raise AssertionError("it is held already")
        patience = self._clock.now() + wait
        while True:
            epoch = self._newest()
            if (self._is_free(epoch) or self._is_silent(epoch, patience)) and self._take(epoch + 1):
                return

    def check(self) -> None:
        """Makes sure that the run is still this process's own. To be called before anything is published.

        Raises:
            LeaseLostError: Another process took it over.
            StorageError: The storage refuses to tell.
        """
        if self._mine is None or self._lost.is_set() or not self._is_mine(self._mine):
            self._lost.set()
            raise LeaseLostError(self._storage.uri)

    def release(self) -> None:
        """Gives the run back, if it is still this process's own."""
        self._stop.set()
        if self._beats is not None and self._beats is not threading.current_thread():
            self._beats.join()
        # Should this fail: whoever comes next finds that this process has ended, or is silent.
        with contextlib.suppress(StorageError, LeaseLostError):
            self.check()
            self._storage.create(_key(self.epoch, "released"), b"")
        self._mine = self._beats = None

    def _take(self, epoch: int) -> bool:
        mine = LeaseRecord(epoch, secrets.token_hex(16), Process.this())
        if not self._storage.create(_key(epoch, "json"), record.seal(mine)):
            with contextlib.suppress(FileNotFoundError):
                self._storage.read(_key(epoch, "json"))  # what is in the way and no file would be so for ever
            return False
        if self._newest() != epoch:  # a number that was used, and swept by a later owner
            self._storage.delete(_key(epoch, "json"))
            return False
        self._mine, self._last = mine, epoch
        self._stop, self._lost = threading.Event(), threading.Event()
        self._storage.note(_key(epoch, "beat"), b"0")
        self._beats = threading.Thread(target=self._beat, args=(mine,), name="lease", daemon=True)
        self._beats.start()
        for key, other in self._files():
            if other < epoch:
                self._storage.delete(key)
        return True

    def _beat(self, mine: LeaseRecord) -> None:
        count = 0
        while not self._stop.wait(self._seconds / BEATS):
            count += 1
            try:
                self.check()
                self._storage.note(_key(mine.epoch, "beat"), str(count).encode())
            except LeaseLostError:
                return
            except StorageError:
                continue  # the next may get through; if none does for long enough, another process takes over

    def _is_mine(self, mine: LeaseRecord) -> bool:
        """Whether an epoch is this process's, and the newest. A fork of the process that took it does not own it."""
        if mine.owner.pid != os.getpid() or self._newest() != mine.epoch:
            return False
        try:
            return self._storage.read(_key(mine.epoch, "json")) == record.seal(mine)
        except FileNotFoundError:
            return False

    def _files(self) -> list[tuple[str, int]]:
        """The files of all leases that there are, each with its epoch."""
        found = ((key, _EPOCH.fullmatch(key)) for key in self._storage.keys(LEASE))
        return [(key, int(match[1])) for key, match in found if match]

    def _newest(self) -> int:
        """The highest epoch, 0 if there is none."""
        return max((epoch for key, epoch in self._files() if key.endswith(".json")), default=0)

    def _is_free(self, epoch: int) -> bool:
        """Whether nobody holds an epoch: there is none, its owner gave it back, or has ended."""
        if epoch == 0 or self._storage.exists(_key(epoch, "released")):
            return True
        owner = self._owner(epoch)
        return owner is not None and owner.has_ended()

    def _is_silent(self, epoch: int, patience: float) -> bool:
        """Watches a heartbeat: True if it stands still for a lease's time, False if the epoch itself is no more.

        Raises:
            RunBusyError: It beats, and the clock is past `patience`.
        """
        seen, since = self._pulse(epoch), self._clock.now()
        while True:
            self._clock.sleep(self._seconds / BEATS / 2)
            now = self._clock.now()
            pulse = self._pulse(epoch)
            if self._newest() != epoch or self._is_free(epoch):
                return False
            if pulse == seen and now - since >= self._seconds:
                return True
            if pulse != seen:
                if now >= patience:
                    owner = self._owner(epoch) or "a process that left no readable name"
                    raise RunBusyError(f"{self._storage.uri} ({owner})")
                seen, since = pulse, self._clock.now()

    def _pulse(self, epoch: int) -> bytes | None:
        try:
            return self._storage.read(_key(epoch, "beat"))
        except FileNotFoundError:
            return None

    def _owner(self, epoch: int) -> Process | None:
        """The owner of an epoch; None if what it wrote is gone or damaged: then it is only known by its heartbeat."""
        try:
            return record.unseal(LeaseRecord, self._storage.read(_key(epoch, "json"))).owner
        except (FileNotFoundError, record.RecordError):
            return None


def _key(epoch: int, kind: str) -> str:
    return f"{LEASE}/{epoch:08}.{kind}"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; empty if it has ended, None if that cannot be read."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may have spaces and brackets
    return "" if fields[0] in "ZX" else fields[19]
