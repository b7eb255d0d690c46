"""One small run of the whole DAG in this process, and once more on two Ray workers in a store of
its own: shard by shard the same. What a fit made in the first store is carried to the second.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.recipes import load_run
from pipelines.config import RunConfig
from pipelines.corpus import image_host, prepare_sources, register
from pipelines.dag import dag_of
from pipelines.fetch.policy import FetchSettings
from pipelines.runtime.call import StageCall
from pipelines.runtime.catalog import find_manifest, publish
from pipelines.runtime.context import start_run
from pipelines.runtime.executor import Executor, LocalExecutor
from pipelines.runtime.run import run_stage
from pipelines.runtime.store import LocalStore
from storage_schemas.manifest import Manifest, Shard
from storage_schemas.tables import TABLES

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

STAGES = {
    *("ingest_metadata", "download_images", "normalize_images", "curate_documents"),
    *("train_text_tokenizer", "train_encoder", "train_image_tokenizer", "embed_documents"),
    *("tokenize_images", "build_memory", "retrieve_contexts", "assemble_examples"),
    *("train_generator", "generate", "score_generations", "write_report"),
}
EXCEPTED = ("train_*", "build_memory", "generate", "write_report")
COMPARED = {stage for stage in STAGES if not any(fnmatch(stage, name) for name in EXCEPTED)}


@dataclass(frozen=True)
class Made:
    """What one executor made, by step, and the store it lies in."""

    store: LocalStore
    by_label: dict[str, Manifest]


def carried(call: StageCall, source: LocalStore, target: LocalStore) -> Manifest:
    """Copies an artifact that a fit made elsewhere of the same inputs."""
    found = find_manifest(source, call.stage.kind, call.artifact_id)
    assert found is not None, f"{call.label}: the inputs are not those of the other store"
    for shard in found.shards:
        path = target.local(shard.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.local(shard.path), path)
    return publish(target, found)


def whole_run(
    config: RunConfig,
    executor: Executor,
    folder: Path,
    drawings: Path,
    fits: LocalStore | None = None,
) -> Made:
    """All steps in order, each stage executed anew; with `fits`, the excepted ones come from it."""
    store = LocalStore(folder)
    run = start_run(store, config.namespace, {})
    corpus = prepare_sources(config, drawings)
    sources = register(store, config, corpus)
    made: dict[str, Manifest] = {}
    with image_host(corpus) as hosts:
        for step in dag_of(config, sources, FetchSettings(host_map=hosts)).steps:
            call = step.make(made)
            if fits is not None and call.stage.name not in COMPARED:
                if call.stage.name != "write_report":
                    made[step.label] = carried(call, fits, store)
                continue
            torch.set_num_threads(2)  # a stage that computes pins its own number
            made[step.label] = run_stage(call, store=store, executor=executor, run=run)
            assert made[step.label].run_id == run.run_id
    return Made(store=store, by_label=made)


@pytest.fixture(scope="module")
def both(
    small: str, drawings: Path, ray_executor: Executor, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Made, Made]:
    folder = tmp_path_factory.mktemp("agree")
    file = folder / "small.toml"
    file.write_text(small, encoding="utf-8")
    config = load_run(str(file))
    threads = torch.get_num_threads()
    here = whole_run(config, LocalExecutor(), folder / "local", drawings)
    there = whole_run(config, ray_executor, folder / "ray", drawings, fits=here.store)
    torch.set_num_threads(threads)
    return here, there


def identity(shard: Shard) -> tuple[Any, ...]:
    """What must be equal: the bytes, or the row digest of a table with volatile columns."""
    volatile = any(column.volatile for column in TABLES[shard.name].columns)
    what = shard.row_digest if volatile else shard.sha256
    return shard.name, sorted(shard.tags.items()), shard.rows, what


def compared(made: Mapping[str, Manifest]) -> list[str]:
    return [label for label, manifest in made.items() if manifest.stage in COMPARED]


def test_nothing_is_left_out(both: tuple[Made, Made]) -> None:
    here, there = both
    assert {manifest.stage for manifest in here.by_label.values()} == STAGES
    assert len(STAGES) == 16
    assert len(COMPARED) == 9
    assert compared(there.by_label) == compared(here.by_label)
    assert {there.by_label[label].stage for label in compared(there.by_label)} == COMPARED


def test_shards_are_equal(both: tuple[Made, Made]) -> None:
    here, there = both
    for label in compared(here.by_label):
        one, other = here.by_label[label], there.by_label[label]
        assert one.shards, label
        assert all(shard.is_table for shard in one.shards), label
        assert list(map(identity, other.shards)) == list(map(identity, one.shards)), label
        assert other.content_digest == one.content_digest, label
        assert other.shards_executed == one.shards_executed == work_of(one), label
        assert (other.rows_in, other.rows_out, other.dropped, other.counts) == (
            (one.rows_in, one.rows_out, one.dropped, one.counts)
        ), label


def work_of(manifest: Manifest) -> int:
    """Units of work: shards, or one fit."""
    return 1 if manifest.stage == "score_generations" else len(manifest.shards)


def test_bytes_on_the_disk_are_equal(both: tuple[Made, Made]) -> None:
    here, _ = both
    kinds = {here.by_label[label].kind for label in compared(here.by_label)}
    for kind in kinds - {"images", "normalized_images"}:  # volatile columns
        one, other = (
            {path.name: path.read_bytes() for path in (made.store.root / kind / "data").iterdir()}
            for made in both
        )
        assert one
        assert other == one, kind


def test_several_shards_went_to_two_workers(both: tuple[Made, Made]) -> None:
    _, there = both
    for label in ("ingest_metadata", "download_images", "embed_documents", "tokenize_images"):
        assert len(there.by_label[label].shards) >= 4, label
