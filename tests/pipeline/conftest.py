"""Finished runs that several tests look at. Copy one before you change anything in it."""

from functools import cache
from typing import Any

import pytest

from tests.jobs.runs import run
from tests.models import tiny_llama

SKETCHED = {"law": {"kind": "sketch"}}
MERGED = {"store": {"activations": "none", "sketches": "merged"}, "compute": {"reducers": 2, "unit_size": 16}}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Returns the folder of a finished run: ``exact``, ``sketched`` or ``merged``. Its spec lies beside it."""
    place = tmp_path_factory.mktemp("finished")
    kinds: dict[str, dict[str, Any]] = {"exact": {}, "sketched": SKETCHED, "merged": SKETCHED | MERGED}

    @cache
    def model():
        return {"kind": "causal-lm", "path": str(tiny_llama(place / "llama"))}

    @cache
    def fitted(kind):
        changes = {"hookpoints": ["model.layers.0", "model.layers.1"], "compute": {"unit_size": 16}} | kinds[kind]
        run(place / kind, model(), **changes)
        return place / kind / "run"

    return fitted
