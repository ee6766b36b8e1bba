"""The activation store: a Zarr v3 array a side, ``[rows, neurons of all sites]``, one shard file a unit.

Shards are written once, whole, by one writer each. Inner chunks are `CHUNK_NEURONS` wide, so that the columns of a
site are read without the rest of the shard. Every chunk ends in a crc32c, which Zarr does not add by itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from pipeline.errors import DamagedRunError, StoreError
from pipeline.store.arrays import open_array
from schemas import files
from schemas.plan import CHUNK_NEURONS, SIDES, Plan, SideName, Unit, whole_chunks
from schemas.receipt import Receipt

Block = NDArray[np.float32]


@final
class ActivationStore:
    """The pooled activations of a run.

    Args:
        path: Folder of the store.
        plan: The plan that laid it out.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path, self._plan = path, plan
        self._read: dict[SideName, zarr.Array[Any]] = {}

    def create(self) -> None:
        """Lays out both arrays at full size. Called once, by the planner; an array that exists is left as it is."""
        for name in SIDES:
            if not (self._path / name / "zarr.json").exists():
                self._create(name)

    def shard(self, unit: Unit) -> Path:
        """The file that holds a unit."""
        return self._path / unit.side / "c" / str(unit.index) / "0"

    def write(self, unit: Unit, block: Block) -> Path:
        """Writes one unit as one shard file, durable before this returns.

        Args:
            unit: The unit.
            block: ``[unit's prompts * rows_per_prompt, neurons of all sites]``; NaN where there is no sample.

        Returns:
            The shard file.

        Raises:
            StoreError: The disk refuses.
        """
        rows = self._plan.rows_per_prompt
        wanted = (unit.num_prompts * rows, self._plan.width)
        if block.shape != wanted or block.dtype != np.float32:
            raise AssertionError(f"block of {block.shape} {block.dtype}, wanted {wanted} float32")
        path = self.shard(unit)
        try:
            path.unlink(missing_ok=True)  # Zarr reads the old shard before it overwrites it, and fails on a torn one.
            open_array(self._path, unit.side, "r+")[unit.start * rows : unit.stop * rows] = block
            files.sync(path)
            files.sync(path.parent)
        except OSError as exc:
            raise StoreError(str(path), exc.strerror or str(exc)) from exc
        return path

    def samples(self, side: SideName, columns: slice, receipts: Sequence[Receipt]) -> Block:
        """Returns the samples of some columns, `[samples, columns]`, of the units with these receipts, in order.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
        """
        if side not in self._read:
            self._read[side] = open_array(self._path, side, "r")
        array, parts = self._read[side], []
        for receipt in receipts:
            rows = kept_rows(receipt.num_tokens, self._plan.rows_per_prompt)
            unit = receipt.of(self._plan.unit_size)
            start, stop = (place * self._plan.rows_per_prompt for place in (unit.start, unit.stop))
            try:
                part = np.asarray(array[start:stop, columns])
            except (ValueError, OSError) as exc:
                raise DamagedRunError(str(self.shard(unit)), str(exc)) from exc
            parts.append(part if rows.all() else part[rows])
        samples = np.concatenate(parts) if parts else np.empty((0, columns.stop - columns.start), np.float32)
        if np.isnan(samples).any():
            raise DamagedRunError(str(self._path / side), "it has no values where its receipts say that there are some")
        return samples

    def _create(self, name: SideName) -> None:
        plan = self._plan
        rows = plan.side(name).num_prompts * plan.rows_per_prompt
        unit_rows = min(plan.unit_size, plan.side(name).num_prompts) * plan.rows_per_prompt
        try:
            zarr.create_array(
                store=LocalStore(self._path),
                name=name,
                shape=(rows, plan.width),
                chunks=(unit_rows, CHUNK_NEURONS),
                shards=(unit_rows, whole_chunks(plan.width)),
                dtype="float32",
                fill_value=float("nan"),
                compressors=[Crc32cCodec()],
                attributes={"columns": {site: [part.start, part.stop] for site, part in plan.columns.items()}},
            )
        except OSError as exc:
            raise StoreError(str(self._path / name), exc.strerror or str(exc)) from exc


def kept_rows(num_tokens: Sequence[int], per_prompt: int) -> NDArray[np.bool_]:
    """Returns which rows of a unit hold samples: prompt i has rows i * r to i * r + its number of samples.

    Args:
        num_tokens: Real tokens of each prompt, 0 for a quarantined one.
        per_prompt: Rows of a prompt.
    """
    kept = np.minimum(np.asarray(num_tokens), per_prompt)
    there: NDArray[np.bool_] = np.arange(per_prompt)[None, :] < kept[:, None]
    return there.reshape(-1)
