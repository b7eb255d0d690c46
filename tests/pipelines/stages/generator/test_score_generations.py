"""score_generations: every row that is asked for, and few-shot trials."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.models import load_generator, load_text_tokenizer
from pipelines.records import examples_of
from pipelines.runtime.reader import Selection
from pipelines.runtime.stage import Workspace
from pipelines.stages import score_generations


def test_the_order_of_the_contexts_reaches_the_perplexities(world, generators):
    from pipelines.scoring.perplexities import Contender, _nll

    examples = examples_of(world.table(world.examples["evaluation"], "examples"))
    loaded = load_generator(world.reader.files(Selection.of(generators["ra-cm3"])))
    first, last = (
        _nll(
            Contender(name="ra", generator=loaded, reads_contexts=True, order=order),
            some, "image", 2, None, 0,
        ).nll
        for order, some in (
            ("best_last", examples),
            ("best_first", [_turned(example) for example in examples]),
        )
    )  # fmt: skip
    assert first.tolist() == last.tolist()


def _turned(example):
    queries = [
        replace(q, contexts=q.contexts[::-1], document_ids=q.document_ids[::-1])
        for q in example.queries
    ]
    return replace(example, queries=tuple(queries))


@pytest.fixture(scope="module")
def score_inputs(world, generators, generations):
    return {
        "generator.ra-cm3": generators["ra-cm3"],
        "generator.vanilla": generators["vanilla"],
        "generations.ra-cm3.restricted": generations["ra-cm3"],
        "generations.vanilla.none": generations["vanilla"],
        "examples.restricted": world.examples["evaluation"],
        "train": world.examples["train"],
        "documents": world.documents,
        "scorer": world.scorer,
        "image_tokenizer": world.images,
        "text_tokenizer": world.text,
    }


def _scores(world, inputs, **config):
    """Rows, and facts of the manifest."""
    scores = world.publish(
        score_generations.ScoreGenerations(),
        score_generations.Config(resamples=200, **config),
        inputs,
        "score_generations",
    )
    return world.table(scores).to_pylist(), scores.facts


def test_few_shot_rows_for_every_model_k_and_slice(world, score_inputs):
    """Four colours in two categories that training does not have: one demonstration at most."""
    inputs = score_inputs | {"text_tokenizer": world.text}
    rows, facts = _scores(world, inputs, few_shot={"trials": 20})
    slices = {"squares": [2, 4, 8], "squares, new categories": [2, 4, 8]}
    assert facts == {"few_shot_left_out": slices}
    told = {
        (r["metric"], r["model"], r["group"], r["k"]): r for r in rows if r["task"] == "classify"
    }
    slices = ("", "new categories")
    ways = ("few_shot", "few_shot_channel")
    models = ("ra-cm3", "vanilla")
    expected = {(f"{way}_accuracy", m, g, 1) for way in ways for m in models for g in slices}
    expected |= {(f"{way}_gain", "ra-cm3", g, 1) for way in ways for g in slices}
    assert set(told) == expected
    for (metric, model, group, _), row in told.items():
        assert (row["n"], row["set"], row["memory"]) == (20, "squares", "demonstrations")
        assert row["low"] <= row["value"] <= row["high"]
        if metric.endswith("_gain"):
            accuracy = metric.replace("_gain", "_accuracy")
            both = [told[accuracy, m, group, 1]["value"] for m in (model, "vanilla")]
            assert row["value"] == pytest.approx(both[0] - both[1])
        else:
            assert "two of 2 categories" in row["protocol"]
            if metric == "few_shot_accuracy":
                assert row["reference"].startswith("RA-CM3 0.78")
            else:  # the paper did not ask so
                assert row["reference"] is None
                assert "likelihood of the image's codes" in row["protocol"]


@pytest.mark.parametrize(
    "asked", [{"trials": 0}, {"trials": 6}, {"trials": 6, "categories": "new"}]
)
def test_whoever_waits_is_told_of_every_part_once_and_of_no_more(
    world, score_inputs, asked, tmp_path
):
    told = []
    workspace = Workspace(
        progress=tmp_path,
        staging=tmp_path,
        events=tmp_path,
        report=lambda *said: told.append(said),
    )
    score_generations.ScoreGenerations().fit(
        score_generations.Config(resamples=2, few_shot=asked),
        {name: Selection.of(made) for name, made in score_inputs.items()},
        world.reader,
        workspace,
    )
    (total,) = {total for _, total, _ in told}
    parts = [(done, note) for done, _, note in told if "sequences" not in note]
    assert [done for done, _ in parts] == list(range(1, total + 1))
    assert len({note for _, note in parts}) == total
    read = [note for _, _, note in told if "sequences" in note]
    assert bool(read) == bool(asked["trials"])
    for note in read:
        few_shot, numbers = note.rsplit(", ", 1)
        done, _, of = numbers.removesuffix(" sequences").replace(",", "").partition(" of ")
        assert 1 <= int(done) <= int(of)
        assert few_shot in {one for _, one in parts}


def test_few_shot_alone_needs_neither_generations_nor_a_scorer(world, score_inputs):
    """Demonstrated by training documents that somebody else made, of the same categories."""
    asked = {"generations.ra-cm3.restricted", "generations.vanilla.none", "scorer"}
    inputs = {name: one for name, one in score_inputs.items() if name not in asked}
    inputs |= world.give_documents(
        "others",
        [
            row | {"source": row["role"], "category": world.categories[row["concept"]]}
            for row in world.rows
        ],
    )
    few_shot = {
        "trials": 20, "ks": (1,), "methods": ("channel",),
        "demonstrations": "others", "pooling": "average",
    }  # fmt: skip
    rows, _ = _scores(world, inputs, few_shot=few_shot)
    assert {row["task"] for row in rows} >= {"image", "caption", "classify"}
    assert not [row for row in rows if row["metric"] in ("kid", "cider", "copy_rate")]
    told = [row for row in rows if row["task"] == "classify"]
    assert {row["metric"] for row in told} == {
        "few_shot_channel_accuracy",
        "few_shot_channel_gain",
    }
    assert {row["memory"] for row in told} == {"demonstrations by others"}
    for row in told:
        assert row["n"] == 20
        if row["metric"].endswith("accuracy"):
            assert "demonstrations are of the memory, by others" in row["protocol"]
            assert "which are averaged" in row["protocol"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ks": ()}, "one number"),
        ({"ks": (0, 1)}, "from 1 on"),
        ({"labels": ("dax", "dax")}, "different"),
        ({"labels": ("dax", "")}, "empty"),
    ],
)
def test_few_shot_settings_that_ask_nothing_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        score_generations.Config(few_shot=wrong)


def test_the_score_table_has_every_row_that_was_asked_for(world, score_inputs):
    rows, facts = _scores(world, score_inputs)
    assert facts == {}
    assert not [row for row in rows if row["task"] == "classify"]
    found = {(r["metric"], r["model"], r["task"], r["group"], r["k"], r["memory"]): r for r in rows}
    for k, memory in ((0, ""), (1, "restricted"), (2, "restricted"), (2, "wrong")):
        assert ("image_perplexity", "ra-cm3", "image", "", k, memory) in found
        assert ("caption_perplexity", "ra-cm3", "caption", "", k, memory) in found
    assert ("image_perplexity", "vanilla", "image", "", 0, "") in found
    assert not [key for key in found if key[:2] == ("image_perplexity", "vanilla") and key[4]]
    ratio = found["perplexity_ratio", "ra-cm3", "image", "", 2, "restricted"]
    expected = (
        found["image_perplexity", "ra-cm3", "image", "", 2, "restricted"]["value"]
        / found["image_perplexity", "vanilla", "image", "", 0, ""]["value"]
    )
    assert ratio["value"] == pytest.approx(expected)
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    difference = found["nll_difference", "ra-cm3", "image", "", 2, "restricted"]
    assert difference["value"] == pytest.approx(np.log(ratio["value"]))
    for metric in ("token_accuracy", "psnr", "clip_score"):
        for model, k, memory in (
            ("ra-cm3", 2, "restricted"),
            ("vanilla", 0, ""),
            ("copy the top document", 1, "restricted"),
        ):
            assert (metric, model, "image", "", k, memory) in found
    assert ("cider", "copy the top document", "caption", "", 1, "restricted") in found
    assert ("psnr", "image tokenizer", "image", "", 0, "") in found
    assert ("token_accuracy_ratio", "ra-cm3", "image", "", 2, "restricted") in found
    for of in ("codes", "features"):
        for model in ("ra-cm3", "original images"):
            rate = found[f"copy_rate_{of}", model, "image", "", 2, "restricted"]
            mean = found[f"context_agreement_{of}", model, "image", "", 2, "restricted"]
            assert rate["n"] == mean["n"] == 9
            assert 0 <= rate["value"] <= 1
            assert rate["value"] <= mean["value"] / (0.9 if of == "codes" else 0.95) + 1e-6
        assert not [key for key in found if key[:2] == (f"copy_rate_{of}", "vanilla")]
    for task in ("image", "caption"):  # by construction both contexts are of the concept
        assert found["recall_at_1", "retriever", task, "", 2, "restricted"]["value"] == 1.0
    for model in ("ra-cm3", "vanilla"):
        assert found["training_flops", model, "", "", 0, ""]["value"] > 0
    pixels = world.rows[0]["pixels"][:, :, 0].size
    codes = len(_evaluation(world, "image_tokens")[0])
    for model, k, memory in (
        ("ra-cm3", 2, "restricted"),
        ("ra-cm3", 2, "wrong"),
        ("vanilla", 0, ""),
    ):
        bits = found["bits_per_pixel", model, "image", "", k, memory]["value"]
        perplexity = found["image_perplexity", model, "image", "", k, memory]["value"]
        assert bits == pytest.approx(np.log2(perplexity) * codes / pixels)
        bits = found["bits_per_byte", model, "caption", "", k, memory]["value"]
        perplexity = found["caption_perplexity", model, "caption", "", k, memory]["value"]
        assert bits == pytest.approx(np.log2(perplexity) * _tokens_per_byte(world))
    cider = {
        model: found["cider", model, "caption", "", k, memory]["value"]
        for model, k, memory in (
            ("ra-cm3", 2, "restricted"),
            ("vanilla", 0, ""),
            ("copy the top document", 1, "restricted"),
        )
    }
    ours = "ra-cm3", "caption", "", 2, "restricted"
    gain = found["cider_gain", *ours]
    assert gain["value"] == pytest.approx(cider["ra-cm3"] - cider["vanilla"])
    over = found["cider_gain_over_copy", *ours]
    assert over["value"] == pytest.approx(cider["ra-cm3"] - cider["copy the top document"])
    assert {row["better"] for row in rows if row["metric"].startswith("cider")} == {"higher"}
    assert {row["better"] for row in rows if row["metric"].startswith("bits")} == {"lower"}


def _evaluation(world, column):
    shards = world.examples["evaluation"].tables("examples")
    return world.reader.tables(shards).column(column).to_pylist()


def _tokens_per_byte(world):
    """Of the captions as they were measured: cut to 12 tokens."""
    text = load_text_tokenizer(world.reader.files(Selection.of(world.text)))
    cut = [ids[:12] for ids in _evaluation(world, "text_tokens")]
    return sum(map(len, cut)) / sum(len(text.decode(ids).encode()) for ids in cut)


def test_weights_of_inception_are_known_by_their_digest():
    digest = "0" * 64
    one, other = (
        score_generations.Config.model_validate({"inception": {"path": path, "sha256": digest}})
        for path in ("/here/weights.pth", "/there/weights.pth")
    )
    assert one.canonical() == other.canonical()
    assert one.canonical()["inception"] == {"sha256": digest}
    assert score_generations.Config.model_validate(one.model_dump()) == one
    assert score_generations.Config().canonical()["inception"] is None
