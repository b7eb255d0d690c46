"""Two ranks, and micro-batches, are one rank that reads the whole batch: laws, DDP and FSDP2."""

import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from racm3.training.checkpoint import CheckpointError, valid_checkpoints
from racm3.training.fit import fit
from racm3.training.sharding import shard_blocks
from racm3.training.tallies import added, means

HELPER = Path(__file__).with_name("two_ranks.py")
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(120)  # for the fixture, where cores are shared


@pytest.fixture(scope="module")
def helper():
    spec = importlib.util.spec_from_file_location("two_ranks", HELPER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["two_ranks"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["two_ranks"]


@pytest.fixture(scope="module")
def folder(helper, tmp_path_factory):
    """What two ranks made of everything, and a run that one rank was interrupted in."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.raises(helper.Interruption):
        one_rank(helper, folder / "by-one", stop=helper.STOP)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, HELPER, folder], env=environment, check=True, timeout=110)
    return folder


@pytest.fixture(scope="module")
def alone(helper):
    """The undisturbed run of one rank."""
    return one_rank(helper, None)


def one_rank(helper, where, config=None, wrap=None, **trouble):
    task = helper.Task(**trouble)
    config = config or helper.CONFIG
    result = fit(task, config, checkpoint_dir=where, validate=helper.validation(), wrap=wrap)
    return task.model.state_dict(), helper.comparable(result.log)


def read(folder, name, rank=0):
    tensors = load_file(folder / f"{name}-{rank}.safetensors")
    return tensors, json.loads((folder / f"{name}-{rank}.json").read_text())


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name, **tolerance)


def assert_same_log(found, expected, *, rel):
    """Equal rows, but for summation; FLOPs and tokens count the padding of each rank's rows."""
    assert [(row["step"], row["split"]) for row in found] == [
        (row["step"], row["split"]) for row in expected
    ]
    for row, other in zip(found, expected, strict=True):
        assert row["metrics"] == pytest.approx(other["metrics"], rel=rel)
        assert row["learning_rate"] == other["learning_rate"]
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=rel)


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_micro_batches_add_up_to_one_batch(helper, parts):
    whole, numbers = helper.gradients(helper.Task(), parts=1)
    found, found_numbers = helper.gradients(helper.Task(), parts=parts)
    assert_close(found, whole, atol=1e-6, rtol=0)
    assert means(found_numbers) == pytest.approx(means(numbers), rel=1e-5)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("wrap", ["ddp", "fsdp2"])
def test_two_ranks_have_the_gradients_of_one(helper, folder, wrap, parts):
    """Captions differ in length: a mean over ranks of means over their own labels would differ."""
    whole, numbers = helper.gradients(helper.Task(), parts=1)
    losses = []
    for rank in (0, 1):
        found, part = read(folder, f"gradients-{wrap}-{parts}", rank)
        assert_close(found, whole, atol=1e-6, rtol=0)
        losses.append(part)
    assert losses[0].keys() == losses[1].keys() == numbers.keys()
    assert means(added(*losses)) == pytest.approx(means(numbers), rel=1e-5)
    assert losses[0]["main_text"][1] != losses[1]["main_text"][1]


def test_blocks_in_bfloat16_have_nearly_the_gradients_of_float32(helper, folder):
    whole, _ = helper.gradients(helper.Task(), parts=1)
    found, _ = read(folder, "gradients-bf16-2")
    assert {value.dtype for value in found.values()} == {torch.float32}
    one, other = (torch.cat([v[name].flatten() for name in sorted(whole)]) for v in (whole, found))
    assert 1e-4 < (one - other).norm() / one.norm() < 0.05


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "resumed", "taken-over"])
def test_a_run_of_two_ranks_is_that_of_one(folder, alone, name):
    """Weights, norms, and the held-out perplexities; `taken-over` was begun by one rank."""
    weights, log = alone
    for rank in (0, 1):
        found, (rows, _) = read(folder, name, rank)
        assert_close(found, weights, atol=1e-5, rtol=0)
        assert_same_log(rows, log, rel=1e-5)
        measured = [row["metrics"] for row in rows if row["split"] == "validation"]
        assert len(measured) == 2
        assert {"image_ppl_k0", "image_ppl_k2", "caption_ppl_wrong"} < measured[0].keys()


def test_rank_zero_is_told_what_all_ranks_drew(helper, folder):
    _, (_, digests) = read(folder, "ddp")
    assert digests == [helper.Task().examples_of(step).batch_digest for step in range(6)]
    assert read(folder, "ddp", 1)[1][1] == []


def test_one_rank_takes_over_a_sharded_run_of_two(helper, folder, alone, tmp_path):
    weights, log = alone
    shutil.copytree(folder / "by-two", tmp_path / "taken")
    found, rows = one_rank(helper, tmp_path / "taken")
    assert_close(found, weights, atol=1e-5, rtol=0)
    assert_same_log(rows, log, rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_shards_of_one_rank_are_the_whole(helper, alone, tmp_path, monkeypatch, device):
    """On a GPU by NCCL; interrupted and resumed."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1,
    )  # fmt: skip
    try:
        where = tmp_path / "checkpoints"
        with pytest.raises(helper.Interruption):
            one_rank(helper, where, wrap=shard_blocks, stop=helper.STOP, device=device)
        weights, log = one_rank(helper, where, wrap=shard_blocks, device=device)
    finally:
        torch.distributed.destroy_process_group()
    close = 1e-5 if device == "cpu" else 2e-3
    assert_close(weights, alone[0], atol=close, rtol=0)
    assert_same_log(log, alone[1], rel=close)


def test_resumed_by_as_many_ranks_it_has_the_same_bytes(folder):
    (weights, (log, _)), (found, (rows, _)) = read(folder, "fsdp2"), read(folder, "resumed")
    for name, value in weights.items():
        assert torch.equal(found[name], value), name
    assert rows == log


def test_a_checkpoint_of_shards_is_one_of_whole_tensors(helper, folder, alone):
    """File by file what one rank writes: names and shapes."""
    sharded, plain = (folder / name / "step-000000002" for name in ("by-two", "by-one"))
    model = helper.make_model()
    for part in ("model", "optimizer"):
        one, other = (load_file(path / f"{part}.safetensors") for path in (plain, sharded))
        assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in other.items()}
    assert one.keys() >= {f"{i}.exp_avg" for i in range(len(list(model.parameters())))}


def test_a_loss_that_is_not_finite_on_one_rank_ends_both_before_the_step(helper, folder):
    drawn = helper.Task().examples_of(helper.BAD)
    assert len(drawn.example_ids) == helper.STREAM.batch_size
    for rank in (0, 1):
        _, (step, names, text) = read(folder, "broken", rank)
        assert step == helper.BAD
        assert names == list(drawn.example_ids)
        assert drawn.batch_digest in text
    kept = [checkpoint.step for checkpoint in valid_checkpoints(folder / "broken", prefix="step")]
    assert kept == [2]


def test_accumulation_changes_no_run(helper, alone):
    weights, log = one_rank(helper, None, dataclasses.replace(helper.CONFIG, accumulate=4))
    assert_close(weights, alone[0], atol=1e-5, rtol=0)
    assert_same_log(log, alone[1], rel=1e-5)
    assert log[-1]["flops"] < alone[1][-1]["flops"]  # a part is padded to its own longest row


def test_more_micro_batches_than_rows_are_refused(helper):
    with pytest.raises(ValueError, match="8 rows of a rank and step have no part 0 of 9"):
        one_rank(helper, None, dataclasses.replace(helper.CONFIG, accumulate=9))


def test_another_configuration_is_refused_whoever_wrote_it(helper, folder):
    with pytest.raises(CheckpointError, match="another FitConfig"):
        one_rank(helper, folder / "whole", dataclasses.replace(helper.CONFIG, accumulate=2))
