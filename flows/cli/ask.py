"""`racm3 generate`, `caption`, `infill`, `edit`, `demonstrate`: a generator asked by hand.

Each writes what was drawn or written, and beside it a JSON file that says from what.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.opening import named_store
from flows.cli.options import AsJson, StoreOption
from flows.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from pipelines.ask import Answer, Session

__all__ = [
    "Model",
    "Picture",
    "Recipe",
    "caption",
    "demonstrate",
    "edit",
    "generate",
    "infill",
    "session_of",
]

Recipe = Annotated[
    str | None,
    typer.Option(help="Recipe whose models are used; default: the only one in the store."),
]
Model = Annotated[str, typer.Option(help="Generator: its name in the recipe, or an artifact id.")]
Memory = Annotated[
    str | None, typer.Option(help="Memory: its name, or an artifact id; default: the largest.")
]
K = Annotated[int, typer.Option(min=0, help="Contexts put in front, at most.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Equal seeds give equal results.")]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="0: the likeliest; default: 1, of texts .85.")
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Towards prompt and contexts, away from neither; default: 2, of texts 1."),
]
Count = Annotated[int, typer.Option("--candidates", min=1, help="Drawn; the best one is kept.")]
RankBy = Annotated[
    str | None,
    typer.Option(
        "--rank", help="Best by clip or by likelihood; default: clip, of texts likelihood."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "--out", help="File that is written, with a .json beside it."),
]
CaptionOption = Annotated[str | None, typer.Option("--caption", help="Caption of the result.")]
BoxOption = Annotated[
    str | None,
    typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Pixels of the picture that are drawn anew."),
]
Picture = Annotated[
    str, typer.Argument(help="PNG, JPEG, WebP or GIF file, or a document id.", metavar="IMAGE")
]
Prompt = Annotated[str, typer.Argument(help="Caption of the image to draw.")]


def generate(
    prompt: Prompt,
    recipe: Recipe = None,
    model: Model = "ra",
    memory: Memory = None,
    k: K = 2,
    temperature: Temperature = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    candidates: Count = 1,
    rank: RankBy = None,
    output: Output = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw an image from a caption, reading the memory."""
    settings = _settings(model, memory, k, seed, temperature, guidance, candidates, rank)
    _ask(
        lambda session: session.generate(prompt),
        settings,
        (store, recipe, output or Path("generated.png"), as_json),
    )


def caption(
    image: Picture,
    recipe: Recipe = None,
    model: Model = "ra",
    memory: Memory = None,
    k: K = 2,
    temperature: Temperature = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    candidates: Count = 1,
    rank: RankBy = None,
    output: Output = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Write the caption of an image, reading the memory."""
    settings = _settings(model, memory, k, seed, temperature, guidance, candidates, rank)
    _ask(
        lambda session: session.caption(session.read(image)),
        settings,
        (store, recipe, output or Path("caption.txt"), as_json),
    )


def infill(
    image: Picture,
    caption: CaptionOption = None,
    box: BoxOption = None,
    recipe: Recipe = None,
    model: Model = "ra",
    memory: Memory = None,
    k: K = 2,
    temperature: Temperature = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    candidates: Count = 1,
    rank: RankBy = None,
    output: Output = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw a box of an image anew; without --box write the words at ___ in its caption."""
    from pipelines.ask import HOLE, read_box
    from pipelines.errors import UsageError

    settings = _settings(model, memory, k, seed, temperature, guidance, candidates, rank)
    if (box is None) == (HOLE not in (caption or "")):
        raise UsageError(f"infill: give either --box, or a --caption with one {HOLE} in it")
    pixels = read_box(box) if box is not None else None

    def task(session: Session) -> Answer:
        given = session.read(image)
        if pixels is None:
            return session.infill_text(given, caption or "")
        return session.infill(given, pixels, caption)

    default = Path("infilled.png" if pixels else "infilled.txt")
    _ask(task, settings, (store, recipe, output or default, as_json))


def edit(
    image: Picture,
    supplied: Annotated[
        str,
        typer.Option(
            "--with", metavar="DOC", help="Document supplied: FILE:CAPTION, FILE or a document id."
        ),
    ],
    caption: CaptionOption = None,
    box: BoxOption = None,
    recipe: Recipe = None,
    model: Model = "ra",
    temperature: Temperature = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    candidates: Count = 1,
    rank: RankBy = None,
    output: Output = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw a box of an image, or all of it, anew under a document that you supply."""
    from pipelines.ask import read_box

    settings = _settings(model, None, 2, seed, temperature, guidance, candidates, rank)
    pixels = read_box(box) if box is not None else None
    _ask(
        lambda session: session.edit(session.read(image), session.read(supplied), caption, pixels),
        settings,
        (store, recipe, output or Path("edited.png"), as_json),
    )


def demonstrate(
    prompt: Prompt,
    demonstrations: Annotated[
        list[str],
        typer.Option(
            "--with",
            metavar="DOC",
            help="Document to read: FILE:CAPTION or a document id; repeat it, in this order.",
        ),
    ],
    recipe: Recipe = None,
    model: Model = "ra",
    temperature: Temperature = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    candidates: Count = 1,
    rank: RankBy = None,
    output: Output = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Draw an image from a caption after documents that you pick."""
    settings = _settings(
        model, None, len(demonstrations), seed, temperature, guidance, candidates, rank
    )
    _ask(
        lambda session: session.demonstrate(prompt, [session.read(one) for one in demonstrations]),
        settings,
        (store, recipe, output or Path("demonstrated.png"), as_json),
    )


# --- the same for all ---------------------------------------------------------------------------


def _settings(
    model: str,
    memory: str | None,
    k: int,
    seed: int,
    temperature: float | None,
    guidance: float | None,
    candidates: int,
    rank: str | None,
) -> Any:
    from pipelines.ask import Settings
    from pipelines.errors import UsageError

    if rank not in (None, "clip", "likelihood"):
        raise UsageError(f"--rank {rank}: it is clip or likelihood")
    return Settings(
        model=model,
        memory=memory,
        k=k,
        seed=seed,
        temperature=temperature,
        guidance=guidance,
        candidates=candidates,
        rank=rank,  # type: ignore[arg-type]  # checked above
    )


def session_of(store: str | None, recipe: str | None, settings: Any) -> Session:
    """A generator of a store's recipe, or of the only recipe there."""
    from pipelines.ask import Session, only_namespace

    opened = named_store(store)
    return Session(opened, recipe or only_namespace(opened), settings)


def _ask(
    task: Callable[[Session], Answer],
    settings: Any,
    where: tuple[str | None, str | None, Path, bool],
) -> None:
    """Draws, saves, and prints what was saved."""
    from pipelines.ask import check_output

    store, recipe, output, as_json = where
    check_output(output)
    answer = task(session_of(store, recipe, settings))
    record = answer.save(output)
    if as_json:
        print_json(record)
        return
    if answer.text is not None:
        print_table("", ("written",), [(answer.text,)])
    print_table(
        "contexts, in the order fed",
        ("score", "document", "source", "caption"),
        [
            (c["score"], (c["document_id"] or c["sha256"])[:12], c["source"], c["caption"])
            for c in record["contexts"]
        ],
    )
    for note in record["notes"]:
        print_table("", ("note",), [(note,)])
    console().print(
        f"{output}, {output.with_suffix('.json')}: {record['task']} by {record['model']} "
        f"({record['generator'][:12]}), seed {record['seed']}",
        markup=False,
    )
