"""A real local Ray: what it listens on, that workers change no bit, and what happens when they die."""

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from jobs.status import status
from pipeline.cluster import RayWorkers, _ray, _token_file
from pipeline.errors import ClusterError, ModelLoadError, WorkerLostError
from pipeline.folder import RunFolder
from pipeline.plan import read_plan
from schemas.plan import Plan
from tests.jobs.runs import SOURCES, TARGETS, run, write_spec
from tests.models import tiny_llama

RAY = {"workers": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> dict[str, str]:
    return {"kind": "causal-lm", "path": str(tiny_llama(tmp_path_factory.mktemp("model") / "llama"))}


@pytest.fixture(scope="module")
def laid_out(model, tmp_path_factory) -> Path:
    """A run whose units are all still to do, with a finished twin beside it that ran in process."""
    folder = tmp_path_factory.mktemp("run")
    run(folder, model)
    return folder


def two_workers(folder: RunFolder) -> Plan:
    plan = read_plan(folder)
    return dataclasses.replace(plan, spec={**plan.spec, "compute": {**plan.spec["compute"], **RAY}})


def fresh(folder: Path, tmp_path: Path) -> RunFolder:
    """A copy of a run without receipts, shards and steer."""
    copy = RunFolder(tmp_path / "run")
    subprocess.run(["cp", "-r", str(folder / "run"), str(copy.root)], check=True)
    for path in [*copy.root.glob("receipts/*/*.json"), *copy.root.glob("activations.zarr/*/c/*/0")]:
        path.unlink()
    return copy


def sockets() -> list[tuple[str, str]]:
    me = psutil.Process()
    return [
        (process.name(), connection.laddr.ip)
        for process in [me, *me.children(recursive=True)]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def test_ray_listens_on_loopback_alone_with_a_private_token_and_leaves_nothing_behind(laid_out, tmp_path):
    folder = fresh(laid_out, tmp_path)
    plan = two_workers(folder)
    with RayWorkers(plan, folder.root) as workers:
        found = sockets()
        assert {ip.removeprefix("::ffff:") for _, ip in found} == {"127.0.0.1"}
        assert any(name == "gcs_server" for name, _ in found), "the sockets of Ray itself were not seen"
        assert stat.S_IMODE(_token_file().stat().st_mode) == 0o600
        assert len(list(workers.extract(list(plan.units())[:2]))) == 2
    assert not [p for p in psutil.Process().children(recursive=True) if "ray" in p.name()]


def test_two_workers_give_the_bits_of_one_process(model, tmp_path):
    alone = run(tmp_path / "alone", model)
    together = run(tmp_path / "together", model, compute=RAY)
    assert together.steer.card.tensors == alone.steer.card.tensors
    assert together.plan.fingerprint == alone.plan.fingerprint
    assert len({receipt.worker for receipt in together.receipts}) == 2


def test_a_killed_worker_is_replaced_and_every_unit_counts_once(laid_out, tmp_path):
    folder = fresh(laid_out, tmp_path)
    plan = two_workers(folder)
    units = list(plan.units())
    receipts = []
    with RayWorkers(plan, folder.root) as workers:
        for receipt in workers.extract(units):
            receipts.append(receipt)
            if len(receipts) == 1:
                os.kill(receipt.worker, signal.SIGKILL)
    assert sorted((r.side, r.unit) for r in receipts) == sorted((u.side, u.index) for u in units)
    assert sum(r.num_prompts for r in receipts) == len(SOURCES) + len(TARGETS)
    assert len({r.worker for r in receipts}) == 3


def test_a_unit_that_always_kills_its_worker_stops_the_run_resumably(laid_out, tmp_path, monkeypatch):
    folder = fresh(laid_out, tmp_path)
    plan = two_workers(folder)
    monkeypatch.setattr("pipeline.extract.Extractor.extract", lambda self, unit: os._exit(7))
    with RayWorkers(plan, folder.root) as workers, pytest.raises(WorkerLostError, match=r"source unit 0 .* 3 times"):
        list(workers.extract(list(plan.units())[:1]))


def test_an_error_of_a_worker_arrives_as_itself(laid_out, tmp_path, model):
    folder = fresh(laid_out, tmp_path)
    plan = two_workers(folder)
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", model["path"], str(broken)], check=True)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    plan = dataclasses.replace(plan, location=str(broken))
    with pytest.raises(ModelLoadError, match="broken"), RayWorkers(plan, folder.root):
        pass


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


def test_workers_that_find_no_room_are_refused_with_the_numbers(laid_out, tmp_path):
    plan = two_workers(fresh(laid_out, tmp_path))
    with _ray("local", 1) as ray:
        workers = RayWorkers(plan, tmp_path / "run")
        workers._ray = ray
        with pytest.raises(ClusterError, match="2 workers need 2 CPUs and it has 1"):
            workers._check_room()
