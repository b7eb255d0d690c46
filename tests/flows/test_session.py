"""Which artifacts a flow continues from, and what its end moves."""

from __future__ import annotations

from typing import Any

import pytest
import score_tables as tables

from flows.recipes import load_run
from flows.session import Session, open_session
from flows.settings import Settings
from pipelines.dag import dag_of
from pipelines.errors import GateRefused, UsageError
from pipelines.fetch.policy import FetchSettings
from pipelines.runtime.catalog import publish, read_ref
from pipelines.runtime.context import artifacts_of_run, start_run
from pipelines.runtime.executor import LocalExecutor
from pipelines.runtime.ledger import as_selection

GATE = {
    "metric": "image_perplexity",
    "task": "image",
    "set": "familiar",
    "k": 2,
    "memory": "restricted",
    "model": "ra",
    "tolerance": 0.05,
}


class Runs:
    """Runs of `smoke` with a gate, whose steps only publish an empty artifact."""

    def __init__(self, store: Any) -> None:
        self.store, self.config = store, load_run("smoke", changes=[{"gate": [GATE]}])

    def session(self) -> Session:
        return Session(
            settings=Settings(),
            config=self.config,
            store=self.store,
            executor=LocalExecutor(),
            run=start_run(self.store, "smoke", {}),
            sources=as_selection([]),
            fetch=FetchSettings(),
            dag=dag_of(self.config, as_selection([]), FetchSettings()),
        )

    def flow(self, name: str, letter: str, perplexity: float = 0.0) -> Session:
        session = self.session()
        if name != "ingest":
            session.look_up(name, {})
        steps = session.dag.of_flows(name)
        for number, step in enumerate(steps):
            artifact_id = letter + f"{number:063d}"
            if step.kind == "scores":
                session.made[step.label] = self.scores(session, letter, perplexity)
            else:
                made = tables.manifest(step.kind, artifact_id)
                session.made[step.label] = publish(self.store, made)
        session.conclude(steps)
        return session

    def scores(self, session: Session, letter: str, perplexity: float) -> Any:
        generators = {
            name: session.made[f"train_generator[{name}]"].artifact_id for name in ("ra", "vanilla")
        }
        row = tables.row("image_perplexity", value=perplexity, better="lower", memory="restricted")
        return tables.put_scores(self.store, letter, [row], generators=generators)

    def state(self) -> str:
        """First letters of what the references name."""
        names = ("documents", "generator.ra", "generator.vanilla", "scores", "report")
        found = [read_ref(self.store, "smoke", name) for name in names]
        return "".join("-" if one is None else one.artifact_id[0] for one in found)


def test_the_nightly_flows_keep_the_better_generator(store: Any) -> None:
    runs = Runs(store)
    for flow in ("ingest", "build_memory", "retrain"):
        runs.flow(flow, "a")
    assert runs.state() == "a----"
    first = runs.flow("evaluate", "a", 5.0)
    assert runs.state() == "aaaaa"
    runs.flow("ingest", "b")
    runs.flow("retrain", "b")
    with pytest.raises(GateRefused, match="image_perplexity on familiar"):
        runs.flow("evaluate", "b", 6.0)
    assert runs.state() == "baaaa"
    runs.flow("retrain", "c")
    last = runs.flow("evaluate", "c", 5.2)
    assert runs.state() == "bcccc"
    for session, letter in ((first, "a"), (last, "c")):
        scores = artifacts_of_run(store, session.run.run_id)["score_generations"]
        assert scores == letter * 64


def test_a_run_that_was_refused_can_be_looked_at(store: Any) -> None:
    from pipelines.comparison import compare_scores, find_side

    runs = Runs(store)
    for flow, letter, value in (
        *(("ingest", "a", 0), ("build_memory", "a", 0), ("retrain", "a", 0), ("evaluate", "a", 5)),
        ("retrain", "b", 0),
    ):
        runs.flow(flow, letter, value)
    with pytest.raises(GateRefused):
        runs.flow("evaluate", "b", 6.0)
    (row,) = compare_scores(find_side(store, "smoke"), find_side(store, "bbbbbb"))
    assert (row.difference, row.verdict) == (1.0, "worse")


def test_missing_weights_are_noticed_before_anything_runs(tmp_path: Any) -> None:
    inception = {"path": str(tmp_path / "none.pth"), "sha256": "0" * 64}
    config = load_run("smoke", changes=[{"score": {"inception": inception}}])
    with (
        pytest.raises(UsageError, match="there is no file"),
        open_session(config, with_sources=False),
    ):
        pass
