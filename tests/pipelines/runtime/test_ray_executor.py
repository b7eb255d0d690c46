"""Ray: the same bytes as in one process, and the death of a worker costs one try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipelines.errors import PipelineError
from pipelines.runtime.executor import LocalExecutor
from pipelines.runtime.ray_executor import RayExecutor
from pipelines.runtime.run import StageCall, run_stage
from pipelines.runtime.store import LocalStore
from storage_schemas.fingerprint import sha256_bytes

ROOT = Path(__file__).parents[3]
NAMES = [f"s{n}" for n in range(6)]

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]


@pytest.fixture
def publish(toys, tmp_path):
    """Publishes the toy stage into a store of its own; returns (store, manifest, log lines)."""

    def _publish(executor, where, start_run, trouble=None):
        store = LocalStore(tmp_path / where)
        log = tmp_path / f"{where}.log"
        log.write_text("")
        call = StageCall(
            stage=toys.Tokens(trouble, log),
            config=toys.Config(),
            inputs={"sources": toys.selection(store, tmp_path, NAMES)},
            label="tokens",
        )
        run = start_run(store, "test", {})
        manifest = run_stage(call, store=store, executor=executor, run=run)
        return store, manifest, [line.split() for line in log.read_text().splitlines()]

    return _publish


@pytest.fixture
def start_run():
    from pipelines.runtime.context import start_run

    return start_run


def _bytes(store):
    return {key: sha256_bytes(store.get(key)) for key in store.list("image_tokens/data")}


def test_local_and_ray_publish_the_same_bytes(publish, start_run, ray_executor):
    here, one, _ = publish(LocalExecutor(), "local", start_run)
    there, two, log = publish(ray_executor, "ray", start_run)
    assert two.shards == one.shards
    assert two.artifact_id == one.artifact_id
    assert two.content_digest == one.content_digest
    assert _bytes(there) == _bytes(here)
    assert [there.get(k) for k in there.list("_receipts")] == [
        here.get(k) for k in here.list("_receipts")
    ]
    assert os.getpid() not in {int(pid) for _, pid in log}


def test_a_worker_killed_in_mid_map_costs_one_try(publish, start_run, ray_executor):
    store, manifest, log = publish(ray_executor, "ray", start_run, {"s2": "kill"})
    assert [name for name, _ in log].count("s2") == 2
    assert len(log) == len(NAMES) + 1
    assert manifest.rows_in == 5 * len(NAMES)
    here, one, _ = publish(LocalExecutor(), "local", start_run)
    assert _bytes(store) == _bytes(here)
    assert manifest.shards == one.shards


def _collect(executor, build, items, **options):
    seen = {}
    outcomes = executor.map(build, items, done=lambda i, o: seen.update({i: o}), **options)
    assert [seen[i] for i in range(len(items))] == outcomes
    return outcomes


class Square:
    """Builds a function of one argument; some arguments end the process or never return."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        return self.work

    def work(self, item):
        mark = self.folder / f"{item}-{time.monotonic_ns()}"
        mark.write_text(str(os.getpid()))
        if item == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "hang":
            time.sleep(600)
        return item * item


def _by_value(ray_executor):
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def test_what_kills_every_worker_is_poisoned_and_the_rest_is_done(ray_executor, tmp_path):
    _by_value(ray_executor)
    outcomes = _collect(ray_executor, Square(tmp_path), [1, 2, "kill", 3])
    assert [o.result for o in outcomes] == [1, 4, None, 9]
    assert "WorkerDied" in outcomes[2].error
    assert len(list(tmp_path.glob("kill-*"))) == 3


def test_what_passes_its_deadline_is_given_up_and_its_process_ends(ray_executor, tmp_path):
    _by_value(ray_executor)
    executor = ray_executor
    tries, executor.tries = executor.tries, 1
    try:
        outcomes = _collect(executor, Square(tmp_path), ["hang", 4], deadline=4)
    finally:
        executor.tries = tries
    assert outcomes[0].error.startswith("TimeoutError")
    assert outcomes[1].result == 16
    (mark,) = tmp_path.glob("hang-*")
    pid = int(mark.read_text())
    until = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)


def test_errors_read_as_in_one_process(ray_executor, tmp_path):
    _by_value(ray_executor)
    there = _collect(ray_executor, Square(tmp_path), ["word", 2])
    here = _collect(LocalExecutor(), Square(tmp_path), ["word", 2])
    assert there == here
    assert there[0].error.startswith("TypeError: can't multiply")


def test_a_function_that_cannot_be_built_poisons_its_items(ray_executor):
    _by_value(ray_executor)

    def build():
        raise OSError("no such weights")

    outcomes = _collect(ray_executor, build, [1, 2])
    assert {o.error for o in outcomes} == {"OSError: no such weights"}


def test_two_stages_side_by_side_share_the_workers(ray_executor, tmp_path):
    _by_value(ray_executor)
    spans = {}

    def stage(name):
        (tmp_path / name).mkdir()
        start = time.monotonic()
        outcomes = _collect(ray_executor, Slow(tmp_path / name), list(range(8)))
        spans[name] = (start, time.monotonic())
        assert [o.result for o in outcomes] == list(range(8))

    threads = [threading.Thread(target=stage, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(spans) == {"one", "two"}
    first = {name: min(p.stat().st_mtime for p in (tmp_path / name).iterdir()) for name in spans}
    last = {name: max(p.stat().st_mtime for p in (tmp_path / name).iterdir()) for name in spans}
    assert first["one"] < last["two"]
    assert first["two"] < last["one"]


class Slow(Square):
    """Takes a moment, so that two maps overlap."""

    def work(self, item):
        time.sleep(0.1)
        (self.folder / str(item)).write_text("")
        return item


@pytest.fixture
def fit(store, run, toys, tmp_path, ray_executor):
    """Publishes the toy fit through Ray."""

    def _fit(*arguments, **config):
        call = StageCall(
            stage=toys.Fit(*arguments),
            config=toys.Config(**config),
            inputs={"sources": toys.selection(store, tmp_path, ["a"])},
            label="fit",
        )
        return run_stage(call, store=store, executor=ray_executor, run=run)

    return _fit


def test_a_fit_whose_process_is_killed_is_tried_again(fit, store):
    assert fit("kill").facts == {"tries": 2, "world": 1, "total": 1.0}
    assert store.list("_staging") == []


def test_an_error_of_a_fit_comes_back_as_it_is(fit):
    with pytest.raises(ValueError, match="cannot succeed"):
        fit("raise")


@pytest.mark.slow  # Ray Train starts twice; run by make test-all
def test_two_trainings_at_once_share_gradients_and_survive_a_kill(fit, store):
    found = {}

    def train(name, trouble, group, factor):
        found[name] = fit(trouble, group, factor=factor).facts

    threads = [
        threading.Thread(target=train, args=("pair", "", 2, 10)),
        threading.Thread(target=train, args=("killed", "kill", 1, 11)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["pair"] == {"tries": 1, "world": 2, "total": 3.0}
    assert found["killed"] == {"tries": 2, "world": 1, "total": 1.0}
    assert store.list("_progress") == []


def test_more_training_workers_than_cpus_is_one_sentence(fit):
    with pytest.raises(PipelineError, match="training wants 99 workers, Ray has"):
        fit("", 99)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        RayExecutor(workers=0)


def test_a_killed_driver_leaves_no_process(tmp_path):
    code = """
        import sys, threading, time
        from pipelines.runtime.ray_executor import RayExecutor
        executor = RayExecutor(workers=1)
        def work(item): return item
        def start(): executor.map(lambda: work, [1], done=lambda *_: None)
        thread = threading.Thread(target=start)  # Ray must outlive the thread that used it first
        thread.start(); thread.join(); time.sleep(1)
        assert executor.map(lambda: work, [7], done=lambda *_: None)[0].result == 7
        print("up", flush=True)
        time.sleep(300)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline().strip() == b"up"
    children = psutil.Process(process.pid).children(recursive=True)
    names = {child: child.name() for child in children}
    process.kill()
    process.communicate()
    # Ray's two agents do no work of ours; they report to the dead for a minute before they end
    working = [child for child in children if not names[child].endswith("Agent")]
    assert any("Worker" in names[child] for child in working)
    _, alive = psutil.wait_procs(working, timeout=30)
    assert alive == []
    assert len(children) - len(working) <= 2
