"""The store: exclusive, durable, nothing half done is visible."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines.errors import PipelineError
from pipelines.runtime.store import LocalStore, open_store
from pipelines.runtime.sweep import sweep_staging

ROOT = Path(__file__).parents[3]


def _python(code, *arguments, **options):
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, **options)


def test_put_if_absent_is_exclusive_among_eight_processes(store):
    code = """
        import sys
        from pathlib import Path
        from pipelines.runtime.store import LocalStore
        store, who = LocalStore(Path(sys.argv[1])), sys.argv[2]
        name, who = "_refs/race/{:03d}.json", who.encode()
        won = [n for n in range(50) if store.put_if_absent(name.format(n), who)]
        print(*won)
    """
    processes = [_python(code, store.uri, who) for who in range(8)]
    won = [p.communicate()[0].decode().split() for p in processes]
    assert sorted(int(n) for one in won for n in one) == list(range(50))
    for who, numbers in enumerate(won):
        for n in numbers:
            assert store.get(f"_refs/race/{int(n):03d}.json") == str(who).encode()


@pytest.mark.parametrize("kind", ["record", "data", "file"])
@pytest.mark.parametrize("moment", ["fsync", "name"])
def test_a_writer_killed_in_the_middle_leaves_nothing_visible(store, tmp_path, kind, moment):
    code = """
        import os, signal, sys
        from pathlib import Path
        from pipelines.runtime.store import LocalStore
        store, kind, moment = LocalStore(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
        def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
        source = Path(sys.argv[4]); source.write_bytes(b"0123456789")
        store.folder("kind/data"), store.folder("_staging/writes"), store.folder("_refs")
        if moment == "fsync":
            os.fsync = die
        else:
            os.link = die; Path.replace = die
        if kind == "record": store.put_if_absent("_refs/x.json", b"0123456789")
        if kind == "data": store.put_data("kind", b"0123456789", ".bin")
        if kind == "file": store.put_file("kind", source)
    """
    process = _python(code, store.uri, kind, moment, tmp_path / "source.bin")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert [key for key in store.list("") if not key.startswith("_staging")] == []
    assert sweep_staging(store) != []
    assert store.list("") == []
    assert store.put_if_absent("_refs/x.json", b"new")


def test_a_private_file_of_a_living_writer_is_not_swept(store):
    private = store._private()
    private.write_bytes(b"half")
    assert sweep_staging(store) == []
    assert private.exists()


def test_data_is_named_by_its_bytes_and_heals(store):
    path, digest = store.put_data("kind", b"content", ".bin")
    assert path == f"kind/data/{digest}.bin"
    store.local(path).write_bytes(b"altered")
    assert store.put_data("kind", b"content", ".bin") == (path, digest)
    assert store.get(path) == b"content"


def test_put_file_moves(store, tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"w")
    path, digest = store.put_file("generator", file)
    assert not file.exists()
    assert store.get(path) == b"w"
    file.write_bytes(b"w")
    assert store.put_file("generator", file) == (path, digest)
    assert not file.exists()


def test_addresses(tmp_path):
    assert open_store(f"file://{tmp_path}").uri == str(tmp_path)
    with pytest.raises(PipelineError, match="s3://bucket"):
        open_store("s3://bucket")
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="cannot be created"):
        LocalStore(tmp_path / "file" / "store")


def test_a_run_folder_is_swept_when_its_owner_is_dead(store):
    code = """
        import sys
        from pathlib import Path
        from pipelines.runtime.context import start_run
        from pipelines.runtime.store import LocalStore
        store = LocalStore(Path(sys.argv[1]))
        run = start_run(store, "test", {})
        store.folder(f"_staging/{run.run_id}/artifact")
        print(run.run_id, flush=True)
        sys.stdin.read()
    """
    process = _python(code, store.uri, stdin=subprocess.PIPE)
    run_id = process.stdout.readline().decode().strip()
    assert sweep_staging(store) == []
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert sweep_staging(store) == [run_id]
    assert not store.local(f"_staging/{run_id}").exists()
