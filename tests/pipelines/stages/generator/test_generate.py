"""generate: samples, their contexts and their seeds."""

from collections import Counter

import pytest

from pipelines.errors import PoisonedShards
from pipelines.stages import generate


def test_one_sample_a_prompt_and_task_with_contexts_in_the_order_fed(world, generations):
    rows = world.table(generations["ra-cm3"], "generations").to_pylist()
    evaluation = [r for r in world.rows if r["role"] == "evaluation"]
    assert len(rows) == 2 * len(evaluation)
    examples = world.table(world.examples["evaluation"]).to_pylist()
    candidates = {e["document_id"]: e["candidate_ids"] for e in examples}
    for row in rows:
        first, second = candidates[row["prompt_id"]]
        image = row["task"] == "image"
        assert row["contexts"] == ([first, second] if image else [second, first])
        assert (row["image"] is not None) == image
        assert (row["caption"] is None) == image
        assert row["generator"] == generations["ra-cm3"].inputs[1].artifact_id
    assert len({r["generation_id"] for r in rows}) == len(rows)


def test_more_images_a_prompt_go_on_from_the_first(world, generators, generations):
    config = generate.Config(
        model="ra-cm3", memory="restricted", prompts_per_shard=4, images_per_prompt=3
    )
    inputs = world.to_generate(generators["ra-cm3"])
    more = world.publish(generate.Generate(), config, inputs, "generate")
    many = {r["generation_id"]: r for r in world.table(more, "generations").to_pylist()}
    single = world.table(generations["ra-cm3"], "generations").to_pylist()
    asked = Counter((r["prompt_id"], r["task"]) for r in many.values())
    assert asked == {(r["prompt_id"], r["task"]): 3 if r["image"] else 1 for r in single}
    assert more.rows_in == more.rows_out == len(many) == 2 * len(single)
    for row in single:
        other = many[row["generation_id"]]
        assert other["output_tokens"] == row["output_tokens"]
        assert other["image"] == row["image"]
        # summed in batches of other sizes
        assert other["log_likelihood"] == pytest.approx(row["log_likelihood"], rel=1e-5)


def test_seeds_do_not_depend_on_the_model(world, generations):
    seeds = [
        {(r["prompt_id"], r["task"]): r["seed"] for r in world.table(m).to_pylist()}
        for m in generations.values()
    ]
    assert seeds[0] == seeds[1]


def test_prompts_are_chosen_by_document_whatever_the_shards_and_the_memory():
    def rows(memory, shards):
        return [
            (
                n % shards,
                {
                    "example_id": f"{(7 * n + memory) % 9}",
                    "document_id": f"{n:02d}",
                    "set": "s",
                    "group": "ab"[n % 2],
                },
            )
            for n in range(9)
        ]

    for memory, shards in ((0, 3), (4, 2)):
        chosen = generate._choose(rows(memory, shards), 2)
        assert sorted(r["document_id"] for _, r in chosen) == ["00", "01", "02", "03"]
    assert generate._choose(rows(0, 3), None) == rows(0, 3)


@pytest.mark.parametrize("order", ["best_first", "best_last", "shuffled"])
def test_contexts_are_fed_in_the_order_that_is_named(world, generators, generations, order):
    config = generate.Config(
        model="ra-cm3", memory="restricted", k=2, tasks=("caption",), context_order=order
    )
    inputs = world.to_generate(generators["ra-cm3"])
    made = world.publish(generate.Generate(), config, inputs, "generate")
    ranked = {
        row["prompt_id"]: row
        for row in world.table(generations["ra-cm3"]).to_pylist()
        if row["task"] == "caption"
    }
    turned = 0
    for row in world.table(made).to_pylist():
        best_first = ranked[row["prompt_id"]]["contexts"]
        assert sorted(row["contexts"]) == sorted(best_first)
        turned += row["contexts"] == best_first[::-1]
        if order == "best_first":
            whole = ranked[row["prompt_id"]]["log_likelihood"]  # summed in batches of other sizes
            assert row["log_likelihood"] == pytest.approx(whole, rel=1e-5)
    least, most = {"best_first": (0, 0), "best_last": (9, 9), "shuffled": (1, 8)}[order]
    assert least <= turned <= most


def test_a_lost_sample_is_noticed(world, generators, monkeypatch):
    whole = generate.Writer.write

    def loses_one(self, table):
        written, dropped = whole(self, table)
        return written[1:], dropped

    monkeypatch.setattr(generate.Writer, "write", loses_one)
    inputs = world.to_generate(generators["vanilla"])
    config = generate.Config(model="vanilla", k=0, tasks=("caption",), seed=1)
    with pytest.raises(PoisonedShards, match="this is a defect"):
        world.publish(generate.Generate(), config, inputs, "generate")
