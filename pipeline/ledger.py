"""The ledger: which units are done. A unit is done when its receipt exists, and for no other reason."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

import google_crc32c

from pipeline.errors import DamagedRunError
from pipeline.folder import RunFolder
from schemas import files, record
from schemas.plan import Plan, Unit
from schemas.receipt import Receipt

_BLOCK = 4 << 20
REDO = "delete {} and run the same command again to redo its unit"


@final
class Ledger:
    """The receipts of a run.

    Args:
        folder: The run.
        plan: Its plan: receipts of another plan are refused.
    """

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self._folder, self._plan = folder, plan

    def find(self, unit: Unit) -> Receipt | None:
        """Returns the receipt of a unit, or None while it is not done.

        Raises:
            DamagedRunError: The file is no receipt, or one of another unit or plan.
        """
        path = self._folder.receipt(unit)
        try:
            written = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            receipt = record.load(Receipt, written)
        except record.RecordError as exc:
            raise DamagedRunError(str(path), str(exc), REDO.format(path)) from exc
        wanted = (self._plan.fingerprint, unit.side, unit.index, unit.num_prompts)
        if (receipt.plan, receipt.side, receipt.unit, receipt.num_prompts) != wanted:
            raise DamagedRunError(str(path), f"it is not the receipt of {unit} of this plan", REDO.format(path))
        return receipt

    def commit(self, unit: Unit, receipt: Receipt) -> Receipt:
        """Writes the receipt of a unit and returns the one that counts: the first that was written."""
        if files.publish_first(self._folder.receipt(unit), record.dump(receipt)):
            return receipt
        return self.find(unit) or receipt

    def split(self, units: Iterable[Unit]) -> tuple[list[Receipt], list[Unit]]:
        """Returns the receipts of the units that are done, and the units that are not, each in order."""
        done, missing = [], []
        for unit in units:
            receipt = self.find(unit)
            if receipt is None:
                missing.append(unit)
            else:
                done.append(receipt)
        return done, missing

    def verify(self, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """Yields each receipt once its files were found to be those that the receipt speaks of.

        Raises:
            DamagedRunError: A file is missing, or its size or checksum differs.
        """
        for receipt in receipts:
            redo = REDO.format(self._folder.receipt(receipt.of(self._plan.unit_size)))
            for output in receipt.outputs:
                path = self._folder.root / output.path
                try:
                    found = measure(path)
                except FileNotFoundError as exc:
                    raise DamagedRunError(str(path), "it is missing", redo) from exc
                if found != (output.size, output.crc32c):
                    raise DamagedRunError(str(path), "its bytes are not those that its receipt speaks of", redo)
            yield receipt


def measure(path: Path) -> tuple[int, int]:
    """Returns the size of a file in bytes and its crc32c."""
    checksum, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            checksum = google_crc32c.extend(checksum, block)
            size += len(block)
    return size, checksum
