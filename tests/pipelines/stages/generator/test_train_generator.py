"""train_generator: what it logs, that it goes on, what it refuses."""

import math
import sys

import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError

from pipelines.errors import Diverged, UsageError
from pipelines.models import device, load_generator
from pipelines.runtime.reader import Selection
from pipelines.stages import train_generator


def test_every_step_has_the_digest_of_what_it_was_shown(world, generators):
    batches = world.table(generators["ra-cm3"], "training_batches")
    assert batches.column("step").to_pylist() == list(range(24))
    assert max(batches.column("k").to_pylist()) == 2
    vanilla = world.table(generators["vanilla"], "training_batches")
    assert set(vanilla.column("k").to_pylist()) == {0}


def test_training_learns(world, generators):
    log = world.table(generators["ra-cm3"], "training_log").to_pylist()
    losses = [r["value"] for r in log if (r["split"], r["metric"]) == ("validation", "loss")]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["ra-cm3", "vanilla"])
def test_losses_are_logged_by_role_modality_and_position(world, generators, name):
    log = world.table(generators[name], "training_log").to_pylist()
    found = {r["metric"] for r in log if r["split"] == "train"}
    reads = name == "ra-cm3"
    assert {"loss", "main_image", "main_text"} <= found
    assert ("context_image" in found) == reads
    assert ({"main_image_at_0", "main_image_at_18", "context_image_at_0"} <= found) == reads
    assert all(math.isfinite(r["value"]) for r in log)


def test_a_published_generator_reads_back(world, generators):
    loaded = load_generator(world.reader.files(Selection.of(generators["ra-cm3"])))
    assert loaded.layout.image_tokens == 4
    assert loaded.model.config.num_slots == 3


def test_evaluation_examples_are_refused_as_training_data(world, config):
    inputs = world.to_train_on("evaluation")
    with pytest.raises(UsageError, match="evaluation"):
        world.publish(train_generator.TrainGenerator(), config(0), inputs, "t")


class Spoilt(train_generator.TrainGenerator):
    """Its last worker's loss is infinite at one step, as long as a file is there."""

    def __init__(self, step, mark):
        self.step, self.mark = step, mark

    def fit(self, config, inputs, reader, workspace):
        from racm3.training import generator as module

        with self.mark.open("a") as file:
            file.write(f"{workspace.rank}\n")
        whole = module.GeneratorTask.loss

        def spoilt(task, step, **ranks):
            loss, numbers = whole(task, step, **ranks)
            last = ranks["rank"] == ranks["world_size"] - 1
            return loss * (float("inf") if step == self.step and last else 1.0), numbers

        module.GeneratorTask.loss = spoilt
        try:
            return super().fit(config, inputs, reader, workspace)
        finally:
            module.GeneratorTask.loss = whole


class KilledError(Exception):
    pass


def _dies(task):
    raise KilledError


def _spoils_a_weight(task):
    with torch.no_grad():
        task.model.blocks[0].ffn_in.weight[0, 0] = torch.inf


def _interrupted(world, trouble, **changed):
    """Trains until something happens to the task before step 14; returns the error."""
    from racm3.training import generator as module

    whole = module.GeneratorTask.loss

    def troubled(self, step, **ranks):
        if step == 14:
            trouble(self)
        return whole(self, step, **ranks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.GeneratorTask, "loss", troubled)
        with pytest.raises((KilledError, Diverged)) as found:
            world.train(2, **changed)
    return found.value


def _assert_told(world, sentence, label):
    """One sentence names stage, step, batch and examples."""
    assert sentence.startswith(f"stage {label}: step 14 has a loss of ")
    ids = sentence.partition("examples ")[2].partition(":")[0].split(", ")
    examples = world.table(world.examples["train"])
    assert len(ids) == 4
    assert set(ids) <= set(examples.column("example_id").to_pylist())


def test_episodes_are_shown_where_there_are_categories_and_refused_where_there_are_none(world):
    episodes = {"stream": {"episodes": 1.0}}
    shown, plain = world.trained(episodes), world.trained({})
    assert shown.config["stream"]["episodes"] == 1.0
    assert "episodes" not in plain.config["stream"]
    digests = [
        world.table(made, "training_batches").column("batch_digest").to_pylist()
        for made in (shown, plain)
    ]
    assert digests[0] != digests[1]
    table = world.table(world.examples["train"])
    bare = _with(table, "category", pa.nulls(table.num_rows, pa.string()))
    with pytest.raises(UsageError, match=r"stream.episodes is 1.0, but no category"):
        world.trained(episodes, train=world.give_examples("bare", bare))


def test_episodes_of_others_are_refused_where_all_is_of_one_source(world):
    others = {"stream": {"episodes": 1.0, "episode_sources": "others"}}
    table = world.table(world.examples["train"])
    one = _with(table, "source", pa.array(["one"] * table.num_rows))
    with pytest.raises(UsageError, match=r"two concepts by two sources.* episode_sources to any"):
        world.trained(others, train=world.give_examples("one", one))


def _with(table, name, values):
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), values)


@pytest.mark.parametrize("trouble", [_dies, _spoils_a_weight])
def test_an_interrupted_training_goes_on_with_the_same_next_batch(
    world, trouble, monkeypatch, read_events
):
    """Interrupted in the middle, published bytes are those of the undisturbed run."""
    from racm3.training import generator as module

    whole = module.GeneratorTask.loss
    changed = {"steps": 25, "label": f"train_generator[{trouble.__name__}]"}
    undisturbed = world.train(2, steps=25)
    (world.store.root / "generator" / f"{undisturbed.artifact_id}.json").unlink()
    error = _interrupted(world, trouble, **changed)
    if isinstance(error, Diverged):
        _assert_told(world, str(error), changed["label"])
    seen = []

    def watched(self, step, **ranks):
        seen.append(step)
        return whole(self, step, **ranks)

    monkeypatch.setattr(module.GeneratorTask, "loss", watched)
    resumed = world.train(2, **changed)
    assert seen[0] == 12
    shown = [world.table(m, "training_batches").to_pylist()
             for m in (undisturbed, resumed)]  # fmt: skip
    assert shown[0] == shown[1]
    if device() == "cpu":  # a GPU adds up in any order
        assert resumed.content_digest == undisturbed.content_digest
    events = read_events(world.run.folder / "tensorboard" / changed["label"][:-1].replace("[", "."))
    log = world.table(resumed, "training_log").to_pylist()
    expected = {(f"{r['split']}/{r['metric']}", r["step"]): r["value"] for r in log}
    found = {(tag, step): value for tag, step, value in events}
    assert len(found) == len(events)
    assert expected.keys() <= found.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6)


def test_what_a_machine_has_is_no_part_of_the_artifact(world, config):
    base, same = config(2), config(2, workers=2)
    assert base.canonical() == same.canonical()
    assert base.canonical() != config(2, sharding="fsdp2").canonical()


def test_rows_for_every_worker_and_micro_batch_are_asked_for(config):
    for changes in ({"workers": 3}, {"workers": 2, "accumulate": 3}):
        with pytest.raises(ValidationError, match=r"stream\.batch_size 4 cannot be dealt"):
            config(2, **changes)


@pytest.mark.slow  # Ray Train starts; run by make test-all
@pytest.mark.ray
@pytest.mark.timeout(240)
def test_a_sharded_training_of_two_workers_ends_at_once_and_one_process_takes_over(
    world, tmp_path, ray_executor
):
    """FSDP2 under Ray Train: the infinite loss of one worker ends both, without another try."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    changed = {"workers": 2, "sharding": "fsdp2", "steps": 26, "label": "train_generator[two]"}
    undisturbed = world.train(2, **changed)  # in this process: one worker, nothing is sharded
    (world.store.root / "generator" / f"{undisturbed.artifact_id}.json").unlink()
    mark = tmp_path / "tries"
    with pytest.raises(Diverged) as found:
        world.train(2, stage=Spoilt(14, mark), executor=ray_executor, **changed)
    _assert_told(world, str(found.value), changed["label"])
    assert sorted(mark.read_text().split()) == ["0", "1"]
    resumed = world.train(2, **changed)
    log, other = (
        {
            (row["step"], row["split"], row["metric"]): row["value"]
            for row in world.table(made, "training_log").to_pylist()
        }
        for made in (undisturbed, resumed)
    )
    assert ("validation", "image_ppl_k2") in {key[1:] for key in log}
    shown = [world.table(made, "training_batches").to_pylist() for made in (undisturbed, resumed)]
    assert shown[0] == shown[1]  # whole batches, whoever reads them
    assert other == pytest.approx(log, rel=1e-4)
