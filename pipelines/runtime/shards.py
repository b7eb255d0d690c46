"""Running a `ShardStage`: plan, believe receipts, map the rest, add up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.errors import PipelineError, PoisonedShards
from pipelines.runtime.call import Result, StageCall, shard_key_of
from pipelines.runtime.context import RunContext
from pipelines.runtime.executor import Executor, Outcome
from pipelines.runtime.reader import Reader, Selection
from pipelines.runtime.receipts import read_receipt, write_receipt
from pipelines.runtime.stage import ShardFunction, ShardPlan, ShardStage, StageConfig
from pipelines.runtime.store import Store, open_store
from pipelines.runtime.sweep import owner_is_alive
from storage_schemas.manifest import Receipt, Shard
from storage_schemas.parquet import encode_shard, row_digest
from storage_schemas.schema import rows_by_outcome
from storage_schemas.tables import KINDS, TABLES

__all__ = ["execute_shards"]


@dataclass(frozen=True, kw_only=True)
class _ShardWork:
    """Crosses to a worker: builds the stage's function there, once, and runs shards through it."""

    stage: ShardStage[Any]
    config: StageConfig
    whole: Mapping[str, Selection]
    store_uri: str
    run_folder: Path
    """Of the run that asks."""

    def __call__(self) -> Callable[[tuple[str, ShardPlan]], Receipt]:
        store = open_store(self.store_uri)
        reader = Reader(store)
        function = self.stage.build(self.config, self.whole, reader)
        return partial(_run_shard, self.stage, function, store, reader, self.run_folder)


def _run_shard(
    stage: ShardStage[Any],
    function: ShardFunction,
    store: Store,
    reader: Reader,
    run_folder: Path,
    item: tuple[str, ShardPlan],
) -> Receipt:
    """One shard, from reading to its receipt; safe to repeat.

    A worker outlives its driver by a moment, and not all that the driver lent it (the demo's image
    host): what ends in that moment is not acknowledged.

    Raises:
        PipelineError: when rows were lost or invented, or the run has ended: no receipt is written.
    """
    shard_key, plan = item
    output = function(plan, reader)
    schema = TABLES[KINDS[stage.kind][0]]
    table = schema.conform(output.table)
    path, sha256 = store.put_data(
        stage.kind, encode_shard(table, schema, shard_key=shard_key), ".parquet"
    )
    kept, by_outcome = rows_by_outcome(table, schema)
    dropped = Counter(by_outcome) + Counter(output.dropped)
    if output.rows_in != kept + dropped.total():
        raise PipelineError(
            f"stage {stage.name}: shard {shard_key[:12]} read {output.rows_in} rows but accounts "
            f"for {kept} + {dict(dropped)}; this is a defect"
        )
    receipt = Receipt(
        stage=stage.name,
        shard_key=shard_key,
        shards=(
            Shard(
                name=schema.kind,
                path=path,
                sha256=sha256,
                bytes=store.local(path).stat().st_size,
                rows=table.num_rows,
                row_digest=row_digest(table, schema),
                tags=dict(plan.tags),
            ),
        ),
        rows_in=output.rows_in,
        rows_out=kept,
        dropped=dict(sorted(dropped.items())),
        counts=dict(output.counts),
    )
    if not owner_is_alive(run_folder):
        raise PipelineError(
            f"stage {stage.name}: shard {shard_key[:12]} came too late, its run has ended; "
            "run again: it is done anew"
        )
    return write_receipt(store, receipt)


def execute_shards(
    call: StageCall, stage: ShardStage[Any], store: Store, executor: Executor, run: RunContext
) -> Result:
    """Computes the shards that have no receipt to believe.

    Raises:
        PoisonedShards: when more shards failed every try than the run allows.
    """
    whole = {name: call.inputs[name] for name in stage.whole_inputs if name in call.inputs}
    plans = stage.plan(call.config, call.inputs, Reader(store))
    keys = [shard_key_of(stage, call.config, plan, whole) for plan in plans]
    receipts = {key: receipt for key in keys if (receipt := read_receipt(store, stage.name, key))}
    todo = [(key, plan) for key, plan in zip(keys, plans, strict=True) if key not in receipts]
    run.progress.start(call.label, len(plans), len(receipts))
    finished = len(receipts)

    def done(_: int, __: Outcome[Receipt]) -> None:
        nonlocal finished
        finished += 1
        run.progress.advance(call.label, finished, len(plans))

    work = _ShardWork(
        stage=stage,
        config=call.config,
        whole=whole,
        store_uri=store.uri,
        run_folder=run.folder,
    )
    outcomes = executor.map(work, todo, done=done, gpu=stage.gpu, deadline=stage.deadline)
    receipts |= {o.result.shard_key: o.result for o in outcomes if o.result is not None}
    poisoned = [
        (key, o.error) for (key, _), o in zip(todo, outcomes, strict=True) if o.error is not None
    ]
    _record_poison(run, call, poisoned)
    ordered = [receipts[key] for key in keys if key in receipts]
    return _sum_receipts(ordered, len(todo) - len(poisoned), len(poisoned))


def _record_poison(
    run: RunContext, call: StageCall, poisoned: Sequence[tuple[str, str | None]]
) -> None:
    if not poisoned:
        return
    with (run.folder / "poisoned.jsonl").open("a", encoding="utf-8") as file:
        for key, error in poisoned:
            file.write(json.dumps({"stage": call.label, "shard_key": key, "error": error}) + "\n")
    if len(poisoned) > run.max_poisoned:
        raise PoisonedShards(
            f"stage {call.label}: {len(poisoned)} shards failed every try, the first with "
            f"{poisoned[0][1]}; the others are done: mend the cause and run again"
        )


def _sum_receipts(receipts: Sequence[Receipt], executed: int, poisoned: int) -> Result:
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for receipt in receipts:
        dropped.update(receipt.dropped)
        counts.update(receipt.counts)
    return Result(
        shards=tuple(shard for receipt in receipts for shard in receipt.shards),
        rows_in=sum(receipt.rows_in for receipt in receipts),
        rows_out=sum(receipt.rows_out for receipt in receipts),
        dropped=dict(sorted(dropped.items())),
        counts=dict(sorted(counts.items())),
        facts={"poisoned_shards": poisoned} if poisoned else {},
        executed=executed,
    )
