"""A small real stage of each shape, over a real table kind."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from pipelines.runtime.executor import LocalExecutor

HELPER = Path(__file__).with_name("toy_stages.py")


@pytest.fixture(scope="session")
def toys():
    """The module of toy stages; it crosses to Ray workers by value."""
    import ray.cloudpickle

    name = "toy_stages"
    spec = importlib.util.spec_from_file_location(name, HELPER)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    ray.cloudpickle.register_pickle_by_value(module)
    yield module
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def local():
    return LocalExecutor()
