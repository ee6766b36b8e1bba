"""What the tests of commands share: the command line itself, and a tiny model to run it on."""

from pathlib import Path

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


@pytest.fixture
def refused_spec(actmap, tmp_path):
    """Returns the sentence with which `plan` and `fit` refuse a file; neither may leave a trace."""

    def check(spec: Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        planned = actmap("plan", spec, cwd=tmp_path)
        fitted = actmap("fit", spec, "--run", tmp_path / "run", cwd=tmp_path)
        assert (planned.code, fitted.code) == (2, 2)
        assert planned.refusal == fitted.refusal
        assert sorted(tmp_path.rglob("*")) == before
        return planned.refusal

    return check


@pytest.fixture
def refused(refused_spec, llama, tmp_path):
    """Returns the sentence with which a spec with some changes is refused."""

    def check(model: Path = llama, gguf_file: str | None = None, **changes) -> str:
        section = {"kind": "causal-lm", "path": str(model), "gguf_file": gguf_file}
        return refused_spec(write_spec(tmp_path, section, **changes))

    return check
