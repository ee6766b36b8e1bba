import pytest

from schemas.job import CausalLM, Failures, Job, Range, Side, Store


def test_the_contracts_own_spec(read):
    job = read()
    assert job.model == CausalLM(kind="causal-lm", path="models/small")
    assert job.source == Side(path="data/comments.parquet", column="text", where={"toxic": True}, limit=4096)
    assert job.target.where == {"toxic": False, "topic": ("a", "b"), "score": Range(min=0.5)}
    assert job.store.quota == 20 * 2**30
    assert (job.pooling, job.template, job.estimation.kind) == ("mean", "plain", "simultaneous")
    assert (job.compute.unit_size, job.compute.threads, job.compute.device) == (512, 1, "auto")


def test_what_may_be_left_out(read):
    text = (
        "version: 1\nname: a\nmodel: {kind: text-to-image, path: org/m}\nsource: {path: a.txt}\ntarget: {path: b.txt}\n"
    )
    job = read(text=text + "hookpoints: [a, b]\ntransport: {method: mean}\n")
    assert job.hookpoints == ("a", "b")
    assert (job.model.steps, job.model.guidance, job.model.seed) == (4, 0.0, 0)
    assert job.transport.support == "observed"
    assert job.compute.workers == 2
    assert job.store == Store(activations="all", sketches="units", quota=20 << 30, laws=None)
    assert job.failures == Failures(quarantine_at_most=0.001, attempts=3, deadline=None, lease=30.0)
    assert job.extends is None


def test_round_trips_as_json(read):
    for change in (("a, b", "a, 1, 2.5, true"), ("kind: causal-lm", "kind: text-to-image"), ("quota: 20", "quota: 1")):
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
        "spec.yaml line 14: unknown key 'hookpoint' under 'compute'; wanted one of workers, reducers, address, device, "
        "max_tokens, unit_size, batch_tokens, threads, memory; did you mean 'hookpoints'?"
    )
    assert refused(("unit_size", "units_size")).endswith("did you mean 'unit_size'?")
    assert refused(("name: less-toxic", "name: a\nworker: 3")).endswith("did you mean 'compute.workers'?")
    assert refused(("dtype: float32", "gguf: a")).endswith("did you mean 'gguf_file'?")
    assert refused(("activations: all", "activation: all")).endswith(
        "wanted one of activations, sketches, quota, laws; did you mean 'activations'?"
    )
    assert refused(("0.001", "0.001, atempts: 1")).endswith(
        "wanted one of quarantine_at_most, attempts, deadline, lease; did you mean 'attempts'?"
    )
    assert refused(("name: less-toxic", "name: a\nextend: b")).endswith("did you mean 'extends'?")


def test_a_key_of_another_place_is_asked_for_before_a_near_one_here(refused):
    assert refused(("version: 1\n", "version: 1\nprecision: 3\n")).endswith("did you mean 'law.precision'?")
    assert refused(("workers: 2", "top: 2")).endswith("did you mean 'transport.select.top'?")
    assert "did you mean" not in refused(("workers: 2", "min: 2"))  # a place below a column's name has no name itself


def test_a_key_of_another_kind_of_model_says_whose_it_is(refused):
    sentence = refused(("dtype: float32", "guidance: 3"))
    assert sentence == (
        "spec.yaml line 3: unknown key 'guidance' under 'model'; wanted one of kind, path, gguf_file, revision, dtype; "
        "'guidance' is for text-to-image"
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
        ("0.001", "1.5", "line 16: 'failures.quarantine_at_most' is 1.5; wanted a number from 0 to 1"),
        ("0.001", "0.001, attempts: 0", "line 16: 'failures.attempts' is 0; wanted a whole number above 0"),
        ("0.001", "0.001, attempts: null", "line 16: 'failures.attempts' is null; wanted a whole number above 0"),
        ("0.001", "0.001, deadline: 0", "line 16: 'failures.deadline' is 0; wanted seconds, above 0"),
        ("0.001", "0.001, deadline: 5m", "line 16: 'failures.deadline' is '5m'; wanted seconds, above 0"),
        ("0.001", "0.001, lease: null", "line 16: 'failures.lease' is null; wanted seconds, above 0"),
        ("0.001", "0.001, lease: .inf", "line 16: 'failures.lease' is '.inf'; wanted seconds, above 0"),
        ("activations: all", "activations: any", "line 15: 'store.activations' is 'any'; wanted one of all, sample, none"),  # noqa: E501
        ("activations: all", "sketches: none", "line 15: 'store.sketches' is 'none'; wanted one of units, merged"),
        ("activations: all", "laws: 3", "line 15: 'store.laws' is 3; wanted text"),
        ("activations: all", "laws: ''", "line 15: 'store.laws' is ''; wanted text"),
        ("name: less-toxic", "extends: []", "line 2: 'extends' is []; wanted text (and 1 more)"),
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


def test_an_estimation_is_a_word_or_a_section(read, refused):
    alone = read(("estimation: simultaneous", "estimation: sequential")).estimation
    assert (alone.kind, alone.blocks) == ("sequential", None)
    blocks = read(("estimation: simultaneous", "estimation: {kind: sequential, blocks: 4}"))
    assert blocks.estimation.blocks == 4
    assert Job.model_validate(blocks.model_dump(mode="json")) == blocks
    assert "no blocks" in refused(("estimation: simultaneous", "estimation: {kind: simultaneous, blocks: 4}"))
    assert "did you mean 'sequential'" in refused(("estimation: simultaneous", "estimation: sequentiel"))


def test_pooling_all_needs_sites_of_one_size(read, refused):
    assert read(("pooling:    mean", "pooling: all")).pooling == "all"
    sentence = refused(("kind: causal-lm", "kind: text-to-image"), ("pooling:    mean", "pooling: all"))
    assert sentence.startswith(
        "spec.yaml line 11: 'pooling' is 'all'; wanted another pooling for a text-to-image model"
    )


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


@pytest.mark.parametrize(
    ("written", "place"), [("runs/old", "{base}/runs/old"), ("/runs/old", "/runs/old"), ("s3://b/old", "s3://b/old")]
)
def test_an_earlier_run_and_a_catalogue_are_places_beside_the_spec_or_urls(read, tmp_path, written, place):
    job = read(("activations: all", f"laws: {written}"), ("version: 1\n", f"version: 1\nextends: {written}\n"))
    located = job.located(tmp_path)
    assert located.store.laws == located.extends == place.format(base=tmp_path)
    assert (job.store.laws, job.extends) == (written, written)
    assert located.located(tmp_path / "elsewhere") == located


def test_urls_and_hub_ids_stay(read, tmp_path):
    changes = [("models/small", "org/name"), ("data/comments.parquet", "['s3://b/a.pq', b.pq, /c.pq]")]
    located = read(*changes).located(tmp_path)
    assert located.model.path == "org/name"
    assert located.source.path == ("s3://b/a.pq", str(tmp_path / "b.pq"), "/c.pq")
