"""Running a `FitStage`: progress, the executor, its files and tables into the store."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import Diverged, PipelineError
from pipelines.runtime.call import Result, StageCall
from pipelines.runtime.context import RunContext
from pipelines.runtime.executor import Executor
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.stage import FitGroup, FitOutput, FitStage, StageConfig, Workspace
from pipelines.runtime.store import Store, open_store
from storage_schemas.manifest import Shard
from storage_schemas.parquet import encode_shard, row_digest
from storage_schemas.tables import KINDS, TABLES

__all__ = ["execute_fit"]

_POLL_SECONDS = 1.0


def execute_fit(
    call: StageCall, stage: FitStage[Any], store: Store, executor: Executor, run: RunContext
) -> Result:
    """Runs a fit where the executor wants it, and stores what it made.

    Raises:
        Diverged: when the loss of a training is not finite.
        PipelineError: when rows were lost or invented, or a table is not one of the kind's.
    """
    progress = store.folder(f"_progress/{stage.name}/{call.artifact_id}")
    staging = store.folder(f"_staging/{run.run_id}/{call.artifact_id}")
    run.progress.start(call.label, 1, 0)
    job = partial(
        _run_fit,
        stage=stage,
        config=call.config,
        inputs=call.inputs,
        store_uri=store.uri,
        progress=progress,
        staging=staging,
        events=run.tensorboard_folder(call.label),
        label=call.label,
    )
    try:
        with _Watch(progress / "progress.json", call.label, run):
            output: FitOutput = executor.fit(
                job, gpu=stage.gpu, workers=stage.workers(call.config), folder=progress
            )
        return _store_output(call, stage, store, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _store_output(call: StageCall, stage: FitStage[Any], store: Store, output: FitOutput) -> Result:
    if unknown := set(output.tables) - set(KINDS[stage.kind]):
        raise PipelineError(
            f"stage {call.label}: a {stage.kind} holds no table {sorted(unknown)}; this is a defect"
        )
    if output.rows_in != output.rows_out + sum(output.dropped.values()):
        raise PipelineError(
            f"stage {call.label}: read {output.rows_in} rows but accounts for {output.rows_out} "
            f"+ {dict(output.dropped)}; this is a defect"
        )
    shards = [_store_table(store, stage.kind, name, t) for name, t in output.tables.items()]
    shards += [_store_file(store, stage.kind, name, f) for name, f in output.files.items()]
    return Result(
        shards=tuple(shards),
        rows_in=output.rows_in,
        rows_out=output.rows_out,
        dropped=dict(output.dropped),
        counts=dict(output.counts),
        facts=dict(output.facts),
        executed=1,
    )


def _run_fit(
    *,
    stage: FitStage[Any],
    config: StageConfig,
    inputs: Mapping[str, Selection],
    store_uri: str,
    progress: Path,
    staging: Path,
    events: Path,
    label: str,
    group: FitGroup = FitGroup(),  # noqa: B008  (frozen)
) -> FitOutput:
    """Crosses to a worker; tells how far it is through a file that `_Watch` reads.

    The staging folder is new on every try: what a killed one left is never mixed in.
    """
    written = 0.0

    def report(done: int, total: int, note: str) -> None:
        nonlocal written
        waited = time.monotonic() - written
        if group.rank > 0 or (waited < _POLL_SECONDS / 2 and done < total):
            return
        written = time.monotonic()
        private = progress / ".progress.tmp"
        private.write_text(json.dumps([done, total, note]))
        private.replace(progress / "progress.json")

    attempt = staging / uuid.uuid4().hex
    attempt.mkdir(parents=True)
    workspace = Workspace(
        progress=progress,
        staging=attempt,
        events=events,
        report=report,
        rank=group.rank,
        world_size=group.world_size,
        wrap=group.wrap,
        after_checkpoint=group.after_checkpoint,
    )
    try:
        return stage.fit(config, inputs, Reader(open_store(store_uri)), workspace)
    except FloatingPointError as error:
        raise Diverged(
            f"stage {label}: {error}; nothing of that step was kept, "
            "run again to go on from the last checkpoint"
        ) from error


class _Watch:
    """Carries a fit's progress file to whoever waits, whenever it changes.

    What an interrupted try left there is not told: the next one may still wait for its turn.
    """

    def __init__(self, path: Path, label: str, run: RunContext) -> None:
        self._path, self._label, self._run = path, label, run
        self._told = path.read_text() if path.is_file() else ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            try:
                text = self._path.read_text()
                done, total, note = json.loads(text)
            except (OSError, ValueError):
                continue
            if text != self._told:
                self._told = text
                self._run.progress.advance(self._label, done, total, note)


def _store_table(store: Store, kind: str, name: str, table: Any) -> Shard:
    schema = TABLES[name]
    table = schema.conform(table)
    path, sha256 = store.put_data(kind, encode_shard(table, schema, shard_key=""), ".parquet")
    return Shard(
        name=name,
        path=path,
        sha256=sha256,
        bytes=store.local(path).stat().st_size,
        rows=table.num_rows,
        row_digest=row_digest(table, schema),
    )


def _store_file(store: Store, kind: str, name: str, file: Path) -> Shard:
    size = file.stat().st_size
    path, sha256 = store.put_file(kind, file)
    return Shard(name=name, path=path, sha256=sha256, bytes=size, rows=0, row_digest=sha256)
