"""The artifact of a run: named by its content, made to count in one step, found whole or said to be damaged."""

import os
import shutil
from dataclasses import replace

import pytest

from act.steer import Steer, load
from pipeline import artifact
from pipeline.errors import DamagedRunError
from pipeline.storage import LocalStorage
from schemas.plan import Plan
from tests.pipeline.made import made_plan
from tests.steers import bits, make_steer

PLAN = made_plan()


def steer(name: str = "one"):
    made = make_steer()
    return replace(made, card=replace(made.card, name=name, plan=PLAN.fingerprint))


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "run")


def test_a_run_without_a_steer_has_none(storage):
    assert artifact.current(storage) is None
    assert artifact.find(storage, PLAN) is None
    artifact.link(storage)
    assert storage.names() == []


def found(storage: LocalStorage, plan: Plan | None = None) -> Steer:
    there = artifact.find(storage, plan)
    assert there is not None
    return there


def test_a_published_steer_is_found_and_the_link_leads_to_it(storage):
    saved = artifact.publish(storage, steer())
    assert saved.card.checksum
    there = found(storage, PLAN)
    assert there.card == saved.card
    assert bits(there) == bits(saved)
    assert artifact.opened(storage) == str(storage.root / "steer")
    assert load(storage.root / "steer").card == saved.card
    assert os.readlink(storage.root / "steer") == artifact.current(storage) == f"steers/{saved.card.checksum[:32]}"


def test_the_last_published_counts_and_the_first_is_still_there(storage):
    first, second = (artifact.publish(storage, steer(name)) for name in ("one", "two"))
    assert found(storage).card == second.card != first.card
    assert load(storage.root / "steer").card == second.card
    assert load(storage.root / "steers" / first.card.checksum[:32]).card == first.card
    artifact.publish(storage, steer("one"))
    assert found(storage).card == first.card
    assert len(list((storage.root / "steers").iterdir())) == 2


def test_until_current_moves_nobody_sees_the_new_one(storage, monkeypatch):
    first, replaced = artifact.publish(storage, steer("one")), os.replace

    def failing(source, destination):
        if str(destination).endswith("CURRENT"):
            raise OSError(28, "No space left on device")
        replaced(source, destination)

    monkeypatch.setattr("os.replace", failing)
    with pytest.raises(OSError, match="No space"):
        artifact.publish(storage, steer("two"))
    assert found(storage, PLAN).card == first.card
    assert load(storage.root / "steer").card == first.card


@pytest.mark.parametrize("instead", ["nothing", "elsewhere", "a folder"])
def test_the_link_is_led_back(storage, tmp_path, instead):
    saved = artifact.publish(storage, steer())
    link = storage.root / "steer"
    link.unlink()
    if instead == "elsewhere":
        link.symlink_to(tmp_path)
    if instead == "a folder":  # of a copy that followed the link
        shutil.copytree(storage.root / artifact.current(storage), link)
    artifact.link(storage)
    assert link.is_symlink()
    assert load(link).card == saved.card
    before = os.lstat(link).st_ino
    artifact.link(storage)
    assert os.lstat(link).st_ino == before
    assert sorted(path.name for path in storage.root.iterdir()) == ["CURRENT", "steer", "steers"]


@pytest.mark.parametrize("said", [b"", b"\n", b"../../etc\n", b"0" * 32, b"0" * 31 + b"g\n", b"\xff" * 32 + b"\n"])
def test_what_names_no_steer_is_damage(storage, said):
    artifact.publish(storage, steer())
    storage.write("CURRENT", said)
    with pytest.raises(DamagedRunError, match=r"CURRENT is damaged: it names no steer; .*--repair"):
        artifact.find(storage)


def test_a_steer_that_is_not_there_is_damage(storage):
    artifact.publish(storage, steer())
    storage.write("CURRENT", b"0" * 32 + b"\n")
    with pytest.raises(DamagedRunError, match=rf"CURRENT is damaged: it names steers/{'0' * 32}, which.*--repair"):
        artifact.find(storage)


def test_a_name_that_is_not_that_of_the_content_is_damage(storage):
    saved = artifact.publish(storage, steer())
    (storage.root / "steers" / saved.card.checksum[:32]).rename(storage.root / "steers" / ("0" * 32))
    storage.write("CURRENT", b"0" * 32 + b"\n")
    with pytest.raises(DamagedRunError, match="its name is not that of its content"):
        artifact.find(storage)


@pytest.mark.parametrize("file", ["steer.safetensors", "steer.json"])
def test_a_flipped_byte_is_damage(storage, file):
    artifact.publish(storage, steer())
    path = storage.root / "steer" / file
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedRunError, match=r"steers/[0-9a-f]{32} is damaged.*--repair"):
        artifact.find(storage)


def test_the_steer_of_another_plan_is_damage(storage):
    artifact.publish(storage, make_steer())
    assert artifact.find(storage) is not None
    with pytest.raises(DamagedRunError, match="it is the steer of another plan"):
        artifact.find(storage, PLAN)
