"""Sharded arrays: Zarr reads what was written, a part is read alone, and a changed byte is found."""

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pipeline.errors import DamagedRunError
from pipeline.prompts.sampled import sampled
from pipeline.storage import LocalStorage
from pipeline.store import ActivationStore
from pipeline.store.activations import kept_rows
from pipeline.store.arrays import Layout, ShardedArray
from schemas.plan import Unit
from tests.pipeline.made import MadeRun, drawn, made_plan

LAYOUT = Layout((10, 150), (4, 64), (4, 192), "float32", float("nan"), (Crc32cCodec(),), {"columns": {"a": [0, 3]}})
VALUES = np.arange(1500, dtype=np.float32).reshape(10, 150)


def rows(shard: int) -> tuple[slice, slice]:
    return slice(4 * shard, min(4 * shard + 4, 10)), slice(0, 150)


@pytest.fixture
def array(tmp_path):
    made = ShardedArray(LocalStorage(tmp_path), "x.zarr/side", LAYOUT)
    made.create()
    for shard in range(3):
        LocalStorage(tmp_path).write(made.key(shard), made.encode((shard,), rows(shard), VALUES[rows(shard)]))
    return made


def test_another_program_reads_it_as_plain_zarr(array, tmp_path):
    read = zarr.open_array(tmp_path / "x.zarr/side", mode="r")
    assert np.array_equal(np.asarray(read[:]), VALUES)
    assert read.attrs["columns"] == {"a": [0, 3]}
    assert read.shape == array.shape == (10, 150)
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        "x.zarr/side/zarr.json", *(f"x.zarr/side/c/{shard}/0" for shard in range(3)),
    }  # fmt: skip


def test_what_lies_beside_the_shards_is_not_believed(array, tmp_path):
    (tmp_path / "x.zarr/side/zarr.json").write_text("{}")
    assert np.array_equal(array.read((slice(3, 9), slice(60, 70)), "x"), VALUES[3:9, 60:70])
    array.create()  # what is there is left
    assert (tmp_path / "x.zarr/side/zarr.json").read_text() == "{}"


def test_a_part_is_read_without_the_rest(array, monkeypatch):
    spans = []
    read = LocalStorage.read_range

    def noting(self, key, start, stop):
        spans.append(stop - start)
        return read(self, key, start, stop)

    monkeypatch.setattr(LocalStorage, "read", lambda self, key: pytest.fail("the whole shard is read"))
    monkeypatch.setattr(LocalStorage, "read_range", noting)
    assert np.array_equal(array.read((slice(0, 4), slice(64, 128)), "x"), VALUES[:4, 64:128])
    assert sum(spans) < 4 * 64 * 4 + 200


def test_a_shard_is_decoded_from_its_bytes(array, tmp_path):
    data = (tmp_path / array.key(2)).read_bytes()
    assert np.array_equal(array.decode((2,), (slice(8, 10), slice(0, 150)), data), VALUES[8:])


def test_equal_values_have_equal_bytes(array, tmp_path):
    again = ShardedArray(LocalStorage(tmp_path / "elsewhere"), "y", LAYOUT)
    assert again.encode((1,), rows(1), VALUES[rows(1)]) == (tmp_path / array.key(1)).read_bytes()
    assert again.metadata == array.metadata


@pytest.mark.parametrize("place", [0, 700, 2000, -30, -1])
def test_a_changed_byte_is_found_by_whoever_reads_it(array, tmp_path, place):
    path = tmp_path / array.key(1)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedRunError, match=r"somewhere is damaged: .*; mend it"):
        array.read(rows(1), "somewhere", "mend it")
    with pytest.raises(DamagedRunError, match="mend it"):
        array.decode((1,), rows(1), bytes(data), "mend it")


def test_rows_that_were_never_written_are_the_fill(array, tmp_path):
    (tmp_path / array.key(1)).unlink()
    assert np.isnan(array.read(rows(1), "x")).all()


class TestActivations:
    def test_only_the_sampled_hundredth_is_kept(self, tmp_path):
        plan = made_plan(num_source=400, store={"activations": "sample"}, compute={"unit_size": 100})
        run, unit = MadeRun(tmp_path / "run", plan), Unit("source", 2, 200, 300)
        receipt = run.do(unit)
        store = ActivationStore(run.storage, plan)
        (array, _) = store.arrays
        found = array.read((slice(200, 300), slice(0, plan.width)), "x")
        kept = sampled("source", 200, 300)
        assert np.flatnonzero(kept).tolist() == [19, 72]
        assert np.array_equal(np.isfinite(found).all(axis=1), kept)
        assert np.isnan(found[~kept]).all()
        assert np.array_equal(found[kept], drawn(plan, unit)[kept])
        assert np.array_equal(store.samples("source", slice(1, 5), [receipt]), drawn(plan, unit)[kept, 1:5])
        (output,) = receipt.outputs[:1]
        assert output.size < 0.1 * drawn(plan, unit).nbytes

    def test_quarantined_rows_are_left_out_and_a_hole_that_no_receipt_knows_of_is_damage(self, tmp_path):
        run, unit = MadeRun(tmp_path / "run", made_plan()), Unit("source", 1, 4, 8)
        receipt = run.do(unit, lost=(2,))
        store = ActivationStore(run.storage, run.plan)
        assert np.array_equal(store.samples("source", slice(0, 73), [receipt]), drawn(run.plan, unit)[[0, 1, 3]])
        run.storage.delete(store.shard(unit))
        with pytest.raises(DamagedRunError, match="no values where its receipts say that there are some"):
            store.samples("source", slice(0, 73), [receipt])

    def test_a_prompt_has_the_first_of_its_rows(self):
        kept = kept_rows(np.array([2, 0, 5]), 3)
        assert kept.reshape(3, 3).tolist() == [[True, True, False], [False] * 3, [True] * 3]


def test_compressed_nan_takes_no_place(tmp_path):
    layout = Layout((4, 64), (4, 64), (4, 64), "float32", float("nan"), (ZstdCodec(), Crc32cCodec()))
    data = ShardedArray(LocalStorage(tmp_path), "x", layout).encode(
        (0,), (slice(0, 4), slice(0, 64)), np.full((4, 64), np.nan, np.float32)
    )
    assert len(data) < 100
