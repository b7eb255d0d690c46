"""`racm3 status`, `racm3 show`, `racm3 lineage`: looking at what is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from flows.cli.opening import used_store
from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table, print_trees

__all__ = ["lineage", "show", "status"]


def status(store: StoreOption = None, as_json: AsJson = False) -> None:
    """List what the references point at, and all artifacts."""
    from pipelines.runtime.catalog import manifests, read_ref

    opened = used_store(store)
    names = sorted({key.rpartition("/")[0].removeprefix("_refs/") for key in opened.list("_refs")})
    refs = {}
    for name in names:
        namespace, _, ref = name.partition("/")
        found = read_ref(opened, namespace, ref)
        refs[name] = found.artifact_id if found else None
    held = sorted(manifests(opened), key=lambda manifest: manifest.created_at)
    if as_json:
        rows = [_brief(manifest) for manifest in held]
        print_json({"store": opened.uri, "references": refs, "artifacts": rows})
        return
    print_table(f"store {opened.uri}", ("reference", "artifact"), refs.items())
    columns = ("kind", "artifact", "created_at", "rows_in", "rows_out", "left behind", "run")
    print_table(
        "",
        columns,
        [
            (
                *(m.kind, m.artifact_id[:12], m.created_at, m.rows_in, m.rows_out),
                *(", ".join(f"{k} {v}" for k, v in m.dropped.items()) or "-", m.run_id[:8]),
            )
            for m in held
        ],
    )


def show(
    artifact: Annotated[str, typer.Argument(help="Id, at least 6 digits of it, or kind/id.")],
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Show one artifact: what it was made of, what it holds, what was left behind."""
    from pipelines.runtime.catalog import resolve

    manifest = resolve(used_store(store), artifact)
    if as_json:
        print_json(asdict(manifest) | {"content_digest": manifest.content_digest})
        return
    out = console()
    out.print(f"[bold]{manifest.kind}[/bold] {manifest.artifact_id}", soft_wrap=True)
    facts = _brief(manifest) | dict(manifest.counts) | dict(manifest.facts)
    print_table("", ("what", "value"), facts.items())
    print_table(
        "made of", ("input", "kind", "artifact"),
        [(one.name, one.kind, one.artifact_id) for one in manifest.inputs],
    )  # fmt: skip
    print_table(
        "holds", ("name", "rows", "bytes", "file", "tags"),
        [(s.name, s.rows, s.bytes, s.path, dict(s.tags)) for s in manifest.shards],
    )  # fmt: skip


def lineage(
    name: Annotated[str, typer.Argument(help="URL, or id of a generation, row, document.")],
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Trace a generated picture back to its sources, or a URL forward to all that used it."""
    from pipelines.lineage import lineage_of

    nodes = lineage_of(used_store(store), name)
    if as_json:
        print_json([node.to_dict() for node in nodes])
    else:
        print_trees(nodes)


def _brief(manifest: Any) -> dict[str, Any]:
    return {
        "kind": manifest.kind,
        "artifact_id": manifest.artifact_id,
        "stage": f"{manifest.stage} {manifest.stage_version}",
        "created_at": manifest.created_at,
        "run_id": manifest.run_id,
        "rows_in": manifest.rows_in,
        "rows_out": manifest.rows_out,
        "dropped": dict(manifest.dropped),
        "seconds": manifest.seconds,
        "shards_executed": manifest.shards_executed,
        "content_digest": manifest.content_digest,
    }
