"""The switches of retrieval, each a variant of the ablation table, on drawn shapes."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from pipelines.errors import UsageError
from pipelines.models import load_encoder
from pipelines.records import examples_of, image_array, vector_matrix
from pipelines.runtime.reader import Selection
from pipelines.stages import assemble_examples, build_memory, embed_documents, retrieve_contexts
from racm3.retriever.query import document_generator, dropped_image_queries
from racm3.retriever.selection import SelectionConfig
from storage_schemas.fingerprint import sha256_bytes

HELD = {"train", "memory"}
PLAIN = SelectionConfig(near_copy=None)


@pytest.fixture(scope="module")
def roles(shared, documents):
    return {row["document_id"]: row["role"] for row in shared.rows(documents)}


# --- query dropout ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_image_draws(shared, documents, encoder):
    config = embed_documents.Config(draws=2, drop_patches=0.3, patch=8)
    return shared.run(
        embed_documents.EmbedDocuments(), config, documents=documents, encoder=encoder
    )


def test_image_draws_are_vectors_of_the_image_without_some_patches(
    shared, documents, encoder, embeddings, with_image_draws
):
    plain, drawn = shared.table(embeddings), shared.table(with_image_draws)
    for name in ("document_id", "text_vector", "image_vector", "query_vectors"):
        assert drawn.column(name).equals(plain.column(name))
    assert {tuple(row) for row in plain.column("image_query_vectors").to_pylist()} == {()}
    vectors = np.array(drawn.column("image_query_vectors").to_pylist(), np.float32)
    assert vectors.shape == (66, 2, 16)
    loaded = load_encoder(shared.reader.files(Selection.of(encoder)))
    pngs = {r["document_id"]: r["image"] for r in shared.rows(documents) if r["image"]}
    for row, name in [*enumerate(drawn.column("document_id").to_pylist())][::11]:
        rng = document_generator(0, name, 1)
        masked = list(
            dropped_image_queries(image_array(pngs[name]), draws=2, rng=rng, patch=8, rate=0.3)
        )
        np.testing.assert_allclose(vectors[row], loaded.encode_images(masked), atol=1e-3)
    whole = vector_matrix(drawn.column("image_vector"))
    assert np.abs(vectors - whole[:, None]).max(axis=2).min() > 0


@pytest.mark.parametrize("whole", [True, False])
def test_documents_of_the_memory_ask_with_their_draws_and_others_never(
    shared, roles, with_image_draws, memory, whole
):
    config = retrieve_contexts.Config(selection=PLAIN, whole_queries=whole)
    made = shared.run(
        retrieve_contexts.RetrieveContexts(),
        config,
        embeddings=with_image_draws,
        memory=memory,
    )
    asked = defaultdict(list)
    for row in shared.rows(made):
        asked[row["document_id"]].append((row["query"], row["draw"]))
    first = 0 if whole else 1
    for name, queries in asked.items():
        draws = range(first, 3) if roles[name] in HELD else range(1)
        assert sorted(queries) == [(side, draw) for side in ("image", "text") for draw in draws]


def test_without_draws_the_whole_query_stays(shared, embeddings, memory):
    """`embeddings` has no image draws: dropout of text alone leaves the image as it is."""
    config = retrieve_contexts.Config(selection=PLAIN, whole_queries=False)
    train = Selection.of(embeddings, role={"train"})
    made = shared.run(retrieve_contexts.RetrieveContexts(), config, embeddings=train, memory=memory)
    kinds = {(row["query"], row["draw"]) for row in shared.rows(made)}
    assert kinds == {("text", 1), ("text", 2), ("image", 0)}


# --- random contexts --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_contexts(shared, embeddings, memory):
    def make(**changes):
        config = retrieve_contexts.Config(
            selection=SelectionConfig(near_copy=None, floor=0.999), ranking="random", **changes
        )
        return shared.run(
            retrieve_contexts.RetrieveContexts(), config, embeddings=embeddings, memory=memory
        )

    return make


def test_random_contexts_are_of_the_memory_never_the_document_and_everyone(
    shared, roles, random_contexts
):
    made = random_contexts()
    used = Counter()
    for row in shared.rows(made):
        assert len(row["context_ids"]) == len(set(row["context_ids"])) == 2
        assert row["document_id"] not in row["context_ids"]
        used.update(row["context_ids"])
    held = {name for name, role in roles.items() if role in HELD and name is not None}
    assert set(used) == held
    assert max(used.values()) < 25  # of about 9, and a standard deviation of 3
    assert made.rows_in == made.rows_out == 54 * 4 + 12 * 2
    assert set(made.counts) <= {"skipped_itself", "queries_short_of_contexts"}


def test_random_contexts_depend_on_the_seed_and_on_who_asks_alone(
    world, shared, embeddings, memory, random_contexts
):
    def by_query(made):
        return {
            (r["document_id"], r["query"], r["draw"]): r["context_ids"] for r in shared.rows(made)
        }

    first = by_query(random_contexts())
    assert first != by_query(random_contexts(seed=1))
    of_document = defaultdict(set)
    for (name, _, _), ids in first.items():
        of_document[name].add(tuple(ids))
    assert np.mean([len(ids) for ids in of_document.values()]) > 1.5  # a query has its own
    table = shared.table(embeddings).slice(5, 3)
    some = world.publish("embeddings", [(table, {"role": "validation", "source": "x"})])
    stage = retrieve_contexts.RetrieveContexts()
    config = retrieve_contexts.Config(selection=PLAIN, ranking="random")
    run = stage.build(config, {"memory": Selection.of(memory)}, shared.reader)
    (plan,) = stage.plan(config, {"embeddings": Selection.of(some)}, world.reader)
    own = table.column("document_id").to_pylist()
    for row in run(plan, world.reader).table.to_pylist():
        if not set(row["context_ids"]) & set(own):  # as prompts, they may be given themselves
            assert first[row["document_id"], row["query"], row["draw"]] == row["context_ids"]


# --- every skip has its reason ----------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    [
        SelectionConfig(compare="image", near_copy=0.9),
        SelectionConfig(compare="image", near_copy=0.9, near_copy_of="context"),
        SelectionConfig(near_copy=0.5, near_copy_of="document", floor=0.2),
        SelectionConfig(max_contexts=5, max_per_source=1),
        SelectionConfig(max_contexts=0),
    ],
)
def test_chosen_and_skipped_make_up_the_ranking_that_was_walked(
    shared, embeddings, memory, selection
):
    config = retrieve_contexts.Config(selection=selection, first_candidates=3)
    made = shared.run(
        retrieve_contexts.RetrieveContexts(), config, embeddings=embeddings, memory=memory
    )
    reasons, short = Counter(), 0
    for row in shared.rows(made):
        assert len(row["skipped_ids"]) == len(row["skipped_reasons"])
        walked = len(row["context_ids"]) + len(row["skipped_ids"])
        assert set(row["context_ranks"]) <= set(range(walked))
        assert not set(row["context_ids"]) & set(row["skipped_ids"])
        reasons.update(row["skipped_reasons"])
        lacking = len(row["context_ids"]) < selection.max_contexts
        short += lacking
        ended = row["skipped_reasons"][-1:] == ["below_floor"] or walked == 54
        assert ended or not lacking  # nobody goes without because too few were asked for
    counted = {n.removeprefix("skipped_"): c for n, c in made.counts.items() if "skipped" in n}
    assert counted == dict(reasons)
    assert made.counts["queries_short_of_contexts"] == short
    if selection.near_copy_of == "context":
        assert "near_copy_of_document" not in reasons


# --- a share of the memory --------------------------------------------------------------------


def test_a_smaller_memory_is_part_of_every_larger_one():
    names = [sha256_bytes(str(i).encode()) for i in range(4000)]

    def held(share, seed=0):
        config = build_memory.Config(share=share, seed=seed)
        return {name for name in names if build_memory._is_held(name, config)}

    shares = (0.01, 0.25, 0.5, 0.9, 1.0)
    sets = [held(share) for share in shares]
    for (share, smaller), larger in zip(zip(shares, sets, strict=True), sets[1:], strict=False):
        assert smaller < larger
        assert len(smaller) == pytest.approx(4000 * share, abs=4 * (4000 * share) ** 0.5)
    assert len(sets[-1]) == 4000
    assert len(held(0.5) & held(0.5, seed=1)) == pytest.approx(1000, abs=130)


def test_what_is_beyond_the_share_is_left_behind_and_counted(shared, embeddings, memory):
    config = build_memory.Config(share=0.5)
    made = shared.run(
        build_memory.BuildMemory(), config, embeddings=Selection.of(embeddings, role=HELD)
    )
    whole = {row["document_id"] for row in shared.rows(memory, "memory")}
    ids = {row["document_id"] for row in shared.rows(made, "memory")}
    assert ids == {name for name in whole if build_memory._is_held(name, config)}
    assert (made.rows_in, made.rows_out) == (54, len(ids))
    assert made.dropped == {"beyond_share": 54 - len(ids)}
    assert made.facts["documents"] == len(ids)
    assert made.facts["finds_itself"] == 1.0


def test_a_share_that_holds_nobody_is_refused(shared, embeddings):
    with pytest.raises(UsageError, match="holds none; raise it"):
        shared.run(
            build_memory.BuildMemory(),
            build_memory.Config(share=1e-9),
            embeddings=Selection.of(embeddings, role={"train"}),
        )


# --- modality of the contexts -----------------------------------------------------------------


@pytest.mark.parametrize("modality", ["both", "text", "image"])
def test_contexts_show_what_the_switch_says_and_keep_their_ids(
    shared, documents, image_tokens, contexts, text_tokenizer, modality
):
    def assemble(**changes):
        train = {"role": {"train"}}
        return shared.run(
            assemble_examples.AssembleExamples(),
            assemble_examples.Config(**changes),
            documents=Selection.of(documents, **train),
            image_tokens=Selection.of(image_tokens, **train),
            contexts=Selection.of(contexts, **train),
            memory_documents=Selection.of(documents, role=HELD),
            memory_tokens=Selection.of(image_tokens, role=HELD),
            text_tokenizer=text_tokenizer,
        )

    whole = examples_of(shared.table(assemble()))
    made = assemble(context_modality=modality)
    for example, full in zip(examples_of(shared.table(made)), whole, strict=True):
        assert (example.example_id, example.main) == (full.example_id, full.main)
        for query, other in zip(example.queries, full.queries, strict=True):
            assert query.document_ids == other.document_ids
            for tokens, before in zip(query.contexts, other.contexts, strict=True):
                assert tokens == before.showing(modality)
                assert bool(tokens.text) == (modality != "image")
                assert bool(tokens.image) == (modality != "text")
