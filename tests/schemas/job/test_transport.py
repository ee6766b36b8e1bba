import pytest

from schemas.job import DetZero, Job, Selection, Transport

METHODS = (
    "det-zero",
    "actadd",
    "caa",
    "aura",
    "east",
    "iti-mean",
    "iti-probe",
    "mean",
    "gaussian",
    "linear",
    "quantile",
)
WRITTEN = "{method: linear, support: observed}"
SUPPORTS = "observed, tokens, unbounded or [p_lo, p_hi] with 0 <= p_lo < p_hi <= 100"
TOPS = "a whole number, at least 1, or a share between 0 and 1, such as 0.1"


@pytest.fixture
def transport(read):
    """Reads a transport; what the plan would store of the job must be the job."""

    def transport(written: str) -> Transport | DetZero:
        job = read((WRITTEN, written))
        assert Job.model_validate(job.model_dump(mode="json")) == job
        assert Job.model_validate_json(job.model_dump_json()) == job
        return job.transport

    return transport


@pytest.fixture
def wrong(refused):
    """Returns what is said of a refused transport, after the line."""

    def wrong(written: str) -> str:
        return refused((WRITTEN, written)).removeprefix("spec.yaml line 13: ")

    return wrong


@pytest.mark.parametrize("method", METHODS)
def test_support_is_observed_for_maps_between_laws_and_unbounded_for_the_others(transport, method):
    found = transport(f"{{method: {method}}}")
    assert found.method == method
    assert found.support == ("observed" if method in {"mean", "gaussian", "linear", "quantile"} else "unbounded")
    assert found.select is None
    assert transport(f"{{method: {method}, select: null}}") == found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("written", "support"),
    [
        ("observed", "observed"),
        ("tokens", "tokens"),
        ("unbounded", "unbounded"),
        ("[1, 99]", (1.0, 99.0)),
        ("[0, 100]", (0.0, 100.0)),
        ("[0.5, 2.5]", (0.5, 2.5)),
    ],
)
def test_every_method_takes_every_support(transport, method, written, support):
    assert transport(f"{{method: {method}, support: {written}}}").support == support


@pytest.mark.parametrize("written", ["[99, 1]", "[1, 1]", "[-1, 99]", "[1, 101]", "[1]", "[1, 2, 3]", "[a, b]", "null"])
@pytest.mark.parametrize("method", ["linear", "det-zero", "caa"])
def test_a_support_that_is_none(wrong, method, written):
    sentence = wrong(f"{{method: {method}, support: {written}}}")
    assert sentence.startswith("'transport.support' is ")
    assert sentence.endswith(f"; wanted {SUPPORTS}")


@pytest.mark.parametrize(
    ("written", "nearest"),
    [("linaer", "linear"), ("det_zero", "det-zero"), ("quantiles", "quantile"), ("iti", "iti-mean"), ("avg", "mean")],
)
def test_an_unknown_method_is_told_the_nearest(wrong, written, nearest):
    assert wrong(f"{{method: {written}}}") == (
        f"'transport.method' is {written!r}; wanted one of {', '.join(METHODS)}; did you mean {nearest!r}?"
    )


def test_a_transport_without_a_method(wrong):
    wanted = f"key 'transport.method' is missing; wanted one of {', '.join(METHODS)}"
    assert wrong("{support: observed}") == wanted
    assert wrong("{}") == wanted
    assert (
        wrong("linear") == "'transport' is 'linear'; wanted a section with keys of method, support, select, threshold"
    )


@pytest.mark.parametrize(("written", "threshold"), [("", 0.5), (", threshold: 0", 0.0), (", threshold: 0.99", 0.99)])
def test_threshold_of_det_zero(transport, written, threshold):
    assert transport(f"{{method: det-zero{written}}}") == DetZero(method="det-zero", threshold=threshold)


@pytest.mark.parametrize("written", ["1", "1.5", "-0.1", "true", "null", ".inf", "half"])
def test_threshold_that_is_none(wrong, written):
    sentence = wrong(f"{{method: det-zero, threshold: {written}}}")
    assert sentence.startswith("'transport.threshold' is ")
    assert sentence.endswith("; wanted a number, at least 0 and below 1")


@pytest.mark.parametrize("method", METHODS[1:])
def test_threshold_is_for_det_zero_alone(wrong, method):
    assert wrong(f"{{method: {method}, threshold: 0.5}}") == (
        "unknown key 'threshold' under 'transport'; wanted one of method, support, select; 'threshold' is for det-zero"
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("written", "selection"),
    [
        ("by: w2, top: 64", Selection(by="w2", top=64, of="neurons", across="site")),
        ("by: auroc, top: 0.1", Selection(by="auroc", top=0.1, of="neurons", across="site")),
        ("by: w2, top: 1, across: model", Selection(by="w2", top=1, of="neurons", across="model")),
        ("by: w2, top: 3, of: neurons, across: site", Selection(by="w2", top=3, of="neurons", across="site")),
        ("by: w2, top: 0.999, of: sites", Selection(by="w2", top=0.999, of="sites", across="model")),
        ("by: w2, top: 2, of: sites, across: model", Selection(by="w2", top=2, of="sites", across="model")),
    ],
)
def test_every_method_takes_a_selection(transport, method, written, selection):
    found = transport(f"{{method: {method}, select: {{{written}}}}}").select
    assert found == selection
    assert type(found.top) is type(selection.top)


def test_sites_are_ranked_by_the_model():
    assert Selection(by="w2", top=1, of="sites").across == "model"


@pytest.mark.parametrize("method", ["linear", "det-zero"])
@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        *(
            (f"{{by: w2, top: {top}}}", f"'transport.select.top' is {top}; wanted {TOPS}")
            for top in ("1.0", "0", "0.0", "-1", "2.5", "true", "null", "[1]")
        ),
        ("{by: w2, top: 10%}", f"'transport.select.top' is '10%'; wanted {TOPS}"),
        ("{by: w1, top: 1}", "'transport.select.by' is 'w1'; wanted one of w2, auroc; did you mean 'w2'?"),
        ("{by: auc, top: 1}", "'transport.select.by' is 'auc'; wanted one of w2, auroc; did you mean 'auroc'?"),
        ("{top: 1}", "key 'transport.select.by' is missing; wanted one of w2, auroc"),
        ("{by: w2}", f"key 'transport.select.top' is missing; wanted {TOPS}"),
        (
            "{by: w2, top: 1, of: site}",
            "'transport.select.of' is 'site'; wanted one of neurons, sites; did you mean 'sites'?",
        ),
        ("{by: w2, top: 1, across: all}", "'transport.select.across' is 'all'; wanted one of site, model"),
        (
            "{by: w2, top: 1, of: sites, across: site}",
            "'transport.select.across' is 'site'; wanted model with 'of: sites', which are ranked against each other",
        ),
        (
            "{by: w2, tops: 1}",
            "unknown key 'tops' under 'transport.select'; wanted one of by, top, of, across; "
            "did you mean 'top'? (and 1 more)",
        ),
        ("64", "'transport.select' is 64; wanted a section with keys of by, top, of, across"),
    ],
)
def test_a_selection_that_is_none(wrong, method, written, sentence):
    assert wrong(f"{{method: {method}, select: {written}}}") == sentence


def test_a_key_of_the_selection_outside_it_is_told_where_it_goes(wrong):
    assert wrong("{method: linear, top: 5}") == (
        "unknown key 'top' under 'transport'; wanted one of method, support, select; "
        "did you mean 'transport.select.top'?"
    )
