from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli.costs import plan_as_dict, print_plan
from flows.recipes import load_run
from pipelines.cost import Estimate, generator_cost
from pipelines.dag import dag_of
from pipelines.fetch.policy import FetchSettings
from pipelines.plan import PlannedStep, plan_of
from pipelines.runtime.ledger import as_selection
from pipelines.runtime.store import LocalStore

STEPS = [
    PlannedStep(label="a", flow="ingest", state="reused", artifact_id="1" * 64, seconds=9.0),
    PlannedStep(label="b", flow="ingest", state="to run", artifact_id="2" * 64, seconds=None),
    PlannedStep(
        label="train_generator[ra]", flow="retrain", state="pending", artifact_id=None, seconds=None
    ),
]
HOURS = {
    "b": Estimate(seconds=None, basis="never run here"),
    "train_generator[ra]": Estimate(seconds=7200.0, basis="1e+09 FLOP/s a worker, as given"),
}


def test_what_is_not_known_is_said_and_not_added_up() -> None:
    told = plan_as_dict(STEPS, HOURS, {})
    assert told["expected_seconds"] == 7200.0
    assert told["unknown"] == ["b"]
    assert [step["expected_seconds"] for step in told["steps"]] == [None, None, 7200.0]
    assert [step["basis"] for step in told["steps"]] == [None, *(h.basis for h in HOURS.values())]
    assert plan_as_dict(STEPS[:2], {"b": HOURS["b"]}, {})["expected_seconds"] is None


def test_the_hours_are_printed_for_each_generator_and_in_sum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_plan(STEPS, HOURS, {})
    printed = capsys.readouterr().out
    assert "1 of 3 steps are there" in printed
    assert "train_generator[ra]: 2 h (1e+09 FLOP/s a worker, as given)" in printed
    assert "expected: 2 h, one after the other, without the 1 steps that say unknown" in printed


def test_a_laion_plan_prints_what_its_generators_need(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = load_run("laion-350m")
    dag = dag_of(run, as_selection([]), FetchSettings())
    planned = plan_of(dag, LocalStore(tmp_path), sources_known=False)
    cost = generator_cost(run, "ra")
    assert cost is not None
    print_plan(planned, {}, {"ra": cost})
    printed = capsys.readouterr().out
    assert "373,617,664" in printed
    assert "9.5e+20" in printed
    assert f"{cost.memory.checkpointed / 2**30:.3g}" in printed
    assert "expected" not in printed.splitlines()[-1]
