"""Plans, receipts and timings: any bytes are a record or a `RecordError`, and a record comes back as it was."""

from fuzz.examples import example
from schemas import record
from schemas.plan import Plan
from schemas.receipt import Receipt
from schemas.record import RecordError
from schemas.timings import Timings

KINDS = (Plan, Receipt, Timings)


def seeds() -> list[bytes]:
    """One of each, sealed and not."""
    return [write(example(kind)) for kind in KINDS for write in (record.dump, record.seal)]


def check(data: bytes) -> None:
    """Reads a record of each kind."""
    for kind in KINDS:
        try:
            found = record.load(kind, data)
        except RecordError as refused:
            _short(refused)
        else:
            if record.load(kind, record.dump(found)) != found:
                raise AssertionError(f"the {kind.__name__} is another one after it was written and read again")
        try:
            sealed = record.unseal(kind, data)
        except RecordError as refused:
            _short(refused)
        else:
            if record.seal(sealed) != data:
                raise AssertionError(f"bytes that are not what a {kind.__name__} is sealed as were accepted")


def _short(refused: RecordError) -> None:
    if len(str(refused)) > 2000:
        raise AssertionError(f"a refusal of {len(str(refused))} characters") from refused
