"""`racm3 classify`: of which class an image is, told by a few examples of each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table, use_store

__all__ = ["classify"]


def classify(
    image: Annotated[str, typer.Argument(help="Image file, or id of a document.")],
    classes: Annotated[
        list[str],
        typer.Option(
            "--class",
            metavar="LABEL=IMAGE,...",
            help="A class: its label and images of it (files or document ids); twice or more.",
        ),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe whose models are used; default: the only one in the store."),
    ] = None,
    model: Annotated[str, typer.Option(help="Name of the generator in the recipe.")] = "ra",
    all_orders: Annotated[
        bool, typer.Option(help="Average over the orders in which the classes are shown.")
    ] = True,
    all_labels: Annotated[
        bool, typer.Option(help="Average over which label stands for which class.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option(help="Divide by what the labels have without the image.")
    ] = False,
    out: Annotated[Path, typer.Option(help="JSON file that is written.")] = Path("classified.json"),
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Tell the class of an image from a few images of each class; labels may mean nothing."""
    import json

    from flows.settings import Settings
    from pipelines.ask import only_namespace
    from pipelines.classify import classify_image, read_classes
    from pipelines.runtime.store import open_store

    named = read_classes(classes)
    use_store(store)
    opened = open_store(Settings().store)
    told = classify_image(
        opened,
        recipe or only_namespace(opened),
        image,
        named,
        model=model,
        all_orders=all_orders,
        all_labels=all_labels,
        calibrate=calibrate,
    )
    facts = told.facts()
    out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        print_json({"file": str(out)} | facts)
        return
    print_table(
        f"{image}, by {len(told.sets)} of each class",
        ("class", "probability", *(f"set {n + 1}" for n in range(len(told.sets)))),
        [(label, p, *(one[label] for one in told.sets)) for label, p in told.probabilities.items()],
    )
    console().print(f"{out}: {told.label}, by {model} ({facts['generator'][:12]})", markup=False)
