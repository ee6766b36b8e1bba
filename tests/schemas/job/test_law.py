"""How a job makes laws: `law`, what is stored, who folds, and what a method that reads samples rules out."""

import pytest

from schemas.job import Job, Law, Store

LAW = "{kind: auto, precision: 5}"
PROBE = ("method: linear", "method: iti-probe")


def again(job: Job) -> Job:
    """The job from what the plan stores of it."""
    return Job.model_validate(job.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("written", "law"),
    [
        ("auto", Law(kind="auto", precision=5)),
        ("exact", Law(kind="exact")),
        ("sketch", Law(kind="sketch", precision=5)),
        ("{}", Law(kind="auto", precision=5)),
        ("{kind: sketch, precision: 1}", Law(kind="sketch", precision=1)),
        ("{precision: 8, kind: sketch}", Law(kind="sketch", precision=8)),
        ("{precision: 6}", Law(kind="auto", precision=6)),
        ("{kind: exact, precision: 5}", Law(kind="exact")),
        ("{misfits: report}", Law(misfits="report")),
        ("{kind: sketch, misfits: mend}", Law(kind="sketch", misfits="mend")),
    ],
)
def test_a_law_is_read_and_written(read, written, law):
    job = read((LAW, written))
    assert job.law == law
    assert again(job) == job


def test_the_default_law_is_auto(read):
    assert read((f"law:        {LAW}\n", "")).law == Law(kind="auto", precision=5, misfits="report")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("exakt", "'law.kind' is 'exakt'; wanted one of auto, exact, sketch; did you mean 'exact'?"),
        ("{kind: sketched}", "'law.kind' is 'sketched'; wanted one of auto, exact, sketch; did you mean 'sketch'?"),
        ("null", "'law' is null; wanted auto, exact, sketch, or a section with keys of kind, precision, misfits"),
        ("5", "'law' is 5; wanted auto, exact, sketch, or a section with keys of kind, precision, misfits"),
        ("{misfits: mended}", "'law.misfits' is 'mended'; wanted one of report, mend; did you mean 'mend'?"),
        ("{precision: 0}", "'law.precision' is 0; wanted a whole number from 1 to 8"),
        ("{kind: sketch, precision: 9}", "'law.precision' is 9; wanted a whole number from 1 to 8"),
        ("{kind: sketch, precision: 5.0}", "'law.precision' is 5.0; wanted a whole number from 1 to 8"),
        ("{kind: sketch, precision: true}", "'law.precision' is true; wanted a whole number from 1 to 8"),
        (
            "{precision: 6, kind: exact}",
            "'law.precision' is 6; wanted no precision with 'kind: exact', which keeps the values as they are",
        ),
        (
            "{kind: sketch, precison: 5}",
            "unknown key 'precison' under 'law'; wanted one of kind, precision, misfits; did you mean 'precision'?",
        ),
    ],
)
def test_a_law_that_is_none(refused, written, sentence):
    assert refused((LAW, written)) == f"spec.yaml line 17: {sentence}"


@pytest.mark.parametrize("law", ["auto", "exact", "sketch"])
@pytest.mark.parametrize("activations", ["all", "sample", "none"])
@pytest.mark.parametrize("sketches", ["units", "merged"])
def test_every_law_goes_with_every_store(read, law, activations, sketches):
    job = read((LAW, law), ("activations: all", f"activations: {activations}, sketches: {sketches}, laws: a/b"))
    assert job.store == Store(activations=activations, sketches=sketches, quota=20 << 30, laws="a/b")
    assert again(job) == job


def test_mending_reads_all_activations_of_the_run_itself(read, refused):
    mend = (LAW, "{misfits: mend}")
    assert read(mend).law.misfits == "mend"
    assert read(mend, ("activations: all", "sketches: merged")).store.activations == "all"
    for kept in ("sample", "none"):
        assert refused(mend, ("activations: all", f"activations: {kept}")) == (
            f"spec.yaml line 15: 'store.activations' is '{kept}'; wanted all with misfits: mend, which reads them"
        )
    assert refused(mend, ("activations: all", "laws: a/b")) == (
        "spec.yaml line 15: 'store.laws' is 'a/b'; "
        "wanted nothing with misfits: mend, for a law in a catalogue has no activations"
    )


def test_the_probe_needs_its_samples(read, refused):
    samples = "with method iti-probe, which reads single samples"
    for law in ("auto", "exact"):
        assert read(PROBE, (LAW, law)).transport.method == "iti-probe"
    assert refused(PROBE, (LAW, "sketch")) == f"spec.yaml line 17: 'law' is 'sketch'; wanted auto or exact {samples}"
    assert refused(PROBE, (LAW, "\n  precision: 4\n  kind: sketch")) == (
        f"spec.yaml line 19: 'law.kind' is 'sketch'; wanted auto or exact {samples}"
    )
    assert refused(PROBE, ("{activations: all,", "{\n  activations: none,")) == (
        f"spec.yaml line 16: 'store.activations' is 'none'; wanted all {samples}"
    )
    for kept in ("sample", "none"):
        sentence = refused(PROBE, (LAW, "exact"), ("activations: all", f"activations: {kept}"))
        assert sentence.startswith(f"spec.yaml line 15: 'store.activations' is '{kept}'; wanted all ")


@pytest.mark.parametrize("law", ["auto", "exact", "sketch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_reducers_are_a_number_whoever_needs_them(read, law, workers):
    job = read((LAW, law), ("workers: 2", f"workers: {workers}, reducers: 3"))
    assert job.compute.reducers == 3
    assert again(job) == job


def test_there_is_one_reducer_by_default(read):
    assert read().compute.reducers == 1


@pytest.mark.parametrize("written", ["0", "-1", "1.0", "true", "null"])
def test_reducers_that_are_none(refused, written):
    sentence = refused(("workers: 2", f"reducers: {written}"))
    assert sentence == f"spec.yaml line 14: 'compute.reducers' is {written}; wanted a whole number above 0"
