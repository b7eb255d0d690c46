"""Every task of `generate`, its candidates, and inputs that do not fit together."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UsageError
from pipelines.generation.asking import Canvas, ask
from pipelines.records import examples_of, image_array
from pipelines.runtime.reader import Selection
from pipelines.stages import generate, train_generator
from pipelines.stages.assemble_examples import AssembleExamples
from pipelines.stages.assemble_examples import Config as AssembleConfig
from racm3.sampling.decode import SamplingConfig
from racm3.training.records import FitConfig
from racm3.training.stream import StreamConfig
from storage_schemas.tables import TABLES

TASKS = ("image", "caption", "infill", "edit", "demonstrate")
SIDE, GRID = 16, 2


@pytest.fixture(scope="module")
def assembled(shared, documents, image_tokens, contexts, text_tokenizer):
    """Examples of one role."""

    def make(role):
        memory = {"train", "memory"}
        return shared.run(
            AssembleExamples(),
            AssembleConfig(max_text_tokens=40),
            documents=Selection.of(documents, role={role}),
            image_tokens=Selection.of(image_tokens, role={role}),
            contexts=Selection.of(contexts, role={role}),
            memory_documents=Selection.of(documents, role=memory),
            memory_tokens=Selection.of(image_tokens, role=memory),
            text_tokenizer=text_tokenizer,
        )

    return make


@pytest.fixture(scope="module")
def train(shared, assembled, text_tokenizer, image_tokenizer):
    """A generator of a few steps that reads so many contexts."""

    def make(max_k, **changed):
        config = train_generator.Config(
            layers=1,
            width=24,
            heads=2,
            positions="document",
            init_std=0.2,
            num_sentinels=16,
            stream=StreamConfig(batch_size=4, max_k=max_k, max_text_tokens=40, max_length=256),
            fit=FitConfig(steps=4, learning_rate=5e-3, warmup_steps=2, validate_every=4),
            validation_k=max_k,
            validation_ks=(0, max_k),
        )
        inputs = {
            "train": assembled("train"),
            "validation": assembled("validation"),
            "text_tokenizer": text_tokenizer,
            "image_tokenizer": image_tokenizer,
        }
        return shared.run(train_generator.TrainGenerator(), config, **(inputs | changed))

    return make


@pytest.fixture(scope="module")
def run(shared, assembled, train, text_tokenizer, image_tokenizer):
    """Rows of `generations`, and their manifest."""

    def make(max_k=2, **options):
        inputs = {
            "generator": train(max_k),
            "examples": assembled("evaluation"),
            "text_tokenizer": text_tokenizer,
            "image_tokenizer": image_tokenizer,
        }
        named = ("encoder", "embeddings", *inputs)
        inputs |= {k: options.pop(k) for k in named if k in options}
        config = generate.Config(
            **({"model": "ra", "memory": "restricted", "tasks": TASKS, "k": max_k} | options)
        )
        made = shared.run(generate.Generate(), config, **inputs)
        return shared.rows(made), made

    return make


@pytest.fixture(scope="module")
def rows(run):
    found, made = run()
    assert made.rows_in == made.rows_out == len(found) == 5 * 6
    return {task: {r["prompt_id"]: r for r in found if r["task"] == task} for task in TASKS}


@pytest.fixture(scope="module")
def examples(shared, assembled):
    return {row["document_id"]: row for row in shared.rows(assembled("evaluation"))}


def test_tasks_beside_them_leave_images_and_captions_as_they_are(run, rows):
    for row in run(tasks=("image", "caption"))[0]:
        assert rows[row["task"]][row["prompt_id"]] == row


def test_an_infill_keeps_what_is_around_the_box(rows, examples):
    for name, row in rows["infill"].items():
        assert row["box"] == [0, SIDE // 2, SIDE, SIDE]
        assert row["output_tokens"][:2] == examples[name]["image_tokens"][:2]
        assert len(row["output_tokens"]) == GRID * GRID
        assert image_array(row["image"]).shape == (SIDE, SIDE, 3)
        assert row["contexts"] == rows["image"][name]["contexts"]
        assert row["prompt"] == rows["image"][name]["prompt"]
    assert any(
        row["output_tokens"][2:] != examples[name]["image_tokens"][2:]
        for name, row in rows["infill"].items()
    )


def test_an_edit_reads_a_document_of_another_caption_and_asks_for_it(shared, documents, rows):
    captions = {r["document_id"]: r["caption"] for r in shared.rows(documents)}
    for name, row in rows["edit"].items():
        (supplied,) = row["contexts"]
        retrieved = rows["caption"][name]["contexts"]
        assert supplied == [one for one in retrieved if captions[one] != captions[name]][-1]
        assert row["prompt"] == captions[supplied] != captions[name]
        assert row["box"] == [SIDE // 4, SIDE // 4, 3 * SIDE // 4, 3 * SIDE // 4]


def test_edits_may_have_a_sampler_of_their_own(run, rows):
    how = SamplingConfig(temperature=1.0, guidance=4.0, null_lacks="contexts")
    found = run(tasks=("image", "edit"), edits=how)[0]
    for row in found:
        before, sampler = rows[row["task"]][row["prompt_id"]], json.loads(row["sampler"])
        if row["task"] == "image":
            assert row == before
        else:
            assert (sampler["guidance"], sampler["null_lacks"]) == (4.0, "contexts")
            assert row["generation_id"] != before["generation_id"]


def test_an_example_that_found_only_its_own_caption_has_no_edit(shared, examples):
    row = next(iter(examples.values()))
    own = row | {"candidate_text": [row["text_tokens"]] * len(row["candidate_ids"])}
    (example,) = examples_of(pa.Table.from_pylist([own], schema=TABLES["examples"].arrow))
    canvas = Canvas(size=(SIDE, SIDE), grid=(GRID, GRID))
    assert ask(example, "edit", 2, canvas) is None
    assert ask(example, "infill", 2, canvas) is not None


def test_demonstrations_are_what_the_picture_retrieves_in_that_order(rows):
    for name, row in rows["demonstrate"].items():
        assert row["contexts"] == rows["caption"][name]["contexts"]
        assert row["prompt"] == rows["image"][name]["prompt"]
        assert row["box"] is None


def test_without_contexts_the_same_is_asked_without_them(run, rows):
    bare = [r for r in run(max_k=0, memory=None, model="vanilla")[0] if r["task"] == "edit"]
    for row in bare:
        assert row["contexts"] == []
        assert row["prompt"] == rows["edit"][row["prompt_id"]]["prompt"]
        assert row["seed"] == rows["edit"][row["prompt_id"]]["seed"]


def test_a_drawn_box_depends_on_seed_and_document_alone(run):
    first, again, other = (
        {r["prompt_id"]: r["box"] for r in run(tasks=("infill",), infill_box="seeded", **o)[0]}
        for o in ({}, {"prompts_per_shard": 2}, {"seed": 1})
    )
    assert first == again != other
    assert all((b[2] - b[0], b[3] - b[1]) == (SIDE // 2, SIDE // 2) for b in first.values())


def test_a_box_is_part_of_the_identity(run, rows):
    (row, *_), _ = run(tasks=("infill",), infill_box="right_half")
    assert row["generation_id"] != rows["infill"][row["prompt_id"]]["generation_id"]


def test_the_best_of_several_is_kept(run, rows, encoder):
    candidates = {"image": {"count": 5}, "caption": {"count": 4}}
    sampling = {
        "images": SamplingConfig(temperature=3.0),
        "captions": SamplingConfig(temperature=3.0, no_repeat_ngram=2),
    }
    found, made = run(candidates=candidates, encoder=encoder, **sampling)
    assert len(found) == 30
    for row in found:
        count = candidates.get(row["task"], {"count": 1})["count"]
        assert len(row["candidate_scores"]) == count
        sampler = json.loads(row["sampler"])
        assert sampler.get("candidates", 1) == count
        assert sampler.get("rank") == {"image": "clip", "caption": "likelihood"}.get(row["task"])
    assert {i.name for i in made.inputs} >= {"encoder"}
    images = [r for r in found if r["task"] == "image"]
    assert all(-1 <= s <= 1 for r in images for s in r["candidate_scores"])
    assert len({int(np.argmax(r["candidate_scores"])) for r in images}) > 1
    single = {r["prompt_id"]: r for r in run(tasks=("image",), **sampling)[0]}
    for row in images:
        first = single[row["prompt_id"]]
        kept_first = int(np.argmax(row["candidate_scores"])) == 0
        assert (row["output_tokens"] == first["output_tokens"]) or not kept_first


def test_ranking_by_clip_needs_an_encoder(run):
    with pytest.raises(UsageError, match="need the retriever's encoder"):
        run(candidates={"image": {"count": 2}})


def test_captions_are_ranked_by_the_picture_itself(shared, run, encoder, embeddings):
    """The kept caption is the candidate whose cosine with the picture's own vector is largest."""
    from pipelines.models import load_encoder

    how = {"tasks": ("caption",), "captions": SamplingConfig(temperature=3.0)}
    ranked = {"caption": {"count": 4, "rank": "clip"}}
    asked = Selection.of(embeddings, role={"evaluation"})
    found, made = run(candidates=ranked, encoder=encoder, embeddings=asked, **how)
    assert {i.name for i in made.inputs} >= {"encoder", "embeddings"}
    vectors = {row["document_id"]: row["image_vector"] for row in shared.rows(embeddings)}
    clip = load_encoder(shared.reader.files(Selection.of(encoder)))
    for row in found:
        cosine = float(clip.encode_text([row["caption"]])[0] @ np.array(vectors[row["prompt_id"]]))
        assert max(row["candidate_scores"]) == pytest.approx(cosine, abs=1e-5)
    with pytest.raises(UsageError, match="need the prompts' embeddings"):
        run(candidates=ranked, encoder=encoder, **how)


def test_a_generator_of_another_tokenizer_is_refused(
    shared, documents, image_tokenizer_config, run, train
):
    """Both artifacts are named, and both tokenizers."""
    from pipelines.stages.train_image_tokenizer import TrainImageTokenizer

    other = shared.run(
        TrainImageTokenizer(),
        image_tokenizer_config.model_copy(
            update={"fit": replace(image_tokenizer_config.fit, steps=13)}
        ),
        documents=Selection.of(documents, role={"train"}),
        validation=Selection.of(documents, role={"validation"}),
    )
    mine = train(2).artifact_id
    with pytest.raises(
        UsageError, match=rf"generator {mine} .* image_tokenizer .*{other.artifact_id}"
    ):
        run(image_tokenizer=other)
    with pytest.raises(UsageError, match=rf"examples .*{other.artifact_id}"):
        train(2, image_tokenizer=other)
