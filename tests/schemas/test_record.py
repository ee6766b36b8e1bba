import dataclasses
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import record
from schemas.card import Card, SideCard, SiteCard, SplitCard
from schemas.fold import Fold
from schemas.plan import Law, Memory, ModelFacts, Numerics, Plan, SideFacts, Site
from schemas.receipt import Output, Quarantined, Receipt, Split
from schemas.record import RecordError
from schemas.timings import Timings

# What a record may hold: UTF-8 text, 64-bit integers, finite numbers.
text = st.text(st.characters(codec="utf-8"), max_size=12)
counts = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.sampled_from(["source", "target"])
trees = st.recursive(
    st.none() | st.booleans() | counts | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(text, trees, max_size=4)


def recipe(cls: type, /, *args: st.SearchStrategy, **kwargs: st.SearchStrategy) -> st.SearchStrategy:
    """Draws what a record is made of: the checks of types draw random numbers, which a strategy may not."""
    return st.builds(partial, st.just(cls), *args, **kwargs)


def made(drawn: Any) -> Any:
    """The record of a recipe."""
    if isinstance(drawn, tuple):
        return tuple(made(item) for item in drawn)
    if isinstance(drawn, dict):
        return {key: made(item) for key, item in drawn.items()}
    if not isinstance(drawn, partial):
        return drawn
    return drawn.func(*map(made, drawn.args), **{name: made(item) for name, item in drawn.keywords.items()})


sides = recipe(SideFacts, counts, text, counts)
laws = recipe(Law, st.sampled_from(["exact", "sketch"]), counts, st.sampled_from(["report", "mend"]))
plans = recipe(
    Plan,
    version=st.just(1),
    spec=objects,
    model=recipe(ModelFacts, text, text, counts, counts),
    location=text,
    numerics=recipe(Numerics, text, text, counts, text, text, st.dictionaries(text, text, max_size=3)),
    sites=st.lists(recipe(Site, text, text, counts), max_size=3).map(tuple),
    timesteps=st.lists(numbers, max_size=3).map(tuple),
    source=sides,
    target=sides,
    rows_per_prompt=counts,
    law=st.fixed_dictionaries({"source": laws, "target": laws}),
    memory=recipe(Memory, counts, counts, counts, counts, counts, counts),
    disk=counts,
    sketch_disk=counts,
)
outputs = recipe(Output, st.sampled_from(["activations", "tokens"]), text, counts, counts, text)
quarantined = st.lists(recipe(Quarantined, counts, text), max_size=3).map(tuple)
receipts = recipe(
    Receipt,
    plan=text,
    model=text,
    side=words,
    unit=counts,
    attempt=counts,
    origin=text,
    num_prompts=counts,
    tokens=st.binary(max_size=12),
    num_truncated=counts,
    quarantined=quarantined,
    splits=st.lists(recipe(Split, counts, counts), max_size=2).map(tuple),
    outputs=st.lists(outputs, max_size=3).map(tuple),
    seconds=numbers,
    compute_seconds=numbers,
    worker=counts,
    peak_memory=counts,
)
folds = recipe(Fold, text, words, counts, counts, st.binary(max_size=9), counts, counts, outputs)
splits = st.lists(recipe(SplitCard, counts, counts, counts), max_size=2).map(tuple)
side_cards = recipe(SideCard, counts, counts, counts, counts, counts, text, quarantined, splits)
cards = recipe(
    Card,
    format_version=st.just(3),
    **dict.fromkeys(("name", "kind", "method", "support", "select", "law", "pooling", "template", "estimation"), text),
    threshold=numbers,
    sites=st.lists(recipe(SiteCard, text, text, counts, *[numbers] * 6, counts), max_size=3).map(tuple),
    timesteps=st.lists(numbers, max_size=3).map(tuple),
    source=side_cards,
    target=side_cards,
    model_fingerprint=text,
    checkpoint_fingerprint=text,
    numerics=objects,
    plan=text,
    spec=objects,
    tensors=text,
)
timings = recipe(Timings, st.dictionaries(text, numbers, max_size=3), counts, counts)


@dataclass(frozen=True)
class Small:
    """Every kind of field once."""

    number: int
    real: float
    name: str
    raw: bytes
    flag: bool
    kind: Literal[1, "one"]
    maybe: str | None
    many: tuple[int, ...]
    by_name: Mapping[str, float]
    anything: Any


SMALL = Small(
    number=1, real=0.5, name="é", raw=b"\0\xff", flag=True, kind=1, maybe=None, many=(1, 2),
    by_name={"b": 1.0, "a": 2.0}, anything=[{}],
)  # fmt: skip


def written(**changes: Any) -> bytes:
    return json.dumps(dataclasses.asdict(SMALL) | {"raw": "AP8="} | changes).encode()


@settings(max_examples=60)
@given(plans | receipts | cards | timings | folds)
def test_a_record_comes_back_equal_and_is_written_with_the_same_bytes(drawn: partial) -> None:
    value = made(drawn)
    data = record.dump(value)
    again = record.load(type(value), data)
    assert again == value
    assert record.dump(again) == data


def test_equal_records_have_equal_bytes_whatever_the_order_of_their_keys() -> None:
    other = dataclasses.replace(SMALL, by_name={"a": 2.0, "b": 1.0})
    assert other == SMALL
    assert list(other.by_name) != list(SMALL.by_name)
    assert record.dump(other) == record.dump(SMALL)
    assert record.digest(other) == record.digest(SMALL)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Small)])
def test_a_change_of_any_field_is_another_digest(field: str) -> None:
    changed: dict[str, Any] = {
        "number": 2, "real": 0.25, "name": "e", "raw": b"\0", "flag": False, "kind": "one", "maybe": "", "many": (2, 1),
        "by_name": {"a": 1.0, "b": 2.0}, "anything": None,
    }  # fmt: skip
    assert record.digest(dataclasses.replace(SMALL, **{field: changed[field]})) != record.digest(SMALL)


def test_bytes_are_readable_utf8_with_sorted_keys_and_a_newline() -> None:
    data = record.dump(SMALL)
    assert "é".encode() in data
    assert data.endswith(b"}\n")
    assert list(json.loads(data)) == sorted(field.name for field in dataclasses.fields(Small))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_word_for_is_not_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        record.dump(dataclasses.replace(SMALL, real=number))


def test_a_whole_number_is_read_as_a_real_one() -> None:
    found = record.load(Small, written(real=3))
    assert type(found.real) is float
    assert found.real == 3.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"number": "1"}, "Small.number: found a string, '1', wanted an integer"),
        ({"number": 1.0}, "Small.number: found a number, 1.0, wanted an integer"),
        ({"number": True}, "Small.number: found a boolean, True, wanted an integer"),
        ({"number": 2**63}, "Small.number: found an integer of more than 64 bits, wanted a smaller one"),
        ({"real": "0.5"}, "Small.real: found a string, '0.5', wanted a number"),
        ({"real": False}, "Small.real: found a boolean, False, wanted a number"),
        ({"real": 10**400}, "Small.real: found an integer"),
        ({"name": None}, "Small.name: found null, wanted a string"),
        ({"name": ["x" * 10**6]}, "Small.name: found an array, wanted a string"),
        ({"raw": 1}, "Small.raw: found an integer, 1, wanted a string"),
        ({"raw": "AP8"}, "Small.raw: found a string, 'AP8', wanted bytes in base64"),
        ({"raw": "AP8=\n"}, "Small.raw: found a string, 'AP8=\\n', wanted bytes in base64"),
        ({"raw": "é" * 100}, "Small.raw: found a string, 'éé"),
        ({"flag": 1}, "Small.flag: found an integer, 1, wanted a boolean"),
        ({"kind": True}, "Small.kind: found a boolean, True, wanted one of 1, 'one'"),
        ({"kind": 1.0}, "Small.kind: found a number, 1.0, wanted one of 1, 'one'"),
        ({"kind": []}, "Small.kind: found an array, wanted one of 1, 'one'"),
        ({"maybe": 1}, "Small.maybe: found an integer, 1, wanted a string"),
        ({"many": {}}, "Small.many: found an object, wanted an array"),
        ({"many": [1, "2"]}, "Small.many[1]: found a string, '2', wanted an integer"),
        ({"by_name": [1]}, "Small.by_name: found an array, wanted an object"),
        ({"by_name": {"a": None}}, "Small.by_name.a: found null, wanted a number"),
        ({"extra": 1, "more": 2}, "Small: found the unknown key a string, 'extra', wanted the keys number, real"),
    ],
)
def test_another_type_is_refused_with_its_place(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecordError) as caught:
        record.load(Small, written(**changes))
    assert str(caught.value).startswith(sentence)
    assert len(str(caught.value)) < 300


def test_a_missing_key_is_named() -> None:
    tree = json.loads(written())
    del tree["flag"], tree["many"]
    with pytest.raises(RecordError, match="found no flag, many, wanted the keys number, real, name, raw, flag"):
        record.load(Small, json.dumps(tree).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"NaN",
        b"{} {}",
        b"\xff\xfe\x00",
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf" + written(),
        written()[:-1],
        written() + b"x",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"number": ' + b"9" * 5000 + b"}",
        written(real=float("nan")),
        written(real=float("inf")),
        written(real=0.5).replace(b"0.5", b"1e999"),
        written(anything=float("nan")),
        written(anything="\ud800"),
        written(anything={"\udfff": 1}),
        written(anything=json.loads("[" * 70 + "]" * 70)),
        b'{"number": 2, ' + written()[1:],
        written(anything={"x": 1}).replace(b'"x": 1', b'"x": 1, "x": 1'),
        b" " * (record.MAX_RECORD_BYTES + 1),
    ],
)
def test_hostile_bytes_are_refused_with_a_record_error(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        record.load(Small, data)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=40) | trees.map(lambda tree: json.dumps(tree).encode()))
def test_no_other_error_than_a_record_error_leaves_it(data: bytes) -> None:
    with pytest.raises(RecordError):
        record.load(Receipt, data)


def test_a_sealed_record_comes_back_and_says_so_in_one_more_key() -> None:
    data = record.seal(SMALL)
    assert record.unseal(Small, data) == SMALL
    assert json.loads(data) == json.loads(record.dump(SMALL)) | {"checksum": record.digest(SMALL)}
    assert record.seal(record.unseal(Small, data)) == data


def test_bytes_are_base64_text() -> None:
    assert json.loads(record.dump(SMALL))["raw"] == "AP8="
    for raw in (b"", b"\0" * 100, bytes(range(256))):
        assert record.load(Small, record.dump(dataclasses.replace(SMALL, raw=raw))).raw == raw


def test_every_changed_byte_of_a_sealed_record_is_found() -> None:
    data = record.seal(SMALL)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(RecordError):
            record.unseal(Small, bytes(changed))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        record.dump(SMALL),
        record.seal(SMALL)[:-1],
        record.seal(SMALL) + b"\n",
        json.dumps(json.loads(record.seal(SMALL))).encode(),
        record.seal(SMALL).replace(b"AP8=", b"AP9="),  # the same bytes in base64, written otherwise
        record.seal(Timings()),
        record.dump(json.loads(record.dump(SMALL)) | {"checksum": record.digest(dataclasses.replace(SMALL, number=2))}),
        b" " * (record.MAX_RECORD_BYTES + 1),
    ],
)
def test_what_was_not_sealed_so_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        record.unseal(Small, data)
    assert len(str(caught.value)) < 300


@settings(max_examples=50)
@given(receipts, st.data())
def test_a_changed_byte_gives_a_record_or_a_record_error(drawn: partial, data: st.DataObject) -> None:
    raw = bytearray(record.dump(made(drawn)))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = record.load(Receipt, bytes(raw))
    except RecordError:
        return
    assert record.load(Receipt, record.dump(found)) == found


def test_an_error_keeps_its_type_and_sentence_between_processes() -> None:
    error = RecordError("Plan.disk", "null", "an integer")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (RecordError, "Plan.disk: found null, wanted an integer")
