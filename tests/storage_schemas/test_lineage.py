"""Lineage: every join is of columns that exist and types that agree."""

from __future__ import annotations

import pyarrow as pa
import pytest

from storage_schemas.lineage import JOINS, Dataset, Job, Run, RunEvent, joins_from, joins_to
from storage_schemas.manifest import ArtifactRef
from storage_schemas.tables import TABLES


def _type(table, column):
    (found,) = (c.type for c in TABLES[table].columns if c.name == column)
    return found.value_type if pa.types.is_list(found) else found


@pytest.mark.parametrize("join", JOINS, ids=lambda j: f"{j.table}.{j.column}")
def test_a_join_is_of_columns_that_exist(join):
    assert _type(join.table, join.column) == _type(join.to_table, join.to_column)


def test_a_generation_leads_to_its_source_row_and_back():
    seen, edge = set(), {"generations"}
    while edge:
        seen |= edge
        edge = {j.to_table for table in edge for j in joins_from(table)} - seen
    assert {"memory", "documents", "source_rows"} <= seen
    back, edge = set(), {"source_rows"}
    while edge:
        back |= edge
        edge = {j.table for table in edge for j in joins_to(table)} - back
    assert {"images", "documents", "memory", "generations"} <= back


def test_an_event_has_what_the_specification_requires():
    artifact = ArtifactRef(kind="memory", artifact_id="abc", content_digest="d")
    event = RunEvent(
        type="COMPLETE",
        time="2026-11-24T00:00:00+00:00",
        job=Job(namespace="smoke", name="build_memory"),
        run=Run(run_id="0", facets={"racm3": {"rows": 1}}),
        outputs=[Dataset.of("/store", artifact)],
    ).to_json()
    assert event["outputs"] == [{"namespace": "/store", "name": "memory/abc"}]
    assert {"eventType", "eventTime", "producer", "schemaURL", "job", "run"} <= set(event)
    facet = event["run"]["facets"]["racm3"]
    assert {"_producer", "_schemaURL", "rows"} == set(facet)
