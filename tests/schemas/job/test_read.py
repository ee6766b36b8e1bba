import pickle

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.job import Job, SpecError, read_job

BASE = {
    "version": 1,
    "name": "any",
    "model": {"kind": "causal-lm", "path": "m"},
    "source": {"path": "a.txt"},
    "target": {"path": "b.txt"},
    "hookpoints": "layernorms",
}
WORDS = [
    "method",
    "det-zero",
    "linear",
    "iti-probe",
    "support",
    "tokens",
    "threshold",
    "select",
    "by",
    "w2",
    "top",
    "of",
]
WORDS += ["sites", "across", "site", "kind", "exact", "sketch", "precision", "activations", "none", "reducers", "where"]
WORDS += ["misfits", "mend", "laws", "sketches", "merged", "attempts", "lease"]
LEAVES = st.none() | st.booleans() | st.integers(-2, 9) | st.floats(-1, 101) | st.sampled_from(WORDS)
TREES = st.recursive(
    LEAVES, lambda tree: st.lists(tree, max_size=3) | st.dictionaries(st.sampled_from(WORDS), tree, max_size=4)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1: the file is empty"),
        ("# nothing\n", "line 1: the file is empty"),
        ("- a\n", "line 1: it holds [\"a\"]; wanted 'key: value' lines"),
        ("hello", "line 1: it holds 'hello'"),
        ("version: 1\nname: a\nname: b\n", "line 3: key 'name' stands twice, first on line 2"),
        ("version: 1\nname: &n a\n", "line 2: found an alias, an anchor or a tag"),
        ("version: 1\nname: !!python/name:os.system x\n", "line 2: found an alias, an anchor or a tag"),
        ("a: [[1, 2\n", "line 2: it is not valid YAML"),
        ("a:\n\tb: 1\n", "line 2: it is not valid YAML"),
        ("version: 1\n---\nversion: 1\n", "line 2: it is not valid YAML"),
        ("a: " + "[" * 500 + "]" * 500, "line 1: found more than 16 levels"),
        ("? [a]\n: 1\n", "line 1: a key is a list or a mapping"),
        ('name: "a\\0b"\n', "line 1: 'a\\x00b' holds a NUL or half a character"),
        ('name: "\\ud800"\n', "line 1: '\\ud800' holds a NUL or half a character"),
        (b"version: 1\nname: \xff\n", "line 2: the text is not UTF-8"),
        ("a: 1".encode("utf-16"), "line 1: the text is not UTF-8"),
        ("a: \x00", ": it is not valid YAML"),
        ("a: '" + "x" * (1 << 20) + "'", ": it is larger than 1048576 bytes"),
    ],
)
def test_what_is_no_plain_yaml(refused, text, sentence):
    assert sentence in refused(text=text)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match=r"nowhere\.yaml: it cannot be read \(No such file or directory\)"):
        read_job(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="Is a directory"):
        read_job(tmp_path)


@settings(max_examples=60)
@given(st.text(max_size=300) | st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as caught:
        read_job(path)
    assert "\n" not in str(caught.value)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["model", "source", "transport", "law", "store", "compute", "failures", "extends", "top"]),
        TREES,
        max_size=3,
    )
)
def test_any_values_are_a_job_or_refused_in_one_sentence(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    try:
        job = read_job(path)
    except SpecError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert error.line is not None  # noqa: PT017
    else:
        assert Job.model_validate(job.model_dump(mode="json")) == job


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(SpecError("a.yaml", 3, "compute.workers", "bad", 2)))
    assert (str(error), error.key) == ("a.yaml line 3: bad (and 2 more)", "compute.workers")
