"""The sketch store: the sketches of units, a Zarr v3 array a law and a shard file a unit; and the finished laws.

A neuron's sketch is a row of 32-bit words (`pipeline.sketch.words`). Most counts are zero, and the bytes of a word are
shuffled before they are compressed, which leaves about a fifteenth. Every chunk ends in a crc32c.
"""

from pathlib import Path
from typing import Any, final

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from pipeline.errors import DamagedRunError, StoreError
from pipeline.folder import RunFolder
from pipeline.ledger import REDO
from pipeline.sketch import EXTRA_WORDS, Grid
from pipeline.store.arrays import open_array
from schemas import files
from schemas.plan import CHUNK_NEURONS, LAWS, LawName, Plan, SideName, Unit, whole_chunks

Words = NDArray[np.int32]

_UNITS = "units"


@final
class SketchStore:
    """The sketches of a run.

    Args:
        path: Folder of the store.
        plan: The plan that laid it out.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._path, self._plan = path, plan
        self._words = {law: words_per_neuron(plan.precision(law)) for law in LAWS}
        self._read: dict[LawName, zarr.Array[Any]] = {}

    def create(self) -> None:
        """Lays out the arrays of the units. Called once, by the planner; an array that exists is left as it is."""
        for law in LAWS:
            num_units = sum(self._plan.sketches(law, unit) for unit in self._plan.units())
            if num_units and not (self._path / _UNITS / law / "zarr.json").exists():
                width = self._plan.width
                words = self._words[law]
                shape, chunk = (num_units, width, words), (1, CHUNK_NEURONS, words)
                _create(self._path, f"{_UNITS}/{law}", shape, chunk, (1, whole_chunks(width), words))

    def write(self, law: LawName, unit: Unit, words: Words) -> Path:
        """Writes the sketch of one unit as one shard file, durable before this returns.

        Args:
            law: The law that it belongs to.
            unit: The unit.
            words: ``[neurons of all sites, words]``.

        Returns:
            The shard file.

        Raises:
            StoreError: The disk refuses.
        """
        path = self.shard(law, unit.index)
        try:
            path.unlink(missing_ok=True)  # Zarr reads the old shard before it overwrites it, and fails on a torn one.
            open_array(self._path, f"{_UNITS}/{law}", "r+")[unit.index] = words
            for made in (path, path.parent, path.parent.parent):
                files.sync(made)
        except OSError as exc:
            raise StoreError(str(path), exc.strerror or str(exc)) from exc
        return path

    def read(self, law: LawName, unit: int, columns: slice) -> Words:
        """Returns the sketch of one unit for some columns, ``[columns, words]``.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
        """
        if law not in self._read:
            self._read[law] = open_array(self._path, f"{_UNITS}/{law}", "r")
        return _values(self._read[law], (unit, columns), self.shard(law, unit), self.redo(law, unit))

    def shard(self, law: LawName, unit: int) -> Path:
        """The file that holds the sketch of a unit."""
        return self._path / _UNITS / law / "c" / str(unit) / "0" / "0"

    def redo(self, law: LawName, unit: int) -> str:
        """Returns what to do about a unit whose sketch is damaged."""
        side: SideName = "target" if law == "target" else "source"
        return REDO.format(RunFolder(self._path.parent).receipt(Unit(side, unit, 0, 0)))

    def write_law(self, law: LawName, site: int, words: Words) -> None:
        """Writes the finished law of a site, which appears whole or not at all; one that exists is left as it is.

        Raises:
            StoreError: The disk refuses.
        """
        path = self._law(law, site)
        shard = (whole_chunks(len(words)), self._words[law])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.staged_folder(path) as folder:
                _create(folder, "", words.shape, (CHUNK_NEURONS, self._words[law]), shard)
                open_array(folder, "", "r+")[:] = words
                for made in (folder / "c" / "0" / "0", folder / "c" / "0", folder / "c", folder / "zarr.json"):
                    files.sync(made)
        except FileExistsError:
            return
        except OSError as exc:
            raise StoreError(str(path), exc.strerror or str(exc)) from exc

    def read_law(self, law: LawName, site: int) -> Words | None:
        """Returns the finished law of a site, ``[neurons, words]``, or None while there is none.

        Raises:
            DamagedRunError: A chunk's checksum does not match.
        """
        path = self._law(law, site)
        if not path.exists():
            return None
        return _values(open_array(path, "", "r"), slice(None), path, f"delete {path} and run the same command again")

    def _law(self, law: LawName, site: int) -> Path:
        return self._path / "laws" / law / f"{site:05d}"


def words_per_neuron(precision: int) -> int:
    """Returns how many words the sketch of a neuron has."""
    return Grid(precision).num_cells + EXTRA_WORDS


def _create(path: Path, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...]) -> None:
    try:
        zarr.create_array(
            store=LocalStore(path),
            name=name or None,
            shape=shape,
            chunks=chunks,
            shards=shards,
            dtype="int32",
            fill_value=0,
            compressors=[BloscCodec(typesize=4, cname="zstd", clevel=3, shuffle="shuffle"), Crc32cCodec()],
        )
    except OSError as exc:
        raise StoreError(str(path / name), exc.strerror or str(exc)) from exc


def _values(
    array: "zarr.Array[Any]",
    where: Any,  # noqa: ANN401 - what Zarr indexes by
    path: Path,
    remedy: str,
) -> Words:
    try:
        return np.asarray(array[where])
    except (ValueError, OSError, RuntimeError) as exc:
        raise DamagedRunError(str(path), str(exc), remedy) from exc
