"""`racm3 classify`: of which class an image is, told by a few examples of each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.ask import Model, Picture, Recipe, session_of
from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table

__all__ = ["classify"]


class Way(StrEnum):
    """See `pipelines.ask.classifying`."""

    channel = "channel"
    direct = "direct"


def classify(
    image: Picture,
    classes: Annotated[
        list[str],
        typer.Option(
            "--class",
            metavar="LABEL=IMAGE,...",
            help="A class: its label and images of it (files or document ids); twice or more.",
        ),
    ],
    recipe: Recipe = None,
    model: Model = "ra",
    method: Annotated[
        Way,
        typer.Option(
            help="channel: under which class's examples the image is likelier; direct: which label "
            "the generator would write under it, as RA-CM3 asks."
        ),
    ] = Way.channel,
    all_orders: Annotated[
        bool, typer.Option(help="Direct: average over the orders in which classes are shown.")
    ] = True,
    all_labels: Annotated[
        bool, typer.Option(help="Average over which label stands for which class.")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option(help="Direct: divide by what the labels have without the image.")
    ] = False,
    output: Annotated[
        Path, typer.Option("--output", "--out", help="JSON file that is written.")
    ] = Path("classified.json"),
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Tell the class of an image from a few images of each class; labels may mean nothing."""
    from pipelines.ask import Settings, check_output, read_classes

    named = read_classes(classes)
    check_output(output, beside=False)
    session = session_of(store, recipe, Settings(model=model))
    told = session.classify(
        session.read(image),
        {label: [session.read(one) for one in images] for label, images in named.items()},
        method=method.value,
        all_orders=all_orders,
        all_labels=all_labels,
        calibrate=calibrate,
    )
    record = told.save(output)
    if as_json:
        print_json(record)
        return
    print_table(
        f"{image}, by {len(told.sets)} of each class",
        ("class", "probability", *(f"set {n + 1}" for n in range(len(told.sets)))),
        [(label, p, *(one[label] for one in told.sets)) for label, p in told.probabilities.items()],
    )
    console().print(
        f"{output}: {told.label}, by {model} ({record['generator'][:12]})", markup=False
    )
