"""The sampler that the benchmark compares with is the same sampler, only without a cache."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("sampling")


def test_both_samplers_draw_the_same_ids(benchmark):
    from flows.recipes import load_run

    model, layout = benchmark.emoji_generator()
    config = load_run("emoji").generate.images
    asked = benchmark.prompts(1, layout)
    model.double()
    drawn = benchmark.with_cache(model, layout, asked, 2, config)
    assert drawn == benchmark.without_cache(model, layout, asked, 2, config)
    assert len(set(drawn)) == 2
    assert all(len(codes) == layout.image_tokens for codes in drawn)
