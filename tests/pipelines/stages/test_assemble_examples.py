from __future__ import annotations

import pytest

from pipelines.errors import PipelineError
from pipelines.models import load_text_tokenizer
from pipelines.records import examples_of
from pipelines.runtime.reader import Selection
from pipelines.stages.assemble_examples import AssembleExamples, Config
from storage_schemas.ids import example_id
from storage_schemas.manifest import Manifest


@pytest.fixture(scope="module")
def assemble(shared, documents, image_tokens, contexts, text_tokenizer):
    def make(config: Config, **where) -> Manifest:
        held = {"train", "memory"}
        return shared.run(
            AssembleExamples(),
            config,
            documents=Selection.of(documents, **where),
            image_tokens=Selection.of(image_tokens, **where),
            contexts=Selection.of(contexts, **where),
            memory_documents=Selection.of(documents, role=held),
            memory_tokens=Selection.of(image_tokens, role=held),
            text_tokenizer=text_tokenizer,
        )

    return make


def test_an_example_holds_what_its_parts_say(
    shared, documents, image_tokens, contexts, text_tokenizer, assemble
):
    made = assemble(Config(memory="extended", max_text_tokens=64), role={"train"})
    tokenizer = load_text_tokenizer(shared.reader.files(Selection.of(text_tokenizer)))
    captions = {row["document_id"]: row["caption"] for row in shared.rows(documents)}
    codes = {row["document_id"]: row["codes"] for row in shared.rows(image_tokens)}
    asked = {(r["document_id"], r["query"], r["draw"]): r for r in shared.rows(contexts)}
    examples = examples_of(shared.table(made))
    assert len(examples) == made.rows_in == made.rows_out == 48
    for example in examples:
        assert example.example_id == example_id(example.document_id, "extended")
        assert tokenizer.decode(example.main.text) == captions[example.document_id]
        assert list(example.main.image) == codes[example.document_id]
        assert [(q.query, q.draw) for q in example.queries] == [
            ("text", 0),
            ("text", 1),
            ("text", 2),
            ("image", 0),
        ]
        for query in example.queries:
            row = asked[example.document_id, query.query, query.draw]
            assert list(query.document_ids) == row["context_ids"]
            for name, tokens in zip(query.document_ids, query.contexts, strict=True):
                assert tokenizer.decode(tokens.text) == captions[name]
                assert list(tokens.image) == codes[name]
    assert made.counts.get("captions_cut", 0) == 0


def test_candidates_are_stored_once(shared, assemble):
    made = assemble(Config(), role={"train"})
    for row in shared.rows(made):
        assert len(set(row["candidate_ids"])) == len(row["candidate_ids"])
        used = {hit for hits in row["hits"] for hit in hits}
        assert used == set(range(len(row["candidate_ids"])))


def test_cut_captions_are_counted(shared, text_tokenizer, documents, assemble):
    made = assemble(Config(max_text_tokens=3), role={"validation"})
    rows = shared.rows(made)
    assert {len(row["text_tokens"]) for row in rows} == {3}
    tokenizer = load_text_tokenizer(shared.reader.files(Selection.of(text_tokenizer)))
    captions = [
        row["caption"]
        for row in shared.rows(documents)
        if row["role"] == "validation" and row["outcome"] == "kept"
    ]
    lost = sum(len(tokenizer.encode(caption)) - 3 for caption in captions)
    assert made.counts == {"captions_cut": len(captions), "text_tokens_cut": lost}


def test_roles_sets_and_groups_come_along(shared, assemble):
    made = assemble(Config(), role={"evaluation"}, set={"drawn"})
    assert {(row["role"], row["set"]) for row in shared.rows(made)} == {("evaluation", "drawn")}
    assert {row["group"] for row in shared.rows(made)} <= {"red", "green", "blue", "black"}
    assert all(row["category"] == row["group"] for row in shared.rows(made))
    assert {shard.tags["role"] for shard in made.shards} == {"evaluation"}


def test_contexts_without_their_documents_are_an_error(
    shared, documents, image_tokens, contexts, text_tokenizer
):
    with pytest.raises(PipelineError, match="0 shards of documents"):
        shared.run(
            AssembleExamples(),
            Config(),
            documents=Selection.of(documents, role={"validation"}),
            image_tokens=image_tokens,
            contexts=contexts,
            memory_documents=documents,
            memory_tokens=image_tokens,
            text_tokenizer=text_tokenizer,
        )
