import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.job import CausalLM, Job, Range, Side, SpecError, read_job

SPEC = """\
version: 1
name: less-toxic
model:      {kind: causal-lm, path: models/small, dtype: float32}
source:     {path: data/comments.parquet, column: text, where: {toxic: true}, limit: 4096}
target:
  path: data/comments.parquet
  column: text
  where: {toxic: false, topic: [a, b], score: {min: 0.5}}
hookpoints: layernorms
template:   plain
pooling:    mean
estimation: simultaneous
transport:  {method: linear, support: observed}
compute:    {workers: 2, address: local, device: auto, max_tokens: 128, unit_size: 512, batch_tokens: 4096}
store:      {activations: all, quota: 20GiB}
failures:   {quarantine_at_most: 0.001}
"""


@pytest.fixture
def read(tmp_path):
    def read(*changes, text=SPEC):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "spec.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_job(path)

    return read


@pytest.fixture
def refused(read, tmp_path):
    def refused(*changes, text=SPEC):
        with pytest.raises(SpecError) as caught:
            read(*changes, text=text)
        sentence = str(caught.value)
        assert "\n" not in sentence
        assert sentence.startswith(f"{tmp_path}/spec.yaml")
        return sentence.removeprefix(f"{tmp_path}/")

    return refused


def test_the_contracts_own_spec(read):
    job = read()
    assert job.model == CausalLM(kind="causal-lm", path="models/small")
    assert job.source == Side(path="data/comments.parquet", column="text", where={"toxic": True}, limit=4096)
    assert job.target.where == {"toxic": False, "topic": ("a", "b"), "score": Range(min=0.5)}
    assert job.store.quota == 20 * 2**30
    assert (job.pooling, job.template, job.estimation) == ("mean", "plain", "simultaneous")
    assert (job.compute.unit_size, job.compute.threads, job.compute.device) == (512, 1, "auto")


def test_what_may_be_left_out(read):
    text = (
        "version: 1\nname: a\nmodel: {kind: text-to-image, path: org/m}\nsource: {path: a.txt}\ntarget: {path: b.txt}\n"
    )
    job = read(text=text + "hookpoints: [a, b]\ntransport: {method: mean}\n")
    assert job.hookpoints == ("a", "b")
    assert (job.model.steps, job.model.guidance, job.model.seed) == (4, 0.0, 0)
    assert job.transport.support == "observed"
    assert (job.compute.workers, job.store.quota, job.failures.quarantine_at_most) == (2, 20 << 30, 0.001)


def test_round_trips_as_json(read):
    for change in (("a, b", "a, 1, 2.5, true"), ("observed", "[1, 99]"), ("kind: causal-lm", "kind: text-to-image")):
        job = read(change)
        assert Job.model_validate(job.model_dump(mode="json")) == job
        assert Job.model_validate_json(job.model_dump_json()) == job


def test_scalars_of_where_keep_their_type(read):
    where = read(("{toxic: true}", "{a: true, b: 1, c: 1.0, d: '1', 5: no, e: 1e-3, f: 2020-01-01}")).source.where
    assert where == {"a": True, "b": 1, "c": 1.0, "d": "1", "5": "no", "e": 0.001, "f": "2020-01-01"}
    assert [type(value) for value in where.values()] == [bool, int, float, str, str, float, str]


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [("5", 5), ("1.5GiB", 3 << 29), ("20 GB", 20 * 10**9), ("1KiB", 1024), ("2TB", 2 * 10**12), ("7B", 7)],
)
def test_quota_is_read_as_bytes(read, written, num_bytes):
    assert read(("20GiB", written)).store.quota == num_bytes


@pytest.mark.parametrize("written", ["20G", "0", "-1", "0B", "5.0", "true", "GiB", "1e3", "null", "-1GiB"])
def test_quota_that_is_no_number_of_bytes(refused, written):
    assert "spec.yaml line 15: 'store.quota' is " in refused(("20GiB", written))


def test_unknown_key_names_the_nearest_anywhere(refused):
    assert refused(("workers: 2", "hookpoint: 2")) == (
        "spec.yaml line 14: unknown key 'hookpoint' under 'compute'; wanted one of workers, address, device, "
        "max_tokens, unit_size, batch_tokens, threads; did you mean 'hookpoints'?"
    )
    assert refused(("unit_size", "units_size")).endswith("did you mean 'unit_size'?")
    assert refused(("name: less-toxic", "name: a\nworker: 3")).endswith("did you mean 'compute.workers'?")
    assert refused(("dtype: float32", "gguf: a")).endswith("did you mean 'gguf_file'?")


def test_a_key_of_another_kind_of_model_is_not_suggested_again(refused):
    sentence = refused(("dtype: float32", "guidance: 3"))
    assert sentence == (
        "spec.yaml line 3: unknown key 'guidance' under 'model'; wanted one of kind, path, gguf_file, revision, dtype"
    )


def test_a_bad_item_of_a_list_is_one_finding(refused):
    sentence = refused(("path: data/comments.parquet", "path: [a, 3]"))
    assert sentence == "spec.yaml line 4: 'source.path' is [\"a\", 3]; wanted text, or a list of texts"


def test_misspelt_required_key_is_named_rather_than_missed(refused):
    sentence = refused(("source:", "sorce:"))
    assert sentence.startswith("spec.yaml line 4: unknown key 'sorce' at the top; wanted one of version, name, ")
    assert sentence.endswith("did you mean 'source'? (and 1 more)")


def test_missing_key_names_the_line_of_its_section(refused):
    assert refused(("name: less-toxic\n", "")).startswith("spec.yaml line 1: key 'name' is missing; wanted a letter")
    assert refused(("  path: data/comments.parquet\n", "")).startswith("spec.yaml line 5: key 'target.path' is missing")
    assert refused(("kind: causal-lm, ", "")).startswith("spec.yaml line 3: key 'model.kind' is missing; wanted one of")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("pooling:    mean", "pooling: avg", "line 11: 'pooling' is 'avg'; wanted one of mean, max, min, median, last, all; did you mean 'mean'?"),  # noqa: E501
        ("template:   plain", "template: chatt", "line 10: 'template' is 'chatt'; wanted one of plain, chat; did you mean 'chat'?"),  # noqa: E501
        ("causal-lm", "causal_lm", "line 3: 'model.kind' is 'causal_lm'; wanted one of causal-lm, text-to-image; did you mean 'causal-lm'?"),  # noqa: E501
        ("float32", "bf16", "line 3: 'model.dtype' is 'bf16'; wanted one of float32, bfloat16, float16; did you mean 'bfloat16'?"),  # noqa: E501
        ("method: linear", "method: linaer", "line 13: 'transport.method' is 'linaer'; wanted one of mean, linear; did you mean 'linear'?"),  # noqa: E501
        ("version: 1", "version: 2", "line 1: 'version' is 2; wanted 1"),
        ("version: 1", "version: true", "line 1: 'version' is true; wanted 1"),
        ("workers: 2", "workers: two", "line 14: 'compute.workers' is 'two'; wanted a whole number, at least 0"),
        ("workers: 2", "workers: -1", "line 14: 'compute.workers' is -1; wanted a whole number, at least 0"),
        ("limit: 4096", "limit: 2.0", "line 4: 'source.limit' is 2.0; wanted a whole number above 0"),
        ("limit: 4096", "limit: true", "line 4: 'source.limit' is true; wanted a whole number above 0"),
        ("limit: 4096", "limit: 4, sample: 2", "line 4: 'source.sample' is 2; wanted either 'limit' or 'sample', not both"),  # noqa: E501
        ("device: auto", "device: gpu", "line 14: 'compute.device' is 'gpu'; wanted auto, cpu, cuda or cuda:N"),
        ("[a, b]", "[a, null]", "line 8: 'target.where.topic[1]' is null; wanted a value, a list or {min: …, max: …} for each column"),  # noqa: E501
        ("{min: 0.5}", "{min: 2, max: 1}", "line 8: 'target.where.score' is {\"min\": 2, \"max\": 1}; wanted bounds of one type, min not above max"),  # noqa: E501
        ("{min: 0.5}", "{mim: 2}", "line 8: unknown key 'mim' under 'target.where.score'; wanted one of min, max; did you mean 'min'?"),  # noqa: E501
        ("{min: 0.5}", "{}", "line 8: 'target.where.score' is {}; wanted min, max or both"),
        ("observed", "[99, 1]", "line 13: 'transport.support' is [99, 1]; wanted observed, unbounded or [p_lo, p_hi] with 0 <= p_lo < p_hi <= 100"),  # noqa: E501
        ("0.001", "1.5", "line 16: 'failures.quarantine_at_most' is 1.5; wanted a number from 0 to 1"),
        ("less-toxic", "../up", "line 2: 'name' is '../up'; wanted a letter or digit, then at most 99 letters, digits, dots, dashes or underscores"),  # noqa: E501
        ("batch_tokens: 4096", "batch_tokens: 127", "line 14: 'compute.batch_tokens' is 127; wanted at least 128, which is max_tokens rounded up to a multiple of 16"),  # noqa: E501
        ("max_tokens: 128", "max_tokens: 4097", "line 14: 'compute.batch_tokens' is 4096; wanted at least 4112, which is max_tokens rounded up to a multiple of 16"),  # noqa: E501
    ],
)  # fmt: skip
def test_wrong_value_is_one_sentence(refused, old, new, sentence):
    assert refused((old, new)) == f"spec.yaml {sentence}"


def test_default_batch_must_hold_a_prompt_too(refused):
    sentence = refused(("max_tokens: 128", "max_tokens: 5000"), (", batch_tokens: 4096", ""))
    assert "line 14: 'compute.batch_tokens' is 4096; wanted at least 5008" in sentence


@pytest.mark.parametrize(
    ("old", "new", "offered"),
    [
        *(("method: linear", f"method: {m}", "mean, linear") for m in ("caa", "actadd", "quantile", "det-zero")),
        ("observed", "tokens", "observed, unbounded or [p_lo, p_hi]"),
        ("estimation: simultaneous", "estimation: sequential", "simultaneous"),
        ("activations: all", "activations: none", "all"),
        ("activations: all", "activations: sample", "all"),
    ],
)
def test_later_words_of_the_contract_say_what_there_is(refused, old, new, offered):
    sentence = refused((old, new))
    assert "which this version does not offer yet; it offers" in sentence
    assert offered in sentence


def test_pooling_all_needs_sites_of_one_size(read, refused):
    assert read(("pooling:    mean", "pooling: all")).pooling == "all"
    sentence = refused(("kind: causal-lm", "kind: text-to-image"), ("pooling:    mean", "pooling: all"))
    assert sentence.startswith(
        "spec.yaml line 11: 'pooling' is 'all'; wanted another pooling for a text-to-image model"
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


@given(st.text(max_size=300) | st.binary(max_size=300))
def test_any_bytes_are_refused_in_one_sentence(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SpecError) as caught:
        read_job(path)
    assert "\n" not in str(caught.value)


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(SpecError("a.yaml", 3, "compute.workers", "bad", 2)))
    assert (str(error), error.key) == ("a.yaml line 3: bad (and 2 more)", "compute.workers")


def test_relative_paths_start_at_the_folder_of_the_spec(read, tmp_path):
    (tmp_path / "models" / "small").mkdir(parents=True)
    job = read()
    located = job.located(tmp_path)
    assert located.model.path == str(tmp_path / "models" / "small")
    assert located.source.path == str(tmp_path / "data" / "comments.parquet")
    assert job.source.path == "data/comments.parquet"
    assert located.located(tmp_path / "elsewhere") == located


@pytest.mark.parametrize("path", ["small", "./models/small", "a/b/c", "../small"])
def test_a_model_path_that_is_no_hub_id_is_below_the_spec_even_if_nothing_is_there(read, tmp_path, path):
    assert read(("models/small", path)).located(tmp_path).model.path == str(tmp_path / path)


def test_a_model_in_the_home_folder(read, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert read(("models/small", "~/small")).located(tmp_path / "specs").model.path == str(tmp_path / "home/small")


@pytest.mark.parametrize("seed", [0, 2**62])
def test_seeds_of_images(read, seed):
    changes = (("kind: causal-lm", "kind: text-to-image"), ("dtype: float32", f"seed: {seed}"))
    assert read(*changes).model.seed == seed


@pytest.mark.parametrize("seed", [-1, 2**62 + 1])
def test_seeds_that_torch_would_not_take_are_refused(refused, seed):
    sentence = refused(("kind: causal-lm", "kind: text-to-image"), ("dtype: float32", f"seed: {seed}"))
    assert sentence == f"spec.yaml line 3: 'model.seed' is {seed}; wanted a whole number from 0 to 2**62"


def test_urls_and_hub_ids_stay(read, tmp_path):
    changes = [("models/small", "org/name"), ("data/comments.parquet", "['s3://b/a.pq', b.pq, /c.pq]")]
    located = read(*changes).located(tmp_path)
    assert located.model.path == "org/name"
    assert located.source.path == ("s3://b/a.pq", str(tmp_path / "b.pq"), "/c.pq")
