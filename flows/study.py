"""The flow `study`: every variant of a recipe on every split, what they share computed once."""

from __future__ import annotations

from prefect import flow

from flows.runner import concurrent
from flows.session import Session, open_session
from flows.tasks import publish_summary, run_steps
from pipelines.dag import dag_of
from pipelines.study import MAIN, Study, United, united

__all__ = ["study"]


@flow(name="study", task_runner=concurrent(), persist_result=False, validate_parameters=False)
def study(plan: Study) -> dict[str, dict[str, str]]:
    """Runs a study, split after split; what is there already is reused.

    Args:
        plan: the study.

    Returns:
        Artifact ids by step of each split, by its namespace.
    """
    found = {}
    for seed in plan.splits:
        asked = plan.asked_of(seed)
        if not asked:
            continue
        with open_session(plan.run(MAIN, seed), with_sources=True) as session:
            split = united_of(session, plan, seed)
            refer = split.of(MAIN) if MAIN in asked else ()
            run_steps(session, split.of(*asked), refer=refer)
            publish_summary(session, "study")
            found[plan.namespace(seed)] = {
                label: made.artifact_id for label, made in session.made.items()
            }
    return found


def united_of(session: Session, plan: Study, seed: int) -> United:
    """The DAG of a split, over the sources of its session."""
    runs = {name: plan.run(name, seed) for name in plan.of_split(seed)}
    return united(
        {
            name: dag_of(run, session.sources, session.fetch, run_id=session.run.run_id)
            for name, run in runs.items()
        }
    )
