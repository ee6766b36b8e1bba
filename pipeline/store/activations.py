"""The activation store: a Zarr v3 array a side, ``[rows, neurons of all sites]``, one shard file a unit.

Row i is prompt i. Inner chunks are `CHUNK_NEURONS` wide, so that the columns of a site are read without the rest of
the shard. Every chunk ends in a crc32c. Where only a sample of the prompts is kept, the rows of the others are NaN, of
which compression leaves nothing.
"""

from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.errors import DamagedRunError
from pipeline.folder import ACTIVATIONS
from pipeline.prompts.sampled import sampled
from pipeline.storage import AbstractStorage
from pipeline.store.arrays import Layout, ShardedArray
from schemas.plan import CHUNK_NEURONS, SIDES, Plan, SideName, Unit, whole_chunks
from schemas.receipt import Receipt

Block = NDArray[np.float32]


@final
class ActivationStore:
    """The pooled activations of a run.

    Args:
        storage: Where the run lies.
        plan: The plan that laid it out.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan
        self._arrays = {
            side: ShardedArray(storage, f"{ACTIVATIONS}/{side}", _layout(plan, side))
            for side in SIDES
            if plan.kept(side) != "none"
        }

    @property
    def arrays(self) -> Iterable[ShardedArray]:
        """The arrays of the sides that keep activations."""
        return self._arrays.values()

    def shard(self, unit: Unit) -> str:
        """The key of the file that holds a unit."""
        return self._arrays[unit.side].key(unit.index)

    def encode(self, unit: Unit, block: Block) -> bytes:
        """Returns the shard file of a unit.

        Args:
            unit: The unit.
            block: ``[unit's prompts * rows_per_prompt, neurons of all sites]``; NaN where there is no sample.
        """
        rows = self._plan.rows_per_prompt
        wanted = (unit.num_prompts * rows, self._plan.width)
        if block.shape != wanted or block.dtype != np.float32:
            raise AssertionError(f"block of {block.shape} {block.dtype}, wanted {wanted} float32")
        if self._plan.kept(unit.side) == "sample":
            block = np.where(self.stored(unit)[:, None], block, np.float32("nan"))
        region = (slice(unit.start * rows, unit.stop * rows), slice(0, self._plan.width))
        return self._arrays[unit.side].encode((unit.index,), region, block)

    def stored(self, unit: Unit) -> NDArray[np.bool_]:
        """Returns which rows of a unit are kept, if they hold a sample: all, or those of the hashed hundredth."""
        if self._plan.kept(unit.side) == "all":
            return np.ones(unit.num_prompts * self._plan.rows_per_prompt, np.bool_)
        return np.repeat(sampled(unit.side, unit.start, unit.stop), self._plan.rows_per_prompt)

    def read(self, unit: Unit) -> Block:
        """Returns the block of a unit, as `encode` took it.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
        """
        rows = self._plan.rows_per_prompt
        region = (slice(unit.start * rows, unit.stop * rows), slice(0, self._plan.width))
        block: Block = self._arrays[unit.side].read(region, self._storage.place(self.shard(unit)))
        return block

    def samples(self, side: SideName, columns: slice, receipts: Iterable[Receipt]) -> Block:
        """Returns the kept samples of some columns, `[samples, columns]`, of the units with these receipts, in order.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
        """
        per_prompt, parts = self._plan.rows_per_prompt, []
        for receipt in receipts:
            unit = receipt.of(self._plan.unit_size)
            rows = kept_rows(receipt.num_tokens, per_prompt) & self.stored(unit)
            region = (slice(unit.start * per_prompt, unit.stop * per_prompt), columns)
            part = self._arrays[side].read(region, self._storage.place(self.shard(unit)))
            parts.append(part if rows.all() else part[rows])
        samples = np.concatenate(parts) if parts else np.empty((0, columns.stop - columns.start), np.float32)
        if np.isnan(samples).any():
            place = self._storage.place(f"{ACTIVATIONS}/{side}")
            raise DamagedRunError(place, "it has no values where its receipts say that there are some")
        return samples


def _layout(plan: Plan, side: SideName) -> Layout:
    num_prompts = plan.side(side).num_prompts
    unit_rows = min(plan.unit_size, num_prompts) * plan.rows_per_prompt
    return Layout(
        shape=(num_prompts * plan.rows_per_prompt, plan.width),
        chunks=(unit_rows, CHUNK_NEURONS),
        shards=(unit_rows, whole_chunks(plan.width)),
        dtype="float32",
        fill=float("nan"),
        compressors=(*([] if plan.kept(side) == "all" else [ZstdCodec()]), Crc32cCodec()),
        attributes={"columns": {site: [part.start, part.stop] for site, part in plan.columns.items()}},
    )


def kept_rows(num_tokens: NDArray[np.int64], per_prompt: int) -> NDArray[np.bool_]:
    """Returns which rows of a unit hold samples: prompt i has rows i * r to i * r + its number of samples.

    Args:
        num_tokens: Real tokens of each prompt, 0 for one that does not count.
        per_prompt: Rows of a prompt.
    """
    kept = np.minimum(num_tokens, per_prompt)
    there: NDArray[np.bool_] = np.arange(per_prompt)[None, :] < kept[:, None]
    return there.reshape(-1)
