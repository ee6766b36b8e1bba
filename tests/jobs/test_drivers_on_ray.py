"""A driver of a real local Ray that is stopped: the next one goes on to the same bits."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from jobs.status import status
from tests.jobs.runs import run, write_spec
from tests.models import tiny_llama

RAY = {"workers": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, str]:
    return {"kind": "causal-lm", "path": str(tiny_llama(tmp_path_factory.mktemp("model") / "llama"))}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_driver_resumes_to_the_same_bits(model, tmp_path, number):
    spec = write_spec(tmp_path, model, compute=RAY | {"unit_size": 1})
    script = textwrap.dedent(
        f"""
        import sys
        from jobs.cli import main
        sys.argv = ["actmap", "fit", {str(spec)!r}, "--run", {str(tmp_path / "run")!r}]
        main()
        """
    )
    environment = os.environ | {"ACTMAP_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.getcwd()}
    driver = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "run").glob("receipts/*/*.json"))) < 3:
            assert driver.poll() is None, driver.stderr and driver.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        driver.send_signal(number)
        _, errors = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == (-9 if number == signal.SIGKILL else 75)
    if number != signal.SIGKILL:
        assert errors.strip().splitlines()[-1].startswith("actmap: stopped; run the same command again")
    before = status(tmp_path / "run")
    assert 3 <= before.units_done < before.units
    resumed = run(tmp_path, model, compute=RAY | {"unit_size": 1})
    undisturbed = run(tmp_path / "undisturbed", model, compute={"unit_size": 1})
    assert resumed.steer.card.tensors == undisturbed.steer.card.tensors
