"""The artifact of a run: steers named by their content, and the file that says which one counts.

A steer is written under a name of its own, and then `CURRENT` moves to it in one step: nobody sees half of one. On a
disk a link leads to it too, for people.
"""

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from act.errors import SteerFileError, SteerNotFoundError
from act.steer import Steer, load
from pipeline.errors import DamagedRunError
from pipeline.folder import CURRENT, STEER, STEERS, RunFolder
from pipeline.ledger import REPAIR
from pipeline.storage import AbstractStorage, LocalStorage
from schemas.plan import Plan

#: Digits of the checksum of a card that name its steer.
NAME = 32


def publish(storage: AbstractStorage, steer: Steer) -> Steer:
    """Writes a steer and makes it the one that counts; returns it with its card's hashes filled in.

    Raises:
        StoreError: The storage refuses.
    """
    saved, files = steer.written()
    name = saved.card.checksum[:NAME]
    for file, data in files.items():
        storage.write(f"{RunFolder(storage).steer(name)}/{file}", data)
    storage.write(CURRENT, f"{name}\n".encode())
    link(storage)
    return saved


def current(storage: AbstractStorage) -> str | None:
    """Returns the key of the steer that counts, or None while there is none.

    Raises:
        DamagedRunError: What says so is damaged.
    """
    try:
        said = storage.read(CURRENT)
    except FileNotFoundError:
        return None
    name = said.decode("ascii", "replace").removesuffix("\n")
    if len(said) != NAME + 1 or not all(letter in "0123456789abcdef" for letter in name):
        raise DamagedRunError(storage.place(CURRENT), "it names no steer", REPAIR)
    return RunFolder(storage).steer(name)


def find(storage: AbstractStorage, plan: Plan | None = None) -> Steer | None:
    """Returns the steer of a run, every byte of it checked, or None while there is none.

    Args:
        storage: Where the run lies.
        plan: Its plan, of which the steer has to be; None does not ask.

    Raises:
        DamagedRunError: It is not as it was written, or the steer of another plan.
    """
    key = current(storage)
    if key is None:
        return None
    place = storage.place(key)
    if not storage.keys(key):
        raise DamagedRunError(storage.place(CURRENT), f"it names {key}, which is not there", REPAIR)
    try:
        steer = load_at(storage, key)
    except (SteerFileError, SteerNotFoundError) as exc:
        raise DamagedRunError(place, str(exc), REPAIR) from exc
    if steer.card.checksum[:NAME] != key.removeprefix(f"{STEERS}/"):
        raise DamagedRunError(place, "its name is not that of its content", REPAIR)
    if plan is not None and steer.card.plan != plan.fingerprint:
        raise DamagedRunError(place, "it is the steer of another plan", REPAIR)
    return steer


def opened(storage: AbstractStorage) -> str:
    """Returns where a person finds the steer: the link, or the folder itself where there are no links."""
    if isinstance(storage, LocalStorage):
        return storage.place(STEER)
    key = current(storage)
    return storage.place(STEERS if key is None else key)


def link(storage: AbstractStorage) -> None:
    """Leads the link to the steer that counts, where a disk has links; one that is right is left.

    Raises:
        OSError: The disk refuses.
    """
    key = current(storage)
    if key is None or not isinstance(storage, LocalStorage):
        return
    path = storage.root / STEER
    if path.is_symlink() and os.readlink(path) == key:
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # of a copy of the run that followed the link
    partial = path.with_name(f".{STEER}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        os.symlink(key, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_at(storage: AbstractStorage, key: str) -> Steer:
    """Returns the steer in a folder of a storage, as `act.steer.load` does.

    Raises:
        SteerNotFoundError: There is no such folder, or it holds no card or no tensors.
        SteerFileError: It is not as it was written.
    """
    if isinstance(storage, LocalStorage):
        return load(storage.root / key)
    with tempfile.TemporaryDirectory() as folder:
        for file in storage.keys(key):
            Path(folder, file.rpartition("/")[2]).write_bytes(storage.read(file))
        return load(folder)
