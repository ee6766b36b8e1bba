"""What the tests of faults share: a process that forks trials, a tiny model, and undisturbed runs."""

import pytest

from tests.faults.runs import make_case
from tests.faults.trials import trials as forked
from tests.models import tiny_llama


@pytest.fixture(scope="session")
def trials(tmp_path_factory):
    with forked(tmp_path_factory.mktemp("trials")) as started:
        yield started


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def exact(trials, llama, tmp_path_factory):
    """A run of exact laws."""
    return make_case(trials, tmp_path_factory.mktemp("exact"), llama, law={"kind": "exact"})


@pytest.fixture(scope="session")
def sketch(trials, llama, tmp_path_factory):
    """A run of sketches, whose units' sketches give way to folds."""
    store = {"sketches": "merged", "activations": "none"}
    return make_case(trials, tmp_path_factory.mktemp("sketch"), llama, law={"kind": "sketch"}, store=store)


#: What runs at every commit; the rest runs in CI.
FAST = ("test_catalogue.py", "test_23_", "test_38_", "test_a_run_killed_or_refused_at_some")


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/faults/" in item.nodeid and not any(name in item.nodeid for name in FAST):
            item.add_marker(pytest.mark.slow)
