"""Faults 23 to 31: disks that are full, fail, tear, refuse, or are littered."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import pytest

from tests.faults.injection.armed import Fault
from tests.faults.runs import WARM, check_complete, go_on, hurt, leftovers, receipts, within


@final
@dataclass(frozen=True)
class SmallDisk:
    """A disk of memory in a namespace of its own.

    Args:
        place: Where it is mounted there.
        holder: The process that holds the namespace.
    """

    place: Path
    holder: "subprocess.Popen[str]"

    @property
    def seen(self) -> Path:
        """Its files as other processes see them."""
        return Path(f"/proc/{self.holder.pid}/root{self.place}")

    def remount(self, options: str) -> None:
        """Makes it larger, or writable, or not."""
        command = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "mount", "-o", f"remount,{options}"]
        subprocess.run([*command, str(self.place)], check=True)


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[SmallDisk]:
    """A context with a small disk; the test is skipped where nobody may mount one."""
    place.mkdir()
    script = f"mount -t tmpfs -o {options} none {place} && echo mounted && read line"
    command = ["unshare", "--mount", "sh", "-c", script]
    try:
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    except OSError as exc:
        pytest.skip(f"no small disk: {exc}")
    with holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != "mounted\n":
            pytest.skip("no small disk: mounting is not permitted here")
        try:
            yield SmallDisk(place, holder)
        finally:
            with suppress(BrokenPipeError):
                holder.communicate("\n")


def test_23_the_disk_is_full(trials, exact, tmp_path):
    """Exit code 74 and the place; nothing half visible; with room again the same command goes on."""
    with small_disk(tmp_path / "disk", "size=100k") as disk:
        settings, run = replace(WARM, namespace=disk.holder.pid), disk.place / "run"
        full = trials.fit(exact.spec, run, settings=settings)
        assert full.code == 74, full
        assert "No space left on device" in full.err
        done_before = receipts(disk.seen / "run")
        assert done_before, "some of it had room"
        disk.remount("size=16m")
        done = trials.fit(exact.spec, run, settings=settings)
        assert done.code == 0, done
        shutil.copytree(disk.seen / "run", tmp_path / "copy", symlinks=True)
    check_complete(tmp_path / "copy", exact.run)
    assert done_before.items() <= receipts(tmp_path / "copy").items()


@pytest.mark.slow
def test_31_no_more_files(trials, exact, tmp_path):
    """As a full disk."""
    with small_disk(tmp_path / "disk", "size=16m,nr_inodes=30") as disk:
        settings, run = replace(WARM, namespace=disk.holder.pid), disk.place / "run"
        full = trials.fit(exact.spec, run, settings=settings)
        assert full.code == 74, full
        disk.remount("nr_inodes=3000")
        done = trials.fit(exact.spec, run, settings=settings)
        assert done.code == 0, done
        shutil.copytree(disk.seen / "run", tmp_path / "copy", symlinks=True)
    check_complete(tmp_path / "copy", exact.run)


def test_29_the_disk_is_read_only(trials, exact, tmp_path):
    """Exit code 74; nothing was written, and nothing is lost."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("pipeline.ledger:Ledger.commit", at=3, when="after"), code=-9)
    with small_disk(tmp_path / "disk", "size=16m") as disk:
        shutil.copytree(run, disk.seen / "run", symlinks=True)
        disk.remount("ro")
        settings = replace(WARM, namespace=disk.holder.pid)
        done = trials.fit(exact.spec, disk.place / "run", settings=settings)
        assert done.code == 74, done
        assert "Read-only file system" in done.err
        disk.remount("rw")
        done = trials.fit(exact.spec, disk.place / "run", settings=settings)
        assert done.code == 0, done
        shutil.copytree(disk.seen / "run", tmp_path / "copy", symlinks=True)
    check_complete(tmp_path / "copy", exact.run)


def test_24_a_file_grows_too_large(trials, exact, tmp_path):
    """Exit code 74, from a limit that the kernel enforces; without it the same command goes on."""
    run = tmp_path / "run"
    done = hurt(trials, exact, run, code=74, settings=replace(WARM, largest_file=3000))
    assert "File too large" in done.err
    assert leftovers(run) == []
    go_on(trials, exact, run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("match", "name"),
    [
        (r"activations\.zarr/source/c/1/.*partial", "activations.zarr/source/c/1/0"),
        (r"receipts/source/\.00000001.*partial", "receipts/source/00000001.json"),
        (r"steers/.*\.steer\.safetensors.*partial", "CURRENT"),
    ],
)
def test_25_flushing_fails(trials, exact, tmp_path, match, name):
    """That file is never published: flushing again may succeed while the bytes are lost. A new one is written."""
    run = tmp_path / "run"
    done = hurt(trials, exact, run, Fault("fsync", "errno:EIO", match=within(run, match)), code=74)
    assert "Input/output error" in done.err
    assert not (run / name).exists()
    assert leftovers(run) == []
    go_on(trials, exact, run)


@pytest.mark.slow
def test_25_flushing_a_folder_fails(trials, exact, tmp_path):
    """The name may not last, so the run stops."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("fsync", "errno:EIO", match="receipts/source$", at=2), code=74)
    go_on(trials, exact, run)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["receipts/source/00000001", "prompts/source.parquet$", "activations.zarr/.*/c/0"])
def test_26_reading_fails(trials, exact, tmp_path, part):
    """Exit code 74 that names the file; nobody tries for ever."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("pipeline.ledger:Ledger.commit", at=3, when="after"), code=-9)
    done = hurt(trials, exact, run, Fault("read", "errno:EIO", last=0, match=within(run, part)), code=74)
    assert "Input/output error" in done.err
    assert part.split("/")[0] in done.err
    go_on(trials, exact, run)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["receipts/source/00000001", "prompts/source.parquet$", "CURRENT", "steer$"])
def test_27_giving_a_name_fails(trials, exact, tmp_path, part):
    """Exit code 74; the temporary file is removed."""
    run = tmp_path / "run"
    faults = [Fault(point, "errno:EXDEV", match=within(run, part)) for point in ("link", "replace")]
    done = hurt(trials, exact, run, *faults, code=74)
    assert "cross-device" in done.err
    assert leftovers(run) == []
    go_on(trials, exact, run)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["plan.json", "prompts/source.parquet", "activations.zarr/source/c/1", "receipts/"])
def test_28_a_write_is_torn(trials, exact, tmp_path, part):
    """Half a file is never read as a good one. `test_sweep` tears every write."""
    run = tmp_path / "run"
    folder, _, name = part.rpartition("/")
    match = within(run, rf"{folder}/?.*{name}.*partial")
    hurt(trials, exact, run, Fault("write", "tear", match=match), code=-9)
    assert leftovers(run)
    go_on(trials, exact, run)


@pytest.mark.slow
def test_30_stale_temporary_files(trials, exact, tmp_path):
    """Readers pass them by; whoever holds the lease sweeps them."""
    run = tmp_path / "run"
    hurt(trials, exact, run, Fault("pipeline.ledger:Ledger.commit", at=3), code=-9)
    for place in ("receipts/source/.00000002.json.1.ab.partial", ".CURRENT.1.ab.partial", "steers/.x.1.partial"):
        (run / place).parent.mkdir(exist_ok=True)
        (run / place).write_bytes(b"half a fi")
    status = trials.start(["status", run]).end()
    assert status.code == 0, status
    go_on(trials, exact, run)
