"""train_generator: sizes, a start from other weights, switches that change no loss."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from pipelines.errors import UsageError
from pipelines.models import load_generator
from pipelines.runtime.reader import Selection


def _weights(world, manifest):
    loaded = load_generator(world.reader.files(Selection.of(manifest)))
    return loaded.model, loaded.model.state_dict()


def test_a_size_is_a_shape_and_what_is_given_wins(world):
    none = dict.fromkeys(("layers", "width", "heads", "init_std"))
    made = world.trained({"size": "tiny", **none, "positions": "rope", "layers": 1})
    shape = _weights(world, made)[0].config
    assert (shape.layers, shape.width, shape.heads) == (1, 96, 3)
    assert (shape.activation, shape.init_std, shape.max_length) == ("relu", 0.1, 512)
    assert shape.num_slots == 3


def test_contexts_without_slots_share_that_of_the_main_document(world):
    shared, told = world.trained({"context_slots": False}), world.trained({})
    assert _weights(world, shared)[0].config.num_slots == 1
    assert shared.artifact_id != told.artifact_id
    assert "context_slots" not in told.config, "those made before it came keep their ids"
    with pytest.raises(ValidationError, match='positions "rope" have none'):
        world.trained({"context_slots": False, "positions": "rope"})


def test_a_generator_starts_from_the_weights_of_another(world, generators):
    """With no learning to speak of, they are those weights, apart from slots that are new."""
    start = generators["vanilla"]
    fit = {"learning_rate": 1e-12, "weight_decay": 0.0}
    made = world.trained({"fit": fit}, start=start)
    (old, before), (new, after) = _weights(world, start), _weights(world, made)
    assert (old.config.num_slots, new.config.num_slots) == (1, 3)
    for name, value in before.items():
        other = after[name][:1] if name == "slots.weight" else after[name]
        torch.testing.assert_close(other, value, atol=1e-6, rtol=0)
    fresh = _weights(world, world.trained({"fit": fit}))[1]
    assert not torch.allclose(fresh["tokens.weight"], after["tokens.weight"], atol=1e-2)
    assert [one.artifact_id for one in made.inputs if one.name == "start"] == [start.artifact_id]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 48}, r"they differ in width \(48 here, 24 there\), ffn_width .*; give both"),
        ({"positions": "rope"}, r"they differ in positions \(rope here, document there\)"),
        ({"num_sentinels": 20}, "they differ in vocabulary"),
        ({"stream": {"max_text_tokens": 13}}, r"max_text_tokens differ \(13, 12\)"),
    ],
)
def test_a_start_of_another_shape_is_refused(world, generators, changes, said):
    start = generators["vanilla"]
    with pytest.raises(UsageError, match=said) as caught:
        world.trained(changes, start=start)
    assert f"cannot start from generator {start.artifact_id[:12]}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["text_tokenizer", "image_tokenizer"])
def test_a_start_of_another_tokenizer_is_refused_by_both_ids(world, generators, name):
    label = f"another {name}"
    if name == "text_tokenizer":
        made = world.give_text_tokenizer([f"other words {n}" for n in range(40)], label)
    else:
        negatives = [dict(row, pixels=255 - row["pixels"]) for row in world.rows]
        made = world.give_image_tokenizer(negatives, label)
    old = {"text_tokenizer": world.text, "image_tokenizer": world.images}[name]
    if made.artifact_id == old.artifact_id:  # what is given is no part of its id
        made = replace(made, shards=tuple(replace(s, row_digest="other") for s in made.shards))
    with pytest.raises(UsageError, match=f"trained with {name} {old.artifact_id[:12]}, this one"):
        world.trained({}, start=generators["vanilla"], **{name: made})


def test_recomputed_activations_and_packed_rows_train_alike(world):
    """The losses agree to rounding; the batches shown are the same."""
    stream = {"k_per_batch": False}
    plain = world.trained({"stream": stream})
    packed = stream | {"pack_length": 300}
    switched = world.trained({"stream": packed, "checkpoint_activations": True})
    shown = [world.table(made, "training_batches").to_pylist() for made in (plain, switched)]
    assert shown[0] == shown[1]
    logs = [
        {
            (row["step"], row["split"], row["metric"]): row["value"]
            for row in world.table(made, "training_log").to_pylist()
            if row["metric"].startswith(("loss", "main", "context", "image", "caption"))
        }
        for made in (plain, switched)
    ]
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    assert len(logs[0]) > 8
