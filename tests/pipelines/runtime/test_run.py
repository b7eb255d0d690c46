"""`run_stage`: what is done once is not done again, and nothing wrong is published."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.errors import PipelineError, PoisonedShards
from pipelines.runtime.context import start_run
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.run import StageCall, run_stage
from pipelines.runtime.sweep import this_process


@pytest.fixture
def do(store, run, local, toys, tmp_path):
    """Runs the toy stage over files of these names; returns (manifest, names executed)."""

    def _do(names, trouble=None, **options):
        log = tmp_path / "log"
        log.write_text("")
        call = StageCall(
            stage=toys.Tokens(trouble, log),
            config=toys.Config(),
            inputs={"sources": toys.selection(store, tmp_path, names)},
            label="tokens",
        )
        context = start_run(store, "test", {}, **options) if options else run
        try:
            manifest = run_stage(call, store=store, executor=local, run=context)
        except PipelineError as error:
            manifest = error
        return manifest, log.read_text().split()[::2]

    return _do


def test_a_second_run_does_nothing_and_returns_the_same(do):
    first, ran = do(["a", "b"])
    assert ran == ["a", "b"]
    assert (first.rows_in, first.rows_out, first.dropped) == (10, 10, {})
    assert first.counts == {"seen": 10}
    second, ran = do(["a", "b"])
    assert ran == []
    assert second == first


def test_one_new_shard_executes_only_that(do):
    before, _ = do(["a", "b"])
    after, ran = do(["a", "b", "c"])
    assert ran == ["c"]
    assert after.shards[:2] == before.shards
    assert (after.shards_executed, after.rows_in) == (1, 15)
    assert after.artifact_id != before.artifact_id


def test_a_shard_that_fails_every_try_is_recorded_and_the_others_are_kept(do, run):
    error, ran = do(["a", "b", "c"], {"b": "raise"})
    assert isinstance(error, PoisonedShards)
    assert "b is poison" in str(error)
    assert error.exit_code == 1
    assert ran == ["a", "b", "b", "b", "c"]
    (record,) = (run.folder / "poisoned.jsonl").read_text().splitlines()
    assert json.loads(record)["error"] == "ValueError: b is poison"
    manifest, ran = do(["a", "b", "c"])
    assert ran == ["b"]
    assert manifest.shards_executed == 1


def test_a_recipe_may_allow_poisoned_shards(do):
    manifest, _ = do(["a", "b"], {"b": "raise"}, max_poisoned=1)
    assert manifest.facts == {"poisoned_shards": 1}
    assert manifest.rows_in == 5


def test_lost_rows_publish_nothing(do, store):
    error, _ = do(["a"], {"a": "lose"})
    assert "read 6 rows but accounts for 5" in str(error)
    assert all("/data/" in key for key in store.list("image_tokens"))
    assert store.list("_receipts") == []


def test_what_ends_after_its_driver_was_killed_is_not_acknowledged(do, store, run):
    with subprocess.Popen(["sleep", "60"]) as driver:
        ticks = Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()[19]
        owner = this_process() | {"pid": driver.pid, "started": ticks}
        (run.folder / "owner.json").write_text(json.dumps(owner))
        manifest, _ = do(["a"])
        assert manifest.shards_executed == 1
        driver.kill()
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # ended; its parent lets it lie
        error, ran = do(["a", "b"])
        assert isinstance(error, PoisonedShards)
        assert "its run has ended" in str(error)
        assert set(ran) == {"b"}
        assert len(store.list("_receipts")) == 1


@pytest.mark.parametrize("what", ["receipt", "data", "gone"])
def test_an_altered_receipt_or_shard_is_done_again(do, store, what):
    first, _ = do(["a", "b"])
    store.delete(f"image_tokens/{first.artifact_id}.json")
    if what == "receipt":
        path = store.local(store.list("_receipts")[0])
        path.write_bytes(path.read_bytes().replace(b'"rows_in":5', b'"rows_in":6'))
    elif what == "data":
        path = store.local(first.shards[0].path)
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    else:
        store.local(first.shards[0].path).unlink()
    again, ran = do(["a", "b"])
    assert len(ran) == 1
    assert again.shards == first.shards
    assert again.content_digest == first.content_digest
    for shard in again.shards:
        assert Reader(store).table(shard).num_rows == 5


def test_a_dry_run_writes_and_executes_nothing(do, store):
    do(["a"])
    before = store.list("")
    error, ran = do(["a", "b"], dry=True)
    assert "pending" in str(error)
    assert ran == []
    assert [k for k in store.list("") if not k.startswith("_sources")] == [
        k for k in before if not k.startswith("_sources")
    ]


def test_events_tell_start_and_end_and_failure(do, run):
    do(["a"])
    do(["b"], {"b": "raise"})
    events = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert [e["eventType"] for e in events] == ["START", "COMPLETE", "START", "FAIL"]
    assert events[1]["outputs"][0]["name"].startswith("image_tokens/")
    assert events[1]["inputs"][0]["name"].startswith("sources/")


def test_a_fit_is_published_once_and_its_progress_goes(store, run, local, toys, tmp_path):
    call = StageCall(
        stage=toys.Fit(),
        config=toys.Config(factor=7),
        inputs={"sources": toys.selection(store, tmp_path, ["a"])},
        label="fit",
    )
    manifest = run_stage(call, store=store, executor=local, run=run)
    assert manifest == run_stage(call, store=store, executor=local, run=run)
    files = Reader(store).files(Selection.of(manifest))
    assert files["tokenizer.json"].read_text() == '{"factor": 7}'
    assert store.list("_progress") == []
    assert store.list("_staging") == []


def test_a_failed_fit_keeps_its_progress(store, run, local, toys, tmp_path):
    inputs = {"sources": toys.selection(store, tmp_path, ["a"])}
    bad = StageCall(stage=toys.Fit("raise"), config=toys.Config(), inputs=inputs, label="fit")
    with pytest.raises(ValueError, match="cannot succeed"):
        run_stage(bad, store=store, executor=local, run=run)
    good = StageCall(stage=toys.Fit(), config=toys.Config(), inputs=inputs, label="fit")
    assert run_stage(good, store=store, executor=local, run=run).facts["tries"] == 2


def test_what_an_interrupted_try_left_is_no_progress(tmp_path, monkeypatch):
    """A fit that waits for its turn is silent, whatever its folder says of the last one."""
    from types import SimpleNamespace

    from pipelines.runtime import fit

    monkeypatch.setattr(fit, "_POLL_SECONDS", 0.01)
    told, path = [], tmp_path / "progress.json"
    path.write_text('[721, 1000, "step 2630"]')
    run = SimpleNamespace(progress=SimpleNamespace(advance=lambda *say: told.append(say)))
    with fit._Watch(path, "fit", run):
        time.sleep(0.1)
        assert told == []
        path.write_text('[730, 1000, "step 2660"]')
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    assert told == [("fit", 730, 1000, "step 2660")]
