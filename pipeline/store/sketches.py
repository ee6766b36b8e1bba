"""The sketch store: the sketches of units, a Zarr v3 array a law and a shard file a unit; and folds of many units.

A neuron's sketch is a row of 32-bit words (`pipeline.sketch.words`). Most counts are zero, and the bytes of a word are
shuffled before they are compressed, which leaves about a fifteenth. Every chunk ends in a crc32c.
"""

from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.folder import SKETCHES
from pipeline.sketch import EXTRA_WORDS, Grid
from pipeline.storage import AbstractStorage
from pipeline.store.arrays import Layout, ShardedArray
from schemas.plan import CHUNK_NEURONS, LAWS, LawName, Plan, whole_chunks

Words = NDArray[np.int32]


@final
class SketchStore:
    """The sketches of a run.

    Args:
        storage: Where the run lies.
        plan: The plan that laid it out.
    """

    def __init__(self, storage: AbstractStorage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan
        self._words = {law: words_per_neuron(plan.precision(law)) for law in LAWS}
        self._arrays = {
            law: ShardedArray(storage, f"{SKETCHES}/{law}", self._units(law))
            for law in LAWS
            if plan.sketched_units(law)
        }

    @property
    def arrays(self) -> Iterable[ShardedArray]:
        """The arrays of the laws that are sketched."""
        return self._arrays.values()

    def shard(self, law: LawName, unit: int) -> str:
        """The key of the file that holds the sketch of a unit."""
        return self._arrays[law].key(unit)

    def encode(self, law: LawName, unit: int, words: Words) -> bytes:
        """Returns the shard file of a unit's sketch.

        Args:
            law: The law that it belongs to.
            unit: Number of the unit in its side.
            words: ``[neurons of all sites, words]``.
        """
        return self._arrays[law].encode((unit,), self._region(law, unit, slice(0, self._plan.width)), words[None])

    def decode(self, law: LawName, unit: int, columns: slice, data: bytes) -> Words:
        """Returns the sketch of a unit for some columns, ``[columns, words]``, given its file.

        Raises:
            DamagedRunError: A checksum in it does not match.
        """
        found: Words = self._arrays[law].decode((unit,), self._region(law, unit, columns), data)[0]
        return found

    def read(self, law: LawName, unit: int, columns: slice) -> Words:
        """Returns the sketch of a unit for some columns, of which only the chunks that hold them are read.

        Raises:
            DamagedRunError: A checksum in it does not match.
        """
        place = self._storage.place(self.shard(law, unit))
        found: Words = self._arrays[law].read(self._region(law, unit, columns), place)[0]
        return found

    def fold(self, law: LawName, folder: str, width: int) -> ShardedArray:
        """Returns the array of merged sketches, ``[width, words]``, which is one shard.

        Args:
            law: The law.
            folder: Key of its folder.
            width: Neurons of its sites.
        """
        words = self._words[law]
        chunk = (CHUNK_NEURONS, words)
        return ShardedArray(self._storage, folder, _layout((width, words), chunk, (whole_chunks(width), words)))

    def _region(self, law: LawName, unit: int, columns: slice) -> tuple[slice, ...]:
        return slice(unit, unit + 1), columns, slice(0, self._words[law])

    def _units(self, law: LawName) -> Layout:
        width, words = self._plan.width, self._words[law]
        chunk = (1, CHUNK_NEURONS, words)
        return _layout((self._plan.sketched_units(law), width, words), chunk, (1, whole_chunks(width), words))


def words_per_neuron(precision: int) -> int:
    """Returns how many words the sketch of a neuron has."""
    return Grid(precision).num_cells + EXTRA_WORDS


def _layout(shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...]) -> Layout:
    packed = BloscCodec(typesize=4, cname="zstd", clevel=3, shuffle="shuffle")
    return Layout(shape, chunks, shards, "int32", 0, (packed, Crc32cCodec()))
