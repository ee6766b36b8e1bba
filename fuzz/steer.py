"""Tensors of steers: any bytes that a card vouches for are maps or a `SteerFileError`."""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

from act.errors import SteerFileError
from act.steer import CARD, TENSORS, load
from fuzz.examples import save_steers
from schemas import record
from schemas.card import Card

_FOLDERS = save_steers(Path(tempfile.mkdtemp()))
_CARDS = [record.load(Card, (folder / CARD).read_bytes()) for folder in _FOLDERS]


def seeds() -> list[bytes]:
    """The tensors of an affine steer, and of one with knots."""
    return [(folder / TENSORS).read_bytes() for folder in _FOLDERS]


def check(data: bytes) -> None:
    """Loads each steer with other tensors, forged so that the hashes agree."""
    for folder, card in zip(_FOLDERS, _CARDS, strict=True):
        forged = dataclasses.replace(card, tensors=hashlib.sha256(data).hexdigest()).sealed
        (folder / TENSORS).write_bytes(data)
        (folder / CARD).write_bytes(record.dump(forged))
        try:
            load(folder)
        except SteerFileError as refused:
            if len(str(refused)) > 2000:
                raise AssertionError(f"a refusal of {len(str(refused))} characters") from refused
