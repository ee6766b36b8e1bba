"""The ledger: which units are done. A unit is done when its receipt exists, and for no other reason."""

import hashlib
from collections.abc import Iterator
from typing import final

import google_crc32c

from pipeline.errors import DamagedRunError, DifferentBitsError, StoreError
from pipeline.folder import RunFolder
from pipeline.storage import AbstractStorage
from schemas import record
from schemas.plan import SIDES, Plan, SideName, Unit
from schemas.receipt import Output, OutputKind, Receipt

_BLOCK = 4 << 20

REPAIR = "run the same command again with --repair"


@final
class Ledger:
    """The receipts of a run, and the files that they speak of.

    Args:
        storage: Where the run lies.
        plan: Its plan: receipts of another plan are refused.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._folder, self._plan = storage, RunFolder(storage), plan

    def find(self, unit: Unit) -> Receipt | None:
        """Returns the receipt of a unit, or None while it is not done.

        Raises:
            DamagedRunError: The file is no receipt, or one of another unit or plan.
        """
        key = self._folder.receipt(unit)
        try:
            written = self._storage.read(key)
        except FileNotFoundError:
            return None
        try:
            receipt = record.unseal(Receipt, written)
        except record.RecordError as exc:
            raise DamagedRunError(self._storage.place(key), str(exc), REPAIR) from exc
        wanted = (self._plan.fingerprint, unit.side, unit.index, unit.num_prompts, 4 * unit.num_prompts)
        if (receipt.plan, receipt.side, receipt.unit, receipt.num_prompts, len(receipt.tokens)) != wanted:
            problem = f"it is not the receipt of {unit} of this plan"
            raise DamagedRunError(self._storage.place(key), problem, REPAIR)
        return receipt

    def receipts(self, side: SideName | None = None) -> Iterator[Receipt]:
        """Yields the receipts of the units that are done, of one side or both, in order; one at a time is in memory.

        Raises:
            DamagedRunError: A file is no receipt of this plan.
        """
        for unit in self._plan.units():
            if side in {None, unit.side}:
                receipt = self.find(unit)
                if receipt is not None:
                    yield receipt

    def missing(self) -> Iterator[Unit]:
        """Yields the units that are not done, in order, by what receipts there are now; none is opened."""
        there = {side: set(self._storage.keys(self._folder.receipts(side))) for side in SIDES}
        for unit in self._plan.units():
            if self._folder.receipt(unit) not in there[unit.side]:
                yield unit

    def publish(self, unit: Unit, kind: OutputKind, key: str, data: bytes) -> Output:
        """Writes a file of a unit, and returns what its receipt is to say of it.

        A file that an earlier attempt left stays if it is the same; without a receipt nobody relies on another one.

        Raises:
            DifferentBitsError: There is a receipt, and the file that it speaks of has other bytes.
            StoreError: The storage refuses.
        """
        output = described(kind, key, data)
        if not self._storage.create(key, data) and self._found(output) != output:
            receipt = self.find(unit)
            if receipt is not None and receipt.output(kind) != output:
                raise DifferentBitsError(str(unit), self._storage.place(key))
            self._storage.write(key, data)
        return output

    def commit(self, unit: Unit, receipt: Receipt) -> Receipt:
        """Writes the receipt of a unit and returns the one that counts: the first that was written.

        Raises:
            DifferentBitsError: Another attempt came first, and its files have other bytes.
        """
        key = self._folder.receipt(unit)
        if self._storage.create(key, record.seal(receipt)):
            return receipt
        first = self.find(unit)
        if first is None or first.outputs != receipt.outputs:
            raise DifferentBitsError(str(unit), self._storage.place(key))
        return first

    def load(self, output: Output) -> bytes:
        """Returns a file that a receipt speaks of, every byte checked.

        Raises:
            DamagedRunError: It is missing, or its size or checksum differs.
        """
        place = self._storage.place(output.path)
        try:
            data = self._storage.read(output.path)
        except FileNotFoundError as exc:
            raise DamagedRunError(place, "it is missing", REPAIR) from exc
        if described(output.kind, output.path, data) != output:
            raise DamagedRunError(place, "its bytes are not those that its receipt speaks of", REPAIR)
        return data

    def check(self, output: Output) -> None:
        """Checks a file that a receipt speaks of, every byte of it.

        Raises:
            DamagedRunError: It is missing, or its size or checksum differs.
        """
        place = self._storage.place(output.path)
        try:
            found = self._found(output)
        except FileNotFoundError as exc:
            raise DamagedRunError(place, "it is missing", REPAIR) from exc
        if found != output:
            raise DamagedRunError(place, "its bytes are not those that its receipt speaks of", REPAIR)

    def _found(self, output: Output) -> Output:
        """Returns what a receipt would say now of a file, which is read in blocks.

        Raises:
            FileNotFoundError: There is none.
            StoreError: It cannot be read.
        """
        checksum, digest, size = 0, hashlib.sha256(), 0
        with self._storage.open(output.path) as file:
            try:
                while block := file.read(_BLOCK):
                    checksum = google_crc32c.extend(checksum, block)
                    digest.update(block)
                    size += len(block)
            except OSError as exc:
                raise StoreError(self._storage.place(output.path), exc.strerror or str(exc), "read") from exc
        return Output(output.kind, output.path, size, checksum, digest.hexdigest())


def described(kind: OutputKind, key: str, data: bytes) -> Output:
    """Returns what a receipt says of a file."""
    return Output(kind, key, len(data), google_crc32c.value(data), hashlib.sha256(data).hexdigest())
