"""`kill -9` in mid-stage: of the driver, of a Ray worker, of the worker that trains.

Two stores on one machine. The run over the first is left alone; the runs over the second are
killed: the driver while links are downloaded, a Ray worker while images are decoded, the worker
that trains a generator after it kept a checkpoint, and the driver once more in mid-training. What
is left at the end must be what the undisturbed run left, and nothing that had its receipt may have
been done again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from pipelines.runtime.catalog import manifests
from pipelines.runtime.reader import Reader
from pipelines.runtime.store import LocalStore
from storage_schemas.manifest import Manifest

pytestmark = [
    pytest.mark.slow,  # `smoke` twice, and the parts that were killed
    pytest.mark.ray,
    pytest.mark.prefect,
    pytest.mark.timeout(3600),
]

STEPS = 30  # of both generators of `smoke`
UP_TO_EXAMPLES = {
    *("ingest_metadata", "download_images", "normalize_images", "curate_documents"),
    *("train_text_tokenizer", "train_encoder", "train_scorer", "train_image_tokenizer"),
    *("embed_documents", "tokenize_images", "build_memory", "retrieve_contexts"),
    "assemble_examples",
}

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Started:
    """`racm3 run smoke` in a process of its own, and every process that came of it."""

    def __init__(self, store: Path, environment: dict[str, str], folder: Path) -> None:
        folder.mkdir()
        self.store, self._out, self._err = store, folder / "out", folder / "err"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli.main", "run", "smoke", "--json"],
                env=environment | {"RACM3_STORE": str(store)},
                cwd=folder,
                stdout=out,
                stderr=err,
            )
        self.driver = psutil.Process(self.process.pid)
        self.seen: dict[psutil.Process, str] = {}

    @property
    def told(self) -> str:
        """Standard error so far."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    def until(self, condition: Callable[[], T | None]) -> T:
        """Waits for a condition; the run must not end before."""
        while True:
            found = condition()
            if found is not None:
                return found
            assert self.process.poll() is None, f"too late: the run ended\n{self.told[-4000:]}"
            time.sleep(0.005)

    def tree(self) -> dict[psutil.Process, str]:
        """Processes below the driver, and what each calls itself now."""
        now = {}
        with contextlib.suppress(psutil.Error):
            for child in self.driver.children(recursive=True):
                with contextlib.suppress(psutil.Error, IndexError):
                    now[child] = child.cmdline()[0]
        self.seen |= now
        return now

    def busy_workers(self) -> list[psutil.Process]:
        """Ray workers that run a shard at this moment; not the children they decode in."""
        tree = self.tree()
        busy = [child for child, title in tree.items() if title.startswith("ray::Worker.run")]
        with contextlib.suppress(psutil.Error):
            return [child for child in busy if child.parent() not in busy]
        return []

    def trainers(self) -> dict[Path, psutil.Process]:
        """Ray Train's workers that train a generator, by the progress folder of what they train."""
        found = {}
        for child, title in self.tree().items():
            with contextlib.suppress(psutil.Error):
                if title.startswith("ray::RayTrainWorker"):
                    name = Path(child.cwd()).name  # Ray Train's name of the run
                    for folder in self.store.glob("_progress/train_generator/*"):
                        if (folder / name).is_dir():
                            found[folder] = child
        return found

    def kill_driver(self, *others: psutil.Process) -> None:
        """`kill -9`, then waits until no process of the run works any more."""
        self.tree()
        for one in (self.driver, *others):
            one.kill()
        self.process.wait()
        # Ray's two agents do no work of ours; they report to the dead for a minute before they end
        working = [one for one, title in self.seen.items() if not title.endswith("Agent")]
        _, alive = psutil.wait_procs(working, timeout=120)
        assert [self.seen[one] for one in alive] == []

    def finish(self) -> dict[str, Any]:
        """Waits for a good end; what the run printed."""
        while self.process.poll() is None:
            self.tree()
            time.sleep(0.1)
        assert self.process.returncode == 0, self.told[-4000:]
        result: dict[str, Any] = json.loads(self._out.read_text(encoding="utf-8"))
        return result

    def end(self) -> None:
        """Leaves no process behind, whatever happened."""
        self.tree()
        for one in (self.driver, *self.seen):
            with contextlib.suppress(psutil.Error):
                one.kill()
        self.process.wait()


Receipts = dict[str, tuple[int, int, bytes]]


def receipts(store: Path, stage: str) -> Receipts:
    """Receipts of a stage: name -> (inode, time of writing in ns, bytes)."""
    found: Receipts = {}
    for path in (store / "_receipts" / stage).glob("*.json"):
        stat = path.stat()
        found[path.name] = (stat.st_ino, stat.st_mtime_ns, path.read_bytes())
    return found


def some(store: Path, stage: str, shards: int) -> Receipts | None:
    """The receipts of a stage, when some shards are done and more than the workers hold are not."""
    if not (store / "_receipts" / stage).is_dir():
        return None
    found = receipts(store, stage)
    return found if 3 <= len(found) <= shards - 4 else None


def kill_worker(run: Started, stage: str, shards: int) -> Receipts:
    """Kills a Ray worker in the middle of a shard; the receipts that were there."""

    def caught() -> Receipts | None:
        for process in run.busy_workers() if some(run.store, stage, shards) else ():
            with contextlib.suppress(psutil.Error):
                process.suspend()
                there = some(run.store, stage, shards)
                if there and process in run.busy_workers():
                    process.kill()
                    return there
                process.resume()
        return None

    return run.until(caught)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A generator's progress on the disk."""

    folder: Path
    checkpoint: int
    """Step of the newest one."""
    draws: tuple[tuple[int, int, str], ...]
    """(step, contexts, batch digest), as they were drawn, those drawn again included."""

    @classmethod
    def of(cls, folder: Path) -> Training:
        steps = [int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoints/step-*")]
        draws = folder / "draws.jsonl"
        text = draws.read_text() if draws.is_file() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # without one that is being written
        return cls(
            folder=folder,
            checkpoint=max(steps, default=0),
            draws=tuple(tuple(json.loads(line)) for line in lines),
        )


def stop_in_training(
    run: Started, earlier: Training | None = None
) -> tuple[psutil.Process, Training]:
    """Stops a worker that trains, after a checkpoint and a step that would be lost.

    With `earlier`, the same training, beyond its checkpoint of then.
    """

    def caught() -> tuple[psutil.Process, Training] | None:
        for where, process in run.trainers().items():
            if (earlier is None or earlier.folder == where) and lossy(Training.of(where)):
                with contextlib.suppress(psutil.Error):
                    process.suspend()
                    time.sleep(0.05)
                    found = Training.of(where)
                    if lossy(found):
                        return process, found
                    process.resume()
        return None

    def lossy(now: Training) -> bool:
        beyond = earlier.checkpoint if earlier else 0
        return beyond < now.checkpoint <= now.draws[-1][0] < STEPS - 4

    return run.until(caught)


def resumed(run: Started, before: Training) -> tuple[int, int, str]:
    """The first batch that is drawn after `before`."""

    def drawn() -> tuple[int, int, str] | None:
        now = Training.of(before.folder)
        return now.draws[len(before.draws)] if len(now.draws) > len(before.draws) else None

    return run.until(drawn)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that ended well."""

    store: Path
    made: dict[str, Manifest]
    """Its artifacts, by step."""

    @classmethod
    def of(cls, run: Started) -> Finished:
        artifacts = run.finish()["artifacts"]
        by_id = {manifest.artifact_id: manifest for manifest in manifests(LocalStore(run.store))}
        made = {label: by_id[name] for label, name in artifacts.items()}
        return cls(store=run.store, made=made)


@dataclass(kw_only=True)
class Story:
    """What was killed, and what was there at that moment."""

    before_driver: Receipts = field(default_factory=dict)
    """Receipts of `download_images` when no process of the killed run was left."""
    before_worker: Receipts = field(default_factory=dict)
    """Receipts of `normalize_images` when the worker was killed."""
    told: str = ""
    """By the run whose workers were killed."""
    resumes: list[tuple[Training, tuple[int, int, str]]] = field(default_factory=list)
    """What lay on the disk when training was killed, and the first batch drawn after it."""
    end: Finished | None = None


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Iterator[Callable[[str], Started]]:
    """Starts `smoke` over a store of that name; at the end no process of any run is left."""
    folder = tmp_path_factory.mktemp("kills")
    environment = lab.environment | {"PREFECT_HOME": str(folder / "prefect")}
    runs: list[Started] = []

    def _start(store: str) -> Started:
        runs.append(Started(folder / store, environment, folder / f"run{len(runs)}"))
        return runs[-1]

    yield _start
    for run in runs:
        run.end()


@pytest.fixture(scope="module")
def alone(start: Callable[[str], Started]) -> Finished:
    """A run that was not disturbed."""
    return Finished.of(start("alone"))


@pytest.fixture(scope="module")
def story(start: Callable[[str], Started], alone: Finished) -> Story:
    """Kills, one after the other, and the run that finishes."""
    story = Story()
    shards = len(alone.made["download_images"].shards)

    run = start("killed")
    run.until(lambda: some(run.store, "download_images", shards))
    run.kill_driver()
    story.before_driver = receipts(run.store, "download_images")

    run = start("killed")
    story.before_worker = kill_worker(run, "normalize_images", shards)
    process, before = stop_in_training(run)
    process.kill()
    story.resumes.append((before, resumed(run, before)))
    process, before = stop_in_training(run, before)
    story.told = run.told
    run.kill_driver(process)

    run = start("killed")
    story.resumes.append((before, resumed(run, before)))
    story.end = Finished.of(run)
    return story


@pytest.fixture(scope="module")
def end(story: Story) -> Finished:
    """The last run over the store whose runs were killed."""
    assert story.end is not None
    return story.end


def test_what_had_its_receipt_is_not_done_again(
    story: Story, end: Finished, alone: Finished
) -> None:
    shards = len(alone.made["download_images"].shards)
    for stage, before, executed in (
        ("download_images", story.before_driver, shards - len(story.before_driver)),
        ("normalize_images", story.before_worker, shards),
    ):
        after = receipts(end.store, stage)
        assert len(after) == shards, stage
        assert end.made[stage].shards_executed == executed, stage
        assert {name: after[name] for name in before} == before, stage
        last = max(written for _, written, _ in before.values())
        new = [written for name, (_, written, _) in after.items() if name not in before]
        assert len(new) == shards - len(before), stage
        assert min(new) > last, stage
        _log.info("%s: %d of %d shards had their receipt", stage, len(before), shards)
    assert story.told.count("WorkerDied") == 1  # one item in hand, one item tried again


def test_every_content_is_that_of_an_undisturbed_run(end: Finished, alone: Finished) -> None:
    last = max(n for n, label in enumerate(alone.made) if label.startswith("assemble_examples"))
    compared = list(alone.made)[: last + 1]
    assert {label.partition("[")[0] for label in compared} >= UP_TO_EXAMPLES
    for label in compared:
        assert end.made[label].content_digest == alone.made[label].content_digest, label


def test_training_resumes_to_the_same_next_batch(story: Story, alone: Finished) -> None:
    by_id = {manifest.artifact_id: manifest for manifest in alone.made.values()}
    for before, (step, k, digest) in story.resumes:
        (batches,) = by_id[before.folder.name].tables("training_batches")
        drawn = {
            row["step"]: (row["k"], row["batch_digest"])
            for row in Reader(LocalStore(alone.store)).table(batches).to_pylist()
        }
        assert step == before.checkpoint <= before.draws[-1][0] < STEPS
        assert drawn[step] == (k, digest)
        _log.info(
            "%s: killed after drawing step %d, resumed at step %d",
            *(before.folder.name[:12], before.draws[-1][0], step),
        )
    first, second = (step for _, (step, _, _) in story.resumes)
    assert first < second


def test_a_resumed_generator_is_what_it_would_have_been(end: Finished, alone: Finished) -> None:
    for label in ("train_generator[ra]", "train_generator[vanilla]"):
        (mine,) = end.made[label].tables("training_batches")
        (theirs,) = alone.made[label].tables("training_batches")
        assert mine.rows == STEPS
        assert mine.row_digest == theirs.row_digest
        assert end.made[label].content_digest == alone.made[label].content_digest


def test_killed_runs_leave_nothing_half_done(end: Finished) -> None:
    assert LocalStore(end.store).list("_staging") == []
    assert LocalStore(end.store).list("_progress") == []
