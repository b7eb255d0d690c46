"""`benchmarks/laion_step.py` as a program, with less of everything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "laion_step.py"
SMALL = "--size tiny --device cpu --batch 4 --length 512 --image-tokens 64 --captions 16"
SMALLER = f"{SMALL} --codes 256 --ids 2048 --steps 2 --warmup 1 --threads 1"

ONLY = """
import runpy, sys
refused = {"pydantic", "pyarrow", "safetensors", "tokenizers", "faiss", "open_clip", "PIL", "ray"}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ImportError(name)
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", ONLY, str(SCRIPT), *SMALLER.split(), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def check(line):
    assert line["steps"] == 2
    for name in ("tokens", "model_flops"):
        per_step = line[f"{name}_per_second"] * line["seconds_per_step"]
        assert per_step == pytest.approx(line[f"{name}_per_step"])
    assert line["mfu"] == pytest.approx(line["model_flops_per_second"] / 1e12)
    assert line["peak_memory_bytes"] > line["formula_memory_bytes"] > 0
    assert 0 < line["first_loss"] < 20


@pytest.mark.timeout(120)
def test_it_prints_one_line_that_adds_up_and_needs_torch_and_numpy_only():
    packed = run("--peak", "1e12")
    check(packed)
    assert packed["padding"] == 0
    assert packed["tokens_per_step"] == packed["positions_per_step"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_samples_alone_read_the_same_tokens_and_compute_more():
    packed = run("--peak", "1e12")
    alone = run("--peak", "1e12", "--pack", "0", "--checkpoint", "--float32")
    check(alone)
    assert alone["tokens_per_step"] == packed["tokens_per_step"] < alone["positions_per_step"]
    assert alone["model_flops_per_step"] > packed["model_flops_per_step"]
    assert packed["first_loss"] == pytest.approx(alone["first_loss"], rel=0.01)
