import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.training.records import FitConfig, NonFiniteLoss, StepExamples


def config(**changes):
    values = {"steps": 12, "learning_rate": 0.05, "warmup_steps": 2}
    return FitConfig(**{**values, **changes})


@given(
    step=st.integers(0, 200), warmup=st.integers(0, 50), final=st.floats(0, 1),
    budget=st.none() | st.floats(1, 1e3), flops=st.floats(0, 2e3),
)  # fmt: skip
def test_the_learning_rate_stays_between_zero_and_its_peak(step, warmup, final, budget, flops):
    made = config(steps=100, warmup_steps=warmup, final_lr_fraction=final, flops_budget=budget)
    rate = made.learning_rate_at(step=step, flops=flops)
    assert 0 <= rate <= made.learning_rate * (1 + 1e-12)
    ended = made.learning_rate_at(step=200, flops=2e3)
    assert ended == pytest.approx(made.learning_rate * final)


@pytest.mark.parametrize(
    "bad",
    [{"steps": None}, {"steps": 0}, {"learning_rate": -1.0}, {"betas": (0.9, 1.0)}, {"clip": 0.0},
     {"warmup_steps": -1}, {"final_lr_fraction": 2.0}, {"patience": 0}, {"keep_checkpoints": 0},
     {"accumulate": 0}],
)  # fmt: skip
def test_a_configuration_that_cannot_run_is_refused(bad):
    with pytest.raises(ValueError, match=r"FitConfig"):
        config(**bad)


def test_a_loss_that_is_not_finite_crosses_processes_and_names_no_more_than_fits_a_sentence():
    ids = tuple(f"e{i}" for i in range(70))
    error = NonFiniteLoss(3, math.nan, 1.5, StepExamples("abc", ids))
    read = pickle.loads(pickle.dumps(error))
    assert isinstance(read, FloatingPointError)
    assert str(read) == str(error)
    assert read.examples == error.examples
    assert "step 3 has a loss of nan" in str(read)
    assert "batch abc, examples e0, e1" in str(read)
    assert "e63 and 6 more: lower" in str(read)
    assert "examples e" not in str(NonFiniteLoss(3, math.nan, 1.5))
