import dataclasses
import math

import pytest
import torch
from torch import nn

from racm3.training.checkpoint import CheckpointError, valid_checkpoints
from racm3.training.fit import FitConfig, LogRow, fit
from racm3.training.records import NonFiniteLoss, StepExamples


class Interruption(Exception):
    pass


class LineTask:
    """Fits a small net with dropout to a noisy line; batches are functions of the step."""

    def __init__(self, *, seed=0, flops=10.0):
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.flops = flops
        self.average = torch.zeros(())

    def loss(self, step, *, rank, world_size):
        generator = torch.Generator().manual_seed(step * world_size + rank)
        x = torch.randn(16, 2, generator=generator)
        loss = (self.model(x)[:, 0] - x @ torch.tensor([1.0, -2.0])).square().mean()
        return loss, {"loss": loss.item(), "tokens": 16.0}

    def step_flops(self, step):
        return self.flops

    def after_step(self, step):
        self.average = 0.9 * self.average + 0.1 * self.model[0].weight.sum()

    def state_dict(self):
        return {"average": self.average}

    def load_state_dict(self, state):
        self.average = state["average"]


def validate(model):
    x = torch.linspace(-1, 1, 8).reshape(4, 2)
    return {"loss": (model(x)[:, 0] - x @ torch.tensor([1.0, -2.0])).square().mean().item()}


def config(**changes):
    values = {
        "steps": 12, "learning_rate": 0.05, "warmup_steps": 2, "validate_every": 3,
        "checkpoint_every": 2, "log_every": 4,
    }  # fmt: skip
    return FitConfig(**{**values, **changes})


def comparable(log):
    return [dataclasses.replace(row, seconds=0.0) for row in log]


def state_of(task):
    return {**task.model.state_dict(), "average": task.average}


def assert_same_run(task, result, other_task, other):
    for name, value in state_of(task).items():
        assert torch.equal(value, state_of(other_task)[name]), name
    assert comparable(result.log) == comparable(other.log)
    for field in ("best_step", "best_loss", "steps", "flops", "tokens", "stopped"):
        assert getattr(result, field) == getattr(other, field)


@pytest.fixture(scope="module")
def whole():
    task = LineTask()
    return task, fit(task, config(), validate=validate)


def test_a_run_lowers_the_loss_and_keeps_the_best_weights(whole):
    task, result = whole
    losses = [row.metrics["loss"] for row in result.log if row.split == "validation"]
    assert losses[-1] < losses[0]
    assert result.best_loss == min(losses)
    assert validate(task.model)["loss"] == result.best_loss
    assert result.steps == 12
    assert result.tokens == 12 * 16
    assert result.flops == 120.0


@pytest.mark.parametrize("stop_at", range(12))
def test_interrupted_at_any_step_and_resumed_equals_uninterrupted(tmp_path, whole, stop_at):
    class Fragile(LineTask):
        def loss(self, step, *, rank, world_size):
            if step == stop_at:
                raise Interruption
            return super().loss(step, rank=rank, world_size=world_size)

    with pytest.raises(Interruption):
        fit(Fragile(), config(), checkpoint_dir=tmp_path, validate=validate)
    task = LineTask()
    result = fit(task, config(), checkpoint_dir=tmp_path, validate=validate)
    assert_same_run(*whole, task, result)


def test_a_finished_run_is_not_run_again(tmp_path, whole):
    fit(LineTask(), config(), checkpoint_dir=tmp_path, validate=validate)
    task, rows = LineTask(seed=9), []
    result = fit(task, config(), checkpoint_dir=tmp_path, validate=validate, report=rows.append)
    assert rows == []
    assert_same_run(*whole, task, result)


@pytest.mark.parametrize("victim", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_torn_newest_checkpoint_falls_back_to_the_one_before(tmp_path, whole, victim):
    fit(LineTask(), config(), checkpoint_dir=tmp_path, validate=validate)
    newest = max(tmp_path.glob("step-*"))
    torn = newest / victim
    torn.write_bytes(torn.read_bytes()[:-1])
    task = LineTask(seed=9)
    seen = []
    result = fit(task, config(), checkpoint_dir=tmp_path, validate=validate, report=seen.append)
    assert min(row.step for row in seen) == 12
    assert_same_run(*whole, task, result)


def test_only_torn_checkpoints_are_an_error_not_a_fresh_start(tmp_path):
    fit(LineTask(), config(), checkpoint_dir=tmp_path, validate=validate)
    for path in tmp_path.glob("step-*/state.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="whole"):
        fit(LineTask(), config(), checkpoint_dir=tmp_path, validate=validate)


def test_another_configuration_is_refused(tmp_path):
    fit(LineTask(), config(), checkpoint_dir=tmp_path, validate=validate)
    with pytest.raises(CheckpointError, match="another FitConfig"):
        fit(LineTask(), config(steps=14), checkpoint_dir=tmp_path, validate=validate)


def test_only_the_newest_checkpoints_and_their_best_are_kept(tmp_path):
    fit(LineTask(), config(keep_checkpoints=2), checkpoint_dir=tmp_path, validate=validate)
    assert len(list(tmp_path.glob("step-*"))) == 2
    assert 1 <= len(list(tmp_path.glob("best-*"))) <= 2


def test_hooks_see_every_row_and_every_checkpoint(tmp_path):
    rows, saved = [], []
    result = fit(
        LineTask(), config(), checkpoint_dir=tmp_path, report=rows.append,
        after_checkpoint=lambda step, path: saved.append((step, path.name)),
    )  # fmt: skip
    assert tuple(rows) == result.log
    assert [step for step, _ in saved] == [2, 4, 6, 8, 10, 12]
    assert saved[-1][1] == result.best_path.name == "step-000000012"


def test_train_rows_average_the_steps_since_the_row_before():
    by_step = [row.metrics["loss"] for row in fit(LineTask(), config(log_every=1)).log]
    by_four = [row.metrics["loss"] for row in fit(LineTask(), config(log_every=4)).log]
    assert by_four == pytest.approx([sum(by_step[i : i + 4]) / 4 for i in (0, 4, 8)])


def test_a_sum_and_its_number_are_averaged_over_the_things_summed():
    class Counting(LineTask):
        def loss(self, step, *, rank, world_size):
            loss, metrics = super().loss(step, rank=rank, world_size=world_size)
            pair = (6.0, 3.0) if step % 2 else (0.0, 0.0)
            return loss, {**metrics, "often": pair, "never": (0.0, 0.0)}

    (row,) = fit(Counting(), config(steps=4)).log
    assert row.metrics["often"] == 2.0
    assert "never" not in row.metrics


def test_a_flops_budget_gives_models_of_any_cost_a_whole_schedule():
    cheap = fit(LineTask(flops=1.0), config(steps=None, flops_budget=24.0, log_every=1))
    dear = fit(LineTask(flops=4.0), config(steps=None, flops_budget=24.0, log_every=1))
    assert (cheap.steps, dear.steps) == (24, 6)
    assert cheap.stopped == dear.stopped == "flops"
    rate = lambda result, flops: next(r.learning_rate for r in result.log if r.flops > flops)  # noqa: E731
    assert rate(cheap, 12) == pytest.approx(rate(dear, 12))


def test_patience_ends_a_run_and_the_best_checkpoint_wins():
    losses = iter([3.0, 1.0, 2.0, 2.0])
    result = fit(
        LineTask(), config(patience=2, steps=100), validate=lambda _: {"loss": next(losses)}
    )
    assert (result.stopped, result.best_step, result.best_loss, result.steps) == (
        "patience",
        6,
        1.0,
        12,
    )


def test_the_wrapped_model_is_trained_and_the_bare_one_returned():
    class Plain(LineTask):
        def after_step(self, step):
            pass

    class Wrapper(nn.Module):
        calls = 0

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            Wrapper.calls += 1
            return self.inner(x)

    task, plain = Plain(), Plain()
    bare = task.model
    fit(task, config(), wrap=Wrapper)
    fit(plain, config())
    assert Wrapper.calls == 12
    assert task.model is bare
    assert torch.equal(task.model[0].weight, plain.model[0].weight)


def test_fit_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    task = LineTask()
    torch.manual_seed(5)
    fit(task, config(), validate=validate)
    assert torch.equal(torch.rand(3), expected)


class Broken(LineTask):
    """In step 5 a weight becomes infinite, or the loss does and its gradient does not."""

    def __init__(self, *, weight):
        super().__init__()
        self.weight = weight

    def loss(self, step, *, rank, world_size):
        if step == 5 and self.weight:
            with torch.no_grad():
                self.model[3].weight[0, 0] = math.inf
        loss, metrics = super().loss(step, rank=rank, world_size=world_size)
        return loss + (math.inf if step == 5 and not self.weight else 0.0), metrics

    def examples_of(self, step):
        return StepExamples(f"digest {step}", ("first", "second"))


@pytest.mark.parametrize("weight", [True, False])
def test_a_loss_that_is_not_finite_ends_before_the_step_and_the_last_checkpoint_is_good(
    tmp_path, whole, weight
):
    rows = []
    with pytest.raises(
        FloatingPointError, match=r"step 5 .* digest 5, examples first, second"
    ) as e:
        fit(
            Broken(weight=weight), config(log_every=1), checkpoint_dir=tmp_path,
            validate=validate, report=rows.append,
        )  # fmt: skip
    assert isinstance(e.value, NonFiniteLoss)
    assert e.value.step == 5
    assert rows[-1].step == 5
    assert not [row for row in rows if not math.isfinite(row.metrics["loss"])]
    newest = next(valid_checkpoints(tmp_path, prefix="step"))
    assert newest.step == 4
    assert all(tensor.isfinite().all() for tensor in newest.tensors["model"].values())
    mended = LineTask()
    result = fit(mended, config(log_every=1), checkpoint_dir=tmp_path, validate=validate)
    for name, value in state_of(whole[0]).items():
        assert torch.equal(state_of(mended)[name], value), name
    assert result.best_loss == whole[1].best_loss


def test_a_task_without_micro_batches_cannot_accumulate():
    with pytest.raises(ValueError, match="LineTask has no micro-batches"):
        fit(LineTask(), config(accumulate=2))


def test_parameter_groups_scale_the_rate_and_can_freeze():
    class Partial(LineTask):
        def parameter_groups(self, weight_decay):
            return [{"params": list(self.model[3].parameters()), "weight_decay": 0.0}]

    task, untouched = Partial(), LineTask()
    fit(task, config())
    assert torch.equal(task.model[0].weight, untouched.model[0].weight)
    assert not torch.equal(task.model[3].weight, untouched.model[3].weight)


def test_rows_are_frozen():
    row = fit(LineTask(), config(steps=1)).log[0]
    assert isinstance(row, LogRow)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.step = 3
