"""One small run through Prefect and Ray, looked at from all sides. The tests go on from each other
in the order of this file: what a finished run makes possible comes after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.dag import dag_of
from pipelines.fetch.policy import FetchSettings
from pipelines.runtime.catalog import manifests, read_ref
from pipelines.runtime.ledger import as_selection
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import LocalStore
from storage_schemas.manifest import Manifest, Receipt

pytestmark = [pytest.mark.ray, pytest.mark.prefect, pytest.mark.timeout(300)]

ADDED = (
    *("ingest_metadata", "download_images", "normalize_images", "curate_documents"),
    *("embed_documents", "tokenize_images"),
)


@pytest.fixture(scope="module")
def store(lab: Any, finished: Any) -> LocalStore:
    return LocalStore(lab.store)


@pytest.fixture(scope="module")
def made(store: LocalStore, finished: Any) -> dict[str, Manifest]:
    by_id = {m.artifact_id: m for m in manifests(store)}
    return {label: by_id[name] for label, name in finished["artifacts"].items()}


def rows(store: LocalStore, manifest: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = Reader(store).tables(manifest.tables(manifest.kind)).to_pylist()
    return found


def test_every_step_published(lab: Any, finished: Any, made: dict[str, Manifest]) -> None:
    from flows.recipes import load_run

    dag = dag_of(load_run(str(lab.file)), as_selection([]), FetchSettings())
    assert set(made) == {step.label for step in dag.steps}
    assert finished["peak_memory_bytes"] > 0


def test_no_row_is_lost(made: dict[str, Manifest]) -> None:
    for label, manifest in made.items():
        assert manifest.rows_in == manifest.rows_out + sum(manifest.dropped.values()), label
    assert made["ingest_metadata"].rows_out == made["download_images"].rows_in
    assert made["download_images"].rows_out == made["normalize_images"].rows_in
    assert made["curate_documents"].rows_in == made["ingest_metadata"].rows_out


def test_the_report_is_a_page(finished: Any) -> None:
    page = Path(finished["report"]).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "RA-CM3" in page


def test_scores_compare_both_generators(finished: Any) -> None:
    assert {"ra", "vanilla"} <= {row["model"] for row in finished["scores"]}
    assert {"familiar", "unseen"} <= {row["set"] for row in finished["scores"]}


def test_a_run_is_compared_with_what_its_namespace_has(lab: Any, finished: Any) -> None:
    told = lab.json("compare", "smoke", finished["run_id"])
    assert told["rows"]
    assert {row["b_is"] for row in told["rows"]} == {"equal"}
    assert {told[side]["scores"] for side in "ab"} == {finished["artifacts"]["score_generations"]}
    done = lab.racm3("compare", "smoke", "generator/123456", check=2)
    assert "nothing that has scores is called generator/123456" in done.stderr


def test_references_follow(store: LocalStore, made: dict[str, Manifest]) -> None:
    for name, label in (
        ("documents", "curate_documents"),
        ("memory.extended", "build_memory[extended]"),
        ("generator.ra", "train_generator[ra]"),
        ("report", "write_report"),
    ):
        found = read_ref(store, "smoke", name)
        assert found is not None
        assert found.artifact_id == made[label].artifact_id


def test_a_second_run_reuses_everything(lab: Any, finished: Any) -> None:
    done = lab.racm3("run", str(lab.file), "--json")
    told = [line for line in done.stderr.splitlines() if "prepare_sources" not in line]
    assert len(told) == len(finished["artifacts"])
    assert all(line.endswith("reused") for line in told)


def test_the_plan_says_so(lab: Any, finished: Any) -> None:
    steps = lab.json("plan", str(lab.file))["steps"]
    assert {step["step"]: step["state"] for step in steps} == (
        dict.fromkeys(finished["artifacts"], "reused")
    )
    changed = lab.json("plan", str(lab.file), "--set", "generators.ra.fit.learning_rate=0.001")
    states = {step["step"]: step["state"] for step in changed["steps"]}
    assert states["train_generator[ra]"] == "to run"
    assert states["generate[ra, restricted]"] == "pending"
    assert states["train_generator[vanilla]"] == "reused"


def test_a_picture_is_followed_back(lab: Any, store: LocalStore, made: dict[str, Manifest]) -> None:
    drawn = rows(store, made["generate[ra, extended]"])
    chosen = next(row for row in drawn if row["contexts"] and row["task"] == "image")
    node = lab.json("lineage", chosen["generation_id"])[0]
    below = {one["what"]: one for one in node["leads_to"]}
    contexts = [one for one in node["leads_to"] if one["what"].startswith("context")]
    assert [one["id"] for one in contexts] == chosen["contexts"]
    source = contexts[0]["leads_to"][0]["facts"]
    assert source["url"].startswith("http://emoji.invalid/")
    table = pq.read_table(source["file"])
    assert table.column("URL")[source["row_index"]].as_py() == source["url"]
    assert len(source["raw_sha256"]) == 64
    assert below["checkpoint"]["id"] == made["train_generator[ra]"].artifact_id
    recipe = store.root / below["checkpoint"]["facts"]["recipe"]
    assert recipe.is_file()
    assert made["assemble_examples[train]"].artifact_id in {
        one["id"] for one in below["checkpoint"]["leads_to"]
    }


def test_a_link_is_followed_forward(lab: Any, store: LocalStore, made: dict[str, Manifest]) -> None:
    held = {
        row["document_id"]
        for row in rows(store, made["build_memory[extended]"])
        if row["role"] == "memory"
    }
    documents = rows(store, made["curate_documents"])
    row = next(one for one in documents if one["document_id"] in held)
    sources = {one["row_id"]: one for one in rows(store, made["ingest_metadata"])}
    node = lab.json("lineage", sources[row["row_id"]]["url"])[0]
    assert [one["what"] for one in node["leads_to"]] == ["images", "normalized_images", "documents"]
    memories = [o["id"] for o in node["leads_to"][-1]["leads_to"] if o["what"] == "memory"]
    assert memories == [made["build_memory[extended]"].artifact_id]


def test_a_prompt_draws_a_picture(lab: Any, store: LocalStore, made: dict[str, Manifest]) -> None:
    """A caption that the memory holds finds its document, though `smoke` hardly trains."""
    held = {row["document_id"] for row in rows(store, made["build_memory[extended]"])}
    documents = rows(store, made["curate_documents"])
    caption = next(row["caption"] for row in documents if row["document_id"] in held)
    out = lab.folder / "drawn.png"
    facts = lab.json("generate", caption, "--out", str(out))
    assert out.read_bytes().startswith(b"\x89PNG")
    assert 0 < len(facts["contexts"]) <= 2


def receipts(store: LocalStore) -> dict[str, set[str]]:
    """Keys of the receipts of each stage that a new source shard goes through."""
    return {stage: set(store.list(f"_receipts/{stage}")) for stage in ADDED}


def test_one_more_file_costs_one_shard(
    lab: Any, store: LocalStore, made: dict[str, Manifest]
) -> None:
    before = receipts(store)
    source = lab.folder / "more.parquet"
    urls = [f"http://emoji.invalid/twemoji/{code}.png" for code in ("1f40c", "1f41d", "1f98b")]
    urls += ["http://emoji.invalid/twemoji/nothing-here.png"]
    captions = ["a snail", "a bee", "a butterfly", "a hole"]
    pq.write_table(pa.table({"URL": [*urls, None], "TEXT": [*captions, "no link"]}), source)
    lab.file.write_text(
        lab.file.read_text()
        + f'[[sources]]\nname = "more"\npaths = ["{source}"]\nrole = "memory"\n'
    )
    result = lab.json("run", str(lab.file), "--flow", "ingest", "--set", "min_success=0.5")
    result = (
        lab.json("run", str(lab.file), "--flow", "build_memory")["artifacts"] | result["artifacts"]
    )
    by_id = {m.artifact_id: m for m in manifests(store)}
    after = receipts(store)
    for label in ADDED:
        assert len(before[label]) == len(made[label].shards), label
        assert before[label] < after[label], label
        (key,) = after[label] - before[label]
        (shard,) = Receipt.from_json(store.get(key) or b"", name=key).shards
        assert (shard.tags["role"], shard.tags["source"]) == ("memory", "more"), label
        larger = by_id[result[label]]
        assert larger.shards_executed == 1, label
        assert set(map(repr, larger.shards)) == {*map(repr, made[label].shards), repr(shard)}, label
    for label in ("train_encoder", "train_image_tokenizer", "train_text_tokenizer"):
        assert by_id[result[label]].artifact_id == made[label].artifact_id
    assert by_id[result["download_images"]].dropped["http_error"] == 1
    larger, smaller = by_id[result["build_memory[extended]"]], made["build_memory[extended]"]
    assert larger.rows_out > smaller.rows_out


def test_retraining_goes_against_what_is_there(lab: Any, made: dict[str, Manifest]) -> None:
    memory = made["build_memory[restricted]"].artifact_id
    arguments = ("--flow", "retrain", "--set", "generators.ra.fit.steps=5")
    arguments += ("--artifact", f"memory.restricted={memory}")
    again = lab.json("run", str(lab.file), *arguments, executor="local")["artifacts"]
    for label in (
        "retrieve_contexts[train]",
        "assemble_examples[train]",
        "train_generator[vanilla]",
    ):
        assert again[label] == made[label].artifact_id
    assert again["train_generator[ra]"] != made["train_generator[ra]"].artifact_id


def test_a_dropped_row_says_why(lab: Any, finished: Any) -> None:
    node = lab.json("lineage", "http://emoji.invalid/twemoji/nothing-here.png")[0]
    assert node["leads_to"][0]["facts"]["outcome"] == "http_error"
    assert node["leads_to"][0]["facts"]["stopped_at"] == "download_images"


def test_an_altered_shard_is_named(lab: Any, store: LocalStore, made: dict[str, Manifest]) -> None:
    shard = made["generate[ra, extended]"].tables("generations")[0]
    path = store.local(shard.path)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    try:
        done = lab.racm3("lineage", "0123456789", check=3)
        assert shard.path in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        path.write_bytes(whole)


def test_a_dead_network_publishes_nothing(lab: Any, finished: Any) -> None:
    dead = lab.folder / "dead.parquet"
    pq.write_table(pa.table({"URL": ["http://emoji.invalid/no/no.png"], "TEXT": ["x"]}), dead)
    other = lab.folder / "dead.toml"
    own = lab.file.read_text().split("[[sources]]")[0]
    other.write_text(own + f'[[sources]]\nname = "dead"\npaths = ["{dead}"]\nrole = "train"\n')
    before = len(manifests(LocalStore(lab.store), "images"))
    arguments = ("run", str(other), "--flow", "ingest", "--set", "namespace=dead")
    done = lab.racm3(*arguments, check=1, executor="local")
    last = done.stderr.strip().splitlines()[-1]
    assert "source dead: all images failed (most often: http_error)" in last
    assert "Traceback" not in done.stderr
    assert len(manifests(LocalStore(lab.store), "images")) == before
