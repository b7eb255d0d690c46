import math

import pytest

from pipelines.training_events import TrainingEvents
from racm3.training.records import LogRow


def row(step, split="train", **metrics):
    return LogRow(
        step=step,
        split=split,
        metrics=metrics,
        tokens=32.0 * step,
        flops=1e3 * step,
        learning_rate=0.5,
        grad_norm=2.0,
        seconds=1.0,
    )


def test_rows_are_scalars_by_split_and_metric(tmp_path, read_events):
    with TrainingEvents(tmp_path / "fit") as events:
        events.add(row(10, loss=1.5))
        events.add(row(10, "validation", loss=1.25, psnr=math.inf))
    assert read_events(tmp_path / "fit") == [
        ("train/loss", 10, 1.5),
        ("train/learning_rate", 10, 0.5),
        ("train/grad_norm", 10, 2.0),
        ("train/tokens", 10, 320.0),
        ("train/flops", 10, 1e4),
        ("validation/loss", 10, 1.25),
    ]


def test_a_fit_that_resumes_shows_no_step_twice(tmp_path, read_events):
    runs = [[(2, 1.0), (4, 2.0), (6, 3.0), (8, 4.0)], [(6, 3.5), (8, 4.5), (10, 5.5)]]
    for run in runs:
        with TrainingEvents(tmp_path) as events:
            for step, loss in run:
                events.add(row(step, "validation", loss=loss))
    assert [(step, value) for _, step, value in read_events(tmp_path)] == [
        *((2, 1.0), (4, 2.0), (6, 3.5), (8, 4.5), (10, 5.5))
    ]


def test_a_fit_without_a_row_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), TrainingEvents(tmp_path / "fit"):
        raise RuntimeError
    assert not (tmp_path / "fit").exists()
