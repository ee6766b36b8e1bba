"""Specs that are hostile YAML, or that YAML 1.1 would read as something else than what stands there."""

import json
import time

import pytest

from schemas.document import MAX_SPEC_BYTES
from schemas.job import SpecError, read_job
from tests.hostile.strings import NASTY, acting

SPEC = {
    "version": 1,
    "name": "any",
    "model": {"kind": "causal-lm", "path": "m"},
    "source": {"path": "a.txt"},
    "target": {"path": "b.txt"},
    "hookpoints": "layernorms",
}


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "spec.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_job(path)

    return read


@pytest.fixture
def refusal(read, tmp_path):
    def refusal(text):
        began = time.monotonic()
        with pytest.raises(SpecError) as caught:
            read(text)
        assert time.monotonic() - began < 5
        sentence = str(caught.value)
        assert len(sentence) < 1000
        assert "\n" not in sentence
        return sentence.removeprefix(f"{tmp_path}/")

    return refusal


def with_line(line):
    """A spec with one more line, which may say again what is there."""
    return json.dumps(SPEC)[:-1] + ", " + line + "}"


def condition(read, written):
    """The value of a condition that is written like this."""
    text = "\n".join(f"{name}: {json.dumps(part)}" for name, part in SPEC.items() if name != "source")
    return read(f"{text}\nsource: {{path: a.txt, where: {{c: {written}}}}}\n").source.where["c"]


@pytest.mark.parametrize(
    "line",
    [
        '"name": !!python/object/apply:os.system ["true"]',
        '"name": !!python/name:os.system ""',
        '"name": !!binary "aGk="',
        '"name": !!str x',
        '"name": !own x',
        '"a": &a [x], "b": [*a, *a]',
        '"a": &a {"b": 1}, "c": {"<<": *a}',
        '"name": *missing',
    ],
)
def test_tags_anchors_and_aliases_are_refused(refusal, line):
    assert "found an alias, an anchor or a tag" in refusal(with_line(line))


def test_a_bomb_of_aliases_is_refused_at_its_first_anchor(refusal):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "line 1: found an alias, an anchor or a tag" in refusal("\n".join(lines))


def test_a_merge_key_is_a_key_like_any_other(refusal):
    assert "unknown key '<<' at the top" in refusal(with_line('"<<": {"name": "other"}'))


@pytest.mark.parametrize("key", ["name", "'name'", '"name"', '"\\x6eame"'])
def test_a_key_that_stands_twice_is_refused_however_it_is_written(refusal, key):
    text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in SPEC.items())
    assert "key 'name' stands twice" in refusal(f"{text}\n{key} : other\n")


@pytest.mark.parametrize(
    "written",
    ["on", "off", "yes", "no", "y", "n", "On", "12:30:45", "1:30", "2020-01-01", "2020-01-01T00:00:00Z", "0x10", "0o7",
     "0b1", "1_000", ".inf", "-.inf", ".nan", "1e", "0.1.2", "<<", "=", "Yes"],
)  # fmt: skip
def test_what_looks_like_something_else_is_the_text_that_it_is(read, written):
    assert condition(read, written) == written


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e3", 1000.0), ("08", 8), ("+5", 5), ("-0", 0), ("1.", 1.0), (".5", 0.5), ("true", True), ("'true'", "true"),
     ("'1'", "1"), ('"1e3"', "1e3"), ("0123", 123), ("1E-3", 0.001)],
)  # fmt: skip
def test_numbers_and_words_are_those_of_yaml_1_2(read, written, value):
    found = condition(read, written)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("written", ["~", "null", "1e999", "1e999999999", "{}", "[]", "[[1]]", "{min: [1]}"])
def test_values_that_no_row_can_have_are_refused_or_text(read, written):
    try:
        assert condition(read, written) == written
    except SpecError as refused:
        assert len(str(refused)) < 1000  # noqa: PT017


@pytest.mark.parametrize("char", ["\0", "\x07", "\x1b", "\x7f", "\ufffe"])
def test_control_characters_that_stand_there_are_no_yaml(refusal, char):
    assert "it is not valid YAML" in refusal(json.dumps(SPEC) + f"\n# {char}")


@pytest.mark.parametrize("what", NASTY)
def test_nasty_keys_and_values_are_refused_in_a_sentence_that_shows_them(refusal, what):
    from jobs.text import visible

    text = json.dumps(NASTY[what])
    for line in (f"{text}: 1", f'"compute": {{{text}: 1}}', f'"pooling": {text}', f'"law": {{"kind": {text}}}'):
        sentence = refusal(with_line(line))
        assert not acting(visible(sentence))


def test_a_long_key_or_value_is_refused_in_a_short_sentence(refusal):
    long = "x" * 100_000
    text = "\n".join(f"{name}: {json.dumps(value)}" for name, value in SPEC.items())
    refusal(f"{text}\npooling: {long}\n")
    assert "unknown key" in refusal(f"{text}\n? {long}\n: 1\n")
    refusal(f"{text}\ntransport:\n  method: linear\n  ? {long}\n  : 1\n")
    refusal(f"{text}\n? {long}\n: 1\n? {long}\n: 1\n")


@pytest.mark.parametrize("size", [MAX_SPEC_BYTES + 1, 10 << 20])
def test_a_larger_file_is_refused_by_its_size(refusal, size):
    assert f"it is larger than {MAX_SPEC_BYTES} bytes" in refusal(b'"' + b"k" * size + b'": 1\n')


def test_hundreds_of_keys_are_refused_soon(refusal):
    assert "(and 499 more)" in refusal(with_line(", ".join(f'"k{n}": 1' for n in range(500))))
