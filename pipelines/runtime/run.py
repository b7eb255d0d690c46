"""`run_stage`: ids, receipts, executor, conservation check, publish."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pipelines.errors import PipelineError
from pipelines.runtime.call import Result, StageCall, artifact_id_of, shard_key_of
from pipelines.runtime.catalog import find_manifest, publish
from pipelines.runtime.context import RunContext, environment_digest
from pipelines.runtime.executor import Executor
from pipelines.runtime.fit import execute_fit
from pipelines.runtime.shards import execute_shards
from pipelines.runtime.stage import FitStage, ShardStage
from pipelines.runtime.store import Store
from storage_schemas.lineage import Dataset
from storage_schemas.manifest import Manifest
from storage_schemas.tables import KINDS, TABLES

__all__ = ["StageCall", "artifact_id_of", "run_stage", "shard_key_of"]


def run_stage(call: StageCall, *, store: Store, executor: Executor, run: RunContext) -> Manifest:
    """Returns the artifact of a stage, computing only what is not there yet.

    Raises:
        PoisonedShards: when shards failed every try; the others have their receipts.
        PipelineError: when rows were lost or invented, or a dry run has nothing to return.
    """
    found = _find(store, call, run)
    if found is not None:
        return found
    if run.dry:
        raise PipelineError(f"stage {call.label}: pending; a dry run executes nothing")
    with _alone(store, call):
        # a run that was faster has published while this one waited
        return _find(store, call, run) or _compute(call, store, executor, run)


def _find(store: Store, call: StageCall, run: RunContext) -> Manifest | None:
    found = find_manifest(store, call.stage.kind, call.artifact_id)
    if found is not None:
        run.progress.finish(call.label, "reused")
    return found


def _compute(call: StageCall, store: Store, executor: Executor, run: RunContext) -> Manifest:
    run.event("START", call.label, {"inputs": _datasets(store, call)})
    started = time.monotonic()
    try:
        result = _execute(call, store, executor, run)
        if call.accept is not None:
            call.accept(result)
        manifest = _manifest(call, run, result, time.monotonic() - started)
        published = publish(store, manifest)
    except BaseException as error:
        run.event("FAIL", call.label, {"error": f"{type(error).__name__}: {error}"})
        raise
    shutil.rmtree(store.local(_progress_key(call)), ignore_errors=True)
    output = Dataset.of(store.uri, published.ref)
    run.event("COMPLETE", call.label, {"inputs": _datasets(store, call), "outputs": [output]})
    run.progress.finish(call.label, _summary(call, published))
    return published


def _execute(call: StageCall, store: Store, executor: Executor, run: RunContext) -> Result:
    if isinstance(call.stage, ShardStage):
        return execute_shards(call, call.stage, store, executor, run)
    if isinstance(call.stage, FitStage):
        return execute_fit(call, call.stage, store, executor, run)
    raise TypeError(f"{call.stage!r} is neither a ShardStage nor a FitStage")


def _manifest(call: StageCall, run: RunContext, result: Result, seconds: float) -> Manifest:
    schema_version = max([TABLES[t].version for t in KINDS[call.stage.kind]], default=1)
    return Manifest(
        kind=call.stage.kind,
        schema_version=schema_version,
        artifact_id=call.artifact_id,
        stage=call.stage.name,
        stage_version=call.stage.version,
        config=call.config.canonical(),
        inputs=tuple(sel.input_ref(name) for name, sel in sorted(call.inputs.items())),
        shards=result.shards,
        rows_in=result.rows_in,
        rows_out=result.rows_out,
        dropped=result.dropped,
        counts=result.counts,
        facts=result.facts,
        environment=environment_digest(),
        run_id=run.run_id,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
        shards_executed=result.executed,
    )


def _progress_key(call: StageCall) -> str:
    return f"_progress/{call.stage.name}/{call.artifact_id}"


@contextmanager
def _alone(store: Store, call: StageCall) -> Iterator[None]:
    """Two runs on this machine that want the same artifact: the second one waits.

    The lock goes with the process that holds it, however that ends.
    """
    with (store.folder(_progress_key(call)) / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _datasets(store: Store, call: StageCall) -> list[Dataset]:
    return [Dataset.of(store.uri, selection.ref) for selection in call.inputs.values()]


def _summary(call: StageCall, manifest: Manifest) -> str:
    dropped = sum(manifest.dropped.values())
    text = f"{manifest.rows_out} rows" if manifest.rows_out else "done"
    text += f", {dropped} left behind" if dropped else ""
    if isinstance(call.stage, FitStage):
        return text
    return f"{text}, {manifest.shards_executed} of {len(manifest.shards)} shards computed"
