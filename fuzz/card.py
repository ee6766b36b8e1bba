"""Cards: any bytes beside a steer's tensors are its card or a `SteerFileError`."""

import tempfile
from pathlib import Path

from act.errors import SteerFileError
from act.steer import CARD, load
from fuzz.examples import save_steers

_STEER, _ = save_steers(Path(tempfile.mkdtemp()))


def seeds() -> list[bytes]:
    """The card itself."""
    return [(_STEER / CARD).read_bytes()]


def check(data: bytes) -> None:
    """Loads the steer with another card."""
    (_STEER / CARD).write_bytes(data)
    try:
        load(_STEER)
    except SteerFileError as refused:
        if len(str(refused)) > 2000:
            raise AssertionError(f"a refusal of {len(str(refused))} characters") from refused
