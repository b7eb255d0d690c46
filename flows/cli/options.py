"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["AsJson", "Changes", "File", "Name", "StoreOption"]

Name = Annotated[str, typer.Argument(help="Recipe (smoke, emoji, laion-125m, ...) or TOML file.")]
File = Annotated[str | None, typer.Argument(help="TOML file laid over the recipe.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key, as a.b.c=value; repeatable."),
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Folder of the store (default: RACM3_STORE, store).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
