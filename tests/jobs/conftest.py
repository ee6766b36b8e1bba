"""What the tests of commands share: the command line itself, and a tiny model to run it on."""

import pytest

from tests.command import commands
from tests.jobs.runs import write_spec
from tests.models import CHAT_TEMPLATE, tiny_llama


@pytest.fixture(scope="session")
def actmap(tmp_path_factory):
    with commands(tmp_path_factory.mktemp("cache")) as run:
        yield run


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def chat_llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("models") / "chat", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="session")
def fitted(actmap, llama, tmp_path_factory):
    """A finished run of the tiny model; the spec lies beside it. Copy it before you change anything."""
    folder = tmp_path_factory.mktemp("fitted")
    done = actmap("fit", write_spec(folder, {"kind": "causal-lm", "path": str(llama)}), "--run", folder / "run")
    assert done.code == 0, done.err
    return folder / "run"
