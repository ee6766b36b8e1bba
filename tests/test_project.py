import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from pipeline.cluster.connect import _private_environment

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
HEAVY = ("ray", "zarr", "pyarrow", "pydantic", "transformers", "diffusers")


def read_lock() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in pins}


def requirements_of(distribution: str, extras: set[str]) -> Iterator[Requirement]:
    """What an installed package asks for on this machine; nothing for one that is not installed."""
    try:
        texts = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in extras | {""}):
            yield requirement


def closure_of(requirements: list[Requirement]) -> Iterator[Requirement]:
    """The requirements, what they require, and so on, each package and set of extras once."""
    seen, waiting = set(), list(requirements)
    while waiting:
        requirement = waiting.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if requirement.name == PROJECT["name"] or key in seen:
            continue
        seen.add(key)
        yield requirement
        waiting.extend(requirements_of(requirement.name, requirement.extras))


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_lock_pins_everything_an_extra_needs(extra):
    lock = read_lock()
    asked = [Requirement(text) for text in EXTRAS.get(extra, PROJECT["dependencies"])]
    # CUDA builds of torch pin their own libraries.
    needed = [r for r in closure_of(asked) if not r.name.startswith(("nvidia-", "cuda-", "triton"))]
    missing = {r.name for r in needed if canonicalize_name(r.name) not in lock}
    assert not missing
    unsatisfied = [
        str(r) for r in needed if not r.specifier.contains(lock[canonicalize_name(r.name)], prereleases=True)
    ]
    assert not unsatisfied


def test_lock_is_sorted_exact_and_names_no_place():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []


def test_import_act_loads_nothing_heavy():
    code = f"import json, sys, act; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_packages_say_that_they_are_typed():
    assert all((ROOT / package / "py.typed").is_file() for package in ("schemas", "act", "pipeline", "jobs"))


def test_ray_accepts_the_example_cluster():
    with _private_environment():  # which Ray reads when it is first imported, for other tests of this process too
        util = pytest.importorskip("ray.autoscaler._private.util")
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    util.validate_config(util.prepare_config(config))


def test_example_cluster_starts_ray_with_a_token_everywhere():
    config = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    commands = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in c and "RAY_AUTH_TOKEN_PATH=~/.ray/actmap_token" in c for c in starts)
    assert "~/.ray/actmap_token" in config["file_mounts"]
