"""The commands of `racm3`, put together."""

from __future__ import annotations

import typer

from flows.cli import ask, classify, look, serve, work
from flows.cli import study as studies
from flows.cli.compare import compare

__all__ = ["app"]

app = typer.Typer(
    name="racm3",
    help="Build and measure RA-CM3, a retrieval-augmented generator of images and text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("run")(work.run)
app.command("plan")(work.plan)
app.command("status")(look.status)
app.command("show")(look.show)
app.command("lineage")(look.lineage)
app.command("compare")(compare)
app.command("generate")(ask.generate)
app.command("caption")(ask.caption)
app.command("infill")(ask.infill)
app.command("edit")(ask.edit)
app.command("demonstrate")(ask.demonstrate)
app.command("classify")(classify.classify)
app.command("study")(studies.study)
app.command("deploy")(serve.deploy)


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks (anywhere on the line)."),
) -> None:
    """Errors are one sentence; exit codes: 0 done, 1 failed, 2 usage, 3 found something wrong."""
