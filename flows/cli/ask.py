"""`racm3 generate`: an image from a caption, with the contexts that it was drawn with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table, use_store

__all__ = ["generate"]


def generate(
    prompt: Annotated[str, typer.Argument(help="Caption of the image to draw.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose models are used; default: the only one in the store."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the generator in the recipe.")] = "ra",
    memory: Annotated[
        str | None, typer.Option(help="Name of the memory; default: the largest there is.")
    ] = None,
    k: Annotated[int, typer.Option(min=0, help="Contexts put in front.")] = 2,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: the likeliest code.")] = 1.0,
    guidance: Annotated[
        float, typer.Option(help="Towards caption and contexts, away from neither; 1: off.")
    ] = 2.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds draw equal images.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file that is written.")] = Path("generated.png"),
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw an image from a caption, reading the memory."""
    from flows.settings import Settings
    from pipelines.prompt import draw_image, only_namespace
    from pipelines.runtime.store import open_store

    use_store(store)
    opened = open_store(Settings().store)
    drawn = draw_image(
        opened,
        recipe or only_namespace(opened),
        prompt,
        model=model,
        memory=memory,
        k=k,
        temperature=temperature,
        guidance=guidance,
        seed=seed,
    )
    out.write_bytes(drawn.png)
    if as_json:
        print_json({"file": str(out)} | drawn.facts())
        return
    print_table(
        "contexts, in the order fed",
        ("score", "document", "source", "caption"),
        [(c.score, c.document_id[:12], c.source, c.caption) for c in drawn.contexts],
    )
    console().print(f"{out}: drawn by {model} ({drawn.generator[:12]}), seed {seed}")
