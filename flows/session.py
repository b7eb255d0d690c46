"""One run as a flow sees it: store, executor, log, and what was made so far."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypeVar

from flows.settings import Settings
from pipelines.config import RunConfig
from pipelines.corpus import image_host, prepare_sources, register
from pipelines.dag import dag_of
from pipelines.errors import UsageError
from pipelines.fetch.policy import FetchSettings
from pipelines.gate import move_references, newest
from pipelines.runtime.catalog import resolve
from pipelines.runtime.context import Progress, RunContext, SilentProgress, start_run
from pipelines.runtime.executor import Builder, Executor, LocalExecutor, Outcome
from pipelines.runtime.ledger import as_selection, read_ledger
from pipelines.runtime.reader import Selection
from pipelines.runtime.run import run_stage
from pipelines.runtime.store import Store, open_store
from pipelines.scoring.inception import require_inception
from pipelines.stages.write_report import PAGE
from pipelines.step import Dag, Step
from pipelines.success import require_success
from storage_schemas.manifest import Manifest

__all__ = ["LazyExecutor", "Session", "fetch_settings", "open_session", "watched_by"]

T = TypeVar("T")
R = TypeVar("R")

_WATCHER: ContextVar[Progress | None] = ContextVar("racm3_watcher", default=None)
"""Who is told how far the stages are; a flow's parameters are the run and nothing else."""


@contextmanager
def watched_by(progress: Progress) -> Iterator[None]:
    """Flows that are called inside tell this one how far they are."""
    token = _WATCHER.set(progress)
    try:
        yield
    finally:
        _WATCHER.reset(token)


_EARLIER = {
    "ingest": (),
    "build_memory": ("ingest",),
    "retrain": ("ingest", "build_memory"),
    "evaluate": ("ingest", "build_memory", "retrain"),
}


class LazyExecutor:
    """Starts the real executor when the first stage must run, and not for a run that is reused."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._real: Executor | None = None
        self._stack = ExitStack()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def started(self) -> bool:
        """Whether any stage needed it."""
        return self._real is not None

    def map(
        self,
        build: Builder[T, R],
        items: Sequence[T],
        *,
        done: Callable[[int, Outcome[R]], None],
        gpu: bool = False,
        deadline: float | None = None,
    ) -> list[Outcome[R]]:
        """See `Executor.map`."""
        if not items:
            return []
        return self._executor().map(build, items, done=done, gpu=gpu, deadline=deadline)

    def fit(
        self,
        job: Callable[..., R],
        *,
        gpu: bool = False,
        workers: int = 0,
        folder: Path | None = None,
    ) -> R:
        """See `Executor.fit`."""
        return self._executor().fit(job, gpu=gpu, workers=workers, folder=folder)

    def _executor(self) -> Executor:
        with self._lock:
            if self._real is None:
                self._real = self._start()
            return self._real

    def _start(self) -> Executor:
        settings = self._settings
        if settings.executor == "local":
            return LocalExecutor()
        from pipelines.runtime.ray_executor import RayExecutor

        return self._stack.enter_context(
            RayExecutor(
                workers=settings.workers,
                gpus_per_actor=settings.gpus_per_actor,
                address=settings.ray_address,
            )
        )


@dataclass(kw_only=True)
class Session:
    """What the tasks of one flow run share."""

    settings: Settings
    config: RunConfig
    store: Store
    executor: Executor
    run: RunContext
    sources: Selection
    fetch: FetchSettings
    dag: Dag
    made: dict[str, Manifest] = field(default_factory=dict)
    """Artifacts by label of their step."""
    failures: list[BaseException] = field(default_factory=list)

    def execute(self, step: Step) -> Manifest:
        """Runs one step whose needs are made, and keeps its artifact."""
        call = step.make(self.made)
        if step.label == "download_images":
            check = require_success(self.store, call.stage.name, self.config.min_success)
            call = replace(call, accept=check)
        made = run_stage(call, store=self.store, executor=self.executor, run=self.run)
        self.made[step.label] = made
        return made

    def look_up(self, flow: str, artifacts: Mapping[str, str]) -> None:
        """Takes what earlier flows made: named artifacts first, else what the references say.

        Raises:
            UsageError: when something was never made, or a name is none of this run's labels.
        """
        steps = self.dag.of_flows(*_EARLIER[flow])
        unknown = sorted(set(artifacts) - {step.ref for step in steps})
        if unknown:
            known = ", ".join(step.ref for step in steps)
            raise UsageError(f"{flow}: artifact {unknown[0]} is no input; inputs are {known}")
        for step in steps:
            found = (
                resolve(self.store, f"{step.kind}/{artifacts[step.ref]}")
                if step.ref in artifacts
                else newest(self.store, self.config.namespace, step.ref, self.config.gate)
            )
            if found is None:
                raise UsageError(
                    f"{flow}: {self.config.namespace} has no {step.ref} yet; "
                    f"run the flow {step.flow} first"
                )
            self.made[step.label] = found

    def conclude(self, steps: Sequence[Step]) -> None:
        """Writes down what the run came to, and moves the references as far as the gate lets.

        Raises:
            GateRefused: when what was made is worse than what it would replace.
        """
        self.run.record_artifacts({label: made.artifact_id for label, made in self.made.items()})
        known = {s.ref: self.made[s.label] for s in self.dag.steps if s.label in self.made}
        made = {step.ref: known[step.ref] for step in steps}
        move_references(self.store, self.config.namespace, self.config.gate, made, known)

    @property
    def report_file(self) -> Path | None:
        """Where the report lies on this machine, once it is made."""
        made = self.made.get("write_report")
        return None if made is None else self.store.local(made.file(PAGE).path)


@contextmanager
def open_session(config: RunConfig, *, with_sources: bool) -> Iterator[Session]:
    """Opens store, run and executor; with the sources also the image host of the demo corpus.

    Args:
        config: the run.
        with_sources: prepare and register the sources, because links will be fetched.
    """
    settings = Settings()
    if config.score.inception is not None:
        require_inception(config.score.inception)  # not after hours of training
    store = open_store(settings.store)
    progress = _WATCHER.get() or SilentProgress()
    run = start_run(
        store,
        config.namespace,
        json.loads(config.model_dump_json()),
        progress=progress,
        max_poisoned=config.max_poisoned,
    )
    with ExitStack() as stack:
        hosts: dict[str, str] = {}
        if with_sources:
            progress.start("prepare_sources", 1, 0)
            corpus = prepare_sources(
                config,
                settings.cache,
                progress=lambda done, total: progress.advance("prepare_sources", done, total),
            )
            sources = register(store, config, corpus)
            progress.finish("prepare_sources", f"{len(sources.shards)} files")
            hosts = stack.enter_context(image_host(corpus))
        else:
            sources = as_selection(read_ledger(store, config.namespace))
        executor = stack.enter_context(LazyExecutor(settings))
        fetch = fetch_settings(settings, hosts)
        yield Session(
            settings=settings,
            config=config,
            store=store,
            executor=executor,
            run=run,
            sources=sources,
            fetch=fetch,
            dag=dag_of(config, sources, fetch, run_id=run.run_id),
        )


def fetch_settings(settings: Settings, hosts: Mapping[str, str]) -> FetchSettings:
    """How this machine fetches: which loopback hosts are allowed, which names are mapped."""
    return FetchSettings(host_map={**settings.host_map, **hosts}, allow=settings.allow_hosts)
