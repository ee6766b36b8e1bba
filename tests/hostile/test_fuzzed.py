"""Files that were written well and then changed at random: only our own errors come out, whatever the change."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from act.errors import SteerFileError
from act.steer import CARD, TENSORS, load
from pipeline.errors import InputError, ModelLoadError
from pipeline.models.files import weight_files
from pipeline.prompts import select
from schemas import record
from schemas.card import Card
from schemas.job import Job, SpecError, read_job
from schemas.job.prompts import Side
from schemas.plan import Plan
from schemas.receipt import Receipt
from schemas.record import RecordError
from tests.hostile.strings import NASTY
from tests.steers import forge, make_quantile_steer, make_steer

ONE = {"norm@2": 3}
SPEC: dict[str, Any] = {
    "version": 1,
    "name": "any",
    "model": {"kind": "causal-lm", "path": "m", "dtype": "float32"},
    "source": {"path": ["a.txt", "b.txt"], "column": "text", "where": {"n": {"min": 0.5}}, "limit": 5},
    "target": {"path": "b.txt", "sample": 5, "seed": 1},
    "hookpoints": ["a.*"],
    "transport": {"method": "aura", "support": [1, 99], "select": {"by": "w2", "top": 5}},
    "compute": {"workers": 0, "max_tokens": 32, "unit_size": 8},
    "law": {"kind": "sketch", "precision": 3},
}


@st.composite
def changes(draw):
    """Returns a function that changes bytes in one to three places: flips, cuts, repeats, or puts something else in."""
    pieces = st.sampled_from([b"", b"\0", b"\xff", b"-1", b"1e999", b"[[[[", b"{}", b'"', b"null", b"\n", b"9" * 40])
    places = [(draw(st.floats(0, 1)), draw(st.integers(0, 9)), draw(pieces)) for _ in range(draw(st.integers(1, 3)))]

    def change(data):
        for share, length, piece in places:
            start = int(share * len(data))
            data = (
                data[:start] + (piece or bytes(byte ^ 1 for byte in data[start : start + 1])) + data[start + length :]
            )
        return data

    return change


def nodes(tree, place=()):
    """The ways to all values of a tree."""
    yield place
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from nodes(value, (*place, key))


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from(sorted(NASTY.values())),
    st.just([]), st.just({}), st.just([[[]]]), st.just({"": {"": None}}),
)  # fmt: skip


def with_other(tree, place, value):
    """A copy of a tree with another value at a place."""
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[place[0]] = with_other(tree[place[0]], place[1:], value)
    return copy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzzed")


SEED = yaml.safe_dump(SPEC).encode()


def read_spec(folder, data):
    path = folder / "spec.yaml"
    path.write_bytes(data)
    try:
        job = read_job(path)
    except SpecError as refused:
        assert "\n" not in str(refused)  # noqa: PT017
        assert len(str(refused)) < 1000  # noqa: PT017
    else:
        assert Job.model_validate(job.model_dump(mode="json")) == job


def test_the_seeds_are_accepted(folder):
    read_spec(folder, SEED)
    (folder / "spec.yaml").write_bytes(SEED)
    assert read_job(folder / "spec.yaml").name == "any"


@settings(max_examples=25)
@given(changes())
def test_a_spec_with_changed_bytes(folder, change):
    read_spec(folder, change(SEED))


@settings(max_examples=25)
@given(st.sampled_from(list(nodes(SPEC))), ANYTHING)
def test_a_spec_with_another_value_somewhere(folder, place, value):
    read_spec(folder, json.dumps(with_other(SPEC, place, value)).encode())


@pytest.fixture(scope="module")
def steers(folder):
    """Folders of steers, with their files as they were written."""
    found = []
    for name, steer in (("affine", make_steer(ONE)), ("quantile", make_quantile_steer(ONE))):
        steer.save(folder / name)
        found.append((folder / name, (folder / name / CARD).read_bytes(), (folder / name / TENSORS).read_bytes()))
    return found


def try_to_load(place):
    try:
        load(place)
    except SteerFileError as refused:
        assert len(str(refused)) < 1000  # noqa: PT017


@settings(max_examples=25)
@given(st.booleans(), changes())
def test_a_steer_whose_card_has_changed_bytes(steers, quantile, change):
    place, card, tensors = steers[quantile]
    (place / TENSORS).write_bytes(tensors)
    (place / CARD).write_bytes(change(card))
    try_to_load(place)


@settings(max_examples=25)
@given(st.booleans(), st.data())
def test_a_steer_whose_card_is_forged(steers, quantile, data):
    place, card, tensors = steers[quantile]
    tree = json.loads(card)
    changed = with_other(tree, data.draw(st.sampled_from(list(nodes(tree)))), data.draw(ANYTHING))
    (place / TENSORS).write_bytes(tensors)
    try:
        written = record.load(Card, json.dumps(changed).encode())
        (place / CARD).write_bytes(record.dump(written.sealed))
    except ValueError:  # it is no card, or has no canonical bytes
        (place / CARD).write_bytes(json.dumps(changed).encode())
    try_to_load(place)


@settings(max_examples=25)
@given(st.booleans(), changes())
def test_a_steer_whose_tensors_are_forged(steers, quantile, change):
    place, card, tensors = steers[quantile]
    (place / CARD).write_bytes(card)
    forge(place, change(tensors))
    try_to_load(place)


@settings(max_examples=25)
@given(change=changes())
def test_a_checkpoint_with_changed_bytes(folder, steers, change):
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/model.safetensors").write_bytes(change(steers[0][2]))
    try:
        weight_files(folder / "model")
    except ModelLoadError as refused:
        assert "\n" not in str(refused)  # noqa: PT017


@settings(max_examples=25)
@given(st.sampled_from([Plan, Receipt, Card]), changes())
def test_records_with_changed_bytes(kind, change):
    from fuzz.examples import example

    sealed = [(record.seal, record.unseal)] if kind is not Card else []  # a card carries a checksum of its own
    for write, read in [(record.dump, record.load), *sealed]:
        data = write(example(kind))
        assert write(read(kind, data)) == data
        try:
            found = read(kind, change(data))
        except RecordError as refused:
            assert len(str(refused)) < 1000  # noqa: PT017
        else:
            assert read(kind, write(found)) == found


def tables():
    rows = [{"text": f'a "{n}", b', "kind": "ab"[n % 2], "n": n} for n in range(4)]
    yield ".jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()
    yield ".csv", b'text,kind,n\n"a, ""b""\nc",a,1\nd,b,2\n'
    for options in ({"compression": "zstd"}, {"compression": "none", "use_dictionary": False}):
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream, **options)
        yield ".parquet", stream.getvalue()


TABLES = list(tables())


@settings(max_examples=60)
@given(st.sampled_from(TABLES), changes(), st.sampled_from([{}, {"n": 1}, {"kind": ["a", "b"]}]))
def test_prompts_with_changed_bytes(folder, table, change, where):
    suffix, data = table
    path = folder / f"a{suffix}"
    path.write_bytes(change(data))
    try:
        num = sum(len(batch) for batch in select(Side(path=str(path), column="text", where=where, limit=100)))
    except InputError:
        return
    assert 0 < num <= 100
